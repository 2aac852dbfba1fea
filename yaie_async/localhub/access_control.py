"""Access control: tokens for the whole hub, and grants for gated models."""

from collections.abc import Collection, Iterable, Mapping

from yaie_async.localhub.errors import HubError, repo_not_found


class AccessControl:
    """The valid tokens of the hub, and its gated models.

    Without tokens, anonymous callers may read and any token is valid. `gated` names the gated models, or maps each to
    the tokens that have access.
    """

    def __init__(self, tokens: Iterable[str], gated: Iterable[str] | Mapping[str, Collection[str]]) -> None:
        self._tokens = frozenset(tokens)
        self._granted: dict[str, frozenset[str]] = (
            {model: frozenset(granted) for model, granted in gated.items()}
            if isinstance(gated, Mapping)
            else dict.fromkeys(gated, frozenset())
        )

    def is_gated(self, model: str) -> bool:
        """Return whether the model is gated."""
        return model in self._granted

    def authenticate(self, authorization: str | None) -> str | None:
        """Return the caller's token, or None for an anonymous caller.

        Raises:
            HubError: 401, if the token is not valid, or is missing while the hub requires one.
        """
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            if self._tokens:
                raise repo_not_found(authenticated=False)
            return None
        if self._tokens and token not in self._tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        return token

    def authorize(self, model: str, token: str | None) -> None:
        """Check that the caller may read the files of a model.

        Raises:
            HubError: `GatedRepo`, with 401 for an anonymous caller and 403 for a token without access.
        """
        granted = self._granted.get(model)
        if granted is None or token in granted:
            return
        if token is None:
            raise HubError(
                401,
                f"Access to model {model} is restricted. You must have access to it and be authenticated to "
                "access it. Please log in.",
                code="GatedRepo",
            )
        raise HubError(
            403,
            f"Access to model {model} is restricted and you are not in the authorized list.",
            code="GatedRepo",
        )

"""The settings of a Hub, read from the environment when it opens. Their meaning is the official client's."""

import platform
import re
from base64 import b64encode
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from huggingface_hub import __version__ as hub_version
from huggingface_hub import get_token, is_offline_mode

from yaie_async import __version__
from yaie_async.core.compat import version
from yaie_async.core.errors import InvalidArgumentError, TokenMissingError
from yaie_async.fetch.origin import origin_of, split_userinfo
from yaie_async.store.compat import constant

# The origins that huggingface_hub treats as the Hub, in addition to HF_ENDPOINT. They may see the token.
_HUBS = ("https://huggingface.co", "https://hub-ci.huggingface.co", "https://hf.co")


@dataclass(frozen=True, slots=True)
class Settings:
    """One Hub's view of the environment."""

    endpoint: str  # base URL without a trailing slash, and without the credentials that it may have come with
    cache_dir: Path  # resolved root of the HF cache; it may not exist yet
    token: str | None = field(repr=False)  # the Hub token to send
    credentials: str | None = field(repr=False)  # the header that stands for user:password@ in the endpoint
    offline: bool  # whether requests are forbidden
    user_agent: str
    metadata_timeout: float  # seconds for a request for metadata (HF_HUB_ETAG_TIMEOUT)
    stall_timeout: float  # seconds without a byte after which a body has stalled (HF_HUB_DOWNLOAD_TIMEOUT)

    def is_hub(self, url: str) -> bool:
        """Whether it is a URL of the Hub. Other origins may not see the token."""
        with suppress(ValueError):  # it is no URL
            return origin_of(url) in {origin_of(self.endpoint), *map(origin_of, _HUBS)}
        return False

    def authorization(self, url: str) -> str | None:
        """The header of that name for a request: the endpoint's credentials go to its origin, a token to the Hub."""
        if self.credentials and origin_of(url) == origin_of(self.endpoint):
            return self.credentials
        return f"Bearer {self.token}" if self.token and self.is_hub(url) else None


def read_settings(
    *,
    cache_dir: str | Path | None,
    token: str | bool | None,
    endpoint: str | None,
    local_files_only: bool | None,
) -> Settings:
    """Merge arguments and environment. Blocks: it reads the token file and may refresh an OAuth token.

    Raises TokenMissingError when `token=True` and no token is stored; InvalidArgumentError.
    """
    base = (endpoint or constant("ENDPOINT")).rstrip("/")
    if not _is_http(base):
        shown = re.sub("(?<=//).*@|^.*@", "...@", base)  # what may be a password is not repeated
        raise InvalidArgumentError(
            f"The endpoint {shown!r} is not an http(s) URL. Set HF_ENDPOINT or endpoint= to one, "
            "or leave it out for https://huggingface.co."
        )
    offline = is_offline_mode() if local_files_only is None else local_files_only
    sent = None if offline else _token(token=token)
    if sent is not None and not (sent.isascii() and sent.isprintable() and " " not in sent):
        raise InvalidArgumentError(
            "The token has characters that a token can't have (a space, a line break, a letter with an accent). "
            "Copy it again from https://huggingface.co/settings/tokens."
        )
    base, userinfo = split_userinfo(base)
    user, _, password = map(unquote, userinfo.partition(":"))
    basic = b64encode(f"{user}:{password}".encode(errors="surrogateescape")).decode()
    return Settings(
        endpoint=base,
        cache_dir=_cache_dir(cache_dir or constant("HF_HUB_CACHE")),
        token=sent,
        credentials=f"Basic {basic}" if userinfo else None,
        offline=offline or is_offline_mode(),
        user_agent=_user_agent(),
        metadata_timeout=float(constant("HF_HUB_ETAG_TIMEOUT")),
        stall_timeout=float(constant("HF_HUB_DOWNLOAD_TIMEOUT")),
    )


def _token(*, token: str | bool | None) -> str | None:
    if isinstance(token, str):
        return token
    if token is False or (token is None and constant("HF_HUB_DISABLE_IMPLICIT_TOKEN")):
        return None
    stored = get_token()
    if stored is None and token:
        raise TokenMissingError(
            "token=True asks for the stored token, but no token is stored. Run `hf auth login`, set HF_TOKEN, "
            "or pass the token itself."
        )
    return stored


def _is_http(url: str) -> bool:
    with suppress(ValueError):
        scheme, host, _ = origin_of(url)
        return scheme in ("http", "https") and bool(host)
    return False


def _cache_dir(path: str | Path) -> Path:
    try:
        return Path(path).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise InvalidArgumentError(
            f"{str(path)!r} can't be a cache directory: {error}. Set HF_HUB_CACHE or cache_dir to another path."
        ) from error


def _user_agent() -> str:
    # build_hf_headers would add the harness it runs under, for which it may make a blocking request.
    parts = [f"yaie_async/{__version__}", f"hf_hub/{hub_version}", f"python/{platform.python_version()}"]
    if (torch := version("torch")) is not None and not constant("HF_HUB_DISABLE_TELEMETRY"):
        parts.append(f"torch/{torch}")
    if requester := constant("HF_HUB_USER_AGENT_ORIGIN"):
        parts.append(f"origin/{requester}")
    return "; ".join(parts)

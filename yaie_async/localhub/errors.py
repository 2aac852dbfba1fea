"""Error responses of the Hub: a status, `X-Error-Code`, `X-Error-Message`, and the message as JSON.

The message is also in a header because the response to HEAD has no body.
"""

from starlette.responses import JSONResponse, Response


class HubError(Exception):
    """Raised to answer a request with an error; `response()` is that answer."""

    def __init__(self, status: int, message: str, *, code: str | None = None, commit: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.commit = commit

    def response(self) -> Response:
        """Return the response in the Hub's format."""
        message = str(self)
        headers = {"X-Error-Message": message.encode("ascii", "backslashreplace").decode()}
        if self.code:
            headers["X-Error-Code"] = self.code
        if self.commit:
            headers["X-Repo-Commit"] = self.commit
        if self.status in (408, 413):
            headers["Connection"] = "close"  # what is left of the body is not read
        if self.status == 503:
            headers["Retry-After"] = "1"
        return JSONResponse({"error": message}, status_code=self.status, headers=headers)


def not_found() -> HubError:
    """Return the answer to an unknown path: 404 without an error code."""
    return HubError(404, "Sorry, we can't find the page you are looking for.")


def repo_not_found(*, authenticated: bool) -> HubError:
    """Return the answer to a missing model, and to a private one that the caller may not see."""
    if authenticated:
        return HubError(404, "Repository not found", code="RepoNotFound")
    return HubError(401, "Invalid username or password.", code="RepoNotFound")


def revision_not_found(revision: str) -> HubError:
    """Return the answer to an unknown branch, tag or commit of a model that exists."""
    # `repr` escapes line breaks, which a header can't have; a revision in a URL may be arbitrarily long.
    return HubError(404, f"Invalid rev id: {revision[:200]!r}", code="RevisionNotFound")


def entry_not_found(commit: str) -> HubError:
    """Return the answer to a file that the commit does not have. Clients cache the absence for `commit`."""
    return HubError(404, "Entry not found", code="EntryNotFound", commit=commit)


def file_changed(path: str) -> HubError:
    """Return the answer to a file that is not the listed one any more. The next request lists the files again."""
    return HubError(503, f"The file {path} was changed while it was read. Try again.")


def unreadable(what: str) -> HubError:
    """Return the answer where the server may not read what it is asked for: trying again does not help."""
    return HubError(403, f"The server can't read {what}. Check the folder that it serves.")

"""What the Hub answers instead of a file: a status, `X-Error-Code`, `X-Error-Message` and the same text as JSON.

Clients read the headers first, since the answer to a HEAD has no body.
"""

from __future__ import annotations

from starlette.responses import JSONResponse, Response


class HubError(Exception):
    """Raised when a request is answered with an error; `response()` is that answer."""

    def __init__(self, status: int, message: str, *, code: str | None = None, commit: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.commit = commit

    def response(self) -> Response:
        """Return the error as the Hub words it."""
        message = str(self)
        headers = {"X-Error-Message": message.encode("ascii", "backslashreplace").decode()}
        if self.code:
            headers["X-Error-Code"] = self.code
        if self.commit:
            headers["X-Repo-Commit"] = self.commit
        return JSONResponse({"error": message}, status_code=self.status, headers=headers)


def not_found() -> HubError:
    """Return the answer to a path that is no endpoint: a bare 404, without an error code."""
    return HubError(404, "Sorry, we can't find the page you are looking for.")


def repo_not_found(*, authenticated: bool) -> HubError:
    """Return the one answer to a model that does not exist and to one that the caller may not know of."""
    if authenticated:
        return HubError(404, "Repository not found", code="RepoNotFound")
    return HubError(401, "Invalid username or password.", code="RepoNotFound")


def revision_not_found(revision: str) -> HubError:
    """Return the answer to an unknown branch, tag or commit of a model that exists."""
    # repr: a revision may hold a line break, which no header may; and it may be of any length.
    return HubError(404, f"Invalid rev id: {revision[:200]!r}", code="RevisionNotFound")


def entry_not_found(commit: str) -> HubError:
    """Return the answer to a file that this commit lacks; clients cache the absence under the commit."""
    return HubError(404, "Entry not found", code="EntryNotFound", commit=commit)

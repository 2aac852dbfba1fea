"""Maps a failed HTTP request to a LoaderError, or to a TransientError if a retry may help."""

import json
import math
import os
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import httpx

from yaie_async.core.errors import (
    GatedModelError,
    HubUnavailableError,
    LoaderError,
    ModelFileNotFoundError,
    ModelNotFoundError,
    RevisionNotFoundError,
    StalledError,
    printable,
)
from yaie_async.fetch.certificates import overlooked_variable

Kind = Literal["connect", "read", "stall", "truncated", "range", "status"]

# Of another host than the Hub: its signed URL has expired.
REFUSED = {401, 403, 410}
# 416 for a range inside the file comes from a CDN edge that has another version of it.
_PASSING = {408, 416, 425, 429, 500, 502, 503, 504}

_LONGEST_ASKED = 1e9  # seconds; a longer number is no wait, and may be more than a float holds
_LONGEST_HEADER = 200  # characters; what comes after them is not looked at


class TransientError(Exception):
    """Raised for a failure that may pass. Never leaves the fetch layer."""

    def __init__(self, text: str, *, kind: Kind, status: int | None = None, wait: float | None = None) -> None:
        super().__init__(printable(text, 1000))
        self.kind: Kind = kind
        self.status = status  # None without a response
        self.wait = wait  # seconds that the server asked to wait (Retry-After, RateLimit), or None


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request was for, as errors and log records name it."""

    model: str
    revision: str
    file: str | None
    has_token: bool  # or the endpoint has credentials

    @property
    def what(self) -> str:
        """The model, or the file with its model."""
        return f"{self.file} of {self.model}" if self.file else self.model

    @property
    def facts(self) -> dict[str, str | None]:
        """The fields of log records."""
        return {"model": self.model, "file": self.file, "stage": "downloading" if self.file else "resolving"}

    def unavailable(self, text: str, **context: Any) -> HubUnavailableError:
        """The error for a Hub that did not answer as a Hub does."""
        return HubUnavailableError(text, model=self.model, file=self.file, **context)

    def misled(self, problem: str, **context: Any) -> HubUnavailableError:
        """The error for a request that a server leads to a wrong place."""
        advice = "Check HF_ENDPOINT and any proxy on the way to it."
        return self.unavailable(f"The request for {self.what} failed: {problem}. {advice}", **context)

    def transient(self, text: str, kind: Kind, **context: Any) -> TransientError:
        """A failure that may pass."""
        return TransientError(f"{self.what}: {text}", kind=kind, **context)


def failure(
    status: int, headers: Mapping[str, str], body: str, url: str, asked: Asked, *, hub: bool
) -> LoaderError | TransientError:
    """The error for a 4xx or 5xx response. The Hub's error codes come first, in the order of the official client."""
    code = headers.get("x-error-code", "")
    said = printable(headers.get("x-error-message") or _error_in(body))
    what, host = asked.what, httpx.URL(url).host
    context: dict[str, Any] = {
        "model": asked.model,
        "file": asked.file,
        "status": status,
        "url": str(httpx.URL(url).copy_with(query=None)),  # the query may be a signature
        "headers": headers,
        "server_message": said or None,
    }
    if code == "RevisionNotFound":
        return RevisionNotFoundError(
            f"{asked.model} has no revision {asked.revision!r}. Give a branch, a tag or a full commit hash "
            "that its page lists.",
            revision=asked.revision,
            **context,
        )
    if code == "EntryNotFound":
        return ModelFileNotFoundError(f"The Hub does not have {what} at this revision.", **context)
    if status in _PASSING or (not hub and status in REFUSED):
        text = f"HTTP {status} from {host}{f' ({said})' if said else ''}"
        return asked.transient(text, "status", status=status, wait=asked_wait(headers))
    if code == "GatedRepo" or (status == 403 and code != "RepoNotFound"):
        return GatedModelError(_gated(asked, said, gated=code == "GatedRepo"), **context)
    if code == "RepoNotFound" or status == 401 or (status == 404 and asked.file is None):
        return ModelNotFoundError(_not_found(asked, said), **context)
    if status == 404:
        return ModelFileNotFoundError(f"The server does not have {what}.", **context)
    return HubUnavailableError(
        f"{host} answered HTTP {status} for {what}{f': {said}' if said else ''}. "
        "Check HF_ENDPOINT and any proxy on the way to it.",
        **context,
    )


def _gated(asked: Asked, said: str, *, gated: bool) -> str:
    page = f"https://huggingface.co/{asked.model}"
    if not gated:
        return (
            f"The Hub does not let this token read {asked.model}{f' ({said})' if said else ''}. "
            "Use a token with read access to it (HF_TOKEN, or `hf auth login`)."
        )
    if asked.has_token:
        return f"{asked.model} is gated and this token's account has no access. Ask for it at {page}, then try again."
    return (
        f"{asked.model} is gated and no token was sent. Accept its terms at {page}, then run `hf auth login` "
        "or set HF_TOKEN."
    )


def _not_found(asked: Asked, said: str) -> str:
    if said.startswith("Invalid credentials"):
        return (
            f"The Hub does not accept the token that was sent for {asked.model!r} ({said}). "
            "Run `hf auth login` again, or set HF_TOKEN to a valid token."
        )
    if asked.has_token:
        return (
            f"The Hub has no model {asked.model!r} that this token may see. "
            "Check the spelling (org/name) and the access of the token, or of the user in HF_ENDPOINT."
        )
    return (
        f"The Hub has no public model {asked.model!r}. Check the spelling (org/name); if it is private, "
        "run `hf auth login` or set HF_TOKEN."
    )


def _error_in(body: str) -> str:
    try:
        said = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return said if isinstance(said, str) else ""


def transport_failure(error: httpx.HTTPError | TimeoutError, asked: Asked, url: str) -> LoaderError | TransientError:
    """The error for a request without a complete response."""
    what, host = asked.what, httpx.URL(url).host
    certificate = _cause(error, ssl.SSLCertVerificationError)
    if certificate is not None:
        other = overlooked_variable()
        return asked.unavailable(
            f"{what} can't be fetched: {host} shows a certificate that can't be verified ({certificate}). If a proxy "
            f"of yours signs it, set SSL_CERT_FILE to its CA bundle{f'; {other} is not read' if other else ''}.",
            url=f"https://{host}/",
        )
    if isinstance(error, httpx.UnsupportedProtocol | httpx.ProxyError | httpx.TooManyRedirects):
        return asked.unavailable(
            f"{what} can't be fetched from {host}: {printable(str(error))}. Check HF_ENDPOINT and the proxy variables."
        )
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        # Of several addresses only the system's errors say why.
        system = _cause(error, ConnectionError)
        why = os.strerror(system.errno) if isinstance(system, OSError) and system.errno else str(error)
        return asked.transient(f"can't connect to {host} ({why or type(error).__name__})", "connect")
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return asked.transient(f"{host} sent nothing, or almost nothing, in time", "stall")
    return asked.transient(f"the connection to {host} failed ({error or type(error).__name__})", "read")


def _cause(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that a response asks to wait: `RateLimit: "api";r=0;t=55`, else `Retry-After` in either form."""
    limit = re.search(r"\br=0\b.*\bt=([0-9]+)", headers.get("ratelimit", "")[:_LONGEST_HEADER])
    after = limit[1] if limit else headers.get("retry-after", "").strip()[:_LONGEST_HEADER]
    try:
        by_date = not (after.isascii() and after.isdecimal())
        seconds = parsedate_to_datetime(after).timestamp() - time.time() if by_date else float(after)
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, seconds), _LONGEST_ASKED)


def gave_up(last: TransientError, attempts: int, asked: Asked) -> LoaderError:
    """The error for the caller once the retry policy is used up."""
    cls = StalledError if last.kind == "stall" else HubUnavailableError
    advice = {
        429: "The Hub limits your rate: wait, or send a token (HF_TOKEN).",
        None: "Check the network, the proxy variables and HF_ENDPOINT.",
    }.get(last.status, "The Hub or its CDN has trouble: try again later.")
    return cls(
        f"Gave up after {attempts} attempts: {last}. {advice} What is downloaded is kept.",
        attempts=attempts,
        model=asked.model,
        file=asked.file,
        status=last.status,
        # A caller that tries again later knows how long to wait.
        headers={"retry-after": str(math.ceil(last.wait))} if last.wait is not None else {},
    )

"""Every error of this package.

LoaderError
├── InvalidArgumentError      a bad repo id, dtype, keyword or combination; also HFValidationError (ValueError)
├── TokenMissingError         token=True and no token is stored; also LocalTokenNotFoundError (OSError)
├── ModelNotFoundError        no such model or directory; also RepositoryNotFoundError
├── RevisionNotFoundError     no such branch, tag or commit; also the official RevisionNotFoundError
├── GatedModelError           the model needs a licence accepted or a token; also GatedRepoError
├── ModelFileNotFoundError    a listed file does not exist; also RemoteEntryNotFoundError
├── OfflineError              not cached and no network allowed; also OfflineModeIsEnabled, LocalEntryNotFoundError
├── HubUnavailableError       attempts used up; also HfHubHTTPError, LocalEntryNotFoundError
│   └── StalledError          no byte arrived in time; also TimeoutError
├── IntegrityError            wrong digest or length; also OSError
├── DiskFullError             also OSError with errno ENOSPC
├── CacheAccessError          the cache can't be read or written; also OSError
├── IncompatibleModelError    not a causal language model, or not loadable; also ValueError
├── OutOfMemoryError          also MemoryError
├── TokenizerError            the tokenizer can't be built; also ValueError
├── UnsafeFileError           path traversal, or a pickle or code without consent; also ValueError
├── ClosedHubError            a Hub used outside its block, loop or process; also RuntimeError
├── WarmupError               a model of a warm-up was not ready by its deadline, or before the server ended
└── PrefetchError             several models failed: an ExceptionGroup, with the snapshots that succeeded

An error also inherits from huggingface_hub's class for the same case, if there is one, so that existing handlers keep
working. Those classes come from `huggingface_hub.errors`, which imports an HTTP stack: import this module off the
event loop.

Every error names the model, and the file if it is about one, says what to do, survives pickling and `copy.copy`, and
chains its cause.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, field
from errno import ENOSPC
from pathlib import Path
from typing import Any, ClassVar, Self

import httpx2
from huggingface_hub import errors as official

# Characters of an error's text, which names what a server chose.
_LONGEST = 4000


# Credentials in a URL that somebody has pasted, and headers that a server sends back.
_SECRETS = re.compile(r"(?<=://)[^/\s@]+(?=@)|(?<=Bearer )[\w.~+/=-]{6,}|(?<=Basic )[\w+/=]{6,}|\bhf_\w{10,}")


def printable(text: str, most: int = 300) -> str:
    """The beginning of a text that a server chose, without secrets and what a terminal would obey or can't encode."""
    text = _SECRETS.sub("***", text)[:most]
    return "".join(character if character.isprintable() else " " for character in text)


@dataclass(eq=False, repr=False)  # Exception's own are kept
class LoaderError(Exception):
    """Base of every error of this package.

    Attributes:
        model: the repo id or directory that it is about, or None.
        file: the file of the model that it is about, or None.
    """

    text: InitVar[str]
    _: KW_ONLY
    model: str | None = None
    file: str | None = None

    def __post_init__(self, text: str) -> None:
        # The other bases' __init__ is never called: the official classes want other arguments, and OSError would
        # parse two arguments as (errno, text).
        Exception.__init__(self, printable(text, _LONGEST))
        self.model = self.model and _SECRETS.sub("***", self.model)

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce_ex__(self, _protocol: object) -> tuple[Any, ...]:
        return _rebuild, (type(self), str(self), dict(self.__dict__))


def _rebuild(cls: type[LoaderError], text: str, attributes: dict[str, Any]) -> LoaderError:
    error = cls.__new__(cls, text, **attributes)
    Exception.__init__(error, text)
    error.__dict__.update(attributes)
    return error


@dataclass(eq=False, repr=False, kw_only=True)
class _ResponseError(LoaderError):
    """An error with an HTTP response behind it; it has the attributes of HfHubHTTPError.

    Attributes:
        status: the HTTP status, or None without a response.
        url: the requested URL without its query (signed URLs are secrets), or None.
        headers: the response's `x-` and `retry-after` headers.
        server_message: the Hub's own message, or None.
        request_id: the Hub's id of the request, for support, or None.
        response: an `httpx2.Response` without a body.
    """

    status: int | None = None
    url: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    server_message: str | None = None
    request_id: str | None = field(init=False)
    response: httpx2.Response = field(init=False)
    _default_status: ClassVar[int] = 404

    def __post_init__(self, text: str) -> None:
        super().__post_init__(text)
        kept = {
            name: printable(value).encode("ascii", "replace").decode()
            for name, value in self.headers.items()
            if name.lower().startswith("x-") or name.lower() == "retry-after"
        }
        request = httpx2.Request("GET", self.url or "http://unknown.invalid/")
        # Handlers of the official errors read `error.response.status_code`, so there always is a response.
        self.response = httpx2.Response(self.status or self._default_status, headers=kept, request=request)
        self.headers = kept
        self._request: httpx2.Request | None = request
        self.request_id = self.response.headers.get("x-request-id")


class InvalidArgumentError(LoaderError, official.HFValidationError):
    """Raised when an argument is wrong by itself: a repo id, dtype, keyword or combination."""


class TokenMissingError(LoaderError, official.LocalTokenNotFoundError):
    """Raised when `token=True` asks for the stored token and no token is stored."""


class ModelNotFoundError(_ResponseError, official.RepositoryNotFoundError):
    """Raised when neither a directory nor a visible Hub model has this name."""


@dataclass(eq=False, repr=False, kw_only=True)
class RevisionNotFoundError(_ResponseError, official.RevisionNotFoundError):
    """Raised when the model exists and the revision does not.

    Attributes:
        revision: the requested branch, tag or commit.
    """

    revision: str


class GatedModelError(_ResponseError, official.GatedRepoError):
    """Raised when the model is gated and the token, or its absence, gives no access."""


class ModelFileNotFoundError(_ResponseError, official.RemoteEntryNotFoundError):
    """Raised when a file that the model lists does not exist."""


class OfflineError(LoaderError, official.OfflineModeIsEnabled, official.LocalEntryNotFoundError):
    """Raised when something is not cached and the network may not be used."""


@dataclass(eq=False, repr=False, kw_only=True)
class HubUnavailableError(_ResponseError, official.HfHubHTTPError, official.LocalEntryNotFoundError):
    """Raised when the Hub or its CDN could not be reached or kept failing.

    Attributes:
        attempts: the number of requests made.
        status: the last HTTP status, or None without a response.
    """

    attempts: int = 1
    _default_status: ClassVar[int] = 503


class StalledError(HubUnavailableError, TimeoutError):
    """Raised when open connections repeatedly received no byte for HF_HUB_DOWNLOAD_TIMEOUT seconds."""


@dataclass(eq=False, repr=False, kw_only=True)
class IntegrityError(LoaderError, OSError):
    """Raised when bytes do not have the digest or the length that the Hub promised.

    Attributes:
        expected: the promised digest (hex) or length in bytes.
        found: the actual digest (hex) or length in bytes.
    """

    expected: str | int
    found: str | int


@dataclass(eq=False, repr=False, kw_only=True)
class DiskFullError(LoaderError, OSError):
    """Raised before the first body when the plan does not fit, or later when the disk fills up.

    Attributes:
        needed: bytes that still have to be written.
        free: free bytes on that file system.
        path: the directory that is full.
        errno: `errno.ENOSPC`.
    """

    needed: int
    free: int
    path: str
    errno: ClassVar[int] = ENOSPC  # type: ignore[misc]


@dataclass(eq=False, repr=False, kw_only=True)
class CacheAccessError(LoaderError, OSError):
    """Raised when a file of the cache can't be read or written (read-only, permissions, I/O error).

    Attributes:
        path: the file or directory.
        cause_errno: the operating system's error number, or None; also as `errno`.
    """

    path: str
    cause_errno: int | None = None

    @property
    def errno(self) -> int | None:  # type: ignore[override]
        return self.cause_errno


@dataclass(eq=False, repr=False, kw_only=True)
class IncompatibleModelError(LoaderError, ValueError):
    """Raised when the checkpoint is not a causal language model, or is damaged.

    Attributes:
        architecture: the architecture named in its config, or None.
    """

    architecture: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class OutOfMemoryError(LoaderError, MemoryError):
    """Raised when the model does not fit into memory.

    Attributes:
        needed: bytes of the model's weights, or None where unknown.
        free: bytes that were free when it failed, or None where unknown.
        device: "cpu", "cuda:0", ...
    """

    needed: int | None
    free: int | None
    device: str

    def __new__(cls, *_args: object, **_kwargs: object) -> Self:
        return Exception.__new__(cls)  # MemoryError's own refuses subclasses with two bases


class TokenizerError(LoaderError, ValueError):
    """Raised when the tokenizer can't be built, or has neither a pad token nor an eos token."""


class UnsafeFileError(LoaderError, ValueError):
    """Raised for a file that could do harm: a path that leaves its folder, or a pickle or code without consent."""


class ClosedHubError(LoaderError, RuntimeError):
    """Raised when a Hub is used outside its block, from another event loop, or after a fork."""


class WarmupError(LoaderError):
    """Raised when a model of a warm-up was not ready by its deadline, or before the server ended."""


@dataclass(eq=False, repr=False, kw_only=True)
class PrefetchError(LoaderError, ExceptionGroup[LoaderError]):
    """Raised at the end of `Hub.prefetch` when one or several models could not be fetched.

    Attributes:
        failures: model -> its error.
        snapshots: model -> path of its complete snapshot.
        exceptions: the errors again, as in every exception group.
    """

    failures: dict[str, LoaderError]
    snapshots: dict[str, Path] = field(default_factory=dict)

    def __new__(cls, text: str, *, failures: dict[str, LoaderError], **_: object) -> Self:
        return ExceptionGroup.__new__(cls, text, list(failures.values()))

    def derive(self, excs: Sequence[LoaderError]) -> PrefetchError:  # type: ignore[override]
        kept = {model: error for model, error in self.failures.items() if error in excs}
        return PrefetchError(str(self), failures=kept, snapshots=self.snapshots)

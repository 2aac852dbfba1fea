"""Every error this package raises.

LoaderError
├── InvalidArgumentError      a bad repo id, dtype, keyword or combination; also HFValidationError (ValueError)
├── TokenMissingError         token=True and none is stored; also LocalTokenNotFoundError (OSError)
├── ModelNotFoundError        no such model or directory; also RepositoryNotFoundError
├── RevisionNotFoundError     no such branch, tag or commit; also the official RevisionNotFoundError
├── GatedModelError           the model needs a licence accepted or a token; also GatedRepoError
├── ModelFileNotFoundError    a listed file is not there; also RemoteEntryNotFoundError
├── OfflineError              not cached and no network allowed; also OfflineModeIsEnabled, LocalEntryNotFoundError
├── HubUnavailableError       attempts used up; also HfHubHTTPError, LocalEntryNotFoundError
│   └── StalledError          no byte arrived in time; also TimeoutError
├── IntegrityError            bytes do not have the digest or length that was promised; also OSError
├── DiskFullError             also OSError with errno ENOSPC
├── CacheAccessError          the cache can't be read or written; also OSError
├── IncompatibleModelError    not a causal language model, or not loadable; also ValueError
├── OutOfMemoryError          also MemoryError
├── TokenizerError            the tokenizer can't be built; also ValueError
├── UnsafeFileError           path traversal, pickle or code that was not consented to; also ValueError
├── ClosedHubError            a Hub used outside its block, loop or process; also RuntimeError
├── WarmupError               a model of a warm-up was not ready: its deadline, or the server's end
└── PrefetchError             several models failed: an ExceptionGroup with what succeeded

Where huggingface_hub has a class for it, ours inherits from that too, so that handlers which people
already have keep working. The official classes come from `huggingface_hub.errors`, which imports an
HTTP stack: this module is imported off the event loop.

Every error names the model and the file it is about (where there is one), says what to do, survives
pickling and `copy.copy`, and chains its cause.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx2
from huggingface_hub import errors as official


class LoaderError(Exception):
    """Base of every error of this package.

    Attributes:
        model: the repo id or directory it is about, or None.
        file: the file inside the model that it is about, or None.
    """

    def __init__(self, message: str, *, model: str | None = None, file: str | None = None) -> None:
        # The official bases want other arguments, and OSError would parse ours as (errno, text).
        Exception.__init__(self, message)
        self.model = model
        self.file = file

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce_ex__(self, _protocol: object) -> tuple[Any, ...]:
        return _rebuild, (type(self), str(self), dict(self.__dict__))


def _rebuild(cls: type[LoaderError], message: str, attributes: dict[str, Any]) -> LoaderError:
    error = cls.__new__(cls)
    Exception.__init__(error, message)
    error.__dict__.update(attributes)
    return error


class _ResponseError(LoaderError):
    """An error that an HTTP answer stands behind: carries what HfHubHTTPError carries.

    Attributes:
        status: the HTTP status, or None where no answer came.
        url: the URL that was asked, without its query (signed URLs are secrets), or None.
        response: an `httpx2.Response` without a body, as handlers of the official errors expect.
        request_id: the Hub's id of the request, for support, or None.
        server_message: what the Hub said, or None.
    """

    _status_without_answer = 404

    def __init__(
        self,
        message: str,
        *,
        model: str | None = None,
        file: str | None = None,
        status: int | None = None,
        url: str | None = None,
        headers: Mapping[str, str] | None = None,
        server_message: str | None = None,
    ) -> None:
        super().__init__(message, model=model, file=file)
        self.status = status
        self.url = url
        self.server_message = server_message
        kept = {k: v for k, v in (headers or {}).items() if k.lower().startswith("x-") or k.lower() == "retry-after"}
        request = httpx2.Request("GET", url or "http://unknown.invalid/")
        # Handlers of the official errors read `error.response.status_code`: there is always one.
        self.response: httpx2.Response = httpx2.Response(
            status or self._status_without_answer, headers=kept, request=request
        )
        self._request: httpx2.Request | None = request
        self.request_id: str | None = self.response.headers.get("x-request-id")


class InvalidArgumentError(LoaderError, official.HFValidationError):
    """Raised when an argument is wrong by itself: a repo id, dtype, keyword or combination."""


class TokenMissingError(LoaderError, official.LocalTokenNotFoundError):
    """Raised when `token=True` asks for the stored token and there is none."""


class ModelNotFoundError(_ResponseError, official.RepositoryNotFoundError):
    """Raised when neither a directory nor a visible Hub model has this name."""


class RevisionNotFoundError(_ResponseError, official.RevisionNotFoundError):
    """Raised when the model exists and the revision does not.

    Attributes:
        revision: the branch, tag or commit that was asked for.
    """

    def __init__(self, message: str, *, revision: str, **context: Any) -> None:
        super().__init__(message, **context)
        self.revision = revision


class GatedModelError(_ResponseError, official.GatedRepoError):
    """Raised when the model is gated and the token (or its absence) does not open it."""


class ModelFileNotFoundError(_ResponseError, official.RemoteEntryNotFoundError):
    """Raised when a file that the model lists is not served."""


class OfflineError(LoaderError, official.OfflineModeIsEnabled, official.LocalEntryNotFoundError):
    """Raised when something is not cached and the network may not be used."""


class HubUnavailableError(_ResponseError, official.HfHubHTTPError, official.LocalEntryNotFoundError):
    """Raised when the Hub (or its CDN) could not be reached or kept failing.

    Attributes:
        attempts: how many requests were made.
        status: the last HTTP status, or None where no answer came.
    """

    _status_without_answer = 503

    def __init__(self, message: str, *, attempts: int = 1, **context: Any) -> None:
        super().__init__(message, **context)
        self.attempts = attempts


class StalledError(HubUnavailableError, TimeoutError):
    """Raised when a connection stayed open and no byte came for HF_HUB_DOWNLOAD_TIMEOUT seconds, repeatedly."""


class IntegrityError(LoaderError, OSError):
    """Raised when bytes do not have the digest (or the length) that the Hub promised.

    Attributes:
        expected: the promised digest (hex) or length in bytes.
        found: the digest (hex) or length in bytes of what arrived.
    """

    def __init__(
        self, message: str, *, expected: str | int, found: str | int, model: str | None = None, file: str | None = None
    ) -> None:
        super().__init__(message, model=model, file=file)
        self.expected = expected
        self.found = found


class DiskFullError(LoaderError, OSError):
    """Raised before the first body when the plan does not fit, or when the disk fills up meanwhile.

    Attributes:
        needed: bytes that still have to be written.
        free: bytes that are free on that file system.
        path: the directory that is full.
        errno: `errno.ENOSPC`.
    """

    def __init__(
        self, message: str, *, needed: int, free: int, path: str, model: str | None = None, file: str | None = None
    ) -> None:
        super().__init__(message, model=model, file=file)
        self.needed = needed
        self.free = free
        self.path = path

    @property
    def errno(self) -> int:  # type: ignore[override]
        return errno.ENOSPC


class CacheAccessError(LoaderError, OSError):
    """Raised when a file of the cache can't be read or written (read-only, permissions, I/O error).

    Attributes:
        path: the file or directory.
        cause_errno: the operating system's error number, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str,
        cause_errno: int | None = None,
        model: str | None = None,
        file: str | None = None,
    ) -> None:
        super().__init__(message, model=model, file=file)
        self.path = path
        self.cause_errno = cause_errno

    @property
    def errno(self) -> int | None:  # type: ignore[override]
        return self.cause_errno


class IncompatibleModelError(LoaderError, ValueError):
    """Raised when the checkpoint is not a causal language model, or is damaged.

    Attributes:
        architecture: the architecture that its config names, or None.
    """

    def __init__(
        self, message: str, *, architecture: str | None = None, model: str | None = None, file: str | None = None
    ) -> None:
        super().__init__(message, model=model, file=file)
        self.architecture = architecture


class OutOfMemoryError(LoaderError, MemoryError):
    """Raised when the model does not fit.

    Attributes:
        needed: bytes that the model's weights need, or None where unknown.
        free: bytes that were free when it failed, or None where unknown.
        device: "cpu", "cuda:0", ...
    """

    def __new__(cls, *_args: object, **_kwargs: object) -> Self:
        return Exception.__new__(cls)  # MemoryError's own refuses subclasses that have two bases

    def __init__(
        self,
        message: str,
        *,
        needed: int | None,
        free: int | None,
        device: str,
        model: str | None = None,
        file: str | None = None,
    ) -> None:
        super().__init__(message, model=model, file=file)
        self.needed = needed
        self.free = free
        self.device = device


class TokenizerError(LoaderError, ValueError):
    """Raised when the tokenizer can't be built, or has neither a pad token nor an eos token."""


class UnsafeFileError(LoaderError, ValueError):
    """Raised for a file that could harm: a path that leaves its folder, a pickle, code without consent."""


class ClosedHubError(LoaderError, RuntimeError):
    """Raised when a Hub is used outside its block, from another event loop, or after a fork."""


class WarmupError(LoaderError):
    """Raised when a model of a warm-up is not there: the deadline passed, or the server was told to stop."""


class PrefetchError(LoaderError, ExceptionGroup[LoaderError]):
    """Raised by `Hub.prefetch` at the end, when one model or several could not be fetched.

    Attributes:
        failures: model -> its error.
        snapshots: model -> Path of each snapshot that is complete.
        exceptions: the errors again, as an exception group has them.
    """

    def __new__(cls, message: str, *, failures: Mapping[str, LoaderError], **_: object) -> Self:
        return ExceptionGroup.__new__(cls, message, list(failures.values()))

    def __init__(
        self, message: str, *, failures: Mapping[str, LoaderError], snapshots: Mapping[str, Path] | None = None
    ) -> None:
        LoaderError.__init__(self, message)
        self.failures: dict[str, LoaderError] = dict(failures)
        self.snapshots: dict[str, Path] = dict(snapshots or {})

    def derive(self, excs: Sequence[LoaderError]) -> PrefetchError:  # type: ignore[override]
        kept = {model: error for model, error in self.failures.items() if error in excs}
        return PrefetchError(str(self), failures=kept, snapshots=self.snapshots)

    def __reduce_ex__(self, _protocol: object) -> tuple[Any, ...]:
        return _rebuild_group, (str(self), self.failures, self.snapshots)


def _rebuild_group(message: str, failures: dict[str, LoaderError], snapshots: dict[str, Path]) -> PrefetchError:
    return PrefetchError(message, failures=failures, snapshots=snapshots)

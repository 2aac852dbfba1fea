"""Turns what torch, transformers, safetensors and the disk raise during a build into this package's errors.

A pure function on the error: classes of libraries are told by name, so nothing has to be imported.
"""

from __future__ import annotations

import errno
import os
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from yaie_async.core.errors import (
    CacheAccessError,
    IncompatibleModelError,
    InvalidArgumentError,
    LoaderError,
    ModelFileNotFoundError,
    OutOfMemoryError,
    UnsafeFileError,
)

if TYPE_CHECKING:
    from yaie_async.model.request import BuildRequest

_NO_MEMORY = re.compile(r"can't allocate memory|cannot allocate memory|out of memory|os error 12\b", re.IGNORECASE)
_NO_DEVICE = re.compile(
    r"not compiled with \w+ enabled|cannot access accelerator|no (nvidia|hip|cuda) |invalid device|device ordinal"
    r"|passing device_map|negative int",
    re.IGNORECASE,
)
_UNKNOWN_KEYWORD = re.compile(r"unexpected keyword argument '(\w+)'")


@dataclass(frozen=True, slots=True)
class Found:
    """What the builder knows about the checkpoint when something fails.

    Attributes:
        architecture: what its config names, or None.
        damaged: the weight file whose structure is broken, or None.
        needed: bytes that its weights need, or None.
        free: bytes that are free on the CPU, or None.
        handled: the exception that the caller was handling when the build began: not a part of what failed.
    """

    architecture: str | None = None
    damaged: str | None = None
    needed: int | None = None
    free: int | None = None
    handled: BaseException | None = None


def translate(error: Exception, request: BuildRequest, found: Found = Found()) -> LoaderError:
    """Return the error of this package that says what `error` means. Raise it `from error`."""
    chain = list(_chain(error, found.handled))
    own = next((e for e in chain if isinstance(e, LoaderError)), None)
    if own is not None:
        return own
    if any(_is_memory(e) for e in chain):
        return _out_of_memory(chain, request, found)
    if found.damaged is not None:
        return _incompatible(
            request,
            found,
            f"{found.damaged} is truncated or corrupt ({_one_line(error)}); fetch or save the model again",
            file=found.damaged,
        )
    if any(isinstance(e, pickle.UnpicklingError) for e in chain):
        return _unsafe_pickle(request)
    return _from_argument(error, request) or _from_file(chain, request) or _unknown(error, request, found)


def _from_argument(error: Exception, request: BuildRequest) -> LoaderError | None:
    """An error that the caller's own arguments explain."""
    text = str(error)
    keyword = _UNKNOWN_KEYWORD.search(text) if isinstance(error, TypeError) else None
    if keyword is not None and keyword[1] in request.model_kwargs:
        return InvalidArgumentError(
            f"{request.source}: {keyword[1]}= is known neither to from_pretrained nor to this model",
            model=request.source,
        )
    if _NO_DEVICE.search(text) and not isinstance(error, OSError):
        return InvalidArgumentError(
            f"{request.source}: device_map={request.device_map!r} can't be used on this machine ({_one_line(error)}); "
            'use "auto" or "cpu"',
            model=request.source,
        )
    if isinstance(error, ValueError | ImportError) and any(
        name in text for name in ("attn_implementation", "FlashAttention")
    ):
        return InvalidArgumentError(f"{request.source}: {_one_line(error)}", model=request.source)
    if isinstance(error, ValueError) and "trust_remote_code" in text:
        return UnsafeFileError(
            f"{request.source} can only be loaded by running code from its repo, and nothing was run. "
            "Read that code; if you trust it, pass trust_remote_code=True",
            model=request.source,
        )
    return None


def _from_file(chain: list[BaseException], request: BuildRequest) -> LoaderError | None:
    """An error about one file of the model."""
    error = chain[0]
    missing = any(type(e).__name__ in ("LocalEntryNotFoundError", "OfflineModeIsEnabled") for e in chain)
    if missing or any(isinstance(e, FileNotFoundError) for e in chain):
        name = _file_name(chain)
        what = f"the file {name}" if name else "a file"
        return ModelFileNotFoundError(
            f"{request.source}: {what} that the model needs is not there ({_one_line(error)}); fetch the model again",
            model=request.source,
            file=name,
        )
    system = next((e for e in chain if isinstance(e, OSError) and e.errno is not None), None)
    if system is not None:
        path = os.fspath(system.filename) if isinstance(system.filename, str | os.PathLike) else request.source
        return CacheAccessError(
            f"{request.source}: {path} can't be read ({os.strerror(system.errno or 0)}); "
            "check its permissions and the disk",
            path=path,
            cause_errno=system.errno,
            model=request.source,
        )
    return None


def _unknown(error: Exception, request: BuildRequest, found: Found) -> LoaderError:
    if isinstance(error, ImportError):
        return _incompatible(request, found, f"it needs a package that is not installed: {_one_line(error)}")
    return _incompatible(
        request,
        found,
        f"{type(error).__name__}: {_one_line(error)}. The checkpoint and its config may not fit together",
    )


def _incompatible(request: BuildRequest, found: Found, why: str, file: str | None = None) -> LoaderError:
    named = found.architecture
    message = f"{request.source} ({named or 'unknown architecture'}) can't be loaded: {why}"
    return IncompatibleModelError(message, architecture=named, model=request.source, file=file)


def _unsafe_pickle(request: BuildRequest) -> LoaderError:
    # torch's own text advises weights_only=False, which is the last thing to do: it stays in the cause.
    return UnsafeFileError(
        f"{request.source}: its pytorch_model.bin weights hold more than tensors, and nothing of it was run. "
        "Don't use this model, or choose a revision with safetensors",
        model=request.source,
        file="pytorch_model.bin",
    )


def _out_of_memory(chain: list[BaseException], request: BuildRequest, found: Found) -> LoaderError:
    text = " ".join(str(e) for e in chain)
    gpu = re.search(r"GPU (\d+)", text)
    device = f"cuda:{gpu[1]}" if gpu else "cuda" if "CUDA" in text else "cpu"
    free = found.free if device == "cpu" else _gib(re.search(r"of which ([\d.]+) (\w+) is free", text))
    needs = f"its weights need about {found.needed / 1e9:.2f} GB; " if found.needed is not None else ""
    return OutOfMemoryError(
        f"{request.source} does not fit into the memory of {device}: {needs}"
        "use a smaller model or dtype, a quantised checkpoint, or another device_map",
        needed=found.needed,
        free=free,
        device=device,
        model=request.source,
    )


def _gib(match: re.Match[str] | None) -> int | None:
    scale = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    return int(float(match[1]) * scale[match[2]]) if match and match[2] in scale else None


def _is_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or any(c.__name__ == "OutOfMemoryError" for c in type(error).__mro__):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, Exception) and _NO_MEMORY.search(str(error)) is not None


def _chain(error: BaseException, handled: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, then what it was raised from or during, as far as that happened in the build."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and current is not handled and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _file_name(chain: list[BaseException]) -> str | None:
    for error in chain:
        name = getattr(error, "filename", None)
        match = re.search(r"(?:directory: |file named )(\S+)", str(error))
        if isinstance(name, str) or match:
            return os.path.basename(name if isinstance(name, str) else match[1].rstrip(".,'"))  # type: ignore[index]
    return None


def _one_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return " ".join(text.split())[:300].rstrip(" .")

"""Translates the errors that torch, transformers, safetensors and the disk raise during a build.

Classes of libraries are recognised by name, so that nothing has to be imported; the texts that are recognised are in
`yaie_async.model.compat`.
"""

from __future__ import annotations

import errno
import os
import pickle
import re
from collections.abc import Iterator
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
from yaie_async.model import compat
from yaie_async.model.checkpoint import damaged_file, lfs_pointers
from yaie_async.model.estimate import estimate_memory
from yaie_async.model.memory import available_memory

if TYPE_CHECKING:
    from yaie_async.model.request import BuildRequest

# Python's own text.
_UNKNOWN_KEYWORD = re.compile(r"unexpected keyword argument '(\w+)'")


def translate(error: Exception, request: BuildRequest, handled: BaseException | None = None) -> LoaderError:
    """Return the error of this package for `error`. Raise it `from error`.

    `handled` is what the caller was handling when the build began, which is no cause of its failure.
    """
    chain = list(_chain(error, handled))
    own = next((e for e in chain if isinstance(e, LoaderError)), None)
    if own is not None:
        return own
    if any(_is_memory(e) for e in chain):
        return _out_of_memory(chain, request)
    try:
        pointers, damaged = lfs_pointers(request), damaged_file(request)
    except OSError:
        pointers, damaged = [], None  # it can't be opened: the error that is being translated says so
    pointer = next((path for path in pointers if path == damaged or path.endswith(".py")), None)
    if pointer is not None:
        return incompatible(request, request.manifest.pointer_text(pointer), file=pointer)
    # torch's own text advises weights_only=False, which would run the code: it stays in the cause.
    pickled = any(isinstance(e, pickle.UnpicklingError) for e in chain)
    if damaged is not None:
        said = "it is no pickle of torch" if pickled else _one_line(error)
        why = f"{damaged} is truncated or corrupt ({said}). Fetch or save the model again."
        return incompatible(request, why, file=damaged)
    if pickled:
        return UnsafeFileError(
            f"{request.source} can't be loaded: its pytorch_model.bin holds more than tensors, and nothing of it was "
            "run. Don't use this model, or choose a revision with safetensors.",
            model=request.source,
            file="pytorch_model.bin",
        )
    return _from_argument(error, request) or _from_file(chain, request) or _unknown(error, request)


def incompatible(
    request: BuildRequest, why: str, *, file: str | None = None, loaded: str = "loaded"
) -> IncompatibleModelError:
    """Return the error for a checkpoint that can't be `loaded`; it names the architecture."""
    named = request.architecture
    message = f"{request.source} ({named or 'unknown architecture'}) can't be {loaded}: {why}"
    return IncompatibleModelError(message, architecture=named, model=request.source, file=file)


def _from_argument(error: Exception, request: BuildRequest) -> LoaderError | None:
    """Return the error for an argument of the caller's that is at fault, or None."""
    text = str(error)
    keyword = _UNKNOWN_KEYWORD.search(text) if isinstance(error, TypeError) else None
    if keyword is not None and keyword[1] in request.model_kwargs:
        return InvalidArgumentError(
            f"{request.source} can't be loaded: {keyword[1]}= is known neither to from_pretrained nor to this model. "
            "Leave it out.",
            model=request.source,
        )
    if compat.NO_DEVICE.search(text) and not isinstance(error, OSError):
        return InvalidArgumentError(
            f"{request.source} can't be loaded: device_map={request.device_map!r} can't be used on this machine "
            f'({_one_line(error)}). Use "auto" or "cpu".',
            model=request.source,
        )
    kernel = compat.UNTRUSTED_KERNEL.search(text)
    if kernel is not None:
        return InvalidArgumentError(
            f"{request.source} can't be loaded: the kernel {kernel[1]} is of a publisher that is not trusted, "
            "and nothing was run. If you trust it, pass allow_all_kernels=True.",
            model=request.source,
        )
    if isinstance(error, ValueError | ImportError) and compat.NO_ATTENTION.search(text):
        return InvalidArgumentError(f"{request.source} can't be loaded: {_one_line(error)}.", model=request.source)
    if compat.asks_for_consent(error):
        return UnsafeFileError(
            f"{request.source} can only be loaded by running code from its repo, and nothing was run. "
            "Read that code; if you trust it, pass trust_remote_code=True.",
            model=request.source,
        )
    return None


def _from_file(chain: list[BaseException], request: BuildRequest) -> LoaderError | None:
    """Return the error for one file of the model that is at fault, or None."""
    error = chain[0]
    missing = any(type(e).__name__ in ("LocalEntryNotFoundError", "OfflineModeIsEnabled") for e in chain)
    if missing or any(isinstance(e, FileNotFoundError) for e in chain):
        name = _file_name(chain)
        what = f"the file {name}" if name else "a file"
        return ModelFileNotFoundError(
            f"{request.source} can't be loaded: {what} that it needs is missing ({_one_line(error)}). "
            "Fetch the model again.",
            model=request.source,
            file=name,
        )
    system = next((e for e in chain if isinstance(e, OSError) and e.errno is not None), None)
    if system is not None:
        path = os.fspath(system.filename) if isinstance(system.filename, str | os.PathLike) else request.source
        return CacheAccessError(
            f"{request.source} can't be loaded: {path} can't be read ({os.strerror(system.errno or 0)}). "
            "Check its permissions and the disk.",
            path=path,
            cause_errno=system.errno,
            model=request.source,
        )
    return None


def _unknown(error: Exception, request: BuildRequest) -> LoaderError:
    if isinstance(error, ImportError):
        return incompatible(request, f"it needs a package that is not installed: {_one_line(error)}.")
    said = f"{type(error).__name__}: {_one_line(error)}"
    return incompatible(request, f"{said}. The checkpoint and its config may not fit together.")


def _out_of_memory(chain: list[BaseException], request: BuildRequest) -> LoaderError:
    device, free = compat.full_device(" ".join(str(e) for e in chain))
    needed = estimate_memory(request.manifest.size, request.dtype, request.manifest.stored)
    return OutOfMemoryError(
        f"{request.source} does not fit into the memory of {device}. Its weights need about {needed / 1e9:.2f} GB. "
        "Use a smaller model or dtype, a quantised checkpoint, or another device_map.",
        needed=needed,
        free=available_memory("cpu") if device == "cpu" else free,
        device=device,
        model=request.source,
    )


def _is_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or any(c.__name__ == "OutOfMemoryError" for c in type(error).__mro__):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, Exception) and compat.NO_MEMORY.search(str(error)) is not None


def _chain(error: BaseException, handled: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, then those that it was raised from or during, as far as they belong to the build."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and current is not handled and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _file_name(chain: list[BaseException]) -> str | None:
    for error in chain:
        name = getattr(error, "filename", None)
        path = name if isinstance(name, str) else compat.missing_file(str(error))
        if path is not None:
            return os.path.basename(path)
    return None


def _one_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return " ".join(text.split())[:300].rstrip(" .")

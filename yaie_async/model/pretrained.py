"""The arguments of every call of `from_pretrained`, and the checks after it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yaie_async.core.errors import IncompatibleModelError
from yaie_async.model import compat
from yaie_async.model.buffers import UnknownBuffers, compute_buffers
from yaie_async.model.dtypes import resolve_dtype
from yaie_async.model.failures import incompatible
from yaie_async.model.progress_bars import no_progress_bars

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from yaie_async.model.request import BuildRequest

_AUTOMATIC = ("auto", "balanced", "balanced_low_0", "sequential")


def load_checked(
    load: Callable[[], tuple[PreTrainedModel, Mapping[str, Any]]],
    request: BuildRequest,
    counted: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> PreTrainedModel:
    """Load a model, refuse one that is not what its checkpoint says, and name it. The caller holds the build lock.

    `load` calls `from_pretrained` and returns the model and its loading info. transformers iterates the weights
    `counted`.

    Raises:
        IncompatibleModelError: a part of the model is random or of another model, or torch's default dtype has changed.
        MemoryError: device_map="auto" found no room for it.
    """
    if request.trust_remote_code:
        compat.forget_remote_classes()
    with _default_dtype_kept(request), no_progress_bars(counted):
        model, info = load()
    _check_loaded(info, request)
    # "org/code--modeling_x.X" is meant to run the code of another repository.
    elsewhere = "--" in str(request.auto_map.get("AutoModelForCausalLM"))
    if not elsewhere and compat.runs_other_code(model, request.folder):
        raise _incompatible(
            "transformers ran the code of another model with its name; load it in a process of its own", request
        )
    _check_placed(model, request)
    try:
        compute_buffers(model, request)
    except UnknownBuffers as error:
        raise _random(
            f"its code does not compute {_some(list(error.args))} again, which no file holds", request
        ) from error
    if request.commit is not None:
        model.name_or_path = request.source
        model.config.name_or_path = request.source
    return model


def pretrained_arguments(request: BuildRequest, directory: Path, *, pickled: bool) -> dict[str, Any]:
    """Return the keywords under which `from_pretrained` makes no request and checks what it loads."""
    import torch

    dtype = resolve_dtype(request.dtype)
    own = f"{request.source}--"  # transformers knows the model by a folder, and would take this for another repository
    names_itself = any(str(reference).startswith(own) for reference in request.auto_map.values())
    return {
        **({"code_revision": request.commit} if names_itself and request.commit else {}),
        **request.model_kwargs,
        # A snapshot is passed as a directory too. With a repo id, even with local_files_only, transformers starts a
        # thread that asks the Hub to convert a repo without safetensors, huggingface_hub may request
        # {endpoint}/api/agent-harnesses, and a file in the working directory that has the repo's name is read.
        "pretrained_model_name_or_path": os.fspath(directory),
        "cache_dir": request.cache_dir,
        "local_files_only": True,
        "dtype": dtype if dtype == "auto" else getattr(torch, dtype),
        "device_map": request.device_map,
        # None would prompt on stdin.
        "trust_remote_code": bool(request.trust_remote_code),
        "use_safetensors": not pickled,
        "weights_only": True,
        # _check_loaded reports mismatches with their shapes, which the stock error does not name.
        "ignore_mismatched_sizes": True,
        "output_loading_info": True,
    }


@contextmanager
def _default_dtype_kept(request: BuildRequest) -> Iterator[None]:
    import torch

    before = torch.get_default_dtype()
    try:
        yield
    finally:
        after = torch.get_default_dtype()
        if after != before:
            torch.set_default_dtype(before)
    if after != before:
        message = (
            f"{request.source} can't be trusted: torch's default dtype was {after} after the build and {before} before "
            "it (it is restored). Its own code may set it, or other code in this process may build models at the same "
            "time. Load it in a process of its own."
        )
        raise IncompatibleModelError(message, architecture=request.architecture, model=request.source)


def _check_loaded(info: Mapping[str, Any], request: BuildRequest) -> None:
    """Refuse a model of which a part is random, which transformers only warns about."""
    random = compat.random_weights(info)
    if random is None:
        raise _incompatible(
            "this release of transformers does not report random weights; install an earlier one", request
        )
    missing, mismatched = random
    if missing:
        raise _random(f"its checkpoint lacks {_some(missing)}", request)
    if mismatched:
        raise _random(f"tensors have other shapes than its config says: {_some(mismatched)}", request)


def _check_placed(model: PreTrainedModel, request: BuildRequest) -> None:
    device_map = getattr(model, "hf_device_map", {})
    asked_for = {"max_memory", "offload_folder"} & request.model_kwargs.keys()
    if request.device_map in _AUTOMATIC and not asked_for and "disk" in device_map.values():
        raise MemoryError  # accelerate would read the weights from disk for every token, and not say so
    # "model." for what is inside of "model", and "" for all.
    offloaded = tuple(f"{name}." if name else "" for name, device in device_map.items() if device in ("cpu", "disk"))
    on_meta = [
        name
        for tensors in (model.named_parameters(), model.named_buffers())
        for name, tensor in tensors
        if tensor.is_meta and not f"{name}.".startswith(offloaded)
    ]
    if on_meta:
        raise _random(f"{_some(on_meta)} got no data (transformers#44940)", request)


def _random(why: str, request: BuildRequest) -> Exception:
    return _incompatible(f"{why}; stock transformers would fill these with random numbers", request)


def _incompatible(why: str, request: BuildRequest) -> Exception:
    return incompatible(request, f"{why}.", loaded="loaded as a causal language model")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more

"""What every `from_pretrained` of this package has in common: its arguments, and the checks after it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yaie_async.model.dtypes import resolve_dtype
from yaie_async.model.preflight import architecture

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from yaie_async.model.request import BuildRequest

_AUTOMATIC = ("auto", "balanced", "balanced_low_0", "sequential")


def load_checked(
    load: Callable[[], tuple[PreTrainedModel, Mapping[str, Any]]], request: BuildRequest
) -> PreTrainedModel:
    """Load a model, refuse one that is not what its checkpoint says, and name it. It is this build's turn.

    Args:
        load: calls `from_pretrained` and returns the model and its loading info.
        request: what is built.

    Raises:
        IncompatibleModelError: a part of it is random, or torch's default dtype is another one than before.
        MemoryError: device_map="auto" found no room for it.
    """
    from yaie_async.model.progress_bars import no_progress_bars

    if request.trust_remote_code:
        _forget_remote_classes()
    with _default_dtype_kept(request), no_progress_bars():
        model, info = load()
    _check_loaded(info, request)
    _check_placed(model, request)
    if request.commit is not None:
        model.name_or_path = request.source
        model.config.name_or_path = request.source
    return model


def pretrained_arguments(request: BuildRequest, directory: Path, *, pickled: bool) -> dict[str, Any]:
    """The keywords of `from_pretrained` under which it is silent on the network and checks what it loads."""
    import torch

    dtype = resolve_dtype(request.dtype)
    return {
        **request.model_kwargs,
        # A snapshot too is given as a directory. By repo id, and even with local_files_only, transformers starts a
        # thread that asks the Hub to convert a repo without safetensors, huggingface_hub may ask
        # {endpoint}/api/agent-harnesses, and a file in the working directory that is named like the repo is read.
        "pretrained_model_name_or_path": os.fspath(directory),
        "cache_dir": request.cache_dir,
        "local_files_only": True,
        "dtype": dtype if dtype == "auto" else getattr(torch, dtype),
        "device_map": request.device_map,
        # None would ask on stdin.
        "trust_remote_code": bool(request.trust_remote_code),
        "use_safetensors": not pickled,
        "weights_only": True,
        # Mismatches are reported by _check_loaded, with their shapes: the stock error does not name any.
        "ignore_mismatched_sizes": True,
        "output_loading_info": True,
    }


def _forget_remote_classes() -> None:
    """Make transformers look at the code of this directory, and not at a class that it ran before.

    It registers the model class of remote code under its config class, which it shares between directories that
    have the same last name and the same configuration file: the second one then got the first one's model code.
    """
    from transformers import AutoModelForCausalLM

    registered = AutoModelForCausalLM._model_mapping._extra_content  # noqa: SLF001 - there is no public way
    for config_class in [c for c, model in registered.items() if model.__module__.startswith("transformers_modules.")]:
        del registered[config_class]


@contextmanager
def _default_dtype_kept(request: BuildRequest) -> Iterator[None]:
    import torch

    from yaie_async.core.errors import IncompatibleModelError

    before = torch.get_default_dtype()
    try:
        yield
    finally:
        after = torch.get_default_dtype()
        if after != before:
            torch.set_default_dtype(before)
    if after != before:
        message = (
            f"{request.source}: torch's default dtype was {after} after the build and {before} before it, so the model "
            "can't be trusted (it is restored). Its own code may set it, or other code in this process builds models "
            "at the same time"
        )
        raise IncompatibleModelError(message, architecture=architecture(request.config), model=request.source)


def _check_loaded(info: Mapping[str, Any], request: BuildRequest) -> None:
    """Refuse a model of which a part is random, which transformers only warns about."""
    missing = sorted(info["missing_keys"])
    mismatched = sorted(f"{name}: {tuple(has)} for {tuple(wants)}" for name, has, wants in info["mismatched_keys"])
    if missing:
        raise _unfilled(f"its checkpoint lacks {_some(missing)}", request)
    if mismatched:
        raise _unfilled(f"tensors have other shapes than its config says: {_some(mismatched)}", request)


def _check_placed(model: PreTrainedModel, request: BuildRequest) -> None:
    device_map = getattr(model, "hf_device_map", {})
    asked_for = {"max_memory", "offload_folder"} & request.model_kwargs.keys()
    if request.device_map in _AUTOMATIC and not asked_for and "disk" in device_map.values():
        raise MemoryError  # accelerate would silently read the weights from disk for every token
    offloaded = [name for name, device in device_map.items() if device in ("cpu", "disk")]
    on_meta = [
        name
        for tensors in (model.named_parameters(), model.named_buffers())
        for name, tensor in tensors
        if tensor.is_meta and not _is_inside(name, offloaded)
    ]
    if on_meta:
        raise _unfilled(f"{_some(on_meta)} got no data (transformers#44940)", request)


def _is_inside(name: str, modules: Iterable[str]) -> bool:
    return any(module in ("", name) or name.startswith(f"{module}.") for module in modules)


def _unfilled(why: str, request: BuildRequest) -> Exception:
    from yaie_async.core.errors import IncompatibleModelError

    named = architecture(request.config)
    message = (
        f"{request.source} ({named or 'unknown architecture'}) can't be loaded as a causal language model: {why}; "
        "stock transformers would fill these with random numbers"
    )
    return IncompatibleModelError(message, architecture=named, model=request.source)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more

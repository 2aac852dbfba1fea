"""Decides from config.json alone, before any weights arrive, whether a model can be loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from yaie_async.core.errors import IncompatibleModelError, InvalidArgumentError, UnsafeFileError
from yaie_async.core.manifest import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from yaie_async.model import compat
from yaie_async.model.checkpoint import code_file, repo_of
from yaie_async.model.dtypes import float_dtype, resolve_dtype
from yaie_async.model.failures import incompatible
from yaie_async.model.imports import import_libraries
from yaie_async.model.skeleton import config_of

if TYPE_CHECKING:
    from yaie_async.model.request import BuildRequest

# Implementations of attention and of experts that torch brings.
_BUILT_IN = {"eager", "sdpa", "flex_attention", "batched_mm", "grouped_mm"}
# The keywords that choose one, each with one that fetches nothing.
_OTHERS = {"attn_implementation": "sdpa", "experts_implementation": "grouped_mm"}


def check_config(request: BuildRequest) -> list[str]:
    """Refuse, by a LoaderError, what can't be built as a causal language model; return what to warn of."""
    resolve_dtype(request.dtype)
    if "meta" in map(str, request.devices):
        raise InvalidArgumentError(
            f"{request.source} can't be loaded: on the meta device, which device_map={request.device_map!r} names, "
            "weights have no data. Use another device; AutoModelForCausalLM.from_config makes a model without data.",
            model=request.source,
        )
    _check_stored_dtype(request)
    _check_kernels(request, {key: _in_json(request, key) for key in _OTHERS})
    import_libraries()
    warnings: list[str] = []
    if not _uses_remote_code(request):
        _check_model_type(request)
        warnings += _check_architecture(request)
    _check_quantisation(request)
    return [*warnings, *_check_adapter(request)]


def check_config_object(request: BuildRequest, arguments: Mapping[str, Any]) -> None:
    """Refuse a kernel that only the config shows which `from_pretrained(**arguments)` is about to make.

    config.json can give its attributes other names (`attribute_map`), and name another file (`configuration_files`).
    """
    if request.model_kwargs.get("config") is None and not _uses_remote_code(request):
        _check_kernels(request, compat.implementations(config_of(arguments)[0], _OTHERS))


def _check_adapter(request: BuildRequest) -> Iterator[str]:
    """With peft transformers adds the adapter that lies beside a model; without it, it loads the base model alone."""
    files = request.manifest.listing.files
    if ADAPTER_CONFIG not in files:
        return
    if find_spec("peft") is None:
        yield (
            f"{request.source} has an adapter ({ADAPTER_CONFIG}), which is not applied: peft is not installed. To load "
            "what transformers loads with it: pip install peft"
        )
    elif ADAPTER_WEIGHTS not in files:
        why = f"the adapter beside it has no {ADAPTER_WEIGHTS}; save it again with peft, or remove {ADAPTER_CONFIG}"
        raise incompatible(request, why, file=ADAPTER_CONFIG)


def _check_stored_dtype(request: BuildRequest) -> None:
    stored = request.config.get("dtype", request.config.get("torch_dtype"))
    if request.dtype == "auto" and stored is not None and float_dtype(stored) is None:
        advice = 'so dtype="auto" can\'t be used; pass dtype="float16"'
        raise _incompatible(request, f"its config names the dtype {stored!r}, {advice}")


def _check_kernels(request: BuildRequest, named: Mapping[str, Iterable[Any]]) -> None:
    """Refuse compiled code from the Hub that config.json names, by keyword, and the caller does not."""
    if request.model_kwargs.get("config") is not None:
        return
    for key, other in _OTHERS.items():
        asked = [None, *_leaves(request.model_kwargs.get(key), key, under=True)]
        for kernel in named[key]:
            if kernel in asked:
                continue
            if not isinstance(kernel, str):
                raise _incompatible(request, f"its {key} is {kernel!r:.80}, which is no name; pass {key}={other!r}")
            if _may_be_fetched(kernel):
                message = (
                    f"config.json of {request.source} names the kernel {kernel!r}, which may be compiled code from "
                    f"the Hub, and nothing was fetched or run. If you trust it, pass {key}={kernel!r}; else "
                    f"{key}={other!r}, or a config object without it as config=."
                )
                raise UnsafeFileError(message, model=request.source, file="config.json")


def _in_json(request: BuildRequest, key: str) -> Iterator[Any]:
    if isinstance(request.model_kwargs.get(key), str):  # which takes the place of all others
        return _leaves(request.config.get(f"_{key}"), key, under=True)
    return _leaves(request.config, key)


def _leaves(part: Any, key: str, *, under: bool = False) -> Iterator[Any]:
    """What lies under a key, at any depth: transformers hands each dict on to a part of the config."""
    parts = [(part, under)]
    while parts:
        part, under = parts.pop()
        if isinstance(part, Mapping):
            parts += [(value, under or name in (key, f"_{key}")) for name, value in part.items()]
        elif under:
            yield part
        elif isinstance(part, list):
            parts += [(value, False) for value in part]


def _may_be_fetched(kernel: str) -> bool:
    """Whether transformers may get it from the Hub: also flash attention that is installed, for some model classes."""
    return "/" in kernel or (kernel.removeprefix("paged|") not in _BUILT_IN and find_spec("kernels") is not None)


def _uses_remote_code(request: BuildRequest) -> bool:
    """Whether the repo's own classes will be run; transformers prefers its own where there is no consent."""
    auto_map, model_type = request.auto_map, request.config.get("model_type")
    if not auto_map.keys() & {"AutoConfig", "AutoModelForCausalLM"}:
        return False
    if request.trust_remote_code:
        if "AutoModelForCausalLM" not in auto_map and not compat.is_causal(model_type):
            brings = ", ".join(sorted(auto_map))
            raise _incompatible(request, f"its own code has no AutoModelForCausalLM (it has {brings})")
        return True
    if compat.is_known(model_type) and (compat.is_causal(model_type) or "AutoModelForCausalLM" not in auto_map):
        return False
    reference = str(auto_map.get("AutoModelForCausalLM") or auto_map.get("AutoConfig"))
    message = (
        f"{request.source} can only be loaded by running code from {repo_of(reference)}, and nothing was run. "
        "Read that code; if you trust it, pass trust_remote_code=True"
    )
    raise UnsafeFileError(message, model=request.source, file=code_file(reference))


def _check_model_type(request: BuildRequest) -> None:
    model_type = request.config.get("model_type")
    if not isinstance(model_type, str):
        raise _incompatible(request, "its config.json has no model_type; it was not saved by transformers")
    if compat.is_causal(model_type):
        return
    if not compat.is_known(model_type):
        raise _unknown(request, f"the model type {model_type!r}")
    auto_class = compat.auto_class_of(request.architecture, model_type)
    use = auto_class or "the class that its model card names"
    raise _incompatible(request, f"it is not a causal language model; use {use}")


def _check_architecture(request: BuildRequest) -> Iterator[str]:
    """A classifier of a known model type would load with a random head, and an encoder-decoder as half of a model.

    A model of images or sound and text has a whole text model, which is what AutoModelForCausalLM loads of it. A
    masked language model has the tensors of a causal one.
    """
    named = request.architecture
    if named is None or named == request.config.get("model_type"):
        return
    auto_class = compat.auto_class_of(named)
    if auto_class not in (None, "AutoModel", compat.MASKED, *compat.OF_PARTS):
        raise _incompatible(request, f"it is not a causal language model; use {auto_class}")
    if auto_class == compat.MASKED and not request.config.get("is_decoder"):
        yield (
            f"{request.source} ({named}) is a masked language model. It is loaded as a causal one, as by transformers, "
            f"but likely generates no sense: its config does not set is_decoder. {auto_class} loads what was trained."
        )


def _check_quantisation(request: BuildRequest) -> None:
    """transformers only logs an unknown method, and then reads quantised numbers as plain weights."""
    quantisation = request.config.get("quantization_config")
    if not isinstance(quantisation, dict):
        return
    method = quantisation.get("quant_method")
    if method == "bitsandbytes" or quantisation.get("load_in_8bit") or quantisation.get("load_in_4bit"):
        return
    if not compat.knows_quantisation(method):
        raise _unknown(request, f"its quantisation {method!r}")


def _unknown(request: BuildRequest, what: str) -> IncompatibleModelError:
    advice = "a newer one might: pip install --upgrade transformers"
    return _incompatible(request, f"this transformers does not know {what}; {advice}")


def _incompatible(request: BuildRequest, why: str) -> IncompatibleModelError:
    return incompatible(request, why, file="config.json")

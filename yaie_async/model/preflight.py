"""Decides from config.json alone, before any weights arrive, whether a model can be loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from yaie_async.model import compat
from yaie_async.model.checkpoint import code_file
from yaie_async.model.dtypes import float_dtype, resolve_dtype

if TYPE_CHECKING:
    from yaie_async.model.request import BuildRequest


def check_config(config: Mapping[str, Any], request: BuildRequest) -> None:
    """Refuse what can't be built as a causal language model with these arguments.

    Raises:
        InvalidArgumentError: the dtype.
        UnsafeFileError: code in the repo that was not consented to.
        IncompatibleModelError: names the architecture and says what to use instead.
        LoaderError: transformers can't be imported.
    """
    resolve_dtype(request.dtype)
    _check_stored_dtype(config, request)

    from yaie_async.model.imports import import_libraries

    import_libraries()
    if not _uses_remote_code(config, request):
        _check_model_type(config, request)
        _check_architecture(config, request)
    _check_quantisation(config, request)


def architecture(config: Mapping[str, Any]) -> str | None:
    """Return the first architecture that a config names, else its model type, else None."""
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else config.get("model_type")
    return first if isinstance(first, str) else None


def is_remote(config: Mapping[str, Any]) -> bool:
    """Whether the repo brings its own class for AutoModelForCausalLM."""
    auto_map = config.get("auto_map")
    return isinstance(auto_map, dict) and "AutoModelForCausalLM" in auto_map


def _check_stored_dtype(config: Mapping[str, Any], request: BuildRequest) -> None:
    stored = config.get("dtype", config.get("torch_dtype"))
    if request.dtype == "auto" and stored is not None and float_dtype(stored) is None:
        raise _incompatible(
            config,
            request,
            f'its config names the dtype {stored!r}, so dtype="auto" can\'t be used; pass dtype="float16"',
        )


def _uses_remote_code(config: Mapping[str, Any], request: BuildRequest) -> bool:
    """Whether the repo's own classes will be run; transformers prefers its own where there is no consent."""
    from yaie_async.core.errors import UnsafeFileError

    auto_map = config.get("auto_map")
    if not isinstance(auto_map, dict) or not auto_map.keys() & {"AutoConfig", "AutoModelForCausalLM"}:
        return False
    if request.trust_remote_code:
        if not is_remote(config) and not compat.is_causal(config.get("model_type")):
            brings = ", ".join(sorted(auto_map))
            raise _incompatible(config, request, f"its own code has no AutoModelForCausalLM (it has {brings})")
        return True
    if compat.is_known(config.get("model_type")):
        return False
    reference = str(auto_map.get("AutoModelForCausalLM") or auto_map.get("AutoConfig"))
    message = (
        f"{request.source} can only be loaded by running code from its repo ({reference}), and nothing was run. "
        "Read that code; if you trust it, pass trust_remote_code=True"
    )
    raise UnsafeFileError(message, model=request.source, file=code_file(reference))


def _check_model_type(config: Mapping[str, Any], request: BuildRequest) -> None:
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise _incompatible(config, request, "its config.json has no model_type; it was not saved by transformers")
    if compat.is_causal(model_type):
        return
    if not compat.is_known(model_type):
        raise _incompatible(
            config,
            request,
            f"this transformers does not know the model type {model_type!r}; a newer one might: "
            "pip install --upgrade transformers",
        )
    auto_class = compat.auto_class_of(architecture(config), model_type)
    use = f"use {auto_class}" if auto_class else "use the class that its model card names"
    raise _incompatible(config, request, f"it is not a causal language model; {use}")


def _check_architecture(config: Mapping[str, Any], request: BuildRequest) -> None:
    """A classifier of a known model type would load with a random head, and an encoder as half of a model."""
    named = architecture(config)
    if named is None or named == config.get("model_type"):
        return
    auto_class = compat.auto_class_of(named)
    if auto_class in (None, "AutoModel") or (auto_class == "AutoModelForMaskedLM" and config.get("is_decoder")):
        return
    raise _incompatible(config, request, f"it is not a causal language model; use {auto_class}")


def _check_quantisation(config: Mapping[str, Any], request: BuildRequest) -> None:
    """transformers only logs an unknown method, and then reads quantised numbers as plain weights."""
    quantisation = config.get("quantization_config")
    if not isinstance(quantisation, dict):
        return
    method = quantisation.get("quant_method")
    if method == "bitsandbytes" or quantisation.get("load_in_8bit") or quantisation.get("load_in_4bit"):
        return
    if not compat.knows_quantisation(method):
        raise _incompatible(
            config,
            request,
            f"this transformers does not know its quantisation {method!r}; a newer one might: "
            "pip install --upgrade transformers",
        )


def _incompatible(config: Mapping[str, Any], request: BuildRequest, why: str) -> Exception:
    from yaie_async.core.errors import IncompatibleModelError

    named = architecture(config)
    message = f"{request.source} ({named or 'unknown architecture'}) can't be loaded: {why}"
    return IncompatibleModelError(message, architecture=named, model=request.source, file="config.json")

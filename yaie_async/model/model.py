"""Builds a causal language model from files that are already on this machine."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yaie_async.core.trace import span
from yaie_async.model.arguments import check_model_kwargs
from yaie_async.model.checkpoint import (
    Weights,
    check_code,
    damaged_file,
    find_weights,
    read_config,
    snapshot_directory,
)
from yaie_async.model.imports import import_libraries
from yaie_async.model.lock import BuildCancelled, build_lock
from yaie_async.model.memory import available_memory, estimate_memory
from yaie_async.model.preflight import architecture, check_config
from yaie_async.model.pretrained import load_checked, pretrained_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from yaie_async.model.request import BuildRequest


def build_model(request: BuildRequest, *, cancelled: Callable[[], bool] = lambda: False) -> PreTrainedModel:
    """Build the model as `AutoModelForCausalLM.from_pretrained` would, bit for bit, without any request.

    One build runs at a time in this process; `cancelled` is asked once the turn has come. A build that has
    begun runs to its end.

    Raises:
        BuildCancelled: `cancelled` said so; nothing was built.
        LoaderError: any other failure, its cause chained.
    """
    check_model_kwargs(request.model_kwargs)
    handled = sys.exception()
    directory = snapshot_directory(request)
    config: Mapping[str, Any] = {}
    weights: Weights | None = None
    try:
        config = read_config(directory, request)
        check_config(config, request)
        check_code(directory, config, request)
        weights = find_weights(directory, config, request)
        import_libraries()
        with build_lock.acquired():
            if cancelled():
                raise BuildCancelled
            with span("build", "build", model=request.source):
                return load_checked(lambda: _load(request, directory, weights), request, config)
    except BuildCancelled:
        raise
    except Exception as error:
        from yaie_async.model.failures import translate

        translated = translate(error, request, replace(_found(request, directory, config, weights), handled=handled))
        # The frames of the failed build hold the half-built model: without them its memory is free at once.
        traceback.clear_frames(error.__traceback__)
        if translated is error:
            raise
        raise translated from error


def _load(request: BuildRequest, directory: Path, weights: Weights) -> Any:
    from transformers import AutoModelForCausalLM

    arguments = pretrained_arguments(request, directory, pickled=weights.pickled)
    return AutoModelForCausalLM.from_pretrained(**arguments)


def _found(request: BuildRequest, directory: Path, config: Mapping[str, Any], weights: Weights | None) -> Any:
    from yaie_async.model.failures import Found

    if weights is None:
        return Found(architecture(config))
    stored = config.get("dtype", config.get("torch_dtype"))
    try:
        damaged = damaged_file(directory, weights)
    except OSError:
        damaged = None  # it can't be opened: the error that is being translated says so
    return Found(
        architecture=architecture(config),
        damaged=damaged,
        needed=estimate_memory(weights.size, request.dtype, stored),
        free=available_memory("cpu"),
    )

"""Builds a causal language model from files that are on this machine, by transformers' own `from_pretrained`."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from yaie_async.core.errors import LoaderError
from yaie_async.core.trace import span
from yaie_async.model.arguments import check_model_kwargs
from yaie_async.model.build_progress import BuildProgress
from yaie_async.model.checkpoint import check_code, check_headers
from yaie_async.model.failures import translate
from yaie_async.model.imports import import_libraries
from yaie_async.model.lock import BuildCancelled, build_lock
from yaie_async.model.preflight import check_config, check_config_object
from yaie_async.model.pretrained import load_checked, pretrained_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from yaie_async.model.request import BuildRequest


def build_model(
    request: BuildRequest, cancelled: Callable[[], bool] = lambda: False, progress: BuildProgress | None = None
) -> PreTrainedModel:
    """Build the model as `AutoModelForCausalLM.from_pretrained` would, bit for bit, without any request.

    One build runs at a time in this process. `cancelled` is checked once the build lock is held; a build that has
    begun runs to its end.

    Raises:
        BuildCancelled: `cancelled` returned true; nothing was built.
        LoaderError: any other failure, its cause chained.
    """
    check_model_kwargs(request.model_kwargs)
    handled = sys.exception()
    try:
        check_config(request)
        check_code(request)
        check_headers(request)
        import_libraries()
        with build_lock.acquired():
            if cancelled():
                raise BuildCancelled
            progress = progress or BuildProgress()
            with span("build", "build", model=request.source), progress.measured(request, keep=True):
                return load_checked(lambda: _load(request), request, progress.counted)
    except BuildCancelled:
        raise
    except Exception as error:
        # The frames of the failed build hold the half-built model: without them its memory is free at once.
        traceback.clear_frames(error.__traceback__)
        if isinstance(error, LoaderError):
            raise
        raise translate(error, request, handled) from error


def _load(request: BuildRequest) -> Any:
    from transformers import AutoModelForCausalLM

    arguments = pretrained_arguments(request, request.folder, pickled=request.manifest.pickled)
    check_config_object(request, arguments)
    return AutoModelForCausalLM.from_pretrained(**arguments)

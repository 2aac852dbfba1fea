"""Builds a model while its weights still arrive, so that it is ready with its last byte; else the stock build follows.

It calls `from_pretrained(None, config=..., state_dict=...)` of the model's class, with a state dict whose values are
read when transformers asks for them. tests/model/test_contract.py pins what that relies on. Where another release of
transformers behaves differently, the streaming build is given up.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yaie_async.core.manifest import ADAPTER_CONFIG
from yaie_async.core.trace import span
from yaie_async.model.build_progress import BuildProgress
from yaie_async.model.compat import add_generation, can_stream, has_extra_files, is_distributed
from yaie_async.model.filesystem import is_local
from yaie_async.model.imports import import_libraries
from yaie_async.model.lock import BuildCancelled, build_lock
from yaie_async.model.preflight import check_config_object
from yaie_async.model.pretrained import load_checked, pretrained_arguments
from yaie_async.model.skeleton import model_class, view_of
from yaie_async.model.tensors import ArrivingFiles
from yaie_async.store.arriving_file import ArrivalError, ArrivingFile

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from yaie_async.model.request import BuildRequest

# Keywords of `from_pretrained` with the same effect here. Others are accepted only where config.json has them.
_KEYWORDS = {"attn_implementation", "experts_implementation", "low_cpu_mem_usage", "max_memory", "variant"}


class StreamAbandoned(Exception):
    """Raised when a streaming build was given up; its text says why. `build_model` is to build the snapshot then."""


def why_not_streamable(request: BuildRequest) -> str | None:
    """Why a model has to be built from the finished snapshot, or None. Reads nothing."""
    config = request.config
    if not all(file.path.endswith(".safetensors") for file in request.manifest.weights):
        return "its weights are no safetensors"
    if ADAPTER_CONFIG in request.manifest.listing.files:
        return "it has an adapter"
    if any("--" in str(reference) for reference in request.auto_map.values()):
        return "its code is in another repository"  # which transformers would ask the Hub for
    parts = [config, *(part for part in config.values() if isinstance(part, Mapping))]
    if any(part.get("quantization_config") is not None for part in parts):
        return "it is quantised"
    if request.dtype == "auto" and not (config.get("dtype") or config.get("torch_dtype")):
        return 'dtype="auto" has to look into the weights, since its config names none'
    if any(device in ("disk", "meta") for device in request.devices):
        return "a part of it stays on the disk"
    other = [name for name in request.model_kwargs if name not in _KEYWORDS and name not in config]
    return f"{other[0]}= is for stock transformers only" if other else None


def build_streaming(
    request: BuildRequest,
    arriving: Mapping[str, ArrivingFile],
    *,
    cancelled: Callable[[], bool] = lambda: False,
    progress: BuildProgress | None = None,
) -> PreTrainedModel:
    """Build the model that `build_model` would build from the finished snapshot, bit for bit, as its weights arrive.

    Blocks until the last byte has arrived. Nothing is verified by then: the caller must keep the model back until every
    digest is checked, and drop it where one is wrong. The build lock is taken only where no other build holds it or
    waits for it, and released where bytes are missing while another build waits.

    The snapshot has all small files but config.json, its config passed `check_config`, and `why_not_streamable` found
    nothing. `arriving` has every weight file by name. `cancelled` is checked before every 4 MiB, and every few
    milliseconds while bytes are missing.

    Raises:
        BuildCancelled: `cancelled` returned true.
        StreamAbandoned: anything else failed, perhaps because of unverified bytes. The memory is free and the lock is
            released; `build_model` raises the errors of the model.
        LoaderError: the libraries can't be imported.
    """
    import_libraries()
    with build_lock.acquired_if_free() as mine:
        if not mine:
            raise StreamAbandoned("another build holds the lock or waits for it")
        progress = progress or BuildProgress()
        files = ArrivingFiles(arriving, cancelled, build_lock.is_contended, progress)
        try:
            with span("build", "streaming build", model=request.source), progress.measured(request, keep=False):
                return load_checked(lambda: _load(request, files), request)
        except Exception as error:
            # The frames of the failed build hold the half-built model.
            traceback.clear_frames(error.__traceback__)
            if cancelled():
                raise BuildCancelled from error
            raise StreamAbandoned(_reason(error)) from error
        finally:
            files.close()


def _load(request: BuildRequest, files: ArrivingFiles) -> tuple[Any, Mapping[str, Any]]:
    _check_surroundings(request.folder)
    with view_of(request.folder, request.config) as view:
        arguments = pretrained_arguments(request, view, pickled=False)
        check_config_object(request, arguments)
        found, found_config, rest = model_class(arguments)
        if has_extra_files(found_config):
            raise StreamAbandoned("it has more weight files than its index names")
        model, info = found.from_pretrained(None, config=found_config, state_dict=files.tensors(), **rest)
        add_generation(model, view, trust_remote_code=arguments["trust_remote_code"])
    return model, info


def _check_surroundings(snapshot: Path) -> None:
    """Give up where stock's result depends on more than the model's files."""
    if not can_stream():
        raise StreamAbandoned("this release of transformers lacks what a build during the download needs")
    if not is_local(snapshot):
        raise StreamAbandoned("its cache is not known to be on a local file system")
    if is_distributed():
        raise StreamAbandoned("its parameters are to be distributed over several processes")


def _reason(error: Exception) -> str:
    if isinstance(error, StreamAbandoned):
        return str(error)
    if isinstance(error, ArrivalError):
        if build_lock.is_contended():
            return "another build waits for the lock"
        return f"the download of {error} failed or starts over"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"

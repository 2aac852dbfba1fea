"""The build of a model: while its weights still arrive if it can begin then, else of the finished snapshot."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import anyio

from yaie_async.core.log import logger
from yaie_async.core.manifest import Manifest
from yaie_async.core.progress import Meter, Progress
from yaie_async.core.tasks import task_group
from yaie_async.core.threads import run_detached
from yaie_async.model.build_progress import BuildProgress, last_build
from yaie_async.model.estimate import cast_bytes, estimate_seconds
from yaie_async.model.imports import import_libraries, import_progress
from yaie_async.model.lock import build_lock
from yaie_async.model.model import build_model
from yaie_async.model.preflight import check_config
from yaie_async.model.request import BuildRequest
from yaie_async.model.responsive import leaving_a_core
from yaie_async.model.streaming import StreamAbandoned, build_streaming, why_not_streamable
from yaie_async.store.arriving_file import ArrivingFile

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Seconds between two checks whether it is time; and seconds by which a build begins early, since the rate of the
# download and the duration of the build are estimates.
_LOOK = 0.05
_EARLY = 1.0


class StreamedBuild:
    """One build. All methods are called on the loop's thread."""

    def __init__(self, meter: Meter, *, responsive: bool) -> None:
        self._meter = meter  # measures the download
        self._responsive = responsive  # keep the event loop responsive during the imports and the build
        self._manifest: Manifest | None = None
        self._last: float | None = None  # seconds of the last build of its kind, as far as known before the imports
        self._arriving: tuple[ArrivingFile, ...] = ()
        self._small = anyio.Event()
        self._whole = anyio.Event()
        self._model: PreTrainedModel | None = None
        self._imported = False
        self._progress = BuildProgress()

    def small_are_there(self, manifest: Manifest, arriving: tuple[ArrivingFile, ...]) -> None:
        """All files of the sharp manifest but its weights are in the cache; the weights are still arriving."""
        self._manifest = manifest
        self._arriving = arriving
        self._small.set()

    def all_are_there(self) -> None:
        """The snapshot is complete and verified: a build that has not begun gains nothing any more."""
        self._whole.set()
        self._show()

    def _show(self) -> None:
        """The files are there: name what is still to be done."""
        if self._imported:
            self._meter.stage("building", self._progress)
        else:
            self._meter.stage("importing", self._importing)

    def _importing(self) -> tuple[float | None, float | None]:
        share, seconds = import_progress()
        return share, None if seconds is None or self._last is None else seconds + self._last

    async def run(self, request_for: Callable[[Manifest], BuildRequest]) -> None:
        """Import, refuse a config that can't be loaded, and build the model when its time has come.

        What `check_config` warns of is logged, and the reason where it can't be built while its weights arrive.

        **Cancellation:** control returns at once; the thread ends within one tensor and gives back what it has.

        **Raises:** LoaderError when the libraries can't be imported, or for the config.
        """
        async with task_group() as group:
            group.start_soon(self._recall, request_for)
            await run_detached(partial(import_libraries, responsive=self._responsive), name="imports")
            self._imported = True
            if self._whole.is_set():
                self._show()
        assert self._manifest is not None
        request = request_for(self._manifest)
        for warning in await run_detached(partial(check_config, request), name="preflight"):
            logger.warning("%s", warning, extra={"model": request.source, "stage": "building"})
        if not self._arriving:
            return
        reason = why_not_streamable(request)
        if reason is not None:
            self._log(request.source, reason)
            return
        cast = cast_bytes(request.manifest.size, request.dtype, request.manifest.stored)
        if await self._is_time(estimate_seconds(cast)):
            # A cast takes all cores, or the model would be ready later: by 6 % of 7 s, on two cores.
            await self._build_early(request, leaving_a_core() if self._responsive and not cast else nullcontext())
        else:
            self._log(request.source, "its weights were complete before a build could begin")

    async def _recall(self, request_for: Callable[[Manifest], BuildRequest]) -> None:
        """Wait for the small files, and look up what such a build took, unless the build itself can by now."""
        await self._small.wait()
        assert self._manifest is not None
        if not self._imported:  # nor can torch say whether there is a GPU
            recall = partial(last_build, request_for(self._manifest), "cpu", "gpu")
            self._last = await run_detached(recall, name="history")

    async def _is_time(self, estimate: float) -> bool:
        """Wait until the build should begin; False once the snapshot is complete."""
        while not self._whole.is_set():
            if is_due(self._meter.snapshot(), estimate) and build_lock.is_free():
                return True
            with anyio.move_on_after(_LOOK):
                await self._whole.wait()
        return False

    async def _build_early(self, request: BuildRequest, surroundings: AbstractContextManager[None]) -> None:
        arriving = {arriving.path: arriving for arriving in self._arriving}

        def build(cancelled: Callable[[], bool]) -> PreTrainedModel:
            with surroundings:
                return build_streaming(request, arriving, cancelled=cancelled, progress=self._progress)

        try:
            self._model = await _run_build(build)
        except StreamAbandoned as abandoned:
            self._log(request.source, str(abandoned))

    async def finish(self, request: BuildRequest) -> PreTrainedModel:
        """The model of the finished snapshot: that of `run`, if it was built from the very bytes that are there now.

        **Cancellation:** control returns at once. A build that has begun finishes in its thread, and is dropped.

        **Raises:** a LoaderError when it can't be built.
        """
        model, self._model = self._model, None
        if model is not None and any(arriving.failed for arriving in self._arriving):
            self._log(request.source, "some of the bytes that it was built from were fetched again")
            model = None
        return model if model is not None else await _run_build(partial(build_model, request, progress=self._progress))

    @staticmethod
    def _log(model: str, reason: str) -> None:
        facts = {"model": model, "stage": "building"}
        logger.info("%s is built from the finished snapshot: %s", model, reason, extra=facts)


async def _run_build(build: Callable[[Callable[[], bool]], PreTrainedModel]) -> PreTrainedModel:
    cancelled = threading.Event()  # a build that still waits for the lock then is never begun
    try:
        return await run_detached(partial(build, cancelled.is_set), name="build")
    finally:
        cancelled.set()


def is_due(progress: Progress, estimate: float) -> bool:
    """Whether a build of `estimate` seconds should begin now, to end together with the download."""
    if progress.stage == "verifying" and progress.bytes_done == progress.bytes_total:
        return True
    return progress.seconds_left is not None and progress.seconds_left <= estimate + _EARLY

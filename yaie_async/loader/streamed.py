"""When to begin the build of a model whose weights still arrive, and what to do with its result."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import anyio

from yaie_async.core.log import logger
from yaie_async.core.manifest import Manifest
from yaie_async.core.progress import Meter, Progress
from yaie_async.core.threads import run_detached
from yaie_async.model.estimate import cast_bytes, estimate_seconds
from yaie_async.model.lock import build_lock
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
    """One attempt to build a model while its weights arrive. All methods are called on the loop's thread.

    Args:
        meter: measures the download.
        responsive: keep one CPU core free for the event loop.
    """

    def __init__(self, meter: Meter, *, responsive: bool) -> None:
        self._meter = meter
        self._responsive = responsive
        self._manifest: Manifest | None = None
        self._arriving: tuple[ArrivingFile, ...] = ()
        self._small = anyio.Event()
        self._whole = anyio.Event()
        self._model: PreTrainedModel | None = None

    def small_are_there(self, manifest: Manifest, arriving: tuple[ArrivingFile, ...]) -> None:
        """All files of the sharp manifest but its weights are in the cache; the weights are still arriving."""
        self._manifest = manifest
        self._arriving = arriving
        self._small.set()

    def all_are_there(self) -> None:
        """The snapshot is complete and verified: a build that has not begun gains nothing any more."""
        self._whole.set()

    async def wait_for_small(self) -> Manifest:
        """The sharp manifest, once `small_are_there`.

        **Cancellation:** at once.

        **Raises:** nothing.
        """
        await self._small.wait()
        assert self._manifest is not None
        return self._manifest

    async def run(self, request: BuildRequest) -> None:
        """Build the model when its time has come; log the reason where it can't be.

        **Cancellation:** control returns at once; the thread ends within one tensor and gives back what it has.

        **Raises:** LoaderError when the libraries can't be imported.
        """
        if not self._arriving:
            return
        reason = why_not_streamable(request)
        if reason is not None:
            self._log(request.source, reason)
            return
        cast = cast_bytes(request.manifest.size, request.dtype, request.manifest.stored)
        if await self._is_time(estimate_seconds(cast)):
            # A cast takes all cores, or the model would be ready later: by 6 % of 7 s, on two cores.
            await self._build(request, leaving_a_core() if self._responsive and not cast else nullcontext())
        else:
            self._log(request.source, "its weights were complete before a build could begin")

    async def _is_time(self, estimate: float) -> bool:
        """Wait until the build should begin; False once the snapshot is complete."""
        while not self._whole.is_set():
            if is_due(self._meter.snapshot(), estimate) and build_lock.is_free():
                return True
            with anyio.move_on_after(_LOOK):
                await self._whole.wait()
        return False

    async def _build(self, request: BuildRequest, surroundings: AbstractContextManager[None]) -> None:
        cancelled = threading.Event()
        arriving = {arriving.path: arriving for arriving in self._arriving}

        def build() -> PreTrainedModel:
            with surroundings:
                return build_streaming(request, arriving, cancelled=cancelled.is_set)

        try:
            self._model = await run_detached(build, name="build")
        except StreamAbandoned as abandoned:
            self._log(request.source, abandoned.reason)
        finally:
            cancelled.set()

    def take_model(self) -> PreTrainedModel | None:
        """The model, if it was built from the very bytes that are in the snapshot now, else None."""
        model, self._model = self._model, None
        if model is not None and any(arriving.failed for arriving in self._arriving):
            assert self._manifest is not None
            self._log(self._manifest.model, "some of the bytes that it was built from were fetched again")
            return None
        return model

    @staticmethod
    def _log(model: str, reason: str) -> None:
        facts = {"model": model, "stage": "building"}
        logger.info("%s is built from the finished snapshot: %s", model, reason, extra=facts)


def is_due(progress: Progress, estimate: float) -> bool:
    """Whether a build of `estimate` seconds should begin now, to end together with the download."""
    if progress.stage == "verifying" and progress.bytes_done == progress.bytes_total:
        return True
    return progress.seconds_left is not None and progress.seconds_left <= estimate + _EARLY

"""A model that is built while its weights land, where that can be: when to begin, and what has come of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import anyio

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

logger = logging.getLogger("yaie_async")

# Seconds: between two looks at whether it is time; and how much earlier than needed a build begins, since both the
# rate of the download and the estimate of the build are guesses.
_LOOK = 0.05
_EARLY = 1.0


class StreamedBuild:
    """One attempt to build a model while its weights land. All methods are called on the loop's thread.

    Args:
        request: what is to be built.
        meter: of its download.
        responsive: leave a core to the event loop.
    """

    def __init__(self, request: BuildRequest, meter: Meter, *, responsive: bool) -> None:
        self._request = request
        self._meter = meter
        self._responsive = responsive
        self._arriving: tuple[ArrivingFile, ...] = ()
        self._small = anyio.Event()
        self._whole = anyio.Event()
        self._model: PreTrainedModel | None = None

    def small_are_there(self, arriving: tuple[ArrivingFile, ...]) -> None:
        """All files but the weights are there, and these are still arriving."""
        self._arriving = arriving
        self._small.set()

    def all_are_there(self) -> None:
        """The snapshot is whole and verified: a build that has not begun by now has nothing to gain."""
        self._whole.set()

    async def wait_for_small(self) -> None:
        await self._small.wait()

    async def run(self, config: Mapping[str, Any], parameters: Mapping[str, int]) -> None:
        """Build the model when its time has come; log why, where it can't be.

        Args:
            config: the parsed config.json.
            parameters: the Hub's count of them by safetensors dtype, empty where it has not said.

        **Cancellation:** control returns at once; the thread ends within one tensor and gives back what it has.

        **Raises:** LoaderError when the libraries can't be imported.
        """
        if not self._arriving:
            return
        arriving = {arriving.path: arriving for arriving in self._arriving}
        reason = why_not_streamable(config, self._request, arriving)
        if reason is not None:
            self._log(reason)
            return
        size = sum(arriving.size for arriving in self._arriving)
        stored = parameters or config.get("dtype") or config.get("torch_dtype")
        cast = cast_bytes(size, self._request.dtype, stored)
        if await self._is_time(estimate_seconds(cast)):
            # A cast takes all cores, or the model would be ready later: by 6 % of 7 s, on two cores.
            await self._build(config, arriving, leaving_a_core() if self._responsive and not cast else nullcontext())
        else:
            self._log("its weights were there before a build could begin")

    async def _is_time(self, estimate: float) -> bool:
        """Wait until it is; False once the snapshot is whole."""
        while not self._whole.is_set():
            if is_due(self._meter.snapshot(), estimate) and build_lock.is_free():
                return True
            with anyio.move_on_after(_LOOK):
                await self._whole.wait()
        return False

    async def _build(
        self,
        config: Mapping[str, Any],
        arriving: Mapping[str, ArrivingFile],
        surroundings: AbstractContextManager[None],
    ) -> None:
        cancelled = threading.Event()

        def build() -> PreTrainedModel:
            with surroundings:
                return build_streaming(self._request, config, arriving, cancelled=cancelled.is_set)

        try:
            self._model = await run_detached(build, name="build")
        except StreamAbandoned as abandoned:
            self._log(abandoned.reason)
        finally:
            cancelled.set()

    def take_model(self) -> PreTrainedModel | None:
        """The model, if there is one and it was built of the very bytes that are in the snapshot now."""
        model, self._model = self._model, None
        if model is not None and any(arriving.failed for arriving in self._arriving):
            self._log("some of the bytes that it was built of came again")
            return None
        return model

    def _log(self, reason: str) -> None:
        facts = {"model": self._request.source, "stage": "building"}
        logger.info("%s is built from the finished snapshot: %s", self._request.source, reason, extra=facts)


def is_due(progress: Progress, estimate: float) -> bool:
    """Whether a build that takes `estimate` seconds should begin, so that it is done when the download is."""
    if progress.stage == "verifying" and progress.bytes_done == progress.bytes_total:
        return True
    return progress.seconds_left is not None and progress.seconds_left <= estimate + _EARLY

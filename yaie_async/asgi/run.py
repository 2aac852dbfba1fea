"""One run of a warm-up: loads all its models in the background of one event loop."""

import os
import signal
import time
from collections.abc import Mapping
from typing import Literal

import anyio
import anyio.abc

from yaie_async.asgi.load import Load
from yaie_async.asgi.signals import StopSignals
from yaie_async.asgi.status import Status
from yaie_async.core.log import logger
from yaie_async.core.loops import spawn
from yaie_async.core.tasks import task_group
from yaie_async.loader.model_loader import ModelLoader

OnFailure = Literal["keep-serving", "exit"]

# Seconds between checks for a stop signal, while a model is loading.
_POLL_INTERVAL = 0.1

# Cache lifetime of the encoded status, in seconds. Hundreds of readers of /events share it.
_STATUS_LIFETIME = 0.1


class Run:
    """Loads the models of a warm-up once. It belongs to the event loop on which it was created.

    Attributes:
        can_retry: whether a failed load may be started again by the page.
        loads: the load of each model, by name.
        users: the number of open `async with` blocks; `Warmup` counts them, and stops the run after the last.
    """

    def __init__(
        self,
        loaders: Mapping[str, ModelLoader],
        *,
        deadline: float | None,
        on_failure: OnFailure,
        retry: bool = False,
    ) -> None:
        self.can_retry: bool = retry
        self.loads: dict[str, Load] = {name: Load(name, loader, retry=retry) for name, loader in loaders.items()}
        self.users = 0
        self._deadline = deadline
        self._on_failure: OnFailure = on_failure
        self._signals = StopSignals()
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()
        self._task_group: anyio.abc.TaskGroup | None = None  # while the run lasts
        self._encoded: tuple[float, bytes] = (0.0, b"")

    def start(self) -> None:
        """Start loading in a task of the event loop, which no request can cancel."""
        spawn(self._main, "yaie_async warm-up")

    async def stop(self) -> None:
        """Cancel all loads and wait until they have ended.

        **Cancellation:** the loads end all the same.

        **Raises:** nothing.
        """
        self._scope.cancel()
        with anyio.CancelScope(shield=True):
            await self._ended.wait()

    def retry(self, name: str) -> None:
        """Start a failed load again, with a new deadline. Tasks that waited for the failed one have its error."""
        assert self._task_group is not None  # a load fails only while the run lasts
        self.loads[name] = self.loads[name].again()
        self._task_group.start_soon(self._one, self.loads[name])
        self._task_group.start_soon(self._watch)

    @property
    def stopping(self) -> bool:
        """Whether the server is stopping, so that streams and waits should end."""
        return self._signals.seen or self._ended.is_set()

    def status(self) -> Status:
        """The current status of all models."""
        return Status(tuple(load.status() for load in self.loads.values()))

    def encoded_status(self) -> bytes:
        """The status as JSON, at most `_STATUS_LIFETIME` old."""
        now = time.monotonic()
        if now - self._encoded[0] > _STATUS_LIFETIME or not self._encoded[1]:
            self._encoded = (now, self.status().encoded())
        return self._encoded[1]

    async def _main(self) -> None:
        try:
            with self._signals, self._scope:
                async with task_group() as self._task_group:
                    for load in self.loads.values():
                        self._task_group.start_soon(self._one, load)
                    self._task_group.start_soon(self._watch)
                    # Until `stop`: signals are watched, and a failed load may be started again.
                    await anyio.sleep_forever()
        finally:
            self._ended.set()

    async def _one(self, load: Load) -> None:
        await load.run(self._deadline)
        if load.error is not None and self._on_failure == "exit" and not self.stopping:
            text = "warm-up: %s failed and on_failure is 'exit': this process ends (SIGTERM)."
            logger.critical(text, load, extra=load.log_fields)
            # The server's own handler runs its graceful shutdown, as in a deploy.
            os.kill(os.getpid(), signal.SIGTERM)

    async def _watch(self) -> None:
        while not all(load.settled.is_set() for load in self.loads.values()):
            await anyio.sleep(_POLL_INTERVAL)
            if self._signals.seen:
                self._scope.cancel()

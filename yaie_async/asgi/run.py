"""All models of a warm-up, loading in the background of one event loop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Literal

import anyio

from yaie_async.asgi.load import Load
from yaie_async.asgi.signals import StopSignals
from yaie_async.asgi.status import Status
from yaie_async.core.tasks import task_group
from yaie_async.loader.model_loader import ModelLoader

OnFailure = Literal["keep-serving", "exit"]

# Seconds between looks at whether the server is told to stop, while something loads.
_LOOK = 0.1

# Seconds for which a status is told again to whoever asks: readers of /events come in hundreds.
_FRESH = 0.1

logger = logging.getLogger("yaie_async")


class Run:
    """Loads the models of a warm-up once, until it is stopped. Belongs to the event loop it was made on.

    Attributes:
        loads: name -> that model's load.
        users: how many blocks are inside; the last one out stops it. Managed by `Warmup`.
    """

    def __init__(self, loaders: Mapping[str, ModelLoader], *, deadline: float | None, on_failure: OnFailure) -> None:
        self.loads = {name: Load(name, loader) for name, loader in loaders.items()}
        self.users = 0
        self._deadline = deadline
        self._on_failure: OnFailure = on_failure
        self._signals = StopSignals()
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()
        self._told: tuple[float, bytes] = (0.0, b"")

    def start(self) -> None:
        """Begin, in a task beside all others: requests that come and go can't end it."""
        _spawn(self._main)

    async def stop(self) -> None:
        """End all loads and wait until they have.

        **Cancellation:** they end all the same.
        """
        self._scope.cancel()
        with anyio.CancelScope(shield=True):
            await self._ended.wait()

    @property
    def stopping(self) -> bool:
        """Whether the server is about to stop: what lasts should end."""
        return self._signals.seen or self._ended.is_set()

    def status(self) -> Status:
        """How far all models are at this moment."""
        return Status(tuple(load.status() for load in self.loads.values()))

    def told(self) -> bytes:
        """The status as JSON, a tenth of a second old at most."""
        now = time.monotonic()
        if now - self._told[0] > _FRESH or not self._told[1]:
            self._told = (now, self.status().encoded())
        return self._told[1]

    async def _main(self) -> None:
        try:
            with self._signals, self._scope:
                async with task_group() as group:
                    for load in self.loads.values():
                        group.start_soon(self._one, load)
                    group.start_soon(self._watch)
                # Until it is stopped: the signals are noted, and at the loop's end given back.
                await anyio.sleep_forever()
        finally:
            self._ended.set()

    async def _one(self, load: Load) -> None:
        await load.run(self._deadline)
        if load.error is not None and self._on_failure == "exit" and not self.stopping:
            text = "warm-up: %s failed and on_failure is 'exit': this process ends (SIGTERM)."
            logger.critical(text, load, extra=load.facts)
            # As from outside: the server stops as it does at a deploy, and its own shutdown runs.
            os.kill(os.getpid(), signal.SIGTERM)

    async def _watch(self) -> None:
        while not all(load.settled.is_set() for load in self.loads.values()):
            await anyio.sleep(_LOOK)
            if self._signals.seen:
                self._scope.cancel()


# Of asyncio's tasks only weak references are kept by the loop.
_tasks: set[asyncio.Task[None]] = set()


def _spawn(work: Callable[[], Awaitable[None]]) -> None:
    """Run `work` as a task of the event loop's own; it is cancelled when the loop ends."""
    with suppress(RuntimeError):  # trio
        loop = asyncio.get_running_loop()

        async def run() -> None:
            await work()

        task = loop.create_task(run(), name="yaie_async warm-up")
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)
        return
    import trio

    trio.lowlevel.spawn_system_task(work, name="yaie_async warm-up")

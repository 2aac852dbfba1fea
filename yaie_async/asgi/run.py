"""One run of a warm-up: loads all its models in the background of one event loop."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import anyio
import anyio.abc

from yaie_async.asgi import exit_code
from yaie_async.asgi.group import Group
from yaie_async.asgi.load import Load
from yaie_async.asgi.signals import StopSignals
from yaie_async.asgi.status import ModelStatus, State, Status
from yaie_async.asgi.worker_state import WorkerScope, WorkerState
from yaie_async.core.log import logger
from yaie_async.core.loops import spawn
from yaie_async.core.tasks import task_group
from yaie_async.loader.model_loader import ModelLoader

if TYPE_CHECKING:
    from yaie_async.asgi.warm_hook import WarmHook

OnFailure = Literal["keep-serving", "exit"]

# Seconds between checks for a stop signal, while a model is loading.
_POLL_INTERVAL = 0.1

# Seconds between two times at which a worker shows the others its state, and looks at theirs if it has to: while it
# loads, and after that. Probes look at once.
_SHOW_INTERVAL, _SHOW_INTERVAL_AFTER = 0.25, 1.0

# Cache lifetime of the encoded status, in seconds. Hundreds of readers of /events share it.
_STATUS_LIFETIME = 0.1


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a warm-up; `Warmup` documents them."""

    deadline: float | None
    on_failure: OnFailure
    retry: bool
    group: str | None
    optional: frozenset[str]
    warm: WarmHook | None


class Run:
    """Loads the models of a warm-up once. It belongs to the event loop on which it was created.

    Attributes:
        options: the options of the warm-up.
        loads: the load of each model, by name.
        users: the number of open `async with` blocks; `Warmup` counts them, and stops the run after the last.
    """

    def __init__(self, loaders: Mapping[str, ModelLoader], options: Options) -> None:
        self.options: Options = options
        self.loads: dict[str, Load] = {
            name: Load(name, loader, retry=options.retry, optional=name in options.optional, warm=options.warm)
            for name, loader in loaders.items()
        }
        self.users = 0
        self._signals = StopSignals()
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()
        self._task_group: anyio.abc.TaskGroup | None = None  # while the run lasts
        self._encoded: tuple[float, bytes] = (0.0, b"")
        self._group = Group(options.group, self._models())

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
        models = self._models()
        workers = self._group.workers
        return Status(models, tuple(workers.all) if workers.others else ())

    async def look(self) -> None:
        """Look at the other workers of this server, for `status`.

        **Cancellation:** as `Group.look`.

        **Raises:** nothing.
        """
        await self._group.look(self._models(), again=False)

    async def workers(self) -> Sequence[WorkerState]:
        """Return the states of all workers of this server.

        **Cancellation:** as `Group.look`.

        **Raises:** nothing.
        """
        await self._group.look(self._models())
        return self._group.workers.all

    @property
    def required(self) -> Collection[str]:
        """The names of the models that have to be ready before the server is."""
        return [model.name for model in self.status().required]

    async def state(self, names: Collection[str], scope: WorkerScope) -> State:
        """Return the state of these models in this worker ("self"), in all of them, or of the server ("any").

        **Cancellation:** as `Group.look`.

        **Raises:** nothing.
        """
        await self._group.look(self._models())
        return self._group.workers.state(names, scope)

    def _models(self) -> tuple[ModelStatus, ...]:
        return tuple(load.status() for load in self.loads.values())

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
                    self._task_group.start_soon(self._show)
        finally:
            try:
                with anyio.CancelScope(shield=True):
                    await self._group.close()
            finally:
                self._ended.set()
                exit_code.limit_shutdown()

    async def _one(self, load: Load) -> None:
        await load.run(self.options.deadline)
        fatal = self.options.on_failure == "exit" and load.name not in self.options.optional
        if load.error is not None and fatal and not self.stopping:
            text = "warm-up: %s failed and on_failure is 'exit': this process ends (exit code %d)."
            logger.critical(text, load, exit_code.CODE, extra=load.log_fields)
            exit_code.end_process()

    async def _show(self) -> None:
        """Show the other workers the state of this one until `stop`: signals are watched for as long, too."""
        while True:
            models = self._models()
            await self._group.show(models)
            loading = any(model.state == "loading" for model in models)
            await anyio.sleep(_SHOW_INTERVAL if loading else _SHOW_INTERVAL_AFTER)

    async def _watch(self) -> None:
        while not all(load.settled.is_set() for load in self.loads.values()):
            await anyio.sleep(_POLL_INTERVAL)
            if self._signals.seen:
                self._scope.cancel()

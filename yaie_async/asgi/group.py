"""What this worker knows of the other workers of its server, and shows them."""

import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import anyio

from yaie_async.asgi.listening import Listening, listening, supervised
from yaie_async.asgi.status import ModelStatus
from yaie_async.asgi.worker_file import WorkerFile
from yaie_async.asgi.worker_state import Count, Silent, WorkerModel, Workers, WorkerState, expected_workers
from yaie_async.core.log import logger
from yaie_async.core.threads import run_owned

# Seconds for which the states of the others are not read again, however many readers of events there are.
_LIFETIME = 0.1

# Characters of an error that the others are shown: what they read of a worker is limited.
_LONGEST_ERROR = 2000


_process = ""


def _name_process() -> None:
    global _process  # noqa: PLW0603 - a process has one
    _process = secrets.token_hex(8)


_name_process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_name_process)


class Group:
    """The workers of this worker's server: those with the same listening socket, or with the same `name`.

    Where the workers can't share their states, or nothing says which belong together, each is a server for itself.

    """

    def __init__(self, name: str | None, models: Sequence[ModelStatus]) -> None:
        self._name = name
        self._began = time.monotonic()
        self._file = WorkerFile()
        self._lock = anyio.Lock()
        self._looked = -_LIFETIME
        self._been_ready: set[str] = set()
        self._agreed: set[str] = set()
        self._count = Count()
        self._silent = Silent()
        self._warned_of: set[int] = set()
        self._listening = Listening()
        self._written: WorkerState | None = None
        self._shared = False  # whether it has seen the others once
        self._warned = False
        self._closed = False
        self._found = Workers(self._own(models))

    @property
    def workers(self) -> Workers:
        """The workers as they were found last."""
        return self._found

    async def look(self, models: Sequence[ModelStatus], *, again: bool = True) -> None:
        """Show the others the state of this worker, and read theirs.

        Without `again`, a look of the last moment will do. Probes take none: after one has said that all have been
        ready, no other worker may say that they have not.

        **Cancellation:** after the file work, which is short.

        **Raises:** nothing; what fails is logged once.
        """
        async with self._lock:
            if (again or time.monotonic() - self._looked >= _LIFETIME) and not self._closed:
                await run_owned(partial(self._exchange, self._own(models)), name="workers")
                self._looked = time.monotonic()

    async def show(self, models: Sequence[ModelStatus]) -> None:
        """Look if there is news for the others, or if it is open whether all have been ready, or goes on to be so.

        **Cancellation:** as `look`.

        **Raises:** nothing.
        """
        if self._own(models) != self._written or len(self._agreed & self._been_ready) < len(models):
            await self.look(models, again=False)

    async def close(self) -> None:
        """Take this worker out of the group.

        **Cancellation:** after the file work, which is short.

        **Raises:** nothing.
        """
        async with self._lock:
            self._closed = True
            await run_owned(self._file.close, name="workers")

    def _own(self, models: Sequence[ModelStatus]) -> WorkerState:
        self._been_ready.update(model.name for model in models if model.state == "ready")
        return WorkerState(
            pid=os.getpid(),
            started=self._began,
            keys=self._keys,
            models={
                model.name: WorkerModel(
                    state=model.state,
                    stage=model.stage,
                    fraction=model.fraction,
                    been_ready=model.name in self._been_ready,
                    agreed=model.name in self._agreed,
                    bytes_done=model.bytes_done,
                    bytes_total=model.bytes_total,
                    memory_bytes=model.memory_bytes,
                    retries=model.retries,
                    steps=dict(model.steps),
                    error=model.error and model.error[:_LONGEST_ERROR],
                )
                for model in models
            },
            process=_process,
        )

    @property
    def _keys(self) -> frozenset[str]:
        found = self._listening
        return frozenset({f"group {self._name}"}) if self._name is not None else found.sockets | found.addresses

    def _exchange(self, own: WorkerState) -> None:
        """Write, read and decide. Blocks."""
        try:
            if not self._agreed:  # the server may begin to listen later than the warm-up begins
                self._listening = listening()
                own = replace(own, keys=self._keys)
            others: list[WorkerState] = []
            if own.keys:
                if own != self._written:
                    self._file.write(own.document())
                    self._written = own
                found = map(WorkerState.parse, self._file.others())
                others = [other for other in found if other is not None and own.is_beside(other)]
            expected = self._expected(own, others)
        except OSError as error:
            # Nothing is agreed on what could not be seen.
            self._warn(error)
            self._found = replace(self._found, own=own) if self._shared else Workers(own)
            return
        self._found = Workers(own, tuple(others), expected)
        if own.keys:
            self._shared = True
            self._agreed = {name for name in own.models if self._found.agree(name)}

    def _expected(self, own: WorkerState, others: Sequence[WorkerState]) -> int | None:
        if not own.keys:
            return 1
        now = time.monotonic()
        pids = None if self._name is not None else supervised(self._listening.sockets)
        count = None  # and so where each of the workers may have a socket of its own
        if pids is not None and (pids or not self._listening.addresses):
            silent = self._silent.of(pids, {own.pid, *(other.pid for other in others)}, now)
            self._warn_of(silent)
            count = len(pids - silent)
        expected = expected_workers(own, others, count, now)
        return expected and self._count.settle(expected, now)

    def _warn_of(self, silent: set[int]) -> None:
        if silent - self._warned_of:
            self._warned_of |= silent
            text = "warm-up: processes that have this server's socket show no warm-up, and count as no workers: %s."
            logger.warning(text, ", ".join(map(str, sorted(silent))))

    def _warn(self, error: OSError) -> None:
        self._written = None
        if not self._warned:
            self._warned = True
            text = (
                "warm-up: the workers of this server can't share their states (%s), so each answers for itself, or by "
                "what it has seen last. XDG_RUNTIME_DIR can name a folder that only this user can read and write."
            )
            logger.warning(text, error)

"""Work in a task of the event loop's own, which goes on when those who wait for it leave."""

from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio

from yaie_async.core.loops import Loop, spawn
from yaie_async.core.tasks import owner


class Background:
    """One run of `work`, begun now on the running loop. It owns the shared calls that it leads.

    Raises:
        RuntimeError: no event loop is running.
    """

    def __init__(self, work: Callable[[], Awaitable[object]], name: str) -> None:
        self.loop: Loop = Loop()
        self.ended: bool = False
        self.error: BaseException | None = None  # why it failed, or was stopped
        self._work = work
        self._scope: anyio.CancelScope | None = None
        spawn(self._run, name)

    @property
    def is_running(self) -> bool:
        return not self.ended and not self.loop.has_ended

    async def _run(self) -> None:
        try:
            if self.error is None:  # it was not stopped before its first step
                owner.set(self)
                with anyio.CancelScope() as self._scope:
                    await self._work()
                    self.error = None  # it was done before it could be stopped
        except (Exception, SystemExit) as error:  # noqa: BLE001 - out of a task of its own they would end trio
            self.error = error
        finally:
            self.ended = True

    async def stop(self, error: Exception) -> None:
        """Cancel it, with this error for those who wait; return when it has ended. From any loop.

        **Cancellation:** it ends all the same.

        **Raises:** nothing.
        """
        self.error = error
        with suppress(RuntimeError):  # its loop is closed
            self.loop.tell(self._cancel)
        await self.loop.until(lambda: self.ended)

    def _cancel(self) -> None:
        if self._scope is not None:
            self._scope.cancel()

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

    def __init__(self, work: Callable[["Background"], Awaitable[object]], name: str) -> None:
        self.loop: Loop = Loop()
        self.ended: bool = False
        self.finished: bool = False  # without an error, and not cancelled
        self.error: BaseException | None = None
        self.stopped: Exception | None = None  # the error of those who wait for what was stopped
        # The ids of the shared calls that it has made; not the calls, which hold a model, and idle threads hold this.
        self.tried: set[int] = set()
        self.readers: set[object] = set()  # who will be told of an error
        self._work: Callable[[Background], Awaitable[object]] | None = work
        self._scope: anyio.CancelScope | None = None
        spawn(self._run, name)

    @property
    def is_running(self) -> bool:
        return not self.ended and not self.stopped and not self.loop.has_ended

    async def _run(self) -> None:
        try:
            if self.stopped is None and self._work is not None:
                owner.set(self)
                with anyio.CancelScope() as self._scope:
                    await self._work(self)
                    self.finished = True
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:
            self.error = _bare(error)
            # Out of a task of the loop's own, anything ends trio. asyncio takes Ctrl-C from here.
            if isinstance(error, KeyboardInterrupt) and hasattr(self.loop.native, "is_running"):
                raise
        finally:
            self._work = None  # it refers to the loader, which refers to this
            self.ended = True

    async def stop(self, error: Exception) -> None:
        """Cancel it, with this error for those who wait; return when it has ended, or its loop stands still.

        **Cancellation:** it ends all the same.

        **Raises:** nothing.
        """
        self.stopped = error
        with suppress(RuntimeError):  # its loop is closed
            self.loop.tell(self._cancel)
        await self.loop.until(lambda: self.ended)

    def _cancel(self) -> None:
        if self._scope is not None:
            self._scope.cancel()


def _bare(error: BaseException) -> BaseException:
    """The error without tracebacks, whose frames would keep a model in memory as long as the error."""
    each: BaseException | None = error
    seen = set()
    while each is not None and each not in seen:
        seen.add(each)
        each.__traceback__ = None
        each = each.__cause__ or each.__context__
    return error

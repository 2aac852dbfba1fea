"""Threads that own descriptors are awaited to their end after any kind of cancellation."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import anyio
import pytest

from tests.support.waiting import until
from yaie_async.core.threads import run_detached, run_owned

ours = pytest.mark.anyio


def our_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("yaie_async")]


class Work:
    """Work that holds a descriptor until `stop` is set, and records that it has closed it."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.stop = threading.Event()
        self.interrupts = 0
        self.closed = False

    def __call__(self) -> str:
        fd = os.open(os.devnull, os.O_RDONLY)
        try:
            self.started.set()
            assert self.stop.wait(60)
            time.sleep(0.02)  # an interrupted call takes a moment to return
            return "done"
        finally:
            os.close(fd)
            self.closed = True

    def interrupt(self) -> None:
        self.interrupts += 1
        self.stop.set()


# -- run_owned ----------------------------------------------------------------------------------------------


@ours
async def test_it_returns_what_the_function_returns(anyio_backend: Any) -> None:
    """The function runs in a named daemon thread with the caller's context, and its result is returned."""
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("mine")
    thread = threading.current_thread
    there, name, value = await run_owned(lambda: (thread(), thread().name, variable.get()), name="test")
    assert value == "mine"
    assert there is not thread()
    assert there.daemon
    assert name == "yaie_async test"


@ours
async def test_it_raises_what_the_function_raises(anyio_backend: Any) -> None:
    """Any exception of the function is raised in the task, as the same object."""
    for error in (KeyError("x"), SystemExit(3), StopIteration()):

        def fail(error: BaseException = error) -> None:
            raise error

        caught = None
        try:
            await run_owned(fail)
        except BaseException as raised:
            caught = raised
        # Python itself turns a StopIteration that leaves a coroutine into a RuntimeError.
        assert error in (caught, getattr(caught, "__cause__", None))


@ours
async def test_an_anyio_cancel_waits_for_the_thread(anyio_backend: Any) -> None:
    """A cancelled anyio scope interrupts once, and control returns after the thread has closed its descriptor."""
    work = Work()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:

            async def cancel() -> None:
                await until(work.started.is_set)
                scope.cancel()

            group.start_soon(cancel)
            await run_owned(work, interrupt=work.interrupt)
    assert scope.cancelled_caught
    assert (work.interrupts, work.closed) == (1, True)
    await until(lambda: not our_threads())


@ours
async def test_an_anyio_timeout_waits_for_the_thread(anyio_backend: Any) -> None:
    """`anyio.fail_after` raises TimeoutError after the thread has ended."""
    work = Work()
    with pytest.raises(TimeoutError):
        with anyio.fail_after(0.03):
            await run_owned(work, interrupt=work.interrupt)
    assert (work.interrupts, work.closed) == (1, True)


@ours
async def test_a_cancel_without_an_interrupt_waits_for_the_thread(anyio_backend: Any) -> None:
    """A function that can't be interrupted is awaited, and the cancel is raised when it has ended."""
    work = Work()
    with anyio.CancelScope() as scope:
        scope.cancel()
        threading.Timer(0.05, work.stop.set).start()
        await run_owned(work)
    assert scope.cancelled_caught
    assert work.closed


@ours
async def test_an_error_after_a_cancel_does_not_hide_the_cancel(anyio_backend: Any) -> None:
    """An error of an interrupted function is dropped: the task gets its cancel."""
    stop = threading.Event()

    def fail() -> None:
        stop.wait(60)
        raise OSError("the socket was shut down under it")

    with anyio.CancelScope() as scope:
        scope.cancel()
        await run_owned(fail, interrupt=stop.set)
    assert scope.cancelled_caught


@ours
async def test_an_interrupt_that_is_interrupted_is_called_again(anyio_backend: Any) -> None:
    """A Ctrl-C inside `interrupt` does not leave the thread waiting for ever."""
    work = Work()
    strikes = [KeyboardInterrupt()]

    def interrupt() -> None:
        if strikes:
            raise strikes.pop()
        work.interrupt()

    with anyio.CancelScope() as scope:
        scope.cancel()
        await run_owned(work, interrupt=interrupt)
    assert scope.cancelled_caught
    assert (work.interrupts, work.closed) == (1, True)


@ours
async def test_an_interrupt_that_fails_does_not_lose_the_thread(anyio_backend: Any) -> None:
    """If `interrupt` itself fails, the thread is still awaited, and the cancel is raised."""
    work = Work()

    def interrupt() -> None:
        work.interrupt()
        raise OSError("not connected any more")

    with anyio.CancelScope() as scope:
        scope.cancel()
        await run_owned(work, interrupt=interrupt)
    assert scope.cancelled_caught
    assert (work.interrupts, work.closed) == (1, True)


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def asyncio_runner(request: pytest.FixtureRequest) -> Any:
    import uvloop

    factory = uvloop.new_event_loop if request.param else None
    return asyncio.Runner(loop_factory=factory)


def test_a_native_timeout_waits_for_the_thread(asyncio_runner: Any) -> None:
    """The thread is awaited after `asyncio.timeout` too, which anyio's shield does not stop."""
    work = Work()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.03):
                await run_owned(work, interrupt=work.interrupt)
        assert (work.interrupts, work.closed) == (1, True)
        assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]

    with asyncio_runner as runner:
        runner.run(main())


def test_a_task_that_is_cancelled_twice_waits_for_the_thread(asyncio_runner: Any) -> None:
    """A second `task.cancel()` while the thread ends is absorbed: one interrupt, no open descriptor."""
    work = Work()
    interrupted = threading.Event()

    async def main() -> None:
        task = asyncio.ensure_future(run_owned(work, interrupt=interrupted.set))
        await until(work.started.is_set)
        task.cancel()
        await until(interrupted.is_set)
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()
        work.stop.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert work.closed

    with asyncio_runner as runner:
        runner.run(main())


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_ctrl_c_twice_waits_for_the_thread(backend: str) -> None:
    """After a second Ctrl-C, too, KeyboardInterrupt is raised only when the thread has closed its descriptor."""
    script = """if True:
        import anyio, os, sys, threading, time
        from yaie_async.core.threads import run_owned
        stop, closed = threading.Event(), []
        def work():
            fd = os.open(os.devnull, os.O_RDONLY)
            try:
                stop.wait(60)
                time.sleep(0.3)
            finally:
                os.close(fd)
                closed.append(fd)
        def interrupt():
            print("interrupted", flush=True)
            stop.set()
        async def started():
            await anyio.wait_all_tasks_blocked()
            print("started", flush=True)
        async def main():
            async with anyio.create_task_group() as group:
                group.start_soon(started)
                await run_owned(work, interrupt=interrupt)
        name, options = sys.argv[1], {}
        if name != "trio":
            name, options = "asyncio", {"use_uvloop": name == "uvloop"}
        try:
            anyio.run(main, backend=name, backend_options=options)
        except* KeyboardInterrupt:
            print("KeyboardInterrupt", bool(closed), flush=True)
        """
    with subprocess.Popen([sys.executable, "-c", script, backend], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "started\n"
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "interrupted\n"
        child.send_signal(signal.SIGINT)
        # "interrupted" is printed again if the second Ctrl-C hits inside the interrupt.
        assert child.stdout.read().removeprefix("interrupted\n") == "KeyboardInterrupt True\n"
    assert child.returncode == 0


def test_idle_threads_end_before_the_process_does() -> None:
    """They end before libraries free the data of all threads; otherwise OpenSSL corrupts the heap."""
    script = """if True:
        import atexit, os
        atexit.register(lambda: print(len(os.listdir("/proc/self/task"))))  # called after those registered later
        import anyio
        from yaie_async.core.threads import reserve_threads, run_owned
        async def main():
            reserve_threads(20)
            await run_owned(lambda: None)
            print(len(os.listdir("/proc/self/task")))
        anyio.run(main)
        """
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.split() == ["21", "1"]


# -- run_detached -------------------------------------------------------------------------------------------


@ours
async def test_a_detached_thread_has_ended_when_its_result_is_returned() -> None:
    """A library's data of the thread is destroyed by then, because at the end of the process it may be too late."""

    class Kept:
        def __del__(self) -> None:
            time.sleep(0.05)
            gone.set()

    gone = threading.Event()
    local = threading.local()

    def work() -> threading.Thread:
        local.kept = Kept()
        return threading.current_thread()

    thread = await run_detached(work, name="test")
    assert gone.is_set()
    assert not thread.is_alive()


@ours
async def test_a_detached_thread_returns_and_raises(anyio_backend: Any) -> None:
    """Without a cancel a detached thread gives its result or its exception."""
    assert await run_detached(lambda: 3, name="test") == 3
    with pytest.raises(ZeroDivisionError):
        await run_detached(lambda: 1 // 0, name="test")


@ours
async def test_a_detached_thread_is_left_behind_on_a_cancel(anyio_backend: Any) -> None:
    """On a cancel control returns at once; the thread runs to its end and its result is dropped."""
    work = Work()
    with anyio.move_on_after(0.02) as scope:
        await run_detached(work, name="left")
    assert scope.cancelled_caught
    assert not work.closed
    work.stop.set()
    await until(lambda: work.closed and not our_threads())


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_a_thread_that_outlives_its_loop_ends_quietly(backend: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A detached thread whose loop is closed before it ends raises nothing and prints nothing."""
    work = Work()

    async def main() -> None:
        with anyio.move_on_after(0.02):
            await run_detached(work, name="outlives")

    name, options = ("trio", {}) if backend == "trio" else ("asyncio", {"use_uvloop": backend == "uvloop"})
    anyio.run(main, backend=name, backend_options=options)
    while not our_threads():  # on a busy machine it has not yet begun
        time.sleep(0.001)
    (thread,) = our_threads()
    work.stop.set()
    thread.join(60)
    assert not thread.is_alive()
    assert capfd.readouterr().err == ""


def _ends(script: str) -> tuple[int, str, str]:
    """The exit code, output and errors of a process that ends by itself."""
    imports = "import atexit, os, sys, threading, time, anyio\nfrom yaie_async.core.threads import run_detached\n"
    command = [sys.executable, "-c", imports + script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


def test_a_process_that_ends_during_a_cancelled_build_is_not_aborted() -> None:
    """The process is not aborted although the interpreter ends while a thread runs torch's C++."""
    code, _, errors = _ends("""if True:
        import torch
        begun = threading.Event()
        def build():
            while True:
                torch.nn.Linear(100, 100)
                begun.set()
        async def main():
            with anyio.move_on_after(0) as scope:
                await run_detached(build, name="build")
            while not begun.is_set():
                await anyio.sleep(0.01)
        anyio.run(main)
        """)
    assert (code, errors) == (0, "")


def test_the_end_of_the_process_ends_detached_work() -> None:
    """Its `finally` blocks run, although a destructor has swallowed the first SystemExit."""
    code, output, errors = _ends("""if True:
        begun = threading.Event()
        class Stubborn:
            def __del__(self):
                begun.set()
                while True:
                    pass
        def work():
            try:
                Stubborn()
                time.sleep(0.001)
                while True:
                    pass
            finally:
                print("finally")
        async def main():
            with anyio.move_on_after(0):
                await run_detached(work, name="work")
            begun.wait()
        anyio.run(main)
        """)
    assert (code, output, errors) == (0, "finally\n", "")


@pytest.mark.parametrize(("option", "least"), [("True", 1.0), ("False", 0.0)])
def test_the_end_of_the_process_does_not_wait_for_a_sleeping_call(option: str, least: float) -> None:
    """A sleeping call of C can't be ended: it is awaited for a second, or not at all with `awaited_at_exit=False`."""
    code, output, errors = _ends(f"""if True:
        begun = threading.Event()
        def work():
            begun.set()
            time.sleep(100)
        async def main():
            with anyio.move_on_after(0):
                await run_detached(work, name="work", awaited_at_exit={option})
            begun.wait()
        anyio.run(main)
        began = time.monotonic()
        atexit._run_exitfuncs()
        print(time.monotonic() - began)
        """)
    assert (code, errors) == (0, "")
    assert least <= float(output) < 20

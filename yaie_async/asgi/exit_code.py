"""The end of a process whose warm-up has failed, with an exit code at which supervisors start no further worker."""

import atexit
import logging
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any

# "Worker failed to boot" for gunicorn's arbiter, and STARTUP_FAILURE for uvicorn's supervisor. They stop at this code,
# and replace a worker that ends with any other.
CODE = 3

# Seconds for threads that are left: after the end of the main thread, and after the shutdown of the warm-up.
_GRACE, _LONGEST = 2.0, 10.0

_ending = False


def end_process() -> None:
    """Have the server of this process shut down as after SIGTERM; the process then exits with `CODE`.

    Where SIGTERM has no handler there is no shutdown to wait for: the process exits at once.
    """
    global _ending  # noqa: PLW0603 - a process has one end
    _ending = True
    if signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, signal.SIG_IGN):
        _exit()
    multiprocessing: Any = sys.modules.get("multiprocessing.util") and sys.modules["multiprocessing"]
    # A forked child of multiprocessing ends without atexit.
    child = multiprocessing and multiprocessing.parent_process()
    if child and multiprocessing.get_start_method(allow_none=True) != "spawn":
        multiprocessing.util.Finalize(None, _exit, exitpriority=-100)
    _watch(None)
    try:
        # The server's own handler begins its graceful shutdown, as in a deploy.
        signal.raise_signal(signal.SIGTERM)
    finally:
        # After its shutdown uvicorn restores the default action and raises the signal again: that would be the end.
        if hasattr(signal, "pthread_sigmask"):  # not on Windows
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def limit_shutdown() -> None:
    """Have a process that ends do so soon, even where its event loop waits for a thread, as after `asyncio.to_thread`.

    For the end of the warm-up, after which a server has little left to do.
    """
    if _ending:
        _watch(_LONGEST)


def _watch(longest: float | None) -> None:
    """Exit soon after the end of the main thread, or in `longest` seconds: other threads may never end.

    Python waits for them before it calls functions of atexit.
    """

    def work() -> None:
        main = threading.main_thread()
        main.join(longest)
        if not main.is_alive():
            time.sleep(_GRACE)
        _exit()

    threading.Thread(target=work, name="yaie_async exit", daemon=True).start()


@atexit.register  # when the app is imported, so that this runs after what it registers later
def _exit() -> None:
    if _ending:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # closed, or None
                stream.flush()
        os._exit(CODE)

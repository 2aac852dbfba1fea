"""The end of a process whose warm-up has failed, with an exit code at which supervisors start no further worker."""

import atexit
import logging
import os
import signal
import sys
from contextlib import suppress

# "Worker failed to boot" for gunicorn's arbiter, and STARTUP_FAILURE for uvicorn's supervisor. They stop at this code,
# and replace a worker that ends with any other.
CODE = 3

_ending = False


def end_process() -> None:
    """Have the server of this process shut down as after SIGTERM; the process then exits with `CODE`.

    Where SIGTERM has no handler there is no shutdown to wait for: the process exits at once.
    """
    global _ending  # noqa: PLW0603 - a process has one end
    _ending = True
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        _exit()
    try:
        # The server's own handler begins its graceful shutdown, as in a deploy.
        signal.raise_signal(signal.SIGTERM)
    finally:
        # After its shutdown uvicorn restores the default action and raises the signal again: that would be the end.
        if hasattr(signal, "pthread_sigmask"):  # not on Windows
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


@atexit.register  # when the app is imported, so that this runs after what it registers later
def _exit() -> None:
    if _ending:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # closed, or None
                stream.flush()
        os._exit(CODE)

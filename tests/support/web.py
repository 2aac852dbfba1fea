"""Web servers as in production: processes of uvicorn and gunicorn, stopped by signals."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import httpx

T = TypeVar("T")

UVICORN = ("uvicorn", "app:app", "--port", "0")
GUNICORN = ("gunicorn", "app:app", "-k", "uvicorn_worker.UvicornWorker", "-b", "127.0.0.1:0")
HYPERCORN = ("hypercorn", "app:app", "-b", "127.0.0.1:0")
GRANIAN = ("granian", "app:app", "--interface", "asgi")


class WebServer:
    """A process that serves `app` of app.py in its folder.

    Attributes:
        process: the process of the server, or the one that supervises its workers.
        url: its address.
        client: an HTTP client for it.
        lines: its output so far.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        found = self.until(lambda: re.search(r"http://127\.0\.0\.1:\d+", self.text))
        self.url = found[0]
        # Servers with workers log this before a worker listens.
        self.until(self._accepts)
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def _accepts(self) -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", int(self.url.rsplit(":", 1)[1]))) == 0

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    def ready(self) -> bool:
        """Return whether its warm-up is ready."""
        return self.client.get("/warmup/readyz").status_code == 200

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def until(self, condition: Callable[[], T | None], *, seconds: float = 60) -> T:
        """Wait until a condition is true, and return its value.

        Raises:
            AssertionError: it did not become true, or the process ended first; the message has its output.
        """
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, self.text
            assert self.process.poll() is None or condition(), self.text
            time.sleep(0.02)
        return found

    def stop(self, number: int = signal.SIGTERM) -> float:
        """Send a signal and wait for the end of the process; return the seconds it took."""
        start = time.perf_counter()
        self.process.send_signal(number)
        self.process.wait(60)
        seconds = time.perf_counter() - start
        self._reader.join()
        return seconds


@contextlib.contextmanager
def web_server(folder: Path, environment: Mapping[str, str], *command: str) -> Iterator[WebServer]:
    """Run a server in `folder`, and kill it and its workers at the end of the block."""
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            server = WebServer(process)
            with server.client:
                yield server
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

"""Tests of several workers of real servers that answer as one."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.command import Command
from tests.support.waiting import wait_until
from tests.support.web import GRANIAN, GUNICORN, HYPERCORN, UVICORN, WebServer, web_server

# Each worker loads when the test makes a file for it, and shows its pid and that of the server's first process.
_APP = """\
import logging
import os
from pathlib import Path

import anyio

from yaie_async import ModelLoader
from yaie_async.asgi import Warmup

logging.basicConfig(level=logging.INFO)


class Gated(ModelLoader):
    async def load(self):
        Path(f"waits-{os.getpid()}").touch()
        while not Path(f"go-{os.getpid()}").exists():
            await anyio.sleep(0.01)
        return None, None


warmup = Warmup(chat=Gated("org/name"), group=os.environ.get("GROUP"))


async def app(scope, receive, send):
    await warmup.app(scope | {"root_path": "/warmup"}, receive, send)
"""


class Workers:
    """The workers of a server."""

    def __init__(self, server: WebServer, home: Path) -> None:
        self.server = server
        self.home = home

    def waiting(self) -> set[int]:
        """The living workers whose load waits for `go`."""
        pids = {int(path.name.removeprefix("waits-")) for path in self.home.glob("waits-*")}
        return {pid for pid in pids if psutil.pid_exists(pid) and not (self.home / f"go-{pid}").exists()}

    def go(self, pid: int) -> None:
        (self.home / f"go-{pid}").touch()

    def ask(self, path: str = "/readyz") -> httpx.Response:
        """Ask a worker, on a connection of its own."""
        return httpx.get(self.server.url + "/warmup" + path, timeout=60)

    def status(self) -> list[dict[str, Any]]:
        workers = self.ask("/status").json().get("workers", [])
        assert isinstance(workers, list)
        return workers

    def files(self) -> int:
        return len(list(self.home.glob("yaie-async/worker-*")))


@contextmanager
def three_workers(home: Path, *command: str) -> Iterator[Workers]:
    (home / "app.py").write_text(_APP)
    with web_server(home, Command(home).environment, *command) as server:
        workers = Workers(server, home)
        server.until(lambda: len(workers.waiting()) == 3)
        yield workers


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port that nobody else gets, for a server that shares it by SO_REUSEPORT."""
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.mark.parametrize(
    "command",
    [
        (*UVICORN, "--workers", "3"),
        (*GUNICORN, "-w", "3"),
        (*HYPERCORN, "-w", "3"),
        (*GRANIAN, "--workers", "3", "--respawn-failed-workers"),
    ],
    ids=["uvicorn", "gunicorn", "hypercorn", "granian"],
)
def test_workers_agree(command: tuple[str, ...], free_port: int, tmp_path: Path) -> None:
    """The server is ready when all workers have been, and stays so while one is killed and its successor is cold."""
    if command[0] == "granian":  # each of its workers would get another port for port 0
        command = (*command, "--port", str(free_port))
    with three_workers(tmp_path, *command) as workers:
        server = workers.server
        first, second, third = workers.waiting()
        workers.go(first)
        workers.go(second)
        server.until(lambda: [worker["state"] for worker in workers.status()].count("ready") == 2)
        # Two are ready, and no probe is positive: the balancer of the kernel chooses who answers.
        server.until(lambda: workers.ask("/readyz?worker=self").status_code == 200)
        assert {workers.ask().status_code for _ in range(20)} == {503}
        assert {worker["pid"]: worker["state"] for worker in workers.status()} == {
            first: "ready",
            second: "ready",
            third: "loading",
        }
        workers.go(third)
        server.until(lambda: workers.ask().status_code == 200)
        assert {workers.ask().status_code for _ in range(20)} == {200}
        assert workers.ask("/readyz?worker=all").status_code == 200
        assert workers.ask("/readyz?worker=some").status_code == 400
        if command[0] == "hypercorn":  # which ends with its first worker
            return
        os.kill(first, signal.SIGKILL)
        (successor,) = server.until(workers.waiting)
        server.until(lambda: {worker["pid"] for worker in workers.status()} == {successor, second, third})
        server.until(lambda: workers.ask("/readyz?worker=self").status_code == 503)
        assert {workers.ask().status_code for _ in range(20)} == {200}
        assert workers.ask("/readyz?worker=all").status_code == 503
        assert workers.files() == 3
        server.stop()
        assert workers.files() == 0


def test_two_servers_of_one_parent(tmp_path: Path) -> None:
    """Two servers of one user with one parent are two: each is ready by itself, and shows no workers."""
    (tmp_path / "app.py").write_text(_APP)
    environment = Command(tmp_path).environment
    with web_server(tmp_path, environment, *UVICORN) as one, web_server(tmp_path, environment, *UVICORN) as other:
        workers = [Workers(one, tmp_path), Workers(other, tmp_path)]
        one.until(lambda: workers[0].waiting() == {one.process.pid, other.process.pid})
        workers[0].go(one.process.pid)
        one.until(one.ready)
        wait_until(lambda: workers[0].files() == 2)
        assert workers[1].ask().status_code == 503
        assert workers[0].status() == workers[1].status() == []


def test_a_group_has_a_name(tmp_path: Path) -> None:
    """Servers with one `group` are workers of one server, whatever they listen on."""
    (tmp_path / "app.py").write_text(_APP)
    environment = {**Command(tmp_path).environment, "GROUP": "behind one proxy"}
    with web_server(tmp_path, environment, *UVICORN) as one, web_server(tmp_path, environment, *UVICORN) as other:
        workers = Workers(one, tmp_path)
        one.until(lambda: len(workers.waiting()) == 2)
        workers.go(one.process.pid)
        one.until(lambda: len(workers.status()) == 2)
        one.until(lambda: workers.ask("/readyz?worker=self").status_code == 200)
        assert not one.ready()
        workers.go(other.process.pid)
        one.until(one.ready)


def test_a_runtime_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """Each worker then answers for itself, and says why, once."""
    (tmp_path / "yaie-async").touch()
    (tmp_path / "app.py").write_text(_APP)
    environment = {**Command(tmp_path).environment, "XDG_RUNTIME_DIR": str(tmp_path)}
    with web_server(tmp_path, environment, *UVICORN, "--workers", "2") as server:
        workers = Workers(server, tmp_path)
        server.until(lambda: len(workers.waiting()) == 2)
        first, second = workers.waiting()
        workers.go(first)
        server.until(lambda: workers.ask().status_code == 200)
        server.until(lambda: workers.ask().status_code == 503)
        workers.go(second)
        server.until(lambda: {workers.ask().status_code for _ in range(20)} == {200})
        assert workers.status() == []
    assert server.text.count("can't share their states") == 2
    assert f"{tmp_path}/yaie-async" in server.text

"""Tests of warm-ups in processes of real servers: signals, reloads and many clients."""

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
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.asgi.conftest import Put
from tests.support.command import Command
from tests.support.faults import Drip
from tests.support.hub import HubServer
from tests.support.web import GRANIAN, GUNICORN, HYPERCORN, UVICORN, web_server

APP = """\
import logging
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from yaie_async import ModelLoader
from yaie_async.asgi import Warmup

logging.basicConfig(level=logging.INFO)
warmup = Warmup(chat=ModelLoader("org/name"))
wait_for_chat = warmup.dependency("chat", wait=60)


@asynccontextmanager
async def lifespan(app):
    async with warmup:
        yield
    logging.info("the lifespan has ended")


async def chat(request):
    model = await wait_for_chat()
    return PlainTextResponse(type(model).__name__)


app = Starlette(lifespan=lifespan, routes=[Route("/chat", chat), Mount("/warmup", warmup.app)])
"""

# Bytes that may be fetched again after a stop during a download: at most one block per connection.
_AGAIN = 8 * (4 << 20)

# Bytes per second for each of the eight connections, so that the download takes some seconds.
_SLOW = Drip(1 << 20)


def weights(hub: HubServer) -> int:
    """The bytes of the weights that the hub has sent."""
    return sum(request.sent for request in hub.requests if request.path.startswith("/cdn/"))


class Background:
    """A request in a thread, with its response."""

    def __init__(self, url: str) -> None:
        self.status = 0
        self.body = ""
        self._thread = threading.Thread(target=self._ask, args=(url,), daemon=True)
        self._thread.start()

    def _ask(self, url: str) -> None:
        with httpx.stream("GET", url, timeout=60) as answer:
            self.status = answer.status_code
            for part in answer.iter_text():
                self.body += part

    def end(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.fixture
def command(hub: HubServer, tmp_path: Path, put_large: Put) -> Command:
    """The environment and the folder of a server whose app loads 34 MB."""
    put_large("org/name")
    (tmp_path / "app.py").write_text(APP)
    return Command(tmp_path, hub.url)


@pytest.mark.parametrize(
    "server_command",
    [UVICORN, (*UVICORN, "--lifespan", "off"), GUNICORN],
    ids=["uvicorn", "uvicorn, lifespan off", "gunicorn"],
)
def test_a_stop_in_mid_download(server_command: tuple[str, ...], hub: HubServer, command: Command) -> None:
    """The server stops within a second although a page is open and a request waits; the next start continues."""
    hub.faults.add(_SLOW, path="^/cdn/", times=None)
    with web_server(command.home, command.environment, *server_command) as server:
        assert server.client.get("/warmup/livez").status_code == 200
        watcher, waiter = Background(server.url + "/warmup/events"), Background(server.url + "/chat")
        server.until(lambda: "downloading" in watcher.body)
        server.until(lambda: weights(hub) > 4 << 20)
        assert server.client.get("/warmup/readyz").status_code == 503
        seconds = server.stop()
        print(f"stopped in {seconds:.2f} s")
        watcher.end()
        waiter.end()
        assert (watcher.status, waiter.status) == (200, 503)
        assert "chat" in waiter.body
        # A second on a quiet machine; other tests may run at the same time.
        assert seconds < 3, server.text
    sent = weights(hub)
    size = (hub.root / "org/name/model.safetensors").stat().st_size
    assert sent < size
    hub.faults.clear()
    if server_command == UVICORN:
        with web_server(command.home, command.environment, *server_command) as server:
            server.until(server.ready)
            assert server.client.get("/chat").text == "LlamaForCausalLM"
            assert weights(hub) <= size + _AGAIN


def test_a_reload_in_mid_download(hub: HubServer, command: Command) -> None:
    """Under `--reload` a change of the code restarts the server, and the download continues where it stopped."""
    hub.faults.add(_SLOW, path="^/cdn/", times=None)
    with web_server(command.home, command.environment, *UVICORN, "--reload") as server:
        server.until(lambda: weights(hub) > 4 << 20)
        (command.home / "app.py").write_text(APP + "# changed\n")
        server.until(lambda: "Finished server process" in server.text)
        hub.faults.clear()
        server.until(server.ready)
    size = (hub.root / "org/name/model.safetensors").stat().st_size
    assert weights(hub) <= size + _AGAIN


def test_a_worker_that_has_answered_enough(hub: HubServer, command: Command) -> None:
    """A worker that reaches its limit of requests ends although an event stream is open, for which uvicorn waits."""
    (command.home / "app.py").write_text("from yaie_async.asgi import events\nevents.LIFETIME = 1\n" + APP)
    hub.faults.add(_SLOW, path="^/cdn/", times=None)
    with web_server(command.home, command.environment, *UVICORN, "--limit-max-requests", "4") as server:
        watcher = Background(server.url + "/warmup/events")
        server.until(lambda: watcher.body)
        for _ in range(3):
            assert server.client.get("/warmup/livez").status_code == 200
        assert server.process.wait(60) == 0
        watcher.end()
        assert watcher.body.endswith("event: again\ndata: {}\n\n")
        server.stop()
    assert "Application shutdown complete" in server.text


@pytest.mark.parametrize(
    ("server_command", "codes", "graceful"),
    [
        (UVICORN, (3,), True),
        ((*UVICORN, "--workers", "2"), (0,), True),  # it has no code of its own for this
        ((*GUNICORN, "-w", "2"), (3, 1), True),  # 1 if another worker ends like this while it stops
        ((*HYPERCORN, "-w", "2"), (0, 3), False),  # its code is the last worker's; they do not handle SIGTERM
        ((*HYPERCORN, "-w", "2", "-k", "trio"), (0, 3), False),
        ((*GRANIAN, "--workers", "2"), (1,), True),
    ],
    ids=["uvicorn", "uvicorn, 2 workers", "gunicorn", "hypercorn", "hypercorn, trio", "granian"],
)
def test_a_failure_ends_the_server(
    server_command: tuple[str, ...], codes: tuple[int, ...], graceful: bool, hub: HubServer, tmp_path: Path
) -> None:
    """With on_failure="exit" a worker logs the reason, shuts down and exits with 3, and its supervisor starts no more.

    No signal is sent to a parent, which may be a shell: the one here would end before it prints the code.
    """
    app = APP.replace('loader("org/name")', "").replace(
        'ModelLoader("org/name")', 'ModelLoader("no/such"), on_failure="exit"'
    )
    (tmp_path / "app.py").write_text(app)
    shell = 'python=$1; shift; "$python" -m "$@"; echo "code $?"'
    with subprocess.Popen(
        ["sh", "-c", shell, "sh", sys.executable, *server_command],
        cwd=tmp_path,
        env=dict(Command(tmp_path, hub.url).environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, text = process.communicate(timeout=90)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    text += out
    assert out.splitlines()[-1] in [f"code {code}" for code in codes], text
    assert text.count("on_failure is 'exit'") <= 2, text
    assert "The Hub has no public model 'no/such'" in text
    assert "on_failure is 'exit': this process ends" in text
    assert ("the lifespan has ended" in text) == graceful, text


class Reader:
    """A client of /events that reads only when `until` is called."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self.socket = socket.create_connection((address.hostname, address.port), timeout=60)
        self.socket.sendall(b"GET /warmup/events HTTP/1.1\r\nHost: app\r\n\r\n")

    def until(self, text: bytes) -> bytes:
        with self.socket:
            got = b""
            while text not in got:
                part = self.socket.recv(65536)
                assert part, got
                got += part
            return got


def test_a_probe_every_10_ms_and_500_readers(hub: HubServer, command: Command) -> None:
    """Every probe is answered, with 503 and then 200, and all 500 readers receive the ready event."""
    with web_server(command.home, command.environment, *UVICORN) as server:
        client = server.client
        readers = [Reader(server.url) for _ in range(500)]
        answers: list[httpx.Response] = []
        while not answers or answers[-1].status_code != 200:
            answers.append(client.get("/warmup/readyz"))
            assert answers[-1].status_code in (200, 503), answers[-1].text
            time.sleep(0.01)
        fractions = [answer.json()["fraction"] for answer in answers]
        assert fractions == sorted(fractions)
        assert fractions[0] < fractions[-1] == 1
        assert all(re.fullmatch(r"[1-9]\d?", answer.headers["retry-after"]) for answer in answers[:-1])
        assert client.get("/chat").text == "LlamaForCausalLM"
        for reader in readers:
            assert reader.until(b'data: {"state": "ready"').startswith(b"HTTP/1.1 200")
        longest = max(answer.elapsed.total_seconds() for answer in answers)
        print(f"{len(answers)} probes, the longest {longest * 1000:.0f} ms")
        assert longest < 2

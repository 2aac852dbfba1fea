"""Tests of the server thread, and of an import without the extra."""

from __future__ import annotations

import builtins
import contextlib
import importlib
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from tests.support.renamed import renamed
from tests.support.stopwatch import Stopwatch
from yaie_async.localhub import LocalHub, running, server


def serving() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("serve ")]


def test_the_server_is_there_for_the_block(hub_root: Path) -> None:
    """The server answers when the block begins; after the block its port and thread are gone, despite open connections."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with httpx.Client() as client:
        with running(LocalHub(hub_root)) as url:
            assert client.get(f"{url}/api/models/gpt2").status_code == 200
            assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
            watch = Stopwatch()
        assert watch.seconds < 1
        with pytest.raises(httpx.ConnectError):
            httpx.get(url)
    assert serving() == []


def test_small_answers_are_not_held_back(hub_root: Path) -> None:
    """Nagle's algorithm is off on the server's end of a connection: its head and body are two writes."""
    with running(LocalHub(hub_root)) as url, socket.socket() as client, contextlib.ExitStack() as stack:
        client.connect((urlsplit(url).hostname, urlsplit(url).port))
        client.sendall(b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n")
        client.recv(1)
        found = []
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if not os.readlink(f"/proc/self/fd/{number}").startswith("socket:"):
                    continue
                each = stack.enter_context(socket.socket(fileno=os.dup(int(number))))
                if each.getpeername() == client.getsockname():
                    found.append(each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        assert found == [1]


def test_the_server_stops_while_a_body_is_read_by_nobody(hub_root: Path) -> None:
    """A client that stops reading a body does not delay the stop."""
    with (hub_root / "gpt2" / "model.safetensors").open("wb") as weights:
        weights.truncate(64 << 20)
    with running(LocalHub(hub_root)) as url, httpx.Client() as client:
        request = client.build_request("GET", f"{url}/gpt2/resolve/main/model.safetensors")
        assert client.send(request, stream=True).headers["content-length"] == str(64 << 20)
        watch = Stopwatch()
    assert watch.seconds < 1


_OTHER_NAMES = {
    "main_loop": {"main_loop": "run_loop"},
    "shutdown": {"async def shutdown": "async def close_all", "await self.shutdown": "await self.close_all"},
    "server_state": {"self.server_state": "self.state"},
    "servers": {"self.servers": "self.listeners"},
    "started": {"self.started": "self.has_started"},
}


@pytest.mark.parametrize("name", _OTHER_NAMES)
def test_a_uvicorn_with_other_names(name: str, hub_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It serves, and ends with its block although a client is connected and the answer to another is never ready."""
    monkeypatch.setattr(uvicorn, "Server", renamed("uvicorn.server", _OTHER_NAMES[name]).Server)
    hub, asked = LocalHub(hub_root), threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/never":
            asked.set()
            await anyio.sleep_forever()
        await hub(scope, receive, send)

    def ask(url: str) -> None:
        with contextlib.suppress(httpx.HTTPError):
            httpx.get(f"{url}/never", timeout=60)

    with httpx.Client() as client, renamed(server.__name__, {}).running(app) as url:
        thread = threading.Thread(target=ask, args=(url,))
        thread.start()
        assert client.get(f"{url}/api/models/gpt2").status_code == 200
        assert asked.wait(10)
        assert serving() != []
    assert serving() == []
    thread.join(10)
    assert not thread.is_alive()


def test_a_port_in_use_is_named(hub_root: Path) -> None:
    """A port in use raises an OSError that names the address, and leaves no thread."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(OSError, match=f"can't serve on 127.0.0.1:{port}"),
            running(LocalHub(hub_root), port=port),
        ):
            pass
    assert serving() == []


def test_a_root_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    """A root that is not a directory raises in the constructor, not at the first request."""
    with pytest.raises(NotADirectoryError, match="no directory of models at"):
        LocalHub(tmp_path / "no")


def test_an_import_without_the_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without starlette the ImportError names the extra to install."""
    real_import = builtins.__import__

    def without_starlette(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "starlette":
            raise ModuleNotFoundError("No module named 'starlette'", name=name)
        return real_import(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.startswith("yaie_async.localhub")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without_starlette)
    with pytest.raises(ImportError, match=r"yaie-async\[serve\]"):
        importlib.import_module("yaie_async.localhub")

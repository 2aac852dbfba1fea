"""Tests that each environment variable has the meaning it has for the official client."""

import json
import os
import socket
import socketserver
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.loader.conftest import Put
from tests.support.faults import Stall
from tests.support.hub import HubServer

_CHILD = """
import anyio, json, sys, time
from yaie_async import LoaderError, ModelLoader
started = time.monotonic()
try:
    print(json.dumps({"path": str(anyio.run(ModelLoader("org/big").prefetch))}))
except LoaderError as error:
    print(json.dumps({"error": type(error).__name__, "text": str(error), "seconds": time.monotonic() - started}))
"""


def run(hub: HubServer, cache: Path | None, **environment: str) -> dict[str, Any]:
    base = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    base |= {"HF_ENDPOINT": hub.url, "HF_HOME": "/nonexistent"}
    if cache is not None:
        base["HF_HUB_CACHE"] = str(cache)
    done = subprocess.run(
        [sys.executable, "-c", _CHILD],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**base, **environment},
    )
    told: dict[str, Any] = json.loads(done.stdout)
    return {**told, "stderr": done.stderr}


@pytest.fixture
def cache(tmp_path: Path, put_fake: Put) -> Path:
    put_fake("org/big", 1 << 20)
    return tmp_path / "cache"


def test_endpoint_and_cache(hub: HubServer, cache: Path) -> None:
    """HF_ENDPOINT sets the Hub, HF_HUB_CACHE the cache, and HF_HOME the folder of the default cache."""
    assert run(hub, cache)["path"].startswith(str(cache))
    home = cache.parent / "hf"
    assert run(hub, None, HF_HOME=str(home))["path"].startswith(str(home / "hub"))


def test_tokens(hub: HubServer, cache: Path) -> None:
    """The token of HF_TOKEN, or of the file HF_TOKEN_PATH, is sent unless implicit tokens are disabled."""

    def sent(**environment: str) -> set[str | None]:
        hub.clear()
        run(hub, cache.parent / os.urandom(4).hex(), **environment)
        return {request.authorization for request in hub.requests if not request.path.startswith("/cdn/")}

    (cache.parent / "token").write_text("from-file\n")
    assert sent() == {None}
    assert sent(HF_TOKEN="from-variable") == {"Bearer from-variable"}
    assert sent(HF_TOKEN_PATH=str(cache.parent / "token")) == {"Bearer from-file"}
    assert sent(HF_TOKEN="from-variable", HF_HUB_DISABLE_IMPLICIT_TOKEN="1") == {None}


def test_offline(hub: HubServer, cache: Path) -> None:
    """With HF_HUB_OFFLINE no request is sent and cached models load."""
    assert run(hub, cache, HF_HUB_OFFLINE="1")["error"] == "OfflineError"
    assert not hub.requests
    path = run(hub, cache)["path"]
    hub.clear()
    assert run(hub, cache, HF_HUB_OFFLINE="1")["path"] == path
    assert not hub.requests


def test_etag_timeout(hub: HubServer, cache: Path) -> None:
    """HF_HUB_ETAG_TIMEOUT limits a metadata request: a silent Hub is retried, then the cache is used."""
    path = run(hub, cache)["path"]
    hub.clear()
    hub.faults.add(Stall(-1), path="^/api/", times=None)
    assert run(hub, cache, HF_HUB_ETAG_TIMEOUT="1")["path"] == path
    assert len(hub.requests) >= 2


def test_download_timeout(hub: HubServer, cache: Path) -> None:
    """After HF_HUB_DOWNLOAD_TIMEOUT seconds without a byte, the rest of the body is requested again."""
    hub.faults.add(Stall(1000), path="^/cdn/")
    run(hub, cache, HF_HUB_DOWNLOAD_TIMEOUT="1")
    bodies = [request for request in hub.requests if request.path.startswith("/cdn/")]
    assert [request.range for request in bodies] == [None, f"bytes=1000-{(1 << 20) - 1}"]


def test_no_symlinks(hub: HubServer, cache: Path) -> None:
    """With HF_HUB_DISABLE_SYMLINKS the snapshot has files instead of links."""
    path = Path(run(hub, cache, HF_HUB_DISABLE_SYMLINKS="1")["path"])
    assert not [file for file in path.iterdir() if file.is_symlink()]


def test_the_user_agent(hub: HubServer, cache: Path) -> None:
    """The user agent has this package, the origin of the variable, and torch only if telemetry is on."""
    run(hub, cache, HF_HUB_USER_AGENT_ORIGIN="my-app")
    agents = {request.headers["user-agent"] for request in hub.requests}
    assert len(agents) == 1
    agent = agents.pop()
    assert agent.startswith("yaie_async/")
    assert "; origin/my-app" in agent
    assert "; torch/" in agent
    hub.clear()
    for variable in ("HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        run(hub, cache.parent / variable, **{variable: "1"})
    assert not [request for request in hub.requests if "torch" in request.headers["user-agent"]]
    assert not [line for line in hub.lines if "agent-harnesses" in line]


class _Forward(socketserver.StreamRequestHandler):
    """A forward proxy for plain HTTP, with one request per connection."""

    def handle(self) -> None:
        method, target, _ = self.rfile.readline().decode().split()
        url = urlsplit(target)
        self.server.seen.append(f"{method} {unquote(url.path)}")  # type: ignore[attr-defined]
        headers = []
        while (line := self.rfile.readline()) not in (b"\r\n", b""):
            if not line.lower().startswith((b"connection:", b"proxy-")):
                headers.append(line)
        path = target.split(url.netloc, 1)[1]
        with socket.create_connection((url.hostname, url.port)) as upstream:
            upstream.sendall(
                f"{method} {path} HTTP/1.1\r\n".encode() + b"".join(headers) + b"Connection: close\r\n\r\n"
            )
            while part := upstream.recv(65536):
                self.wfile.write(part)


def test_an_http_proxy(hub: HubServer, cache: Path) -> None:
    """Metadata and bodies go through HTTP_PROXY, except for hosts in NO_PROXY."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Forward) as proxy:
        proxy.daemon_threads = True
        proxy.seen = []  # type: ignore[attr-defined]
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{proxy.server_address[1]}"
        path = Path(run(hub, cache, HTTP_PROXY=address)["path"])
        assert (path / "model.safetensors").stat().st_size == 1 << 20
        assert sorted(proxy.seen) == sorted(hub.lines)  # type: ignore[attr-defined]
        proxy.seen.clear()  # type: ignore[attr-defined]
        assert run(hub, cache.parent / "direct", HTTP_PROXY=address, NO_PROXY="127.0.0.1,127.0.0.2")["path"]
        assert not proxy.seen  # type: ignore[attr-defined]
        proxy.shutdown()


def test_a_socks_proxy_without_its_package(hub: HubServer, cache: Path) -> None:
    """A SOCKS proxy without socksio is an error that says what to install."""
    code = _CHILD.replace("import anyio", "import sys; sys.modules['socksio'] = None\nimport anyio", 1)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache), "ALL_PROXY": "socks5://127.0.0.1:9"},
    )
    told = json.loads(done.stdout)
    assert told["error"] == "HubUnavailableError"
    assert "pip install socksio" in told["text"]


def test_a_missing_certificate_file(hub: HubServer, cache: Path) -> None:
    """A missing SSL_CERT_FILE is a LoaderError that names the variable."""
    told = run(hub, cache, SSL_CERT_FILE="/no/such/file.pem")
    assert told["error"] == "HubUnavailableError"
    assert "SSL_CERT_FILE" in told["text"]


@pytest.mark.parametrize("variable", ["ALL_PROXY", "SSL_CERT_FILE"])
def test_without_a_request_no_client_is_made(variable: str, hub: HubServer, cache: Path) -> None:
    """A directory, and a cached model offline, load despite a wrong proxy or certificate setting."""
    run(hub, cache)
    code = (
        "import sys, anyio; sys.modules['socksio'] = None\n"
        "from yaie_async import ModelLoader\n"
        "anyio.run(ModelLoader(sys.argv[1]).prefetch)\n"
        "anyio.run(ModelLoader('org/big', local_files_only=True).prefetch)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(hub.root / "org" / "big")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "HF_HUB_CACHE": str(cache), variable: "socks5://127.0.0.1:9"},
    )
    assert done.returncode == 0, done.stderr


def test_no_bar_where_bars_are_off(hub: HubServer, cache: Path) -> None:
    """A terminal shows a bar unless HF_HUB_DISABLE_PROGRESS_BARS is set."""
    import pty

    def screen(**environment: str) -> bytes:
        # Not pty.fork: this process has threads, so the child could hang before exec.
        terminal, inside = pty.openpty()
        cache_dir = cache.parent / os.urandom(4).hex()
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD],
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
            env={
                **os.environ,
                "HF_ENDPOINT": hub.url,
                "HF_HUB_CACHE": str(cache_dir),
                "TERM": "xterm",
                **environment,
            },
        )
        os.close(inside)
        shown = b""
        try:
            while part := os.read(terminal, 65536):
                shown += part
        except OSError:
            pass  # the child has closed its end
        child.wait(60)
        os.close(terminal)
        return shown

    shown = screen()
    assert b"org/big" in shown.split(b'{"path"')[0]
    assert b"ready" in shown
    assert b"org/big" not in screen(HF_HUB_DISABLE_PROGRESS_BARS="1").split(b'{"path"')[0]

"""Tests of TLS for metadata and bodies: SSL_CERT_FILE, SSL_CERT_DIR and wrong certificates."""

import os
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.loader.conftest import Put
from tests.support.faults import Redirect
from tests.support.hub import HubServer
from tests.support.programs import require_program
from tests.support.servers import Authority

_CHILD = """
import anyio
from yaie_async import Hub, LoaderError
async def main():
    async with Hub() as hub:
        hub.session.policy = type(hub.session.policy)(attempts=2, first_wait=0.01)
        await hub.prefetch("org/big")
try:
    anyio.run(main)
    print("fetched")
except LoaderError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    require_program("openssl", "openssl")
    return Authority(tmp_path_factory.mktemp("authority"))


@contextmanager
def tls_in_front(port: int, context: ssl.SSLContext) -> Iterator[str]:
    """A TLS server that forwards the decrypted bytes to a local port."""

    class Pass(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with (
                suppress(OSError),
                context.wrap_socket(self.request, server_side=True) as outside,
                socket.create_connection(("127.0.0.1", port)) as inside,
            ):
                back = threading.Thread(target=pump, args=(inside, outside), daemon=True)
                back.start()
                pump(outside, inside)
                back.join(60)

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while part := source.recv(65536):
                target.sendall(part)
            target.shutdown(socket.SHUT_WR)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Pass) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://localhost:{server.server_address[1]}"
        server.shutdown()


def test_whom_to_trust(authority: Authority, hub_root: Path, put_fake: Put, tmp_path: Path) -> None:
    """Either variable adds a trusted authority; without one, or for another host name, nothing is fetched."""
    put_fake("org/big")
    (tmp_path / "folder").mkdir()
    certificate = authority.directory / "ca.pem"
    name = subprocess.run(
        ["openssl", "x509", "-hash", "-noout", "-in", certificate], check=True, capture_output=True, text=True
    ).stdout.strip()
    (tmp_path / "folder" / f"{name}.0").write_bytes(certificate.read_bytes())

    clean = {name: value for name, value in os.environ.items() if not name.startswith("SSL_CERT")}

    def told(url: str, **environment: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", _CHILD],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
            env={**clean, "HF_ENDPOINT": url, "HF_HUB_CACHE": str(tmp_path / os.urandom(4).hex()), **environment},
        ).stdout

    with HubServer(hub_root, cdn=False) as hub:
        port = int(hub.url.rsplit(":", 1)[1])
        with tls_in_front(port, authority.server("DNS:localhost")) as url:
            assert told(url, SSL_CERT_FILE=str(certificate)) == "fetched\n"
            assert told(url, SSL_CERT_DIR=str(tmp_path / "folder")) == "fetched\n"
            hub.clear()
            hub.faults.add(
                Redirect(f"{hub.url}/api/models/org/big/revision/main?blobs=true"), path="^/api/", times=None
            )
            downgraded = told(url, SSL_CERT_FILE=str(certificate))
            assert downgraded.startswith("HubUnavailableError")
            assert "from https to http" in downgraded
            assert len(hub.requests) == 1
            hub.faults.clear()
            hub.clear()
            refused = told(url)
            assert refused.startswith("HubUnavailableError")
            assert "SSL_CERT_FILE" in refused
            assert not hub.requests
        with tls_in_front(port, authority.server("DNS:elsewhere")) as url:
            assert "certificate" in told(url, SSL_CERT_FILE=str(certificate))
        assert not hub.requests

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
import os, ssl
import anyio
if "SYSTEM_FILE" in os.environ:  # where this machine's OpenSSL was built to look
    import yaie_async.fetch.certificates
    paths = ssl.get_default_verify_paths()._replace(
        openssl_cafile=os.environ["SYSTEM_FILE"], openssl_capath=os.environ["SYSTEM_DIR"]
    )
    ssl.get_default_verify_paths = lambda: paths
    yaie_async.fetch.certificates.BUNDLES = ("/no/such/bundle", os.environ["BUNDLE"])
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


@pytest.fixture
def folder(authority: Authority, tmp_path: Path) -> Path:
    """A folder of certificates as OpenSSL looks them up."""
    certificate = authority.directory / "ca.pem"
    name = subprocess.run(
        ["openssl", "x509", "-hash", "-noout", "-in", certificate], check=True, capture_output=True, text=True
    ).stdout.strip()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / f"{name}.0").write_bytes(certificate.read_bytes())
    return tmp_path / "folder"


def told(url: str, cache: Path, **environment: str) -> str:
    others = ("SSL_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    return subprocess.run(
        [sys.executable, "-c", _CHILD],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env={**clean, "HF_ENDPOINT": url, "HF_HUB_CACHE": str(cache / os.urandom(4).hex()), **environment},
    ).stdout


def test_whom_to_trust(authority: Authority, hub_root: Path, put_fake: Put, folder: Path, tmp_path: Path) -> None:
    """Either variable adds a trusted authority; without one, or for another host name, nothing is fetched."""
    put_fake("org/big")
    certificate = authority.directory / "ca.pem"
    with HubServer(hub_root, cdn=False) as hub:
        port = int(hub.url.rsplit(":", 1)[1])
        with tls_in_front(port, authority.server("DNS:localhost")) as url:
            assert told(url, tmp_path, SSL_CERT_FILE=str(certificate)) == "fetched\n"
            assert told(url, tmp_path, SSL_CERT_DIR=str(folder)) == "fetched\n"
            hub.clear()
            hub.faults.add(
                Redirect(f"{hub.url}/api/models/org/big/revision/main?blobs=true"), path="^/api/", times=None
            )
            downgraded = told(url, tmp_path, SSL_CERT_FILE=str(certificate))
            assert downgraded.startswith("HubUnavailableError")
            assert "from https to http" in downgraded
            assert len(hub.requests) == 1
            hub.faults.clear()
            hub.clear()
            refused = told(url, tmp_path)
            assert refused.startswith("HubUnavailableError")
            assert "SSL_CERT_FILE" in refused
            assert not hub.requests
        with tls_in_front(port, authority.server("DNS:elsewhere")) as url:
            assert "certificate" in told(url, tmp_path, SSL_CERT_FILE=str(certificate))
        assert not hub.requests


def test_the_system_s_store(authority: Authority, hub_root: Path, put_fake: Put, folder: Path, tmp_path: Path) -> None:
    """An authority that only the system knows is trusted for metadata and bodies, wherever its store is."""
    put_fake("org/big", 1 << 20)
    certificate, bundle = str(authority.directory / "ca.pem"), str(tmp_path / "bundle.pem")
    Path(bundle).write_text("no certificate")
    none = {"SYSTEM_FILE": "/no/such/file", "SYSTEM_DIR": "/no/such/folder", "BUNDLE": "/no/such/bundle"}
    with (
        HubServer(hub_root, cdn=False) as hub,
        tls_in_front(int(hub.url.rsplit(":", 1)[1]), authority.server("DNS:localhost")) as url,
    ):
        for store in ({"SYSTEM_FILE": certificate}, {"SYSTEM_DIR": str(folder)}, {"BUNDLE": certificate}):
            assert told(url, tmp_path, **{**none, **store}) == "fetched\n"
        # An empty variable is none. What is set goes before the system's store, and a damaged store harms nothing.
        assert told(url, tmp_path, **none, SSL_CERT_FILE="", SSL_CERT_DIR=str(folder)) == "fetched\n"
        assert "certificate" in told(url, tmp_path, **{**none, "SYSTEM_FILE": bundle})
        other = os.environ["SSL_CERT_FILE"]
        assert "certificate" in told(url, tmp_path, **{**none, "SYSTEM_FILE": certificate}, SSL_CERT_FILE=other)


def test_a_variable_of_another_client(authority: Authority, hub_root: Path, put_fake: Put, tmp_path: Path) -> None:
    """A bundle in REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE alone is not used here; the error says what to set instead."""
    put_fake("org/big", 1000)
    certificate = str(authority.directory / "ca.pem")
    with (
        HubServer(hub_root, cdn=False) as hub,
        tls_in_front(int(hub.url.rsplit(":", 1)[1]), authority.server("DNS:localhost")) as url,
    ):
        for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            said = told(url, tmp_path, **{name: certificate})
            assert said.startswith("HubUnavailableError")
            assert f"{name} is not read" in said
        other = os.environ["SSL_CERT_FILE"]
        assert "not read" not in told(url, tmp_path, SSL_CERT_FILE=other, REQUESTS_CA_BUNDLE=certificate)


def test_an_authority_by_old_rules(
    tmp_path_factory: pytest.TempPathFactory, hub_root: Path, put_fake: Put, tmp_path: Path
) -> None:
    """One without keyUsage is trusted, also by Python 3.13, whose default contexts refuse it."""
    put_fake("org/big", 1000)
    old = Authority(tmp_path_factory.mktemp("old"), key_usage=False)
    with (
        HubServer(hub_root, cdn=False) as hub,
        tls_in_front(int(hub.url.rsplit(":", 1)[1]), old.server("DNS:localhost")) as url,
    ):
        assert told(url, tmp_path, SSL_CERT_FILE=str(old.directory / "ca.pem")) == "fetched\n"

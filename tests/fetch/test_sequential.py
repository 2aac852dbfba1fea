"""A cache in front of the Hub that reads a file from its start, whichever range is asked for."""

import hashlib
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.fetch.fetching import bodies, fetch, put
from tests.support.faults import Both, Cut, Drip, StallAt
from tests.support.hub import HubServer
from tests.support.programs import require_program
from tests.support.waiting import wait_until
from yaie_async import StalledError
from yaie_async.store.blockmap import BLOCK
from yaie_async.store.diskio import write_all
from yaie_async.store.partials import Partial

pytestmark = pytest.mark.anyio

SIZE = 3 * BLOCK + 77
_RATE = 5e6  # bytes a second: a block takes twice as long as what counts as a stall
_STALL = 0.4

_CONFIG = """\
{user} daemon off; pid {top}/pid; error_log {top}/error.log;
events {{ }}
http {{
    access_log off; client_body_temp_path {top}/body; proxy_temp_path {top}/temp; fastcgi_temp_path {top}/fastcgi;
    uwsgi_temp_path {top}/uwsgi; scgi_temp_path {top}/scgi;
    proxy_cache_path {top}/cache keys_zone=files:1m;
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass {hub}; }}
        location ~ /resolve/ {{
            proxy_pass {hub}; proxy_http_version 1.1; proxy_cache files; proxy_cache_valid 200 1h; proxy_cache_key $uri;
            proxy_ignore_headers Cache-Control Expires Vary Set-Cookie;
        }}
    }}
}}
"""


@contextmanager
def _nginx(top: Path, hub: str) -> Iterator[str]:
    """The address of an nginx that caches whole files of the hub, without its module for slices."""
    program = require_program("nginx", "nginx-light")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    top.mkdir()
    config = _CONFIG.format(top=top, port=port, hub=hub, user="user root;" if top.owner() == "root" else "")
    (top / "nginx.conf").write_text(config)
    process = subprocess.Popen([program, "-c", str(top / "nginx.conf"), "-e", str(top / "error.log")])
    try:
        wait_until(lambda: (top / "pid").exists() or process.poll() is not None)  # it listens by then
        assert process.poll() is None, (top / "error.log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def _begin(blobs: Path, content: bytes) -> None:
    partial = Partial.create(blobs, hashlib.sha256(content).hexdigest(), SIZE)
    write_all(partial.fd, content[: 2 * BLOCK], 0)
    partial.record(0, 2)
    partial.keep()


@pytest.mark.parametrize("begun", ["not begun", "begun earlier", "cut once"])
async def test_a_cache_that_reads_from_the_start(
    begun: str, anyio_backend: Any, hub_root: Path, tmp_path: Path
) -> None:
    """The file comes by one request once that is seen, where no range from its middle would ever begin."""
    content, cache = put(hub_root, SIZE), tmp_path / "cache"
    if begun == "begun earlier":  # then no range moves
        await anyio.to_thread.run_sync(_begin, cache / "models--org--big" / "blobs", content)
    with HubServer(hub_root, cdn=False) as hub, _nginx(tmp_path / "nginx", hub.url) as front:
        if begun == "cut once":  # then the front goes on from the middle of the first block
            hub.faults.add(Both(Drip(_RATE), Cut(1 << 20)), method="GET", path="safetensors$", times=2)
        hub.faults.add(Drip(_RATE), method="GET", path="safetensors$", times=None)
        assert await fetch(hub, cache, endpoint=front, stall=_STALL) == content
        requests = [request for request in hub.requests if request.path.endswith("safetensors")]
    assert len(requests) <= 10  # the header, the last block, and all; on a busy machine some of them again


async def test_a_silent_server_is_not_taken_for_one(
    anyio_backend: Any, hub_root: Path, hub: HubServer, tmp_path: Path
) -> None:
    """Where nothing of the file moves, or a range from its middle has come, nothing is requested from its start."""
    content = put(hub_root, SIZE)
    hub.faults.add(StallAt(2 * BLOCK + 100), path="^/cdn/", times=None)
    with pytest.raises(StalledError):
        await fetch(hub, tmp_path, stall=0.2)
    before = len(bodies(hub))
    hub.clear()
    assert await fetch(hub, tmp_path) == content
    assert before > 3
    assert [request.range for request in bodies(hub)] == [f"bytes={2 * BLOCK + 100}-{3 * BLOCK - 1}"]

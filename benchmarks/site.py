"""The measured Hub: LocalHub for metadata, nginx with TLS 1.3 and sendfile for the bodies."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.network import Place

MODEL = "bench/model"

_NGINX = """
{user} daemon off; pid {top}/nginx.pid; error_log {top}/error.log; worker_processes 2;
events {{ worker_connections 1024; }}
http {{
    access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000;
    client_body_temp_path {top}/a; proxy_temp_path {top}/b; fastcgi_temp_path {top}/c;
    uwsgi_temp_path {top}/d; scgi_temp_path {top}/e;
    server {{
        listen {host}:{port} ssl;
        ssl_certificate {top}/site.pem; ssl_certificate_key {top}/site.key; ssl_protocols TLSv1.3;
        location ~ ^/cdn/(?<repo>[^/]+/[^/]+)/[0-9a-f]+/(?<file>[^/]+)$ {{
            alias {root}/$repo/$file; {limit}
        }}
    }}
}}
"""

# The server of the metadata. Only LocalHub checks the signatures of URLs; nginx serves any request.
_HUB = """
import sys, time, anyio
from yaie_async.localhub import LocalHub, running
root, cdn, host, port, latency = sys.argv[1:]
hub = LocalHub(root, cdn=cdn)
async def late(scope, receive, send):
    await anyio.sleep(float(latency))
    await hub(scope, receive, send)
with running(late if float(latency) else hub, host=host, port=int(port)):
    print("ready", flush=True)
    time.sleep(1e6)
"""


@dataclass(frozen=True)
class Site:
    """The addresses of the served models.

    Attributes:
        endpoint: the URL of the Hub.
        authority: the file with the CA certificate, for SSL_CERT_FILE.
    """

    endpoint: str
    authority: str


@contextmanager
def serving(root: Path, *, limit: str = "", latency: float = 0.0, place: Place | None = None) -> Iterator[Site]:
    """Serve the models below `root`. They are hashed before, as the Hub's are, so that hashing is not measured.

    Args:
        root: a folder with `org/name/` directories.
        limit: an nginx directive for each body ("limit_rate 60m;").
        latency: seconds before each response. LocalHub then serves the bodies too, since nginx can't wait.
        place: the network of the servers; loopback when None.
    """
    nginx = shutil.which("nginx") or sys.exit("This benchmark needs nginx (Debian package nginx-light).")
    place = place or Place()
    host = place.host
    with ExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-site-")))
        port, hub_port = free_port(), free_port()
        _certificate(top, host)
        user = "user root;" if os.geteuid() == 0 else ""  # user "nobody" can't read the folders of `tempfile`
        (top / "nginx.conf").write_text(
            _NGINX.format(top=top, host=host, port=port, root=root, limit=limit, user=user), encoding="utf-8"
        )
        _start(stack, [*place.prefix, nginx, "-c", str(top / "nginx.conf"), "-e", str(top / "error.log")])
        endpoint = f"http://{host}:{hub_port}"
        # Another host name: the official client treats a redirect within one host as a renamed repository.
        cdn = f"http://localhost:{hub_port}" if latency else f"https://{host}:{port}"
        arguments = [str(root), cdn, host, str(hub_port), str(latency)]
        hub = _start(stack, [*place.prefix, sys.executable, "-c", _HUB, *arguments])
        assert hub.stdout is not None
        hub.stdout.readline()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for directory in root.glob("*/*/"):
            name = directory.relative_to(root)
            opener.open(f"{endpoint}/api/models/{name}?blobs=true", timeout=300).close()
        yield Site(endpoint, str(top / "ca.pem"))


def make_model(root: Path, megabytes: float, shards: int) -> int:
    """Write a model of random bytes, which suffice for a download, in `shards` shards. Return their size in bytes."""
    directory = root / MODEL
    directory.mkdir(parents=True)
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    size = int(megabytes * 1e6) // shards
    for name in names:
        with (directory / name).open("wb") as file:
            for start in range(0, size, 1 << 20):
                file.write(os.urandom(min(1 << 20, size - start)))
    index = {"metadata": {}, "weight_map": {f"w{i}": name for i, name in enumerate(names)}}
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    for file_name, content in (("model.safetensors.index.json", index), ("config.json", config)):
        (directory / file_name).write_text(json.dumps(content), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    return size * shards


def _start(stack: ExitStack, command: list[str]) -> subprocess.Popen[str]:
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    stack.callback(server.stdout.close)
    stack.callback(server.wait)
    stack.callback(server.terminate)
    return server


def _certificate(top: Path, host: str) -> None:
    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=top)

    key = ("-newkey", "rsa:2048", "-nodes")
    usage = ("-addext", "keyUsage=critical,keyCertSign")  # without it Python 3.13 refuses an authority
    openssl("req", "-x509", *key, *usage, "-days", "2", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=benchmark")
    openssl("req", *key, "-keyout", "site.key", "-out", "site.csr", "-subj", "/CN=localhost")
    (top / "names").write_text(f"subjectAltName=DNS:localhost,IP:{host}", encoding="utf-8")
    openssl(
        *("x509", "-req", "-in", "site.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
        *("-out", "site.pem", "-days", "2", "-extfile", "names"),
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])

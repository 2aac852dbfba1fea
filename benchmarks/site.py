"""A Hub to be measured against: a LocalHub for metadata, and nginx with TLS 1.3 and sendfile for the bodies."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

MODEL = "bench/model"

_NGINX = """
{user} daemon off; pid {top}/nginx.pid; error_log {top}/error.log; worker_processes 2;
events {{ worker_connections 1024; }}
http {{
    access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000;
    client_body_temp_path {top}/a; proxy_temp_path {top}/b; fastcgi_temp_path {top}/c;
    uwsgi_temp_path {top}/d; scgi_temp_path {top}/e;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {top}/site.pem; ssl_certificate_key {top}/site.key; ssl_protocols TLSv1.3;
        location ~ ^/cdn/{model}/[0-9a-f]+/(?<file>[^/]+)$ {{ alias {root}/{model}/$file; {limit} }}
    }}
}}
"""

_HUB = """
import sys, time
from yaie_async.localhub import LocalHub, running
with running(LocalHub(sys.argv[1], cdn=sys.argv[2]), port=int(sys.argv[3])):
    print("ready", flush=True)
    time.sleep(1e6)
"""


@dataclass(frozen=True)
class Site:
    """Where the model is served.

    Attributes:
        endpoint: the Hub's URL.
        authority: the certificate authority's file, for SSL_CERT_FILE.
        size: bytes of the model's weights.
    """

    endpoint: str
    authority: str
    size: int


@contextmanager
def serving(root: Path, *, limit: str = "") -> Iterator[Site]:
    """Serve the models below `root`; `limit` is an nginx directive for each body ("limit_rate 60m;")."""
    nginx = shutil.which("nginx") or sys.exit("needs nginx (Debian package nginx-light)")
    top = root.parent / f"site-{_free_port()}"
    top.mkdir()
    port, hub_port = _free_port(), _free_port()
    _certificate(top)
    user = "user root;" if os.geteuid() == 0 else ""  # the folders of `tempfile` are closed to nobody
    (top / "nginx.conf").write_text(_NGINX.format(top=top, port=port, root=root, model=MODEL, limit=limit, user=user))
    with ExitStack() as stack:
        server = subprocess.Popen([nginx, "-c", top / "nginx.conf", "-e", top / "error.log"])
        stack.callback(server.wait)
        stack.callback(server.terminate)
        cdn = f"https://localhost:{port}"
        hub = subprocess.Popen(
            [sys.executable, "-c", _HUB, str(root), cdn, str(hub_port)], stdout=subprocess.PIPE, text=True
        )
        stack.callback(hub.wait)
        stack.callback(hub.kill)
        assert hub.stdout is not None
        hub.stdout.readline()
        endpoint = f"http://127.0.0.1:{hub_port}"
        _warm(endpoint)
        size = sum(path.stat().st_size for path in (root / MODEL).glob("*.safetensors"))
        yield Site(endpoint, str(top / "ca.pem"), size)
    shutil.rmtree(top)


def make_model(root: Path, megabytes: int, shards: int) -> None:
    """Random bytes in so many shards: what they are makes no difference to any of the clients."""
    directory = root / MODEL
    directory.mkdir(parents=True)
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    for name in names:
        with (directory / name).open("wb") as file:
            for _ in range(megabytes // shards):
                file.write(os.urandom(1_000_000))
    weight_map = ", ".join(f'"w{i}": "{name}"' for i, name in enumerate(names))
    (directory / "model.safetensors.index.json").write_text(f'{{"metadata": {{}}, "weight_map": {{{weight_map}}}}}')
    (directory / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    (directory / "tokenizer_config.json").write_text("{}")


def _warm(endpoint: str) -> None:
    import httpx

    httpx.get(f"{endpoint}/api/models/{MODEL}?blobs=true", timeout=300).raise_for_status()  # hashes every file
    time.sleep(0.2)


def _certificate(top: Path) -> None:
    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=top)

    key = ("-newkey", "rsa:2048", "-nodes", "-days", "2")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=benchmark CA")
    openssl("req", *key, "-keyout", "site.key", "-out", "site.csr", "-subj", "/CN=localhost")
    (top / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    openssl(
        *("x509", "-req", "-in", "site.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
        *("-out", "site.pem", "-days", "2", "-extfile", "names"),
    )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])

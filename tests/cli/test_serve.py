"""Tests of `yaie-async serve`: clients on other machines, tokens, hostile requests and errors."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.command import Command
from tests.support.waiting import wait_until

Serve = Callable[..., Any]


@pytest.fixture
def rack(tmp_path: Path, hub_root: Path) -> Command:
    """The command line on the serving machine, without a Hub."""
    home = tmp_path / "rack"
    home.mkdir()
    return Command(home)


@pytest.fixture
def serve(rack: Command) -> Iterator[Serve]:
    """Starts `serve` on a free port, and returns its process and the printed endpoint."""
    with ExitStack() as stack:

        def start(*arguments: str) -> tuple["subprocess.Popen[str]", str]:
            process = stack.enter_context(rack.started("serve", *arguments, "--port", "0"))
            assert process.stdout is not None and process.stderr is not None
            line = process.stdout.readline()
            assert line, process.stderr.read()
            if "--json" in arguments:
                return process, str(json.loads(line)["endpoint"])
            assert line.startswith("export HF_ENDPOINT=http://")
            return process, shlex.split(line)[1].partition("=")[2]

        yield start


def official(endpoint: str, cache: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the official client as on another machine, with HF_ENDPOINT set."""
    code = (
        "import sys; from huggingface_hub import snapshot_download as s; print(s(sys.argv[1], cache_dir=sys.argv[2]))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, "org/one", str(cache)],
        env={**os.environ, "HF_ENDPOINT": endpoint, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def raw(endpoint: str, target: bytes) -> tuple[int, bytes]:
    """Request a target that a client's URL library would change; return the status and the rest."""
    address = urlsplit(endpoint)
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        connection.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: hub\r\nConnection: close\r\n\r\n")
        with connection.makefile("rb") as answer:
            return int(answer.readline().split()[1]), answer.read()


def test_both_clients_fetch_from_a_folder(serve: Serve, command: Command, hub_root: Path, tmp_path: Path) -> None:
    """Our client and the official one fetch from a folder, with only HF_ENDPOINT set as printed."""
    _, endpoint = serve(str(hub_root))
    weights = (hub_root / "org/one/model.safetensors").read_bytes()
    command.endpoint = endpoint
    done = command.run("prefetch", "org/one", "org/two", "--json")
    assert done.code == 0, done.err
    theirs = official(endpoint, tmp_path / "theirs")
    assert theirs.returncode == 0, theirs.stderr
    for snapshot in (done.json["models"]["org/one"]["snapshot"], theirs.stdout.strip()):
        assert (Path(snapshot) / "model.safetensors").read_bytes() == weights


def test_a_cache_with_a_snapshot_that_is_not_whole(
    serve: Serve, command: Command, rack: Command, tmp_path: Path
) -> None:
    """A complete snapshot is served by branch and by commit; an incomplete one is not served or listed."""
    rack.endpoint = command.endpoint
    assert rack.run("prefetch", "org/one", "org/two").code == 0
    next(rack.cache.glob("models--org--two/snapshots/*/model.safetensors")).unlink()
    process, endpoint = serve("--json")
    command.endpoint = endpoint
    done = command.run("prefetch", "org/one", "org/two", "--json")
    assert done.json["error"]["failures"]["org/two"]["type"] == "RevisionNotFoundError"
    snapshot = Path(done.json["models"]["org/one"]["snapshot"])
    assert snapshot.name == next(rack.cache.glob("models--org--one/snapshots/*")).name
    assert command.run("prefetch", f"org/one@{snapshot.name}", "--cache-dir", str(tmp_path / "fresh")).code == 0
    assert official(endpoint, tmp_path / "theirs").returncode == 0
    assert raw(endpoint, b"/api/models/org/two/tree/main")[0] == 404
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert process.communicate()[0] == ""  # stdout had one object, which is read already


def test_json_names_what_is_served(rack: Command, hub_root: Path) -> None:
    """With --json one line has the endpoint, the root, the models, and whether a token is needed."""
    (hub_root / "gpt2").mkdir()
    (hub_root / "gpt2/config.json").write_text("{}")
    (hub_root / "empty").mkdir()
    with rack.started("serve", str(hub_root), "--port", "0", "--json", "--token", "secret") as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
    assert told == {
        "ok": True,
        "endpoint": told["endpoint"],
        "root": str(hub_root),
        "models": ["gpt2", "org/one", "org/two"],
        "token": True,
    }


def test_a_token(serve: Serve, rack: Command, hub_root: Path, tmp_path: Path) -> None:
    """A token from the environment is not in the process list; without it, or with another, clients get 401."""
    rack.env["YAIE_ASYNC_SERVE_TOKEN"] = "right"
    process, endpoint = serve(str(hub_root))
    assert "right" not in Path(f"/proc/{process.pid}/cmdline").read_text()
    assert official(endpoint, tmp_path, HF_TOKEN="right").returncode == 0
    for refused in ({}, {"HF_TOKEN": "wrong"}):
        done = official(endpoint, tmp_path / "none", **refused)
        assert done.returncode == 1
        assert "401" in done.stderr


def hostile(secret: Path) -> list[bytes]:
    """Return request targets that try to leave the root or to crash the server."""
    climb = [b"../" * 12, b"..%2f" * 12, b"%2e%2e/" * 12, b"%252e%252e%252f" * 12, b"..\\" * 12, b"%2e%2e%5c" * 12]
    to = bytes(secret)[1:]
    inside = b"/org/one/resolve/main/"
    return [
        *(prefix + step + to for step in climb for prefix in (b"/", inside, b"/api/models/", b"/cdn/org%2Fone/main/")),
        *(inside + path for path in (b"/" + to, b"%2F" + to, b"link", b"folder/secret", b"a%00b", b"x" * 5000, b"%ff")),
        *(
            b"/org/one/resolve/" + revision + b"/config.json"
            for revision in (b"..", b"%00", b"r" * 5000, b"..%2f..%2f")
        ),
        *(
            b"/api/models/" + model
            for model in (b"..%2f..", b"%00", b"m" * 5000, b"m" * 200, b".locks", b"models--org--one")
        ),
        b"/" + b"d/" * 8000,
        b"/%" * 2000,
        b"*",
        b"http://other/etc/passwd",
        b"/cdn/org%2Fone/main/config.json?Expires=9999999999&Signature=0",
    ]


@pytest.mark.parametrize("kind", ["folder", "cache"])
def test_nothing_outside_the_root(
    kind: str, serve: Serve, rack: Command, command: Command, hub_root: Path, tmp_path: Path
) -> None:
    """No spelling of a path and no link leaves the root; each gets a 4xx, and the server keeps working."""
    outside = tmp_path / "outside"
    outside.mkdir()
    secret = outside / "secret"
    secret.write_text("the secret")
    if kind == "cache":
        rack.endpoint = command.endpoint
        assert rack.run("prefetch", "org/one").code == 0
        model = next(rack.cache.glob("models--org--one/snapshots/*"))
    else:
        model = hub_root / "org/one"
    (model / "link").symlink_to(secret)
    (model / "folder").symlink_to(outside)
    _, endpoint = serve(*([str(hub_root)] if kind == "folder" else []))
    for target in hostile(secret):
        status, body = raw(endpoint, target)
        assert 400 <= status < 500, (target[:80], status)
        assert b"the secret" not in body
    listing = raw(endpoint, b"/api/models/org/one?blobs=true")[1]
    assert b"config.json" in listing
    assert b"link" not in listing and b"secret" not in listing
    assert raw(endpoint, b"/org/one/resolve/main/config.json")[0] == 200


def test_ctrl_c_in_the_middle_of_a_body(serve: Serve, hub_root: Path) -> None:
    """Ctrl-C during a body exits at once with code 130."""
    (hub_root / "org/one/model.safetensors").write_bytes(bytes(50_000_000))
    process, endpoint = serve(str(hub_root))
    address = urlsplit(endpoint)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(b"GET /org/one/resolve/main/model.safetensors HTTP/1.1\r\nHost: hub\r\n\r\n")
        assert connection.recv(10)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert time.monotonic() - start < 1
    assert "Traceback" not in process.communicate()[1]


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\nHost:", b"GET /org/one/resolve/main/big HTTP/1.1\r\nHost: h\r\n\r\n"]
)
def test_more_clients_than_files_may_be_open(
    serve: Serve, rack: Command, hub_root: Path, tmp_path: Path, sent: bytes
) -> None:
    """200 that send nothing, half a request, or read nothing, where 128 files may be open: others are served."""
    (hub_root / "org/one/big").touch()
    os.truncate(hub_root / "org/one/big", 64 << 20)
    rack.shadowed = tmp_path / "shadowed"
    rack.shadowed.mkdir()
    (rack.shadowed / "sitecustomize.py").write_text(
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))"
    )
    process, endpoint = serve(str(hub_root))
    address = urlsplit(endpoint)
    with ExitStack() as stack:
        for _ in range(200):
            client = stack.enter_context(socket.create_connection((address.hostname, address.port)))
            client.sendall(sent)
        wait_until(lambda: raw(endpoint, b"/org/one/resolve/main/config.json")[0] == 200, seconds=30)
        assert raw(endpoint, b"/org/one/resolve/main/config.json")[0] == 200
        assert len(list(Path(f"/proc/{process.pid}/fd").iterdir())) < 120
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert "Traceback" not in process.communicate()[1]


@contextmanager
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


def test_what_can_t_be_served(rack: Command, hub_root: Path, tmp_path: Path) -> None:
    """A used port, a missing or empty folder, an empty cache or an empty token exit with 1 and the reason."""
    with taken() as port:
        done = rack.run("serve", str(hub_root), "--port", str(port))
        assert done.code == 1
        assert f"can't serve on 127.0.0.1:{port}: Address already in use" in done.err
        assert rack.run("serve", str(hub_root), "--port", str(port), "--json").json["ok"] is False
    (tmp_path / "empty").mkdir()
    for arguments, says in (
        (["nowhere"], "There is no model in nowhere"),
        ([str(tmp_path / "empty")], "There is no model in"),
        (["cache"], f"There is no model in {rack.cache}"),
        ([str(hub_root), "--token", ""], "The token is empty"),
        ([str(hub_root), "--host", "192.0.2.77"], "can't serve on 192.0.2.77"),
    ):
        done = rack.run("serve", *arguments)
        assert (done.code, done.out) == (1, "")
        assert says in done.err
        assert "Traceback" not in done.err


def test_an_address_for_the_others(serve: Serve, hub_root: Path) -> None:
    """With --host 0.0.0.0 the printed address can be connected to."""
    _, endpoint = serve(str(hub_root), "--host", "0.0.0.0")
    assert urlsplit(endpoint).hostname != "0.0.0.0"
    assert raw(endpoint, b"/org/one/resolve/main/config.json")[0] == 200


def test_without_the_extra(rack: Command, hub_root: Path, tmp_path: Path) -> None:
    """Without uvicorn the error has the command that installs the extra."""
    rack.shadowed = tmp_path / "shadowed"
    rack.shadowed.mkdir()
    (rack.shadowed / "uvicorn.py").write_text("raise ModuleNotFoundError('no uvicorn', name='uvicorn')")
    done = rack.run("serve", str(hub_root))
    assert done.code == 1
    assert "pip install 'yaie-async[serve]'" in done.err

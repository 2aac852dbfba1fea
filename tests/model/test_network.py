"""A build of a cached snapshot asks nobody anything."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support import models

BUILD = """
import sys, threading
from yaie_async.model.model import build_model
from tests.support.requests import request_of
from yaie_async.model.tokenizer import build_tokenizer
cache, commit, *repos = sys.argv[1:]
for repo in repos:
    request = request_of(repo, commit=commit, cache_dir=cache, trust_remote_code=True)
    build_tokenizer(request)
    build_model(request)
threads = [t for t in threading.enumerate() if "conversion" in t.name]
assert not threads, threads
"""


class Recorder(ThreadingHTTPServer):
    daemon_threads = True
    seen: list[str]


class Answer(BaseHTTPRequestHandler):
    server: Recorder

    def do_GET(self) -> None:
        self.server.seen.append(f"{self.command} {self.path}")
        self.send_error(404)

    do_HEAD = do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with Recorder(("127.0.0.1", 0), Answer) as server:
        server.seen = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_no_request(checkpoint: Callable[[str], Path], tmp_path: Path, recorder: Recorder) -> None:
    """Neither conversion of .bin files, nor templates, nor agent detection, nor anything else reaches the Hub."""
    repos = []
    for kind in (*models.FACTORIES, "mistralai/like"):
        repo = kind if "/" in kind else f"tests/{kind}"
        models.add_to_cache(checkpoint("llama" if "/" in kind else kind), tmp_path / "cache", repo)
        repos.append(repo)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_", "DISABLE_"))}
    environment.pop("DO_NOT_TRACK", None)
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{recorder.server_port}",
        "HF_HOME": str(tmp_path / "home"),
    }
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(tmp_path / "cache"), models.COMMIT, *repos],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert recorder.seen == []

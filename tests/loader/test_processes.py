"""Tests of many worker processes with one empty cache, some of which are killed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.fetch.fetching import locks_are_free
from tests.loader.conftest import Put
from tests.support.costs import cpu_seconds, sent_by_file, sizes
from tests.support.faults import Stall
from tests.support.hub import HubServer

# One worker per role, forked as gunicorn does with --preload, since imports dominate the cost of a process. Each writes
# its events to a file of its own.
_WORKERS = """
import json, os, sys, time
import anyio
from yaie_async import ModelLoader
import yaie_async.loader.prefetch
url, cache, out, *roles = sys.argv[1:]
if "load" in roles:
    import yaie_async.model.model
    from yaie_async.model.imports import import_libraries
    import_libraries()
    from transformers import LlamaForCausalLM
if "official" in roles:
    from huggingface_hub import snapshot_download

def worker(number, role):
    log = open(os.path.join(out, f"{number}.log"), "a", buffering=1)
    def tell(**facts):
        log.write(json.dumps({"pid": os.getpid(), "role": role, **facts}) + "\\n")
    def show(event):
        if show.stage != event.stage:
            show.stage = event.stage
            tell(stage=event.stage)
    show.stage = None
    if role == "official":
        tell(snapshot=snapshot_download("org/big", endpoint=url, cache_dir=cache))
        return
    loader = ModelLoader("org/big", endpoint=url, cache_dir=cache, on_progress=show)
    tell(snapshot=str(anyio.run(loader.prefetch)))
    if role == "load":
        model = anyio.run(loader.load_model)
        mapped = {line.split()[-1] for line in open("/proc/self/maps") if "/blobs/" in line}
        tell(mapped=sorted(mapped), name=type(model).__name__)

children = []
for number, role in enumerate(roles):
    child = os.fork()
    if not child:
        code = 1
        try:
            worker(number, role)
            code = 0
        finally:
            os._exit(code)
    children.append(child)
sys.exit(sum(os.waitpid(child, 0)[1] != 0 for child in children))
"""


@dataclass
class Workers:
    """Running workers, with the events that they have written so far."""

    parent: "subprocess.Popen[str]"
    out: Path

    @property
    def told(self) -> dict[int, dict[str, Any]]:
        """The events of each worker by pid; the last has the current stage."""
        found = {}
        for path in self.out.glob("*.log"):
            lines = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            if lines:
                found[lines[0]["pid"]] = {name: fact for line in lines for name, fact in line.items()}
        return found

    def in_stage(self, stage: str) -> list[int]:
        return [pid for pid, told in self.told.items() if told.get("stage") == stage]

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 100
        while not condition():
            assert self.parent.poll() is None, self.parent.communicate()
            assert time.monotonic() < deadline, self.told
            time.sleep(0.01)

    def finish(self) -> int:
        """Wait until all workers have ended, and return the number that failed."""
        _, err = self.parent.communicate()
        assert "Traceback" not in err, err
        return self.parent.returncode


@pytest.fixture
def start(hub: HubServer, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Starts workers on one cache, and kills them at the end of the test."""

    @contextmanager
    def started(*roles: str) -> Iterator[Workers]:
        out = tmp_path / "out"
        out.mkdir()
        arguments = [sys.executable, "-c", _WORKERS, hub.url, str(tmp_path / "cache"), str(out), *roles]
        patient = {**os.environ, "HF_HUB_DOWNLOAD_TIMEOUT": "60"}  # eight workers may take long on a busy machine
        pipe = subprocess.PIPE
        with subprocess.Popen(arguments, stdout=pipe, stderr=pipe, text=True, env=patient) as parent:
            family = psutil.Process(parent.pid)
            workers = Workers(parent, out)
            try:
                yield workers
            finally:
                with suppress(psutil.NoSuchProcess):
                    for child in [*family.children(), family]:
                        child.kill()

    return started  # type: ignore[return-value]


def test_eight_workers_on_an_empty_cache(hub: HubServer, put: Put, start: Callable[..., Any], tmp_path: Path) -> None:
    """One worker fetches, seven wait idle and report it; loading workers share the pages of the weights."""
    directory = put("org/big")
    stall = Stall(100)
    hub.faults.add(stall, path="^/cdn/.*safetensors")
    with start(*["load"] * 3, *["prefetch"] * 5) as workers:
        workers.until(lambda: len(workers.in_stage("waiting")) == 7)
        waiting = workers.in_stage("waiting")
        before, begin = cpu_seconds(waiting), time.monotonic()
        while time.monotonic() - begin < 1:
            time.sleep(0.05)
        idle = cpu_seconds(waiting) - before
        stall.gate.open()
        assert workers.finish() == 0
        told = workers.told
    assert idle < 7 * 0.05
    assert sent_by_file(hub) == sizes(directory)
    (blob,) = {str((Path(one["snapshot"]) / "model.safetensors").resolve()) for one in told.values()}
    assert [(one["mapped"], one["name"]) for one in told.values() if "name" in one] == [
        ([blob], "LlamaForCausalLM")
    ] * 3
    locks_are_free(tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.incomplete"))


def test_the_one_that_fetches_is_killed(
    hub: HubServer, put_fake: Put, start: Callable[..., Any], tmp_path: Path
) -> None:
    """When the fetching worker is killed, another continues its download within two seconds."""
    directory = put_fake("org/big", 1 << 20)
    stall = Stall(100_000)
    hub.faults.add(stall, path="^/cdn/")
    with start(*["prefetch"] * 8) as workers:
        workers.until(lambda: len(workers.in_stage("waiting")) == 7 and sent_by_file(hub)["model.safetensors"])
        (owner,) = workers.in_stage("downloading")
        requests = len(hub.requests)
        psutil.Process(owner).kill()
        begin = time.monotonic()
        workers.until(lambda: len(hub.requests) > requests)
        assert time.monotonic() - begin < 2
        assert workers.finish() == 1
        told = workers.told
    assert sorted("snapshot" in one for one in told.values()) == [False] + [True] * 7
    (blob,) = tmp_path.glob("cache/models--*/snapshots/*/model.safetensors")
    assert blob.read_bytes() == (directory / "model.safetensors").read_bytes()
    assert sent_by_file(hub)["model.safetensors"] == (1 << 20) + 100_000
    assert not list((tmp_path / "cache").rglob("*.incomplete"))


def test_among_official_clients(hub: HubServer, put_fake: Put, start: Callable[..., Any], tmp_path: Path) -> None:
    """Our workers and official clients use the same locks: each byte is sent once, and all have one snapshot."""
    directory = put_fake("org/big", 6 << 20)
    stall = Stall(100)
    hub.faults.add(stall, path="^/cdn/")
    with start(*["prefetch", "official"] * 4) as workers:
        # Official clients do not report that they wait, so count the listings that were requested.
        workers.until(lambda: len([one for one in hub.requests if "/api/" in one.path]) >= 8 and stalled(hub))
        stall.gate.open()
        assert workers.finish() == 0
        told = workers.told
    (snapshot,) = {one["snapshot"] for one in told.values()}
    assert {one["role"] for one in told.values()} == {"prefetch", "official"}
    assert sent_by_file(hub) == sizes(directory)
    assert sizes(Path(snapshot)) == sizes(directory)


def stalled(hub: HubServer) -> bool:
    return any(request.fault for request in hub.requests)

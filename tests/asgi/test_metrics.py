"""Tests of /metrics."""

from __future__ import annotations

import sys
from dataclasses import replace

import anyio
import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.asgi.conftest import MakeLoader, Put, asked
from tests.support.programs import require_program
from yaie_async.asgi import Warmup
from yaie_async.asgi.metrics import exposition
from yaie_async.asgi.worker_state import WorkerModel, WorkerState

MODEL = WorkerModel("loading", "building", 0.5, False, False)
FULL = replace(
    MODEL,
    state="ready",
    bytes_done=3,
    bytes_total=4,
    memory_bytes=5,
    retries=2,
    steps={"downloading": 1.5, "building": 2.0},
)


def samples(text: str) -> dict[tuple[str, ...], float]:
    """The samples by name and labels, the name without the prefix that all have."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            key = sample.name.removeprefix("yaie_async_model_"), labels.pop("worker"), labels.pop("model")
            found[*key, *labels.values()] = sample.value
    return found


def test_all_workers_are_shown() -> None:
    """Each sample has the labels worker and model; what is not known has none."""
    strange = 'a "name"\\ \n'
    workers = [WorkerState(pid, 0.0, frozenset(), {strange: model}, "") for pid, model in ((7, FULL), (8, MODEL))]
    assert samples(exposition(workers)[0].decode()) == {
        ("state", "7", strange, "loading"): 0,
        ("state", "7", strange, "ready"): 1,
        ("state", "7", strange, "failed"): 0,
        ("disk_bytes", "7", strange): 3,
        ("size_bytes", "7", strange): 4,
        ("memory_bytes", "7", strange): 5,
        ("stage_seconds", "7", strange, "downloading"): 1.5,
        ("stage_seconds", "7", strange, "building"): 2.0,
        ("retries_total", "7", strange): 2,
        ("state", "8", strange, "loading"): 1,
        ("state", "8", strange, "ready"): 0,
        ("state", "8", strange, "failed"): 0,
        ("retries_total", "8", strange): 0,
    }
    alike = [replace(workers[0], process=process) for process in ("a", "b")]
    assert {key[1] for key in samples(exposition(alike)[0].decode())} == {"7-a", "7-b"}


@pytest.mark.anyio
async def test_of_a_loaded_model(loader: MakeLoader, put: Put) -> None:
    """A ready model has its bytes and its memory; the app's own registry is left alone; promtool finds no fault."""
    promtool = require_program("promtool", "prometheus")
    put("org/name")
    before = list(prometheus_client.REGISTRY._names_to_collectors)
    async with Warmup(chat=loader()) as warmup, asked(warmup) as client:
        model = await warmup["chat"]
        answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found = {name: value for (name, _, chat, *rest), value in samples(answer.text).items() if rest in ([], ["ready"])}
    memory = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert found == {
        "state": 1,
        "disk_bytes": found["size_bytes"],
        "size_bytes": found["size_bytes"],
        "memory_bytes": memory,
        "retries_total": 0,
    }
    assert list(prometheus_client.REGISTRY._names_to_collectors) == before
    done = await anyio.run_process([promtool, "check", "metrics"], input=answer.content, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.anyio
async def test_without_the_extra(loader: MakeLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without prometheus_client the answer says what to install."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    async with Warmup(chat=loader()) as warmup, asked(warmup) as client:
        answer = await client.get("/metrics")
    assert (answer.status_code, "yaie-async[metrics]" in answer.text) == (404, True)

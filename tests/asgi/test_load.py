"""Tests of what the load of one model says of itself."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from tests.asgi.conftest import MakeLoader, Put, asked
from tests.support.hub import HubServer
from yaie_async import ModelLoader
from yaie_async.asgi import Warmup
from yaie_async.asgi.facts import Facts, facts_of
from yaie_async.asgi.load import Load
from yaie_async.core.progress import Progress


class At(ModelLoader):
    """A loader whose load is just here."""

    def __init__(self, progress: Progress) -> None:
        super().__init__("org/name")
        self._progress = progress

    @property
    def progress(self) -> Progress:
        return self._progress


DOWNLOAD = Progress("org/name", "downloading", 20, 50, 10.0, 3.0, steps=(("resolving", 1.0), ("downloading", 2.0)))
STALL = replace(DOWNLOAD, stage="stalled", bytes_per_second=0.0, seconds_left=None, reason="no answer", attempt=3)


@pytest.mark.parametrize(
    ("progress", "said"),
    [
        (Progress("org/name", "resolving"), {"bytes_done": None, "bytes_total": None, "bytes_per_second": None}),
        (DOWNLOAD, {"bytes_done": 20, "bytes_per_second": 10.0, "seconds_left": 3.0, "reason": None, "attempt": None}),
        (DOWNLOAD, {"steps": (("resolving", 1.0),), "stage_fraction": None, "ready_since": None, "seconds": None}),
        (STALL, {"stage": "stalled", "reason": "no answer", "attempt": 3, "retry_in": None, "bytes_per_second": 0.0}),
        (replace(STALL, retry_in=4.5), {"retry_in": 4.5, "bytes_done": 20, "bytes_total": 50, "seconds_left": None}),
        (replace(STALL, attempt=0, reason=""), {"attempt": None, "reason": None}),
        (
            replace(DOWNLOAD, stage="importing", stage_fraction=0.25),
            {"stage_fraction": 0.25, "seconds_left": 3.0, "bytes_per_second": None},
        ),
        (replace(DOWNLOAD, stage="ready"), {"state": "loading", "stage": "building", "seconds_left": None}),
    ],
)
def test_what_a_load_says(progress: Progress, said: dict[str, object]) -> None:
    """Each stage has its own numbers; what is not known is None, and no number of another stage is left over."""
    status = Load("chat", At(progress)).status()
    assert {name: getattr(status, name) for name in said} == said


@pytest.mark.anyio
async def test_a_ready_model_says_what_it_is(loader: MakeLoader, put: Put, hub: HubServer) -> None:
    """Since when, how long it took, its dtype, device, memory and commit."""
    put("org/name")
    warmup = Warmup(chat=loader(device_map="cpu"))
    before = time.time()
    async with warmup, asked(warmup) as client:
        model = await warmup["chat"]
        told = (await client.get("/status")).json()["models"]["chat"]
    assert before - 1 <= told["ready_since"] <= time.time() + 1
    assert 0 < told["seconds"] < 120
    assert (told["dtype"], told["device"]) == ("float16", "cpu")
    assert told["memory_bytes"] == model.get_memory_footprint()
    assert told["commit"] == warmup.loader("chat").commit
    assert told["stage_fraction"] is told["bytes_per_second"] is told["seconds_left"] is None


def test_facts_of_a_mixed_model() -> None:
    """The dtype of most bytes, each tensor counted once, and no bytes for what is elsewhere."""
    model = torch.nn.Module()
    model.a = model.b = torch.nn.Parameter(torch.zeros(100, dtype=torch.bfloat16))
    model.register_buffer("c", torch.zeros(3, dtype=torch.float32))
    model.register_buffer("d", torch.zeros(1000, device="meta"))
    assert facts_of(model) == Facts("bfloat16", "cpu", 212)  # type: ignore[arg-type]
    assert facts_of(torch.nn.Module()) == Facts()  # type: ignore[arg-type]

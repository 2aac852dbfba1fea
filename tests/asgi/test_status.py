"""Tests of the status that probes and the page receive."""

import os
from dataclasses import replace
from typing import Any

import pytest

from yaie_async.asgi.status import ModelStatus, Status


def model(name: str = "chat", **values: Any) -> ModelStatus:
    return ModelStatus(**({"name": name, "model": "org/name", "state": "loading", "stage": "downloading"} | values))


READY = model("ready", state="ready", stage="ready", bytes_fraction=1.0)
FAILED = model("failed", state="failed", stage="failed", bytes_fraction=0.5, error="gone")
HALF = model("half", bytes_fraction=0.5, seconds_left=7.2)
BUILDING = model("building", stage="building", bytes_fraction=1.0)


@pytest.mark.parametrize(
    ("models", "state", "stage", "fraction"),
    [
        ([READY], "ready", "ready", 1.0),
        ([READY, READY], "ready", "ready", 1.0),
        ([HALF], "loading", "downloading", 0.5),
        ([READY, HALF], "loading", "downloading", 0.75),
        ([BUILDING], "loading", "building", 0.99),
        ([BUILDING, HALF], "loading", "downloading", 0.745),
        ([READY, FAILED, HALF], "failed", "failed", 2 / 3),
        ([READY, replace(FAILED, optional=True)], "ready", "ready", 1.0),
        ([HALF, replace(READY, optional=True)], "loading", "downloading", 0.5),
        ([replace(HALF, optional=True)], "ready", "downloading", 0.5),
    ],
)
def test_all_models_together(models: list[ModelStatus], state: str, stage: str, fraction: float) -> None:
    """The state is failed once one model is, and ready once all are; the stage is that of the slowest model."""
    status = Status(tuple(models))
    assert (status.state, status.stage) == (state, stage)
    assert status.fraction == pytest.approx(fraction)


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        ({}, 5),
        ({"seconds_left": 0.01}, 1),
        ({"seconds_left": 7.2}, 8),
        ({"seconds_left": 4000.0}, 60),
        ({"stage": "retrying", "retry_in": 12.5}, 13),
        ({"state": "failed", "stage": "failed"}, 60),
    ],
)
def test_when_it_is_worth_asking_again(values: dict[str, Any], seconds: int) -> None:
    """`Retry-After` is a whole number of seconds, 1 to 60."""
    assert model(**values).retry_after == seconds
    assert Status((READY, model(**values))).retry_after == seconds


def test_the_json_is_complete_and_rounded() -> None:
    """The JSON has all fields, with rounded numbers."""
    measured: dict[str, Any] = {"bytes_done": 1, "bytes_total": 3, "bytes_per_second": 1.6, "seconds_left": 1 / 3}
    told = Status((model(bytes_fraction=1 / 3, steps=(("resolving", 1 / 3),), **measured),)).as_json()
    assert told == {
        "state": "loading",
        "stage": "downloading",
        "fraction": 0.3333,
        "bytes_done": 1,
        "bytes_total": 3,
        "bytes_per_second": 2,
        "seconds_left": 1.2,
        "pid": os.getpid(),
        "models": {
            "chat": {
                "model": "org/name",
                "state": "loading",
                "stage": "downloading",
                "fraction": 0.3333,
                "bytes_done": 1,
                "bytes_total": 3,
                "bytes_per_second": 2,
                "seconds_left": 0.3,
                "error": None,
                "retry_in": None,
                "stage_fraction": None,
                "reason": None,
                "attempt": None,
                "steps": {"resolving": 0.33},
                "ready_since": None,
                "seconds": None,
                "dtype": None,
                "device": None,
                "memory_bytes": None,
                "commit": None,
                "can_retry": False,
                "optional": False,
            }
        },
    }


HERE: dict[str, Any] = {"bytes_done": 30, "bytes_total": 30}
FAST = model("fast", bytes_done=20, bytes_total=50, bytes_per_second=10.0, seconds_left=3.0)
SLOW = model("slow", bytes_done=10, bytes_total=100, bytes_per_second=5.0, seconds_left=18.0)


@pytest.mark.parametrize(
    ("models", "done", "total", "rate", "left"),
    [
        ([model(stage="resolving")], None, None, None, None),
        ([FAST], 20, 50, 10.0, 3.0),
        ([FAST, SLOW], 30, 150, 15.0, 8.0),  # the one that is there first leaves its share to the other
        ([FAST, model(stage="resolving")], 20, None, 10.0, None),
        ([FAST, model(stage="stalled", bytes_done=1, bytes_total=9, bytes_per_second=0.0)], 21, 59, 10.0, None),
        ([FAST, model(stage="building", seconds_left=4.0, **HERE)], 50, 80, 10.0, 4.0),
        ([FAST, model(stage="building", **HERE)], 50, 80, 10.0, None),
        ([FAST, model(state="failed", stage="failed", bytes_done=1, bytes_total=9)], 20, 50, 10.0, 3.0),
        ([FAST, model(stage="stopped")], 20, 50, 10.0, 3.0),
        ([model(state="ready", stage="ready", **HERE)], 30, 30, None, None),
        ([model(state="failed", stage="failed")], None, None, None, None),
    ],
)
def test_the_sums_of_all(
    models: list[ModelStatus], done: int | None, total: int | None, rate: float | None, left: float | None
) -> None:
    """Bytes, rate and time left of all models that go on; what one of them does not know is not made up."""
    status = Status(tuple(models))
    assert (status.bytes_done, status.bytes_total, status.bytes_per_second) == (done, total, rate)
    assert status.seconds_left == left

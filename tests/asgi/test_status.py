"""Tests of the status that probes and the page receive."""

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
    told = Status((model(bytes_per_second=1.6, seconds_left=1 / 3, bytes_fraction=1 / 3),)).as_json()
    assert told == {
        "state": "loading",
        "stage": "downloading",
        "fraction": 0.3333,
        "models": {
            "chat": {
                "model": "org/name",
                "state": "loading",
                "stage": "downloading",
                "fraction": 0.3333,
                "bytes_done": 0,
                "bytes_total": 0,
                "bytes_per_second": 2,
                "seconds_left": 0.3,
                "error": None,
                "retry_in": None,
            }
        },
    }

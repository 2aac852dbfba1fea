"""Tests of what the workers of a server are together."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from yaie_async.asgi.status import State
from yaie_async.asgi.worker_state import (
    PATIENCE,
    SETTLING,
    Count,
    Silent,
    WorkerModel,
    Workers,
    WorkerScope,
    WorkerState,
    expected_workers,
)

LOADING, READY = WorkerModel("loading", "building", 0.5, False, False), WorkerModel("ready", "ready", 1.0, True, False)
FAILED = WorkerModel("failed", "failed", 0.5, False, False)
AGREED = replace(READY, agreed=True)
RELOADS = replace(LOADING, been_ready=True)  # after a failure, say

KEYS = frozenset({"socket:[7]"})


def worker(*models: WorkerModel, pid: int = 1, started: float = 0.0, keys: frozenset[str] = KEYS) -> WorkerState:
    return WorkerState(pid, started, keys, {f"m{number}": model for number, model in enumerate(models)}, f"p{pid}")


def states(own: WorkerModel, others: list[WorkerModel], expected: int | None) -> dict[WorkerScope, State]:
    workers = Workers(worker(own), tuple(worker(other, pid=2) for other in others), expected)
    scopes: tuple[WorkerScope, ...] = ("any", "self", "all")
    return {scope: workers.state(["m0"], scope) for scope in scopes}


@pytest.mark.parametrize(
    ("own", "others", "expected", "together", "alone", "of_all"),
    [
        (READY, [], 1, "ready", "ready", "ready"),
        (READY, [], 2, "loading", "ready", "loading"),  # another has not appeared yet
        (READY, [], None, "loading", "ready", "loading"),  # nobody knows how many there are
        (READY, [LOADING], 2, "loading", "ready", "loading"),
        (LOADING, [READY], 2, "loading", "loading", "loading"),
        (READY, [READY], 2, "ready", "ready", "ready"),
        (LOADING, [AGREED], 2, "ready", "loading", "loading"),  # a successor
        (AGREED, [LOADING], 2, "ready", "ready", "loading"),
        (LOADING, [AGREED], None, "ready", "loading", "loading"),
        (READY, [RELOADS], 2, "ready", "ready", "loading"),
        (RELOADS, [RELOADS], 2, "loading", "loading", "loading"),
        (
            replace(LOADING, agreed=True),
            [replace(LOADING, agreed=True)],
            2,
            "loading",
            "loading",
            "loading",
        ),  # a reload
        (READY, [FAILED], 2, "failed", "ready", "failed"),
        (FAILED, [AGREED], 2, "ready", "failed", "failed"),
        (replace(FAILED, agreed=True), [LOADING], 2, "failed", "failed", "failed"),
    ],
)
def test_workers_together(
    own: WorkerModel, others: list[WorkerModel], expected: int | None, together: State, alone: State, of_all: State
) -> None:
    """A server is ready once all expected workers have been, and while any of them is."""
    assert states(own, others, expected) == {"any": together, "self": alone, "all": of_all}


@pytest.mark.parametrize(
    ("starts", "supervised", "expected"),
    [
        ([0.0], 0, 1),  # no supervisor: at once
        ([0.0], 1, None),
        ([-SETTLING], 1, 1),
        ([-SETTLING], 4, 4),  # three that have not shown themselves yet
        ([-SETTLING, -1.0], 2, None),  # more may follow the one that has just begun
        ([-SETTLING, -SETTLING], None, 2),
        ([-SETTLING, -1.0], None, None),
        ([-SETTLING, -SETTLING], 1, 2),  # two servers of one `group`
        ([0.0, 0.0], 0, 2),
    ],
)
def test_how_many_workers_there_are(starts: list[float], supervised: int | None, expected: int | None) -> None:
    """The supervisor's count, at least those that were seen; and no answer while gunicorn may still start some."""
    own, *others = [worker(READY, pid=number, started=start) for number, start in enumerate(starts)]
    assert expected_workers(own, others, supervised, now=0.0) == expected


def test_a_count_falls_once_it_has_stayed_lower() -> None:
    """A worker that is being replaced counts; one that is gone counts for the settling time."""
    count = Count()
    assert count.settle(3, 0.0) == 3
    assert count.settle(2, 1.0) == 3
    assert count.settle(3, 1.1) == 3
    assert count.settle(2, 4.0) == 3
    assert count.settle(1, 4.1) == 3
    assert count.settle(1, 4.0 + SETTLING) == 2  # there were two of them a moment ago
    assert count.settle(1, 5.0 + SETTLING) == 2
    assert count.settle(4, 5.1 + SETTLING) == 4


def test_a_child_of_the_supervisor_that_is_no_worker() -> None:
    """A process that shows no state within half a minute is none; one that is slow has that time again."""
    silent, pids = Silent(), frozenset({1, 2, 3})
    assert silent.of(pids, {1}, 0.0) == set()
    assert silent.of(pids, {1, 3}, PATIENCE - 1) == set()
    assert silent.of(pids, {1}, PATIENCE) == {2}
    assert silent.of(pids, {1, 2}, PATIENCE + 1) == set()
    assert silent.of(frozenset({1, 3}), {1}, 2 * PATIENCE) == {3}


def test_who_belongs_together() -> None:
    """One key in common is enough; another warm-up of this process, or of other models, is not of the group."""
    one = worker(READY)
    assert one.is_beside(worker(READY, pid=2, keys=KEYS | {"socket:[8]"}))
    assert not one.is_beside(worker(READY, pid=2, keys=frozenset({"socket:[8]"})))
    assert not one.is_beside(worker(READY))
    assert not one.is_beside(worker(READY, READY, pid=2))
    assert one.is_beside(replace(one, process="in another container"))


DOCUMENT: dict[str, Any] = json.loads(json.dumps(worker(READY, LOADING).document()))
MODEL = DOCUMENT["models"]["m0"]


def test_a_document_is_read_back() -> None:
    assert WorkerState.parse(DOCUMENT) == worker(READY, LOADING)
    assert WorkerState.parse(DOCUMENT | {"of a newer version": 1}) == worker(READY, LOADING)
    strange = WorkerState.parse(DOCUMENT | {"models": {"m0": MODEL | {"fraction": float("nan")}}})
    assert strange is not None
    assert strange.models["m0"].fraction == 0.0


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {**DOCUMENT, "pid": "x"},
        {**DOCUMENT, "pid": float("inf")},
        {**DOCUMENT, "keys": 1},
        {**DOCUMENT, "keys": [[]]},
        {key: value for key, value in DOCUMENT.items() if key != "process"},
        {**DOCUMENT, "models": []},
        {**DOCUMENT, "models": {"m0": None}},
        {**DOCUMENT, "models": {"m0": {}}},
        {**DOCUMENT, "models": {"m0": {**MODEL, "state": "fine"}}},
        {**DOCUMENT, "models": {"m0": {**MODEL, "state": []}}},
        {**DOCUMENT, "models": {"m0": {**MODEL, "fraction": "half"}}},
    ],
)
def test_garbage_is_no_worker(document: Any) -> None:
    """A file of another version, or of nobody, is no worker."""
    assert WorkerState.parse(document) is None

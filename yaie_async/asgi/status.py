"""The status of a warm-up, as probes and the page receive it: plain data and derived numbers. Pure."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from yaie_async.asgi.worker_state import WorkerState

State = Literal["loading", "ready", "failed"]
Number = TypeVar("Number", int, float)

# The largest fraction of a model that is not ready: the build follows the last byte.
_MAX_FRACTION_NOT_READY = 0.99

# Bounds of `Retry-After`, and its value while the time left is unknown. In seconds.
_MIN_RETRY_AFTER, _MAX_RETRY_AFTER, _DEFAULT_RETRY_AFTER = 1, 60, 5

# The digits after the point in JSON; None is a whole number.
_DIGITS = {
    "seconds_left": 1,
    "retry_in": 1,
    "stage_fraction": 4,
    "ready_since": 1,
    "seconds": 2,
    "bytes_per_second": None,
}


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """The status of one model.

    A value that is not known, or does not apply, is None; it is null in JSON.

    Attributes:
        name: the name of the model in the app.
        model: repo id or directory.
        state: "loading", "ready" or "failed".
        stage: a stage of `yaie_async.Progress`, or "retrying" (the load failed by an outage of the Hub and is repeated
            after a wait), "failed", or "stopped" (by the server).
        bytes_fraction: the fraction of the bytes that are on disk, 0.0 to 1.0.
        bytes_done, bytes_total: as in `yaie_async.Progress`; None before the files are listed.
        bytes_per_second: the rate, in the stages "downloading" and "stalled".
        seconds_left: as in `yaie_async.Progress`, in the stages "downloading", "importing" and "building".
        error: the last error, in the stages "failed" and "retrying".
        retry_in: seconds until the next attempt, in the stages "retrying" and "stalled".
        stage_fraction, reason: as in `yaie_async.Progress`.
        attempt: the number of the present or next attempt, in the stages "retrying" and "stalled".
        steps: seconds in each stage, in order of first entry; the present stage of a load is added when it is over.
        ready_since: the time at which it became ready, in seconds since 1970.
        seconds: what the whole load took.
        dtype, device, memory_bytes: of the ready model: parameters and buffers.
        commit: the commit of its files; None for a directory.
        can_retry: whether "Try again" starts the load again.
        optional: whether the others are ready without it.
        retries: how often the load was repeated after an outage of the Hub; not in JSON.
    """

    name: str
    model: str
    state: State
    stage: str
    bytes_fraction: float = 0.0
    bytes_done: int | None = None
    bytes_total: int | None = None
    bytes_per_second: float | None = None
    seconds_left: float | None = None
    error: str | None = None
    retry_in: float | None = None
    stage_fraction: float | None = None
    reason: str | None = None
    attempt: int | None = None
    steps: tuple[tuple[str, float], ...] = ()
    ready_since: float | None = None
    seconds: float | None = None
    dtype: str | None = None
    device: str | None = None
    memory_bytes: int | None = None
    commit: str | None = None
    can_retry: bool = False
    optional: bool = False
    retries: int = 0

    @property
    def fraction(self) -> float:
        """The progress from 0.0 to 1.0; 1.0 only once the model is ready."""
        return 1.0 if self.state == "ready" else min(self.bytes_fraction, _MAX_FRACTION_NOT_READY)

    @property
    def retry_after(self) -> int:
        """The value of `Retry-After`, in whole seconds."""
        if self.state == "failed":
            return _MAX_RETRY_AFTER
        left = self.seconds_left if self.retry_in is None else self.retry_in
        if left is None:
            return _DEFAULT_RETRY_AFTER
        return max(_MIN_RETRY_AFTER, min(_MAX_RETRY_AFTER, math.ceil(left)))

    def as_json(self) -> dict[str, Any]:
        document = asdict(self)
        del document["name"], document["bytes_fraction"], document["retries"]
        document["fraction"] = round(self.fraction, 4)
        document["steps"] = {stage: round(seconds, 2) for stage, seconds in self.steps}
        for key, digits in _DIGITS.items():
            document[key] = _rounded(document[key], digits)
        return document


@dataclass(frozen=True, slots=True)
class Status:
    """The status of all models of a warm-up.

    Attributes:
        models: the models, in this worker.
        workers: what the workers of this server show each other; empty where there is only one.
    """

    models: tuple[ModelStatus, ...]
    workers: tuple[WorkerState, ...] = ()

    @property
    def required(self) -> Sequence[ModelStatus]:
        """The models that are not optional."""
        return [model for model in self.models if not model.optional]

    @property
    def state(self) -> State:
        """The state of all but the optional: "failed" once one has failed, "ready" once all are, else "loading"."""
        states = {model.state for model in self.required}
        return "failed" if "failed" in states else "loading" if "loading" in states else "ready"

    @property
    def stage(self) -> str:
        """The stage of a failed model if there is one, else of the model with the smallest fraction."""
        return min(self.required or self.models, key=lambda model: (model.state != "failed", model.fraction)).stage

    @property
    def fraction(self) -> float:
        """The mean of the models' fractions. It never falls when the size of another model becomes known."""
        models = self.required or self.models
        return sum(model.fraction for model in models) / len(models)

    @property
    def _going(self) -> list[ModelStatus]:
        """The models whose bytes count: one that has failed or was stopped never reaches its total."""
        return [model for model in self.models if model.state != "failed" and model.stage != "stopped"]

    @property
    def bytes_done(self) -> int | None:
        """The bytes on disk of all models that go on or are ready; None before any of them is known."""
        return _sum(model.bytes_done for model in self._going)

    @property
    def bytes_total(self) -> int | None:
        """The bytes of all models that go on or are ready; None until the last of them is known."""
        totals = [model.bytes_total for model in self._going]
        return None if None in totals else _sum(totals)

    @property
    def bytes_per_second(self) -> float | None:
        """The rate of all models together; None where nothing is downloaded."""
        return _sum(model.bytes_per_second for model in self._going)

    @property
    def seconds_left(self) -> float | None:
        """The time until the last model is there: for downloads by the bytes and the rate of all, as they share it."""
        loading = [model for model in self._going if model.state == "loading"]
        if not loading or any(model.seconds_left is None for model in loading):
            return None
        left = [model.seconds_left or 0.0 for model in loading if not model.bytes_per_second]
        downloads = [model for model in loading if model.bytes_per_second]
        if downloads:
            size = sum((model.bytes_total or 0) - (model.bytes_done or 0) for model in downloads)
            left.append(size / sum(model.bytes_per_second or 0.0 for model in downloads))
        return max(left)

    @property
    def retry_after(self) -> int:
        """The value of `Retry-After` for all models together, in whole seconds."""
        waits = [model.retry_after for model in self.required if model.state != "ready"]
        return max(waits, default=_MIN_RETRY_AFTER)  # another worker is not ready

    def as_json(self) -> dict[str, Any]:
        required = [model.name for model in self.required]
        return {
            "state": self.state,
            "stage": self.stage,
            "fraction": round(self.fraction, 4),
            "bytes_done": self.bytes_done,
            "bytes_total": self.bytes_total,
            "bytes_per_second": _rounded(self.bytes_per_second, None),
            "seconds_left": _rounded(self.seconds_left, 1),
            "pid": os.getpid(),
            "models": {model.name: model.as_json() for model in self.models},
            **({"workers": [worker.as_json(required) for worker in self.workers]} if self.workers else {}),
        }

    def encoded(self) -> bytes:
        """The status as JSON bytes."""
        return json.dumps(self.as_json()).encode()


def _sum(values: Iterable[Number | None]) -> Number | None:
    """The sum of the known values; None if there are none."""
    known = [value for value in values if value is not None]
    return sum(known[1:], known[0]) if known else None


def _rounded(value: float | None, digits: int | None) -> float | None:
    return None if value is None else round(value, digits)

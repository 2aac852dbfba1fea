"""What probes and people are told of a warm-up: plain data, and the few numbers drawn from it. Pure."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["loading", "ready", "failed"]

# A model is at 100 % when it is ready, not when its last byte is there: the build is still to come.
_NOT_READY = 0.99

# Seconds that `Retry-After` asks for: at least, at most, and where the time left can't be told.
_SOON, _LATE, _UNKNOWN = 1, 60, 5


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """How far one model is.

    Attributes:
        name: what the app calls it.
        model: repo id or directory.
        state: "loading", "ready" or "failed".
        stage: of `yaie_async.Progress`, or "retrying" (the Hub is away), "failed", "stopped" (the server is).
        share: of the bytes that are on disk, 0.0 to 1.0.
        bytes_done, bytes_total, bytes_per_second, seconds_left: as `yaie_async.Progress` has them.
        error: what went wrong last, for "failed" and "retrying".
        retry_in: seconds until the next attempt, for "retrying".
    """

    name: str
    model: str
    state: State
    stage: str
    share: float = 0.0
    bytes_done: int = 0
    bytes_total: int = 0
    bytes_per_second: float = 0.0
    seconds_left: float | None = None
    error: str | None = None
    retry_in: float | None = None

    @property
    def fraction(self) -> float:
        """0.0 to 1.0, and 1.0 only once the model is ready."""
        return 1.0 if self.state == "ready" else min(self.share, _NOT_READY)

    @property
    def retry_after(self) -> int:
        """Whole seconds after which it is worth asking again."""
        if self.state == "failed":
            return _LATE
        left = self.seconds_left if self.retry_in is None else self.retry_in
        return _UNKNOWN if left is None else max(_SOON, min(_LATE, math.ceil(left)))

    def as_json(self) -> dict[str, Any]:
        told = asdict(self)
        del told["name"], told["share"]
        told["fraction"] = round(self.fraction, 4)
        told["bytes_per_second"] = round(self.bytes_per_second)
        for key in ("seconds_left", "retry_in"):
            told[key] = None if told[key] is None else round(told[key], 1)
        return told


@dataclass(frozen=True, slots=True)
class Status:
    """How far all models of a warm-up are."""

    models: tuple[ModelStatus, ...]

    @property
    def state(self) -> State:
        """All are "ready", or one has "failed"; else they are still "loading"."""
        states = {model.state for model in self.models}
        return "failed" if "failed" in states else "loading" if "loading" in states else "ready"

    @property
    def stage(self) -> str:
        """The stage of the model that is furthest behind, a failed one before all others."""
        return min(self.models, key=lambda model: (model.state != "failed", model.fraction)).stage

    @property
    def fraction(self) -> float:
        """The mean of the models': it never falls when another listing becomes known."""
        return sum(model.fraction for model in self.models) / len(self.models)

    @property
    def retry_after(self) -> int:
        """Whole seconds after which it is worth asking again for all of them."""
        return max(model.retry_after for model in self.models if model.state != "ready")

    def as_json(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "stage": self.stage,
            "fraction": round(self.fraction, 4),
            "models": {model.name: model.as_json() for model in self.models},
        }

    def encoded(self) -> bytes:
        """The same as the bytes of its JSON."""
        return json.dumps(self.as_json()).encode()

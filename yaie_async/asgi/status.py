"""The status of a warm-up, as probes and the page receive it: plain data and derived numbers. Pure."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["loading", "ready", "failed"]

# The largest fraction of a model that is not ready: the build follows the last byte.
_MAX_FRACTION_NOT_READY = 0.99

# Bounds of `Retry-After`, and its value while the time left is unknown. In seconds.
_MIN_RETRY_AFTER, _MAX_RETRY_AFTER, _DEFAULT_RETRY_AFTER = 1, 60, 5


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """The status of one model.

    Attributes:
        name: the name of the model in the app.
        model: repo id or directory.
        state: "loading", "ready" or "failed".
        stage: a stage of `yaie_async.Progress`, or "retrying" (during an outage of the Hub), "failed", or "stopped"
            (by the server).
        bytes_fraction: the fraction of the bytes that are on disk, 0.0 to 1.0.
        bytes_done, bytes_total, bytes_per_second, seconds_left: as in `yaie_async.Progress`.
        error: the last error, in the stages "failed" and "retrying".
        retry_in: seconds until the next attempt, in the stage "retrying".
    """

    name: str
    model: str
    state: State
    stage: str
    bytes_fraction: float = 0.0
    bytes_done: int = 0
    bytes_total: int = 0
    bytes_per_second: float = 0.0
    seconds_left: float | None = None
    error: str | None = None
    retry_in: float | None = None

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
        del document["name"], document["bytes_fraction"]
        document["fraction"] = round(self.fraction, 4)
        document["bytes_per_second"] = round(self.bytes_per_second)
        for key in ("seconds_left", "retry_in"):
            document[key] = None if document[key] is None else round(document[key], 1)
        return document


@dataclass(frozen=True, slots=True)
class Status:
    """The status of all models of a warm-up."""

    models: tuple[ModelStatus, ...]

    @property
    def state(self) -> State:
        """The state of all: "failed" once any model has failed, "ready" once all are ready, else "loading"."""
        states = {model.state for model in self.models}
        return "failed" if "failed" in states else "loading" if "loading" in states else "ready"

    @property
    def stage(self) -> str:
        """The stage of a failed model if there is one, else of the model with the smallest fraction."""
        return min(self.models, key=lambda model: (model.state != "failed", model.fraction)).stage

    @property
    def fraction(self) -> float:
        """The mean of the models' fractions. It never falls when the size of another model becomes known."""
        return sum(model.fraction for model in self.models) / len(self.models)

    @property
    def retry_after(self) -> int:
        """The value of `Retry-After` for all models together, in whole seconds."""
        return max(model.retry_after for model in self.models if model.state != "ready")

    def as_json(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "stage": self.stage,
            "fraction": round(self.fraction, 4),
            "models": {model.name: model.as_json() for model in self.models},
        }

    def encoded(self) -> bytes:
        """The status as JSON bytes."""
        return json.dumps(self.as_json()).encode()

"""The states of a server's workers, and what they are together. Pure."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from yaie_async.asgi.status import State

WorkerScope = Literal["any", "self", "all"]

# Seconds in which the workers of a server appear, where its supervisor does not show how many there are. gunicorn takes
# up to 0.1 s for each.
SETTLING = 2.0

# Seconds within which a worker shows its state. One that has not is no worker, but another child of the supervisor that
# has inherited the socket.
PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class WorkerModel:
    """The state of one model in one worker.

    Attributes:
        state, stage, fraction: as in `ModelStatus`.
        been_ready: whether it has been ready in this worker.
        agreed: whether this worker knows that it has been ready in all.
        bytes_done, bytes_total, memory_bytes, retries, steps: as in `ModelStatus`; for /metrics.
        error: as in `ModelStatus`.
    """

    state: State
    stage: str
    fraction: float
    been_ready: bool
    agreed: bool
    bytes_done: int | None = None
    bytes_total: int | None = None
    memory_bytes: int | None = None
    retries: int = 0
    steps: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    @classmethod
    def parse(cls, document: Any) -> "WorkerModel":
        state = document["state"]
        if state not in get_args(State):
            raise ValueError(state)
        # NaN, which is no JSON, becomes 0.0.
        fraction = min(1.0, max(0.0, float(document["fraction"])))
        return cls(
            state=state,
            stage=str(document["stage"]),
            fraction=fraction,
            been_ready=bool(document["been_ready"]),
            agreed=bool(document["agreed"]),
            bytes_done=_size(document["bytes_done"]),
            bytes_total=_size(document["bytes_total"]),
            memory_bytes=_size(document["memory_bytes"]),
            retries=int(document["retries"]),
            steps={str(stage): float(seconds) for stage, seconds in document["steps"].items()},
            error=document["error"] and str(document["error"]),
        )


@dataclass(frozen=True, slots=True)
class WorkerState:
    """The state of one worker, as it is shared with the others.

    Attributes:
        pid: its process.
        started: when its warm-up began, by the system's monotonic clock.
        keys: what marks the workers of the same server; any in common is enough.
        models: the state of each model, by name.
        process: a random text of its process; containers may have a pid in common.
    """

    pid: int
    started: float
    keys: frozenset[str]
    models: dict[str, WorkerModel]
    process: str

    def document(self) -> dict[str, Any]:
        return asdict(self) | {"keys": sorted(self.keys)}

    @classmethod
    def parse(cls, document: Any) -> "WorkerState | None":
        """Return the state in a document, or None if there is none in it, as in one of another version."""
        try:
            models = {str(name): WorkerModel.parse(model) for name, model in document["models"].items()}
            pid, started, keys = int(document["pid"]), float(document["started"]), frozenset(document["keys"])
            return cls(pid, started, keys, models, str(document["process"]))
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            return None

    def state(self, names: Collection[str]) -> State:
        """The state of these models together."""
        states = {self.models[name].state for name in names}
        return "failed" if "failed" in states else "loading" if "loading" in states else "ready"

    def is_beside(self, other: "WorkerState") -> bool:
        """Whether both are workers of one server, with the same models. Two warm-ups of one process are not."""
        beside = self.process != other.process and self.keys & other.keys
        return bool(beside and self.models.keys() == other.models.keys())

    def as_json(self, required: Collection[str]) -> dict[str, Any]:
        models: dict[str, dict[str, Any]] = {
            name: {"state": model.state, "stage": model.stage, "fraction": round(model.fraction, 4)}
            for name, model in self.models.items()
        }
        for name, model in self.models.items():
            if model.error:
                models[name]["error"] = model.error
        return {"pid": self.pid, "state": self.state(required), "models": models}


@dataclass(frozen=True, slots=True)
class Workers:
    """The workers of a server.

    Attributes:
        own: this worker.
        others: the others that live.
        expected: how many there are or will be; None while more may appear.
    """

    own: WorkerState
    others: tuple[WorkerState, ...] = ()
    expected: int | None = 1

    @property
    def all(self) -> Sequence[WorkerState]:
        return sorted((self.own, *self.others), key=lambda worker: worker.pid)

    def agree(self, name: str) -> bool:
        """Whether all expected workers have had this model ready once, as far as any of them knows.

        It ends with the last of those that have had it ready: after a reload of the server all begin anew.
        """
        models = [worker.models[name] for worker in self.all]
        ready = sum(model.been_ready for model in models)
        known = any(model.agreed for model in models)
        return ready > 0 and (known or (self.expected is not None and ready >= self.expected))

    def state(self, names: Collection[str], scope: WorkerScope) -> State:
        """The state of these models: in this worker, in all, or of the server.

        A server is ready once all its workers have been, and while any of them is: a recycled worker changes nothing.
        """
        if scope == "self":
            return self.own.state(names)
        states = [worker.state(names) for worker in self.all]
        if scope == "any" and all(self.agree(name) for name in names):
            return "ready" if "ready" in states else self.own.state(names)
        if "failed" in states:
            return "failed"
        complete = scope == "all" and self.expected is not None and len(states) >= self.expected
        return "ready" if complete and set(states) == {"ready"} else "loading"


def _size(value: Any) -> int | None:
    return None if value is None else int(value)


def expected_workers(own: WorkerState, others: Sequence[WorkerState], supervised: int | None, now: float) -> int | None:
    """Return how many workers a server has, or None while more may appear.

    `supervised` is the count of its supervisor: 0 where there is none, None where that is not known.
    """
    seen = 1 + len(others)
    newest = max(worker.started for worker in (own, *others))
    return max(seen, supervised or 1) if supervised == 0 or now - newest >= SETTLING else None


class Count:
    """A count of workers that falls only once it has stayed lower: one that was killed is soon replaced."""

    def __init__(self) -> None:
        self._value = 0
        self._lower: tuple[float, int] | None = None  # since when, and the largest count since then

    def settle(self, count: int, now: float) -> int:
        """Take the count of this moment, and return the one that holds."""
        if count >= self._value:
            self._value, self._lower = count, None
            return count
        since, most = self._lower or (now, count)
        self._lower = since, max(most, count)
        if now - since >= SETTLING:
            self._value, self._lower = self._lower[1], None
        return self._value


class Silent:
    """The processes that should be workers and have shown no state for long."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}

    def of(self, supervised: frozenset[int], shown: Collection[int], now: float) -> set[int]:
        """Return those among the processes of the supervisor, of which some have shown a state at this moment."""
        self._since = {pid: now if pid in shown else self._since.get(pid, now) for pid in supervised}
        return {pid for pid, since in self._since.items() if now - since >= PATIENCE}

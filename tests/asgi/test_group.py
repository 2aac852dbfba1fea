"""Tests of a worker's view of the others."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from tests.support.process import started
from yaie_async.asgi.group import Group
from yaie_async.asgi.listening import listening, supervised
from yaie_async.asgi.status import ModelStatus
from yaie_async.asgi.worker_file import WorkerFile
from yaie_async.asgi.worker_state import SETTLING

LOADING, READY = (
    [ModelStatus("chat", "org/name", "loading", "building")],
    [ModelStatus("chat", "org/name", "ready", "ready")],
)


class Other:
    """Another worker, whose file this process writes."""

    def __init__(self, group: Group) -> None:
        self._file = WorkerFile()
        (model,) = group.workers.own.models.values()
        self._state = replace(group.workers.own, process="other", models={"chat": replace(model, been_ready=False)})
        self.show()

    def show(self, **changes: object) -> None:
        models = {"chat": replace(self._state.models["chat"], **changes)}  # type: ignore[arg-type]
        self._state = replace(self._state, models=models)
        self._file.write(self._state.document())

    def close(self) -> None:
        self._file.close()


@pytest.fixture
def group(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Group:
    """A group that began long ago."""
    group = Group("name", LOADING)
    monkeypatch.setattr(group, "_began", group._began - SETTLING)
    look(group, LOADING)
    return group


def look(group: Group, models: list[ModelStatus]) -> None:
    anyio.run(group.look, models)


def state(group: Group) -> str:
    return group.workers.state(["chat"], "any")


@contextmanager
def no_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_folder_fails_for_a_moment(group: Group, folder: Path) -> None:
    """What was seen last holds, and nothing is agreed meanwhile."""
    other = Other(group)
    look(group, READY)
    assert state(group) == "loading"
    folder.chmod(0o755)
    look(group, READY)
    assert state(group) == "loading"
    folder.chmod(0o700)
    look(group, READY)
    assert state(group) == "loading"
    other.show(been_ready=True)
    look(group, READY)
    assert state(group) == "ready"
    other.close()


def test_the_first_look_fails(group: Group, folder: Path) -> None:
    """Each worker answers for itself only as long as it has to."""
    other = Other(group)
    late = Group("name", LOADING)
    folder.chmod(0o755)
    look(late, READY)
    assert state(late) == "ready"
    folder.chmod(0o700)
    look(late, READY)
    assert state(late) == "loading"
    other.close()


def test_no_descriptor_is_free(group: Group) -> None:
    """That says nothing about the sockets, the supervisor, or the other workers."""
    other = Other(group)
    file = WorkerFile()
    file.others()
    with no_descriptors():
        for use in (listening, lambda: supervised(frozenset({"socket:[1]"})), file.others):
            with pytest.raises(OSError, match="Too many open files"):
                use()
    other.close()


def test_a_worker_is_killed(group: Group) -> None:
    """A server with a worker that is not ready is not ready for a moment when that one is killed."""
    other = Other(group)
    look(group, READY)
    other.close()
    look(group, READY)
    assert not group.workers.others
    assert state(group) == "loading"


def test_all_workers_are_replaced(group: Group) -> None:
    """What workers have agreed on, which their successors knew, ends with the last of them."""
    other = Other(group)
    other.show(been_ready=True, agreed=True)
    anyio.run(group.show, LOADING)
    anyio.run(group.look, LOADING)
    assert group.workers.agree("chat")
    other.show(been_ready=False, agreed=False)
    group._looked = 0.0
    anyio.run(group.show, LOADING)  # without a probe
    look(group, READY)
    assert not group.workers.agree("chat")
    other.close()


def test_a_forked_child_is_another_process() -> None:
    """Workers that gunicorn forks from one that has imported the app are told apart."""
    code = """if True:
        import os
        from yaie_async.asgi.group import Group

        group = Group("name", ())
        if os.fork():
            os.wait()
        print(group.workers.own.process, group._own(()).process, flush=True)
    """
    (made, child), (_, parent) = (line.split() for line in started(code).stdout.splitlines())
    assert made == parent != child


def test_another_worker_fails(group: Group) -> None:
    """The answer has its error; that of a worker without one has none."""
    other = Other(group)
    failed = replace(LOADING[0], state="failed", stage="failed", error="no such model")
    look(group, [failed])
    assert group.workers.own.as_json(["chat"])["models"]["chat"]["error"] == "no such model"
    other.show(state="failed", error="no such model")
    look(group, LOADING)
    assert state(group) == "failed"
    errors = [worker.as_json(["chat"])["models"]["chat"].get("error") for worker in group.workers.all]
    assert sorted(errors, key=str) == [None, "no such model"]
    other.close()

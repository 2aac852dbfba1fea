"""How far a build is: counted in both ways of building, and timed by the last build of its kind."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.model.arrivals import Arrival
from yaie_async.model.build_progress import BuildProgress, _kind, last_build
from yaie_async.model.model import build_model
from yaie_async.model.streaming import build_streaming
from yaie_async.store.history import Took, remember

Make = Callable[..., Arrival]


class Watched(BuildProgress):
    """Keeps every share that there was."""

    def __init__(self) -> None:
        super().__init__()
        self.shares: list[float | None] = []

    def add(self, count: int) -> None:
        super().add(count)
        self.shares.append(self()[0])


@pytest.fixture(autouse=True)
def _own_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_both_builds_count_to_the_end(arrival: Make, dtype: str) -> None:
    """From nothing, which is not known at first, every tensor brings the share nearer to 1."""
    arriving = arrival("llama", dtype=dtype)
    arriving.begin()
    arriving.land_rest()
    streamed, stock = Watched(), Watched()
    assert streamed() == stock() == (None, None)
    build_streaming(arriving.request, arriving.arriving, progress=streamed)
    arriving.publish()
    build_model(arriving.request, progress=stock)
    for watched in (streamed, stock):
        shares: list[Any] = watched.shares
        assert len(shares) > 10
        assert shares == sorted(shares)
        assert 0 < shares[0] < 0.5
        assert shares[-1] == 1.0


def test_a_build_knows_what_the_last_one_took(arrival: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time left is the last time's, as long as this model is large, and less with each tensor; never negative."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    arriving = arrival("llama")
    arriving.begin()
    arriving.land_rest()
    arriving.publish()
    request = arriving.request
    first = BuildProgress()
    with first.measured(request, keep=True):
        assert first() == (None, None)
        now += 8
    second = BuildProgress()
    with second.measured(request, keep=True):
        assert second() == (None, 8.0)
        now += 2
        assert second() == (None, 6.0)
        second.expect(4)
        second.add(3)
        assert second() == (0.75, 2.0)
        second.add(7)
        assert second() == (1.0, 0.0)
    late = BuildProgress()
    with late.measured(request, keep=True):
        now += 9
        assert late() == (None, None)


def test_what_the_last_build_took_is_known_before_torch_is(arrival: Make) -> None:
    """By what was found then, a GPU or none; where there were builds of both, it is not known."""
    arriving = arrival("llama")
    arriving.publish()
    request = arriving.request
    assert last_build(request, "cpu", "gpu") is None
    with BuildProgress().measured(request, keep=True):
        pass
    seconds = last_build(request, "cpu", "gpu")
    assert seconds is not None
    assert seconds in (last_build(request, "cpu"), last_build(request, "gpu"))
    for found in ("cpu", "gpu"):
        remember(_kind(request, found), Took(7.0, request.manifest.size))
    assert last_build(request, "gpu") == 7.0
    assert last_build(request, "cpu", "gpu") is None


def test_a_build_that_fails_is_no_last_time(arrival: Make) -> None:
    """Neither a failed build nor one that waited for bytes says how long a build takes."""
    arriving = arrival("llama")
    arriving.publish()
    progress = BuildProgress()
    with pytest.raises(KeyError), progress.measured(arriving.request, keep=True):
        raise KeyError
    with progress.measured(arriving.request, keep=False):
        pass
    with progress.measured(arriving.request, keep=True):
        assert progress() == (None, None)

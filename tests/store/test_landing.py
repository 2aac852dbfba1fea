"""Bytes as they land, seen by a reader in another thread."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from yaie_async.store.blockmap import BLOCK
from yaie_async.store.landing import Landing, LandingError


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def never() -> bool:
    return False


Waiting = Callable[[Landing, Future[object]], None]


@pytest.fixture
def waiting(readers: Callable[..., int]) -> Waiting:
    """Wait until a job waits for bytes of a landing."""

    def wait(landing: Landing, job: Future[object]) -> None:
        while not readers(landing):
            assert not job.done()
            time.sleep(0.001)

    return wait


def test_open_and_wait(tmp_path: Path, pool: ThreadPoolExecutor, waiting: Waiting) -> None:
    """A reader gets the file when it begins, and its bytes when the last of their blocks has landed."""
    landing = Landing("a", 3 * BLOCK + 5)
    (tmp_path / "data").touch()
    opening = pool.submit(landing.open, never)
    waiting(landing, opening)
    landing.begin(tmp_path / "data", b"\1\0\0\0")
    os.close(opening.result(5))
    landing.wait(0, BLOCK, never)
    job = pool.submit(landing.wait, BLOCK - 1, 3 * BLOCK + 5, never)
    waiting(landing, job)
    landing.landed(1, 3)
    waiting(landing, job)
    landing.landed(3, 4)
    assert job.result(5) is None
    assert not landing.failed


@pytest.mark.parametrize(
    "end",
    [lambda landing, _: landing.fail(), lambda landing, path: landing.begin(path, b"\0")],
)
def test_failure(
    tmp_path: Path, pool: ThreadPoolExecutor, end: Callable[[Landing, Path], None], waiting: Waiting
) -> None:
    """A failed download, and one that starts over in another file, end every wait at once and for good."""
    landing = Landing("a", BLOCK)
    landing.begin(tmp_path / "one", b"\0")
    job = pool.submit(landing.wait, 0, BLOCK, never)
    waiting(landing, job)
    end(landing, tmp_path / "two")
    with pytest.raises(LandingError):
        job.result(5)
    assert landing.failed
    landing.landed(0, 1)
    with pytest.raises(LandingError):
        landing.wait(0, BLOCK, never)
    with pytest.raises(LandingError):
        landing.open(never)


def test_reader_that_gives_up(tmp_path: Path, pool: ThreadPoolExecutor, waiting: Waiting) -> None:
    """A reader that no longer wants to wait does not, within a tenth of a second; bytes that are there it gets."""
    landing = Landing("a", 2 * BLOCK)
    landing.begin(tmp_path / "data", b"\1\0")
    given_up = threading.Event()
    job = pool.submit(landing.wait, 0, 2 * BLOCK, given_up.is_set)
    waiting(landing, job)
    began = time.monotonic()
    given_up.set()
    with pytest.raises(LandingError):
        job.result(5)
    assert time.monotonic() - began < 0.1
    landing.wait(0, BLOCK, given_up.is_set)
    assert not landing.failed


def test_file_that_is_published_or_pruned(tmp_path: Path) -> None:
    """Under its final names the file is opened too; one that is gone is a failure of this reader."""
    blob, pointer = tmp_path / "blob", tmp_path / "pointer"
    landing = Landing("a", 1, blob, pointer)
    (tmp_path / "partial").touch()
    landing.begin(tmp_path / "partial", b"\0")
    os.close(landing.open(never))
    for source, target in ((tmp_path / "partial", blob), (blob, pointer)):
        source.rename(target)
        os.close(landing.open(never))
    landing.complete()
    landing.wait(0, 1, never)
    pointer.unlink()
    with pytest.raises(LandingError):
        landing.open(never)


def test_file_that_was_there(tmp_path: Path) -> None:
    """What never landed here is read where it is."""
    landing = Landing("a", 1, tmp_path / "blob", tmp_path / "pointer")
    (tmp_path / "pointer").touch()
    landing.complete()
    os.close(landing.open(never))
    landing.wait(0, 1, never)

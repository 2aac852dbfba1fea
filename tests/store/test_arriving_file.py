"""A file that is being written, read by another thread."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.stopwatch import Stopwatch
from yaie_async.store.arriving_file import ArrivalError, ArrivingFile
from yaie_async.store.blockmap import BLOCK


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def never() -> bool:
    return False


Waiting = Callable[[ArrivingFile, Future[Any]], None]


@pytest.fixture
def waiting(readers: Callable[..., int]) -> Waiting:
    """Wait until a job waits for bytes of an arriving file."""

    def wait(arriving: ArrivingFile, job: Future[Any]) -> None:
        while not readers(arriving):
            assert not job.done()
            time.sleep(0.001)

    return wait


def test_open_and_wait(tmp_path: Path, pool: ThreadPoolExecutor, waiting: Waiting) -> None:
    """A reader gets the file once the download begins, and its bytes once the last of their blocks is written."""
    arriving = ArrivingFile("a", 3 * BLOCK + 5)
    (tmp_path / "data").touch()
    opening = pool.submit(arriving.open, never)
    waiting(arriving, opening)
    written = bytearray(b"\1\0\0\0")
    arriving.begin(tmp_path / "data", written)
    os.close(opening.result())
    arriving.wait(0, BLOCK, never)
    job = pool.submit(arriving.wait, BLOCK - 1, 3 * BLOCK + 5, never)
    waiting(arriving, job)
    written[1:3] = b"\1\1"
    waiting(arriving, job)
    written[3] = 1
    assert job.result() is None
    assert not arriving.failed


@pytest.mark.parametrize(
    "end",
    [lambda arriving, _: arriving.fail(), lambda arriving, path: arriving.begin(path, bytearray(1))],
)
def test_failure(
    tmp_path: Path, pool: ThreadPoolExecutor, end: Callable[[ArrivingFile, Path], None], waiting: Waiting
) -> None:
    """If a download fails or starts over in another file, every wait ends at once and for good."""
    arriving = ArrivingFile("a", BLOCK)
    arriving.begin(tmp_path / "one", written := bytearray(1))
    job = pool.submit(arriving.wait, 0, BLOCK, never)
    waiting(arriving, job)
    end(arriving, tmp_path / "two")
    with pytest.raises(ArrivalError):
        job.result()
    assert arriving.failed
    written[0] = 1
    with pytest.raises(ArrivalError):
        arriving.wait(0, BLOCK, never)
    with pytest.raises(ArrivalError):
        arriving.open(never)


def test_reader_that_gives_up(tmp_path: Path, pool: ThreadPoolExecutor, waiting: Waiting) -> None:
    """A cancelled reader stops waiting within a tenth of a second, and still gets bytes that are written."""
    arriving = ArrivingFile("a", 2 * BLOCK)
    arriving.begin(tmp_path / "data", bytearray(b"\1\0"))
    given_up = threading.Event()
    job = pool.submit(arriving.wait, 0, 2 * BLOCK, given_up.is_set)
    waiting(arriving, job)
    watch = Stopwatch()
    given_up.set()
    with pytest.raises(ArrivalError):
        job.result()
    assert watch.seconds < 0.1
    arriving.wait(0, BLOCK, given_up.is_set)
    assert not arriving.failed


def test_file_that_is_published_or_pruned(tmp_path: Path) -> None:
    """The file can be opened under its final names too; a removed file is an error for this reader."""
    blob, pointer = tmp_path / "blob", tmp_path / "pointer"
    arriving = ArrivingFile("a", 1, blob, pointer)
    (tmp_path / "partial").touch()
    arriving.begin(tmp_path / "partial", bytearray(1))
    os.close(arriving.open(never))
    for source, target in ((tmp_path / "partial", blob), (blob, pointer)):
        source.rename(target)
        os.close(arriving.open(never))
    arriving.complete()
    arriving.wait(0, 1, never)
    pointer.unlink()
    with pytest.raises(ArrivalError):
        arriving.open(never)


def test_file_that_existed_before(tmp_path: Path) -> None:
    """A file that was not downloaded is read from its place in the cache."""
    arriving = ArrivingFile("a", 1, tmp_path / "blob", tmp_path / "pointer")
    (tmp_path / "pointer").touch()
    arriving.complete()
    os.close(arriving.open(never))
    arriving.wait(0, 1, never)

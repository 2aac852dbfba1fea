"""How a streaming build ends before it is done: cancelled, failed, given way; and what it leaves: nothing."""

from __future__ import annotations

import gc
import itertools
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.arrivals import Arrival
from tests.model.test_streaming import assert_same
from tests.support import models
from tests.support.layouts import edit_json
from tests.support.stopwatch import Stopwatch
from tests.support.waiting import wait_until
from yaie_async.core import errors
from yaie_async.model.build_progress import BuildProgress
from yaie_async.model.lock import BuildCancelled, build_lock
from yaie_async.model.model import build_model
from yaie_async.model.streaming import StreamAbandoned, build_streaming
from yaie_async.model.tensors import ArrivingFiles
from yaie_async.store.arriving_file import ArrivalError

Make = Callable[..., Arrival]
Waiting = Callable[[Arrival], int]

pytestmark = pytest.mark.usefixtures("small_blocks")


@pytest.fixture
def waiting(readers: Callable[..., int]) -> Waiting:
    """How many threads wait for bytes of an arrival."""
    return lambda arrival: sum(readers(each) for each in arrival.arriving.values())


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_cancel(arrival: Make, pool: ThreadPoolExecutor, dtype: str, waiting: Waiting) -> None:
    """A cancelled build ends within a tenth of a second while it waits for bytes, leaves no thread and no turn."""
    arriving = arrival("llama", dtype=dtype)
    arriving.begin()
    arriving.land_headers()
    cancelled = threading.Event()
    threads = set(threading.enumerate())
    job = pool.submit(arriving.stream, cancelled.is_set)
    wait_until(lambda: waiting(arriving) > 0)
    watch = Stopwatch()
    cancelled.set()
    with pytest.raises(BuildCancelled):
        job.result()
    assert watch.seconds < 0.1
    left = {t for t in threading.enumerate() if t not in threads and "ThreadPoolExecutor" not in t.name}
    assert not left
    with build_lock.acquired_if_free() as free:
        assert free


def test_cancel_between_tensors(arrival: Make) -> None:
    """A build that lacks no bytes ends at its next tensor."""
    arriving = arrival("llama")
    arriving.begin()
    arriving.land_rest()
    count = itertools.count()
    with pytest.raises(BuildCancelled):
        arriving.stream(cancelled=lambda: next(count) > 5)
    assert torch.get_default_dtype() == torch.float32


def test_failing_download(arrival: Make, pool: ThreadPoolExecutor, waiting: Waiting) -> None:
    """A failed download ends the build at once, and the stock build works once the bytes are there."""
    arriving = arrival("llama-sharded")
    arriving.begin()
    arriving.land_headers()
    job = pool.submit(arriving.stream)
    wait_until(lambda: waiting(arriving) > 0)
    watch = Stopwatch()
    for each in arriving.arriving.values():
        each.fail()
    with pytest.raises(StreamAbandoned, match=r"download of model-0000\d-of-00004.safetensors failed"):
        job.result()
    assert watch.seconds < 0.1
    arriving.land_rest()
    arriving.publish()
    assert arriving.stock().dtype == torch.float16


def test_download_that_starts_over(arrival: Make, pool: ThreadPoolExecutor, waiting: Waiting) -> None:
    """Bytes that land in another file are not mixed with those read before."""
    arriving = arrival("llama")
    arriving.begin()
    arriving.land_headers()
    job = pool.submit(arriving.stream)
    wait_until(lambda: waiting(arriving) > 0)
    arriving.begin()
    with pytest.raises(StreamAbandoned, match="starts over"):
        job.result()


def test_files_are_closed_after_the_last_read(arrival: Make, pool: ThreadPoolExecutor) -> None:
    """While a thread may still use a descriptor it is not closed: its number could be another file's by then."""
    arriving = arrival("llama")
    arriving.begin()
    arriving.land_rest()
    files = ArrivingFiles(arriving.arriving, lambda: False, lambda: False, BuildProgress())
    tensor = next(iter(files.tensors().values()))
    with files.reading():
        closing = pool.submit(files.close)
        with pytest.raises(TimeoutError):
            closing.result(timeout=0.05)
    closing.result()
    with pytest.raises(ArrivalError):
        tensor.to(device="cpu", dtype=torch.float16)


def test_gives_way(arrival: Make, pool: ThreadPoolExecutor, waiting: Waiting) -> None:
    """A build that lacks bytes gives its turn to one that has them."""
    slow, quick = arrival("llama"), arrival("qwen2")
    for arriving in (slow, quick):
        arriving.begin()
        arriving.land_headers()
    quick.land_rest()
    quick.publish()
    job = pool.submit(slow.stream)
    wait_until(lambda: waiting(slow) > 0)
    watch = Stopwatch()
    assert quick.stock().dtype == torch.float16
    assert watch.seconds < 0.5
    with pytest.raises(StreamAbandoned, match="another build waits"):
        job.result()


def test_takes_no_turn_of_others(arrival: Make) -> None:
    """While another build has its turn, a streaming build is not begun."""
    arriving = arrival("llama")
    with build_lock.acquired(), pytest.raises(StreamAbandoned, match="another build"):
        arriving.stream()


def test_many_at_once(arrival: Make, pool: ThreadPoolExecutor) -> None:
    """Streaming and stock builds of several models at once all come out right, however their turns fall."""
    arrivals = [arrival(kind, dtype=dtype) for kind in ("llama", "gpt2", "qwen2") for dtype in ("float16", "float32")]

    def load(arriving: Arrival) -> Any:
        arriving.begin()
        feeder = arriving.land_in_thread(pause=0.001, seed=1)
        try:
            return arriving.stream()
        except StreamAbandoned:
            return None
        finally:
            feeder.join()
            arriving.publish()

    for arriving, streamed in zip(arrivals, pool.map(load, arrivals), strict=True):
        stock = arriving.stock()
        assert_same(streamed or build_model(arriving.request), stock)
    assert torch.get_default_dtype() == torch.float32


def test_default_dtype_window(arrival: Make, pool: ThreadPoolExecutor, waiting: Waiting) -> None:
    """torch's default dtype is another one only while the skeleton is made, not while the build waits for bytes."""
    arriving = arrival("llama")
    arriving.begin()
    arriving.land_headers()
    job = pool.submit(arriving.stream)
    seen, watch = [], Stopwatch()
    while waiting(arriving) == 0:
        if torch.get_default_dtype() != torch.float32:
            seen.append(watch.seconds)
        time.sleep(0)
    for _ in range(1000):
        assert torch.get_default_dtype() == torch.float32
        time.sleep(0)
    assert waiting(arriving) > 0
    arriving.land_rest()
    job.result()
    if seen:
        print(f"the default dtype was float16 for {(seen[-1] - seen[0]) * 1e3:.1f} ms")
        assert seen[-1] - seen[0] < 0.2


def test_memory_of_an_abandoned_build_is_free(arrival: Make) -> None:
    """While the exception is kept, neither the half-built model nor its mapping is."""
    arriving = arrival("llama")
    arriving.begin()
    arriving.land_rest()
    manifest = replace(arriving.request.manifest, config={**arriving.config, "num_hidden_layers": 3})
    with pytest.raises(StreamAbandoned, match=r"lacks model\.layers\.2") as caught:
        build_streaming(replace(arriving.request, manifest=manifest), arriving.arriving)
    assert_nothing_left()
    assert caught.value is not None


def test_no_output(arrival: Make, capfd: pytest.CaptureFixture[str]) -> None:
    """A streaming build draws no bar and logs nothing."""
    arriving = arrival("llama")
    arriving.begin()
    arriving.land_rest()
    arriving.stream()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda whole: whole[:9] + b"\xff" + whole[10:], r"model.safetensors: its header can't be parsed"),
        (lambda whole: b"\xff" * 8 + whole[8:], "shorter than its header says"),
        (lambda whole: whole.replace(b'"data_offsets":[0,', b'"data_offsets":[2,', 1), "another number of bytes"),
        (lambda whole: whole + b"\0", "end elsewhere than the file"),
        (lambda whole: whole[:-2], "end elsewhere than the file"),
        (lambda whole: whole.replace(b"model.norm.weight", b"model.norm.weighu"), "lacks model.norm.weight"),
        (lambda whole: whole.replace(b"[32,16]", b"[16,32]", 1), "other shapes than its config says"),
    ],
)
def test_damaged_file(
    arrival: Make, saved: Callable[[str], Path], tmp_path: Path, damage: Callable[[bytes], bytes], match: str
) -> None:
    """A header that lies is not believed; the bytes may yet turn out to be others, so it is only given up."""
    directory = Path(shutil.copytree(saved("llama"), tmp_path / "llama"))
    path = directory / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    arriving = arrival(directory)
    arriving.begin()
    arriving.land_rest()
    with pytest.raises(StreamAbandoned, match=match):
        arriving.stream()
    assert_nothing_left()
    arriving.publish()
    with pytest.raises(errors.IncompatibleModelError) as caught:
        arriving.stock()
    assert caught.value.model == arriving.request.source


def test_class_that_raises(arrival: Make, saved: Callable[[str], Path], tmp_path: Path) -> None:
    """A model class that raises leaves nothing behind, and the stock build names the error."""
    directory = Path(shutil.copytree(saved("remote-code"), tmp_path / "remote"))
    code = directory / "modeling_tiny.py"
    code.write_text(code.read_text().replace("self.post_init()", "raise LookupError('my bug')"))
    arriving = arrival(directory)
    arriving.begin()
    arriving.land_rest()
    with pytest.raises(StreamAbandoned, match="LookupError: my bug"):
        arriving.stream()
    assert_nothing_left()
    arriving.publish()
    with pytest.raises(errors.IncompatibleModelError, match="LookupError: my bug"):
        arriving.stock()


def test_no_memory(arrival: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that finds no memory half-way gives back what it had."""
    arriving = arrival("llama", dtype="float32")
    arriving.begin()
    arriving.land_rest()
    count = itertools.count()
    real = torch.empty

    def empty(*args: Any, **kwargs: Any) -> torch.Tensor:
        if next(count) > 5:
            raise RuntimeError("can't allocate memory: you tried to allocate 512 bytes. Error code 12")
        return real(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(StreamAbandoned, match="can't allocate memory"):
        arriving.stream()
    monkeypatch.undo()
    assert_nothing_left()


def test_surroundings(arrival: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that may be on a network is for the stock build."""
    arriving = arrival("llama")
    arriving.begin()
    arriving.land_rest()
    monkeypatch.setattr("yaie_async.model.streaming.is_local", lambda _: False)
    with pytest.raises(StreamAbandoned, match="not known to be on a local file system"):
        arriving.stream()


def assert_nothing_left() -> None:
    """The turn is free, torch is as it was, and no file is open or mapped."""
    gc.collect()
    with build_lock.acquired_if_free() as free:
        assert free
    assert torch.get_default_dtype() == torch.float32
    assert ".yaie-" not in Path("/proc/self/maps").read_text()
    assert not [fd for fd in Path("/proc/self/fd").iterdir() if ".yaie-" in _target(fd)]


def _target(fd: Path) -> str:
    try:
        return str(fd.readlink())
    except FileNotFoundError:  # that of the listing itself
        return ""


def test_a_kernel_under_another_name_is_not_built(arrival: Make, tmp_path: Path) -> None:
    """It is found before transformers would ask the Hub for it; the build that follows says so."""
    directory = models.llama(tmp_path / "llama")
    hidden = {"attribute_map": {"foo": "_attn_implementation"}, "foo": "org/kernel"}
    edit_json(directory / "config.json", lambda config: config.update(hidden))
    with pytest.raises(StreamAbandoned, match="UnsafeFileError: .* names the kernel 'org/kernel'"):
        arrival(directory).stream()

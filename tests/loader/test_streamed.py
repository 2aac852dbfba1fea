"""Tests of streamed builds: bit-identical to transformers, with a fallback to a build from the snapshot."""

import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from transformers import PreTrainedModel

from tests.loader.conftest import Put
from tests.model.arrivals import Arrival
from tests.model.test_model import assert_same_model, stock_model
from tests.support import models
from tests.support.faults import Both, Corrupt, Cut, Fault, Gate, IgnoreRange, Stall, StallAt, Status
from tests.support.hub import HubServer
from tests.support.stopwatch import Stopwatch
from tests.support.waiting import until, wait_until
from yaie_async import HubUnavailableError, ModelLoader
from yaie_async.core.progress import Meter, Progress
from yaie_async.loader.streamed import StreamedBuild, is_due
from yaie_async.model import imports
from yaie_async.model.lock import build_lock
from yaie_async.model.tensors import ArrivingTensor
from yaie_async.store.history import Took

pytestmark = pytest.mark.anyio


@pytest.fixture
def turn_is_given_back() -> Iterator[None]:
    yield
    wait_until(build_lock.is_free)
    assert torch.get_default_dtype() == torch.float32


class Builds:
    """The current and the maximum number of builds in `from_pretrained`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.most = 0
        real = vars(PreTrainedModel)["from_pretrained"].__func__

        def counted(kind: type[PreTrainedModel], *args: Any, **kwargs: Any) -> Any:
            self.now += 1
            self.most = max(self.most, self.now)
            try:
                return real(kind, *args, **kwargs)
            finally:
                self.now -= 1

        monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(counted))


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Builds:
    return Builds(monkeypatch)


def hold(hub: HubServer, directory: Path, also: Fault | None = None) -> Gate:
    """Withhold the last bytes of the last weight file, so that a streamed build waits for them."""
    last = max(directory.glob("*.safetensors"))
    stall = StallAt(last.stat().st_size - 100)
    fault, times = (Both(stall, also), 1) if also else (stall, None)
    hub.faults.add(fault, method="GET", path=rf"^/cdn/.*{directory.name}/.*/{last.name}", times=times)
    return stall.gate


@pytest.mark.usefixtures("turn_is_given_back")
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("llama", "float16"),
        ("llama-sharded", "float16"),
        ("llama-tied", "auto"),
        ("llama-bf16", "float16"),
        ("gpt2-hub-keys", "float32"),
        ("mixtral", "float16"),
        ("remote-code", "float16"),
    ],
)
async def test_streamed_is_stock(
    kind: str,
    dtype: str,
    hub: HubServer,
    hub_root: Path,
    tmp_path: Path,
    why_stock: Callable[[], list[str]],
    load_held: Callable[..., Awaitable[Any]],
) -> None:
    """A cold load builds during the download; the model equals transformers', and every file is verified and linked."""
    directory = models.FACTORIES[kind](hub_root / models.unique_repo_id(kind))
    name = str(directory.relative_to(hub_root))
    loader = ModelLoader(name, endpoint=hub.url, cache_dir=tmp_path, dtype=dtype, trust_remote_code=True)
    model = await load_held(hold(hub, directory), loader)
    assert why_stock() == []
    snapshot = tmp_path / f"models--{name.replace('/', '--')}" / "snapshots" / str(loader.commit)
    for path in directory.iterdir():
        assert (snapshot / path.name).read_bytes() == path.read_bytes()
    stock = stock_model(name, dtype, revision=loader.commit, cache_dir=str(tmp_path))
    assert_same_model(model, stock)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    for path in snapshot.glob("*.safetensors"):
        assert sha256(path.read_bytes()).hexdigest() == path.resolve().name


@pytest.mark.usefixtures("turn_is_given_back")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is only one core")
@pytest.mark.parametrize(
    ("dtype", "options", "left"),
    [("float16", {}, 1), ("float16", {"responsive": False}, 0), ("bfloat16", {}, 0)],
    ids=["mapped", "not responsive", "cast"],
)
async def test_a_core_is_left_to_the_loop(
    dtype: str, options: dict[str, Any], left: int, hub: HubServer, put: Put, tmp_path: Path
) -> None:
    """Reader threads, and a build that does not cast, leave one core to the event loop; the affinity is restored."""
    gate = hold(hub, put("org/tiny"))
    all_cores = os.sched_getaffinity(0)

    def cores(name: str) -> list[int]:
        threads = [one for one in threading.enumerate() if one.name == name and one.native_id]
        return [len(os.sched_getaffinity(one.native_id or 0)) for one in threads]

    async with anyio.create_task_group() as group:
        loader = ModelLoader("org/tiny", endpoint=hub.url, cache_dir=tmp_path, dtype=dtype, **options)
        group.start_soon(loader.load_model)
        await until(lambda: cores("yaie_async build") == cores("yaie_async body") == [len(all_cores) - left])
        gate.open()
    watch = Stopwatch()
    await until(lambda: not cores("yaie_async build"))
    assert watch.seconds < 1
    assert set(cores("idle yaie_async")) == {len(all_cores)}


@pytest.mark.usefixtures("turn_is_given_back")
async def test_a_wrong_byte_is_never_in_the_model(
    hub: HubServer,
    put: Put,
    tmp_path: Path,
    why_stock: Callable[[], list[str]],
    load_held: Callable[..., Awaitable[Any]],
) -> None:
    """After a wrong byte the streamed model is dropped, the file is fetched again, and the snapshot is built."""
    directory = put("org/tiny")
    size = (directory / "model.safetensors").stat().st_size
    gate = hold(hub, directory, Corrupt(size - 5000))
    loader = ModelLoader("org/tiny", endpoint=hub.url, cache_dir=tmp_path)
    model = await load_held(gate, loader)
    assert len(why_stock()) == 1, why_stock()
    assert "model.safetensors" in why_stock()[0] or "were fetched again" in why_stock()[0]
    assert_same_model(model, stock_model("org/tiny", "float16", revision=loader.commit, cache_dir=str(tmp_path)))


async def test_a_model_of_bytes_that_came_again(
    made: Callable[[str], Path], tmp_path: Path, why_stock: Callable[[], list[str]]
) -> None:
    """A model that was finished before its file failed verification is not returned."""
    for again in (False, True):
        arrival = await anyio.to_thread.run_sync(Arrival, made("llama"), tmp_path / str(again), "org/tiny")
        meter = Meter("org/tiny")
        meter.stage("downloading")
        meter.expect(total=1, files=1)
        meter.held(1)
        streamed = StreamedBuild(meter, responsive=True)
        streamed.small_are_there(arrival.request.manifest, tuple(arrival.arriving.values()))
        arrival.begin()
        arrival.land_rest()
        await streamed.run(lambda _manifest: arrival.request)  # noqa: B023 - awaited
        early = streamed._model
        assert early is not None
        if again:
            arrival.begin()
        arrival.publish()
        model = await streamed.finish(arrival.request)
        assert (model is not early) is again
    assert why_stock() == [
        "org/tiny is built from the finished snapshot: some of the bytes that it was built from were fetched again"
    ]


@pytest.mark.usefixtures("turn_is_given_back")
async def test_tensors_are_read_before_their_file_is_whole(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the last block of a file is withheld, the tensors in the other blocks are read."""
    directory = models.llama(hub.root / "org" / "big", hidden=1024)
    gate = hold(hub, directory)
    read: list[int] = []
    real = ArrivingTensor.to

    def noted(tensor: ArrivingTensor, **to: Any) -> torch.Tensor:
        value = real(tensor, **to)
        if not gate.future.done():
            read.append(value.nbytes)
        return value

    monkeypatch.setattr(ArrivingTensor, "to", noted)
    async with anyio.create_task_group() as group:
        group.start_soon(ModelLoader("org/big", endpoint=hub.url, cache_dir=tmp_path).load_model)
        await until(lambda: sum(read) > (directory / "model.safetensors").stat().st_size / 2)
        gate.open()


@pytest.mark.usefixtures("turn_is_given_back", "quick_retries")
async def test_a_server_that_forgets_ranges(
    hub: HubServer,
    put: Put,
    tmp_path: Path,
    load_held: Callable[..., Awaitable[Any]],
    why_stock: Callable[[], list[str]],
) -> None:
    """If a server ignores ranges, bytes that a build has read are not written again."""
    directory = put("org/tiny")
    gate = hold(hub, directory, Cut((directory / "model.safetensors").stat().st_size - 50))
    hub.faults.add(IgnoreRange(), path="^/cdn/", times=None)
    model = await load_held(gate, ModelLoader("org/tiny", endpoint=hub.url, cache_dir=tmp_path))
    assert model.dtype == torch.float16
    (why,) = why_stock()
    assert why.endswith("the download of model.safetensors failed or starts over")


@pytest.mark.usefixtures("turn_is_given_back")
async def test_cancelling(
    hub: HubServer, put: Put, tmp_path: Path, why_stock: Callable[[], list[str]], readers: Callable[..., int]
) -> None:
    """A cancelled load returns within 0.1 s, its threads end, and the next load continues the download."""
    gate = hold(hub, put("org/tiny"))
    loader = ModelLoader("org/tiny", endpoint=hub.url, cache_dir=tmp_path)
    async with anyio.create_task_group() as group:
        group.start_soon(loader.load_model)
        await until(readers)
        watch = Stopwatch()
        group.cancel_scope.cancel()
    assert watch.seconds < 0.1
    await until(lambda: "yaie_async build" not in {thread.name for thread in threading.enumerate()})
    assert watch.seconds < 1.1
    assert build_lock.is_free()
    gate.open()
    assert (await loader.load_model()).dtype == torch.float16


@pytest.mark.usefixtures("turn_is_given_back", "quick_retries")
async def test_a_download_that_fails(hub: HubServer, put: Put, tmp_path: Path, readers: Callable[..., int]) -> None:
    """The error of a download ends the load at once, and with it the build that waits for its bytes."""
    directory = put("org/tiny")
    size = (directory / "model.safetensors").stat().st_size
    gate = hold(hub, directory, Cut(size - 50))
    hub.faults.add(Status(500), path="^/cdn/", times=None)
    loader = ModelLoader("org/tiny", endpoint=hub.url, cache_dir=tmp_path)
    failed: list[Exception] = []

    async def load() -> None:
        with pytest.raises(HubUnavailableError) as caught:
            await loader.load_model()
        failed.append(caught.value)

    async with anyio.create_task_group() as group:
        group.start_soon(load)
        await until(readers)
        gate.open()
    assert failed[0].__cause__ is not None
    watch = Stopwatch()
    await until(lambda: not readers())
    assert watch.seconds < 0.1
    hub.faults.clear()
    assert (await loader.load_model()).dtype == torch.float16


async def test_the_log_says_why_it_was_stock(
    hub: HubServer, put: Put, tmp_path: Path, why_stock: Callable[[], list[str]]
) -> None:
    """The log has the reason why a model was not streamed, except for a cached model."""
    put("org/bin", "dialogpt")
    gate = Gate()
    hub.faults.add(Stall(1000, gate), path="^/cdn/")
    loader = ModelLoader("org/bin", endpoint=hub.url, cache_dir=tmp_path)
    async with anyio.create_task_group() as group:
        group.start_soon(loader.load_model)
        await until(why_stock)
        gate.open()
    await ModelLoader("org/bin", endpoint=hub.url, cache_dir=tmp_path).load_model()
    assert why_stock() == ["org/bin is built from the finished snapshot: its weights are no safetensors"]


@pytest.mark.usefixtures("turn_is_given_back")
async def test_many_at_once(
    hub: HubServer,
    put: Put,
    tmp_path: Path,
    why_stock: Callable[[], list[str]],
    readers: Callable[..., int],
    builds: Builds,
) -> None:
    """Ten tasks load five models, one over a slow link: all are right, and builds run one at a time.

    The slow model delays the others by less than a second, the time in which its build yields.
    """
    kinds = {"org/slow": "llama", "org/a": "qwen2", "org/b": "mixtral", "org/c": "gpt2", "org/d": "remote_code"}
    directories = [put(name, kind) for name, kind in kinds.items()]
    gate = hold(hub, directories[0])
    options: dict[str, Any] = {"endpoint": hub.url, "cache_dir": tmp_path, "trust_remote_code": True}
    for name in ("org/a", "org/b", "org/d"):
        await ModelLoader(name, **options).prefetch()
    loaders = {name: ModelLoader(name, **options) for name in kinds}
    got: dict[str, list[Any]] = {name: [] for name in kinds}

    async def load(name: str) -> None:
        got[name].append(await loaders[name].load_model())

    def has_given_way() -> bool:
        return "org/slow is built from the finished snapshot: another build waits for the lock" in why_stock()

    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(load, "org/slow")
        await until(readers)
        for name in list(kinds)[1:] * 2:
            group.start_soon(load, name)
        await until(lambda: build_lock.is_contended() or has_given_way())
        watch = Stopwatch()
        await until(has_given_way)
        assert watch.seconds < 1
        await until(lambda: sum(map(len, got.values())) == 8)
        assert not got["org/slow"]
        gate.open()
    assert builds.most == 1
    for name, (model, same) in got.items():
        assert model is same
        stock = stock_model(name, "float16", revision=loaders[name].commit, cache_dir=str(tmp_path))
        assert_same_model(model, stock)


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        ({"stage": "downloading", "seconds_left": None}, False),
        ({"stage": "downloading", "seconds_left": 3.1}, False),
        ({"stage": "downloading", "seconds_left": 3.0}, True),
        ({"stage": "verifying", "bytes_done": 9, "bytes_total": 9}, True),
        ({"stage": "verifying", "bytes_done": 8, "bytes_total": 9}, False),  # one file, which is cached
        ({"stage": "resolving", "seconds_left": None}, False),
    ],
)
def test_when_it_is_time(progress: dict[str, Any], expected: bool) -> None:
    """A build of two seconds starts three seconds before the end of the download, or when all bytes are on disk."""
    assert is_due(Progress("org/tiny", **progress), 2.0) is expected


def test_no_time_is_left_to_the_imports_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no build of its kind is remembered, the time until the model is ready is not known."""
    monkeypatch.setattr(imports, "_running", (time.monotonic(), 0, Took(600.0, 1)))
    meter = Meter("m")
    streamed = StreamedBuild(meter, responsive=False)
    streamed.all_are_there()
    event = meter.snapshot()
    assert (event.stage, event.stage_fraction, event.seconds_left) == ("importing", 1.0, None)

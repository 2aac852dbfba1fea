"""Tests that the same files have transformers' outcome from the Hub (cold, warm, offline) and from a directory."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.model.test_model import assert_same_parts
from tests.support import models
from tests.support.faults import StallAt
from tests.support.hub import HubServer
from tests.support.layouts import LAYOUTS, Layout
from tests.support.waiting import until
from yaie_async import LoaderError, ModelLoader
from yaie_async.core.tasks import task_group

pytestmark = pytest.mark.anyio

SAME = "stock's model"
CASES = [(name, "asyncio") for name in LAYOUTS]
CASES += [(name, "trio") for name in ("llama", "explicit-index", "index-without-metadata")]


@pytest.fixture(autouse=True)
def _no_authorities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips reading certificates for each Hub, which takes longer than loading a tiny model. No test here uses TLS."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))


@pytest.fixture
def layout(request: pytest.FixtureRequest) -> Layout:
    return LAYOUTS[request.param]


@pytest.fixture
def directory(layout: Layout, hub_root: Path) -> Path:
    """The directory with the layout's files, which the hub serves."""
    directory = hub_root / models.unique_repo_id("layout")
    directory.parent.mkdir()
    layout.write(directory)
    return directory


@pytest.mark.parametrize(("layout", "anyio_backend"), CASES, indirect=["layout"])
async def test_the_outcome_is_the_same_everywhere(
    layout: Layout,
    directory: Path,
    hub: HubServer,
    tmp_path: Path,
    readers: Callable[..., int],
    why_stock: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every way of loading returns transformers' model bit for bit, or raises an error of the same class.

    The exception: offline, after a load that was refused before its snapshot was complete, it is an OfflineError.
    """
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 60
    )  # bytes are held until a build is there
    judge = Judge(directory, layout)
    name = f"{directory.parent.name}/{directory.name}"
    ours: dict[str, Any] = {"trust_remote_code": True, **layout.options}
    cache, streamed, official = (tmp_path / place for place in ("cache", "streamed", "official"))
    commit = Path(snapshot_download(name, endpoint=hub.url, cache_dir=official)).name

    def on_hub(cache: Path, **options: Any) -> ModelLoader:
        return ModelLoader(name, cache_dir=cache, **{"endpoint": hub.url, **ours, **options})

    outcomes = {
        "hub, cold": await judge.outcome(on_hub(cache).load_model()),
        "hub, warm": await judge.outcome(on_hub(cache).load_model()),
        "hub, warm by commit": await judge.outcome(on_hub(cache, revision=commit).load_model()),
        "directory": await judge.outcome(ModelLoader(directory, **ours).load_model()),
    }
    if layout.streams:
        load = held(on_hub(streamed), hub, directory, readers, why_stock)
        outcomes["hub, cold, streamed"] = await judge.outcome(load)
    with HubServer(hub.root) as unasked:  # the other may yet get what a refused load has sent
        there = {"endpoint": unasked.url, "local_files_only": True}
        outcomes["offline, official cache"] = await judge.outcome(on_hub(official, **there).load_model())
        offline = await judge.outcome(on_hub(cache, **there).load_model())
    assert not unasked.requests

    expected = SAME if layout.error is None else layout.error.__name__
    assert outcomes == dict.fromkeys(outcomes, expected)
    whole = (cache / f"models--{name.replace('/', '--')}" / "snapshots" / commit / "config.json").exists()
    assert offline == (expected if whole else "OfflineError")
    assert whole or layout.error is not None


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("layout", LAYOUTS, indirect=True)
async def test_the_files_are_the_same_everywhere(
    layout: Layout, directory: Path, hub: HubServer, tmp_path: Path
) -> None:
    """A prefetch from the Hub or a directory refuses the same layouts, and else has exactly the files of the plan."""
    name = f"{directory.parent.name}/{directory.name}"
    ours: dict[str, Any] = {"trust_remote_code": True, **layout.options}
    cache, official = tmp_path / "cache", tmp_path / "official"
    local = ModelLoader(directory, **ours)
    loader = ModelLoader(name, cache_dir=cache, endpoint=hub.url, **ours)
    try:
        await local.prefetch()
        refused = None
    except LoaderError as error:
        refused = type(error)
    if refused is not None:
        assert refused is layout.error
        with pytest.raises(refused):
            await loader.prefetch()
        return
    expected = await planned(local)
    if layout.usual and layout.error is None:
        assert await planned(loader) == expected
    snapshot = await loader.prefetch()
    files = [path for path in snapshot.rglob("*") if path.is_file()]
    assert {path.relative_to(snapshot).as_posix(): path.stat().st_size for path in files} == expected
    assert await planned(loader) == expected

    snapshot_download(name, endpoint=hub.url, cache_dir=official)
    hub.clear()
    for place in (cache, official):
        offline = ModelLoader(name, cache_dir=place, endpoint=hub.url, local_files_only=True, **ours)
        assert await planned(offline) == expected
    assert not hub.requests


class Judge:
    """Builds a layout with transformers alone, and compares other loads with the result."""

    def __init__(self, directory: Path, layout: Layout) -> None:
        self._directory = directory
        self._model: PreTrainedModel | None = None
        options = {"dtype": "float16", **layout.options}
        options.pop("allow_pickle", None)
        found = "error"
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(directory), device_map="auto", trust_remote_code=True, output_loading_info=True, **options
            )
            self._model, info = loaded
            found = "random" if info["missing_keys"] else "model"
        except Exception:  # of many classes, where this package has its own
            assert layout.error is not None
        assert found == layout.stock

    async def outcome(self, load: Awaitable[PreTrainedModel]) -> str:
        """Return SAME, the class of our error, or the difference from transformers' model."""
        try:
            model = await load
        except LoaderError as error:
            return type(error).__name__
        if self._model is None:
            return f"a {type(model).__name__} where stock refuses"
        # The name of a model from the Hub is its repo id. Everything else equals a load from the directory.
        model.name_or_path = model.config.name_or_path = str(self._directory)
        try:
            assert_same_parts(model, self._model)
        except AssertionError as error:
            return f"another model than stock's: {error}"
        return SAME


async def held(
    loader: ModelLoader,
    hub: HubServer,
    directory: Path,
    readers: Callable[..., int],
    why_stock: Callable[[], list[str]],
) -> PreTrainedModel:
    """Load a model, and withhold the last byte of each weight file until a build waits for it or has ended."""
    weights = [path for path in directory.rglob("*.safetensors") if not path.name.startswith("adapter")]
    stalls = [(path, StallAt(path.stat().st_size - 1)) for path in weights]
    for path, stall in stalls:
        hub.faults.add(stall, method="GET", path=f"/{re.escape(path.name)}$", times=None)
    ended: list[PreTrainedModel | LoaderError] = []
    earlier = len(why_stock())

    async def load() -> None:
        try:
            ended.append(await loader.load_model())
        except LoaderError as error:
            ended.append(error)

    async with task_group() as group:
        group.start_soon(load)
        try:
            await until(lambda: ended or readers() or len(why_stock()) > earlier, seconds=100)
        finally:
            for _, stall in stalls:
                stall.gate.open()
    if isinstance(ended[0], LoaderError):
        raise ended[0]
    return ended[0]


async def planned(loader: ModelLoader) -> dict[str, int]:
    return {file.path: file.size for file in (await loader.plan()).files}

"""From a revision to a snapshot: what is asked, what is remembered, and what is believed of a cache."""

import os
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
from huggingface_hub import hf_hub_download

from tests.fetch.fetching import opened, put
from tests.support.hub import HubServer
from tests.support.loops import on_one_loop
from yaie_async import CacheAccessError, DiskFullError, Hub, ModelLoader, OfflineError
from yaie_async.core.manifest import RepoFile
from yaie_async.fetch import snapshot
from yaie_async.fetch.snapshot import bytes_missing, check_disk
from yaie_async.store.blockmap import BLOCK
from yaie_async.store.cache import RepoCache
from yaie_async.store.partials import Partial

pytestmark = pytest.mark.anyio


@pytest.fixture
def model(hub_root: Path) -> Path:
    put(hub_root, 1000)
    (hub_root / "org" / "big" / "tokenizer.json").write_text('{"model": {}}')
    return hub_root / "org" / "big"


async def fetch(hub: HubServer, cache: Path, revision: str | None = None) -> Path:
    async with opened(hub, cache) as one:
        return await ModelLoader("org/big", revision=revision, hub=one).prefetch()


async def offline(cache: Path, revision: str | None = None) -> Path:
    async with Hub(cache_dir=cache, local_files_only=True) as one:
        return await ModelLoader("org/big", revision=revision, hub=one).prefetch()


def ref(cache: Path, name: str = "main") -> Path:
    return cache / "models--org--big" / "refs" / name


# -- which commit a branch is -------------------------------------------------------------------------------


async def test_a_branch_that_moved(anyio_backend: Any, hub: HubServer, model: Path, tmp_path: Path) -> None:
    """The new commit is fetched, its ref written, what did not change is not fetched again, and the old one stays."""
    old = await fetch(hub, tmp_path)
    (model / "tokenizer.json").write_text('{"model": {"new": 1}}')
    hub.clear()
    new = await fetch(hub, tmp_path)
    assert new != old
    assert [line for line in hub.lines if "model.safetensors" in line or "config.json" in line] == []
    assert ref(tmp_path).read_text() == new.name
    assert await offline(tmp_path) == new
    assert await offline(tmp_path, old.name) == old


async def test_a_branch_that_is_a_commit_already_cached(
    anyio_backend: Any, hub: HubServer, model: Path, tmp_path: Path
) -> None:
    """A commit that was fetched by its hash is found by its branch too, once that was asked for online."""
    commit = (await fetch(hub, tmp_path / "other")).name
    by_commit = await fetch(hub, tmp_path, commit)
    assert not ref(tmp_path).exists()
    assert await fetch(hub, tmp_path) == by_commit
    assert ref(tmp_path).read_text() == commit
    assert await offline(tmp_path) == by_commit


async def test_a_branch_that_moved_to_a_commit_already_cached(
    anyio_backend: Any, hub: HubServer, model: Path, tmp_path: Path
) -> None:
    """Offline gives what online gave last, though no file had to be fetched for it."""
    old = await fetch(hub, tmp_path)
    (model / "tokenizer.json").write_text('{"model": {"new": 1}}')
    new = await fetch(hub, tmp_path)
    ref(tmp_path).write_text(old.name)
    assert await fetch(hub, tmp_path) == new
    assert await offline(tmp_path) == new


async def test_an_old_loader_leaves_a_newer_ref(
    anyio_backend: Any, hub: HubServer, model: Path, tmp_path: Path
) -> None:
    """A loader mends the commit that it resolved, but what another has learned of the branch since then stays."""
    async with opened(hub, tmp_path) as one:
        loader = ModelLoader("org/big", hub=one)
        old = await loader.prefetch()
        (model / "tokenizer.json").write_text('{"model": {"new": 1}}')
        new = await fetch(hub, tmp_path)
        (old / "tokenizer.json").unlink()
        assert await loader.prefetch() == old
        assert (old / "tokenizer.json").exists()
        assert ref(tmp_path).read_text() == new.name
    assert await offline(tmp_path) == new


@on_one_loop
@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"main"])
async def test_a_damaged_ref_is_repaired(
    content: bytes, anyio_backend: Any, hub: HubServer, model: Path, tmp_path: Path
) -> None:
    """A ref that is no commit costs a request, not a byte of the model, and is right afterwards."""
    found = await fetch(hub, tmp_path)
    ref(tmp_path).write_bytes(content)
    hub.clear()
    assert await fetch(hub, tmp_path) == found
    assert hub.lines == ["GET /api/models/org/big/revision/main"]
    assert ref(tmp_path).read_text() == found.name


# -- what a cache is believed -------------------------------------------------------------------------------


@on_one_loop
@pytest.mark.parametrize(
    "files",
    [
        ("tokenizer_config.json", "config.json"),
        ("tokenizer_config.json", "config.json", "model.safetensors"),
        ("config.json", "model.safetensors", "tokenizer_config.json"),
        ("config.json", "model.safetensors"),
    ],
)
async def test_what_was_fetched_file_by_file_is_completed(
    files: tuple[str, ...], anyio_backend: Any, hub: HubServer, model: Path, tmp_path: Path
) -> None:
    """transformers, killed on its way, leaves config and weights without the tokenizer: the rest is fetched."""

    def theirs() -> None:
        for name in files:
            hf_hub_download("org/big", name, endpoint=hub.url, cache_dir=tmp_path)

    await anyio.to_thread.run_sync(theirs)
    found = await fetch(hub, tmp_path)
    assert {path.name for path in found.iterdir()} == {path.name for path in model.iterdir()}


async def test_a_file_that_was_removed_comes_back(
    anyio_backend: Any, hub: HubServer, model: Path, tmp_path: Path
) -> None:
    """A link without its blob is a missing file: offline it is said, online the blob is fetched again."""
    found = await fetch(hub, tmp_path)
    (found / "model.safetensors").resolve().unlink()
    with pytest.raises(OfflineError, match="org/big"):
        await offline(tmp_path)
    hub.clear()
    assert await fetch(hub, tmp_path) == found
    assert (found / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert not [line for line in hub.lines if "tokenizer" in line]


async def test_a_tokenizer_alone_and_then_the_model(
    anyio_backend: Any, hub: HubServer, model: Path, tmp_path: Path
) -> None:
    """After both, each in its turn, the snapshot is whole: by commit no request, by branch the small one."""
    commit = (await fetch(hub, tmp_path / "other")).name
    await anyio.to_thread.run_sync(
        lambda: [
            hf_hub_download("org/big", name, endpoint=hub.url, cache_dir=tmp_path)
            for name in ("tokenizer.json", "tokenizer_config.json", "config.json")
        ]
    )
    await fetch(hub, tmp_path)
    hub.clear()
    await fetch(hub, tmp_path, commit)
    assert hub.lines == []
    await fetch(hub, tmp_path)
    assert [request.query for request in hub.requests] == [{"expand": "sha"}]


def test_three_loops_at_once(hub: HubServer, model: Path, tmp_path: Path) -> None:
    """One loader, used by three event loops in three threads: all get the snapshot, its weights cross once."""
    loader = ModelLoader("org/big", endpoint=hub.url, cache_dir=tmp_path)
    found: list[Path] = []

    def run(backend: str, **options: Any) -> None:
        found.append(anyio.run(loader.prefetch, backend=backend, backend_options=options))

    threads = [
        threading.Thread(target=run, args=("asyncio",)),
        threading.Thread(target=run, args=("asyncio",), kwargs={"use_uvloop": True}),
        threading.Thread(target=run, args=("trio",)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 3
    assert len(set(found)) == 1
    assert len([line for line in hub.lines if line.startswith("GET /cdn/")]) == 1


# -- the disk -----------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path) -> RepoCache:
    cache = RepoCache(tmp_path, "org/big")
    cache.prepare("a" * 40)
    return cache


def test_only_what_is_missing_needs_room(cache: RepoCache) -> None:
    """Linked files, blobs, blocks of partials and a second file of the same content cost nothing."""
    whole, blob, twin, half = (char * 64 for char in "bcde")
    cache.blob(whole).write_bytes(b"x" * 10)
    cache.link("a" * 40, "linked", whole, fresh=True)
    cache.blob(blob).write_bytes(b"x" * 20)
    files = (
        RepoFile("linked", 10, whole),
        RepoFile("blob", 20, blob),
        RepoFile("new", 400, twin),
        RepoFile("again", 400, twin),
        RepoFile("half", 2 * BLOCK, half),
    )
    assert sum(bytes_missing(cache, "a" * 40, files).values()) == 400 + 2 * BLOCK
    partial = Partial.create(cache.blobs, half, 2 * BLOCK)
    os.pwrite(partial.fd, b"x" * BLOCK, 0)
    partial.record(0, 1)
    partial.keep()
    assert sum(bytes_missing(cache, "a" * 40, files).values()) == 400 + BLOCK


def test_too_little_room_is_refused(cache: RepoCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte too few is a DiskFullError with both figures and the place; as many as needed is enough."""
    file = RepoFile("f", 1000, "b" * 64)
    monkeypatch.setattr(snapshot, "free_bytes", lambda _: 1000)
    check_disk(cache, "a" * 40, (file,))
    monkeypatch.setattr(snapshot, "free_bytes", lambda _: 999)
    with pytest.raises(
        DiskFullError, match=r"org/big needs 1,000 more bytes .* 999 are free.*Nothing was fetched"
    ) as caught:
        check_disk(cache, "a" * 40, (file,))
    assert (caught.value.needed, caught.value.free, caught.value.path) == (1000, 999, os.fspath(cache.root))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
async def test_a_small_file_that_cannot_be_read_is_named(
    name: str, anyio_backend: Any, hub: HubServer, model: Path, tmp_path: Path
) -> None:
    """Something else has its name in the snapshot: the fetch ends with an error that has the path."""
    if name != "config.json":
        (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
        (model / name).write_text('{"metadata": {}, "weight_map": {"a": "model-00001-of-00001.safetensors"}}')
    commit = (await fetch(hub, tmp_path / "other")).name
    folder = tmp_path / "models--org--big" / "snapshots" / commit
    (folder / name).mkdir(parents=True)
    with anyio.fail_after(60), pytest.raises(CacheAccessError, match="can't be read.*Check its permissions") as caught:
        await fetch(hub, tmp_path, commit)
    assert caught.value.path == str(folder / name)

"""One blob's way into the cache: shared by all who want it, verified, in a file of its own."""

import hashlib
import os
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.fetch.fetching import SIZE, bodies, fetch, locks_are_free, nothing_is_linked, opened, put, sent
from tests.support.faults import Corrupt, Stall
from tests.support.hub import HubServer
from yaie_async import IntegrityError
from yaie_async.core.manifest import RepoFile
from yaie_async.core.progress import Meter
from yaie_async.fetch import blob as blob_module
from yaie_async.fetch.blob import fetch_blob
from yaie_async.fetch.digest import digest_of
from yaie_async.store.blockmap import BLOCK
from yaie_async.store.cache import RepoCache

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def weights(hub_root: Path) -> bytes:
    return put(hub_root)


def data_file(cache: Path) -> Path | None:
    partials = [path for path in cache.glob("models--*/blobs/*.incomplete") if ".map." not in path.name]
    found = [path for path in partials if path.stat().st_size == SIZE]
    return found[0] if found else None


async def test_a_wrong_digest_leads_to_another_file(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """The blob is never the inode that had the wrong byte: a build may have it mapped."""
    gate = Stall(0)
    hub.faults.add(Corrupt(10), path="^/cdn/", when=lambda r: (r.range or "").startswith("bytes=0-"))
    hub.faults.add(gate, path="^/cdn/", when=lambda r: (r.range or "").startswith(f"bytes={BLOCK}-"))
    async with opened(hub, tmp_path) as one, anyio.create_task_group() as group:
        group.start_soon(one.prefetch, "org/big")
        await hub.until(lambda: any(request.fault is gate for request in hub.requests))
        await hub.until(lambda: data_file(tmp_path))
        first = data_file(tmp_path)
        assert first is not None
        with first.open("rb") as mapped:
            gate.gate.open()
            await hub.until(lambda: (tmp_path / "models--org--big/refs/main").exists() and _blob(tmp_path))
            wrong = os.fstat(mapped.fileno())
            assert wrong.st_nlink == 0
            assert _blob(tmp_path)[0].stat().st_ino != wrong.st_ino
    assert _blob(tmp_path)[0].read_bytes() == weights


def _blob(cache: Path) -> list[Path]:
    return list(cache.glob("models--*/blobs/" + "?" * 64))


async def test_an_integrity_error_tells_both_digests(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """What was promised and what came, by digest; nothing is linked and no partial of it is kept."""
    hub.faults.add(Corrupt(10), path="^/cdn/", times=None)
    wrong = bytearray(weights)
    wrong[10] ^= 0xFF
    with pytest.raises(IntegrityError) as caught:
        await fetch(hub, tmp_path)
    assert caught.value.expected == hashlib.sha256(weights).hexdigest()
    assert caught.value.found == hashlib.sha256(wrong).hexdigest()
    nothing_is_linked(tmp_path)
    locks_are_free(tmp_path)
    assert not list(tmp_path.rglob("*.incomplete"))


async def test_ten_tasks_share_one_blob(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """Each byte crosses the network once, and all ten get the same snapshot."""
    found = []

    async def want() -> None:
        found.append(await one.prefetch("org/big"))

    async with opened(hub, tmp_path) as one, anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(want)
    assert len(found) == 10 and all(one == found[0] for one in found)
    assert sent(hub) == len(weights)


async def test_who_waits_takes_over_from_who_was_cancelled(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """The next in line goes on with the partial: what the first one fetched is not fetched again."""
    hub.faults.add(Stall(1000), path="^/cdn/", when=lambda r: (r.range or "").startswith(f"bytes={3 * BLOCK}-"))
    leader = anyio.CancelScope()
    results = []

    async def lead() -> None:
        with leader:
            await one.prefetch("org/big")

    async def follow() -> None:
        results.append(await one.prefetch("org/big"))

    async with opened(hub, tmp_path) as one, anyio.create_task_group() as group:
        group.start_soon(lead)
        await hub.until(lambda: any(request.fault for request in hub.requests))
        group.start_soon(follow)
        await hub.until(lambda: sent(hub) >= 3 * BLOCK)
        await anyio.sleep(0.1)
        leader.cancel()
    assert (results[0]["org/big"] / "model.safetensors").read_bytes() == weights
    assert sent(hub) <= len(weights) + 2 * BLOCK


async def test_a_blob_that_lies_there_is_verified_first(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """One that someone else wrote is linked if it is right, replaced if not; without `verify` its size decides."""
    name = hashlib.sha256(weights).hexdigest()
    for case, content, verify, fetched in [
        ("right", weights, True, 0),
        ("wrong", bytes(len(weights)), True, len(weights)),
        ("short", weights[:-1], False, len(weights)),
        ("trusted", weights, False, 0),
    ]:
        hub.clear()
        blob = tmp_path / case / "models--org--big/blobs" / name
        blob.parent.mkdir(parents=True)
        blob.write_bytes(content)
        before = blob.stat().st_ino
        assert await fetch(hub, tmp_path / case, verify=verify) == weights
        assert sent(hub) == fetched, case
        assert (blob.stat().st_ino == before) is (fetched == 0)


async def test_a_blob_that_is_moved_while_it_is_looked_at(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """As another process does that enters it into a snapshot without symlinks: it is there, and nothing is fetched."""

    class Moved(RepoCache):
        def has(self, commit: str, path: str) -> bool:
            found = super().has(commit, path)
            if blob.exists():
                blob.replace(self.pointer(commit, path))
            return found

    file = RepoFile("model.safetensors", len(weights), hashlib.sha256(weights).hexdigest())
    assert file.etag is not None
    cache, commit = Moved(tmp_path, "org/big"), "0" * 40
    blob = cache.blob(file.etag)
    for folder in (blob.parent, cache.snapshot(commit)):
        folder.mkdir(parents=True)
    blob.write_bytes(weights)
    async with opened(hub, tmp_path) as one:
        await fetch_blob(one.session, cache, commit, file, Meter("org/big"))
    assert cache.pointer(commit, file.path).read_bytes() == weights
    assert not hub.requests


async def test_what_lies_there_is_being_verified(
    hub: HubServer, weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage says so while its digest is read, to who has waited for it as well."""
    file = RepoFile("model.safetensors", len(weights), hashlib.sha256(weights).hexdigest())
    assert file.etag is not None
    cache, meter, stages = RepoCache(tmp_path, "org/big"), Meter("org/big"), []
    cache.blobs.mkdir(parents=True)
    cache.blob(file.etag).write_bytes(weights)
    meter.stage("downloading")
    meter.expect(total=len(weights), files=1)

    def seen(*arguments: Any) -> str:
        stages.append(meter.snapshot().stage)
        return digest_of(*arguments)

    monkeypatch.setattr(blob_module, "digest_of", seen)
    async with opened(hub, tmp_path) as one:
        await fetch_blob(one.session, cache, "0" * 40, file, meter)
    assert stages == ["verifying"]


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK])
@pytest.mark.parametrize("verify", [True, False])
async def test_sizes_around_a_block(size: int, verify: bool, hub_root: Path, hub: HubServer, tmp_path: Path) -> None:
    """Files of no byte, of one, and of whole blocks come as they are."""
    content = put(hub_root, size)
    assert await fetch(hub, tmp_path, verify=verify) == content
    assert sent(hub) == size
    assert len(bodies(hub)) <= 2

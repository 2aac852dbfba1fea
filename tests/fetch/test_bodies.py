"""Whatever a server does to a body: the right bytes on disk in the end, or the right error, and nothing left over."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fetch.fetching import SIZE, bodies, fetch, locks_are_free, opened, put
from tests.support.faults import (
    Chunked,
    Corrupt,
    Cut,
    Drip,
    Extra,
    Gzip,
    Html,
    IgnoreRange,
    LyingLength,
    LyingRange,
    Redirect,
    Reset,
    Stall,
    Status,
    WrongRange,
)
from tests.support.hub import HubServer
from tests.support.stopwatch import Stopwatch
from yaie_async import HubUnavailableError, IntegrityError, LoaderError
from yaie_async.fetch import assembly
from yaie_async.fetch.downloader import Downloader
from yaie_async.fetch.ranges import FetchFile
from yaie_async.store.blockmap import BLOCK, MAP, SYNCED, WRITTEN, decode, file_name

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """The transport is tested on all loops by itself; outcomes are the same."""
    return "asyncio"


@pytest.fixture
def weights(hub_root: Path) -> bytes:
    return put(hub_root)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(
    ("fault", "times"),
    [
        (Cut(BLOCK // 2), 3),
        (Cut(0), 2),
        (Reset(1000), 2),
        (IgnoreRange(), 1),
        (IgnoreRange(), None),
        (WrongRange(BLOCK), 2),
        (LyingRange(7), 2),
        (Extra(10), None),
        (Html(), 1),
        (Chunked(), None),
        (Gzip(), None),
        (Status(503, {"Retry-After": "0"}), 2),
        (Status(429, {"RateLimit": '"api";r=0;t=0'}), 1),
        (Status(500), 2),
        (Status(403), 1),
        (Status(410), 1),
        (LyingLength(5), 1),
        (Redirect(), 1),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_body_that_goes_wrong_comes_right(
    fault: Any, times: int | None, verify: bool, hub: HubServer, weights: bytes, tmp_path: Path
) -> None:
    """A fault that passes, or that can be lived with, costs bytes and never correctness."""
    hub.faults.add(fault, path="^/cdn/", times=times)
    assert await fetch(hub, tmp_path, verify=verify) == weights


async def test_redirects_for_ever(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """A loop ends with an error that says where to look; afterwards the model loads."""
    hub.faults.add(Redirect(), path="^/cdn/", times=None)
    with pytest.raises(HubUnavailableError, match="redirects"):
        await fetch(hub, tmp_path)
    locks_are_free(tmp_path)
    hub.faults.clear()
    assert await fetch(hub, tmp_path) == weights


async def test_what_is_cut_is_continued_from_where_it_stands(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """No byte that arrived is asked for again."""
    hub.faults.add(Cut(BLOCK // 2), path="^/cdn/", times=3)
    assert await fetch(hub, tmp_path) == weights
    assert sum(request.sent for request in bodies(hub)) == len(weights)


async def test_a_silent_body_is_given_up_and_asked_for_again(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """No byte for the stall timeout: the rest comes over another connection."""
    hub.faults.add(Stall(1000), path="^/cdn/")
    assert await fetch(hub, tmp_path, stall=0.3) == weights


async def test_a_wrong_digest_is_fetched_again_into_a_new_file(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """Once wrong: the second try is whole and right. Without verification the wrong byte stays."""
    hub.faults.add(Corrupt(BLOCK), path="^/cdn/", when=lambda r: (r.range or "").startswith(f"bytes={BLOCK}-"))
    assert await fetch(hub, tmp_path / "verified") == weights
    assert sum(request.sent for request in bodies(hub)) == 2 * len(weights)
    hub.faults.add(Corrupt(2 * BLOCK), path="^/cdn/", times=None)
    assert await fetch(hub, tmp_path / "not", verify=False) != weights
    with pytest.raises(IntegrityError):
        await fetch(hub, tmp_path / "always")
    locks_are_free(tmp_path / "always")
    assert not list((tmp_path / "always").rglob("model.safetensors"))


async def test_two_versions_are_not_spliced(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """Without verification a changed etag between two ranges starts the file over."""
    from tests.support.faults import Headers

    hub.faults.add(Headers({"etag": '"old"'}), path="^/cdn/", times=1)
    assert await fetch(hub, tmp_path, verify=False) == weights


async def test_a_signed_url_that_runs_out_is_renewed(hub_root: Path, tmp_path: Path) -> None:
    """After a 403 from the CDN the Hub is asked for a new URL, and the file goes on."""
    content = put(hub_root, SIZE)
    with HubServer(hub_root, url_lifetime=0.2) as hub:
        async with opened(hub, tmp_path, max_bytes_per_second=14e6, max_connections=1) as one:
            snapshot = (await one.prefetch("org/big"))["org/big"]
        assert (snapshot / "model.safetensors").read_bytes() == content
        assert any(request.status == 403 for request in bodies(hub))
        assert len([line for line in hub.lines if "/resolve/" in line and "safetensors" in line]) >= 2


async def test_one_redirect_serves_all_ranges(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """The Hub is asked once for the signed URL of a file."""
    assert await fetch(hub, tmp_path) == weights
    assert len([line for line in hub.lines if "/resolve/" in line and "safetensors" in line]) == 1
    assert len(bodies(hub)) >= 4


async def test_a_range_that_drips_is_dropped(hub_root: Path, hub: HubServer, tmp_path: Path) -> None:
    """Beside faster ones a slow connection is given up after five seconds, and the rest asked for anew."""
    content = put(hub_root, 14 * BLOCK)
    rate = 50_000
    hub.faults.add(Drip(rate), path="^/cdn/", when=lambda r: (r.range or "").startswith(f"bytes={BLOCK}-"))
    watch = Stopwatch()
    async with opened(hub, tmp_path, max_connections=4, max_bytes_per_second=6e6) as one:
        snapshot = (await one.prefetch("org/big"))["org/big"]
    assert watch.seconds < 40
    assert (snapshot / "model.safetensors").read_bytes() == content
    (slow,) = [request for request in hub.requests if request.fault]
    # By itself it would have taken over a minute.
    assert slow.sent < BLOCK
    assert slow.range is not None
    assert not slow.range.endswith(f"-{BLOCK - 1}")


async def test_no_more_bodies_at_once_than_connections(hub_root: Path, hub: HubServer, tmp_path: Path) -> None:
    """`max_connections` holds over all files and models of a Hub."""
    for name in ("org/big", "org/other"):
        put(hub_root, SIZE, name)
    gate = Stall(100)
    hub.faults.add(gate, path="^/cdn/", times=None)
    async with opened(hub, tmp_path, max_connections=3) as one, anyio.create_task_group() as group:
        group.start_soon(one.prefetch, "org/big", "org/other")

        def stalled() -> int:
            return len([request for request in hub.requests if request.fault and request.method == "GET"])

        await hub.until(lambda: stalled() >= 3)
        await anyio.sleep(0.05)
        assert stalled() == 3
        hub.faults.clear()
        gate.gate.open()


@pytest.mark.parametrize("rate", [4e6, 12e6])
async def test_the_rate_is_limited(rate: float, hub_root: Path, hub: HubServer, tmp_path: Path) -> None:
    """All bodies together stay within `max_bytes_per_second`: never faster than it, but for a fifth of a second."""
    content = put(hub_root, int(rate * 1.5))
    before = anyio.current_time()
    async with opened(hub, tmp_path, max_bytes_per_second=rate) as one:
        await one.prefetch("org/big")
    assert len(content) / rate - 0.35 <= anyio.current_time() - before


async def test_a_user_s_client_takes_everything(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """All requests go through the client that was passed in; it is not closed."""
    seen: list[str] = []

    async def note(request: httpx.Request) -> None:
        seen.append(request.url.path)

    async with httpx.AsyncClient(event_hooks={"request": [note]}) as client:
        assert await fetch(hub, tmp_path, client=client) == weights
        assert not client.is_closed
    assert sorted(seen) == sorted(request.path for request in hub.requests)


async def test_a_cancelled_fetch_goes_on_where_it_stood(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """What arrived before the cancel is not fetched again, by the same process either."""
    stall = Stall(1000)
    hub.faults.add(stall, path="^/cdn/", when=lambda r: (r.range or "").startswith(f"bytes={3 * BLOCK}"), times=None)
    async with opened(hub, tmp_path) as one:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(one.prefetch, "org/big")
                await hub.until(lambda: any(request.fault for request in hub.requests))
                await hub.until(lambda: maps(tmp_path, blocks=3))
                scope.cancel()
    locks_are_free(tmp_path)
    first = sum(request.sent for request in bodies(hub))
    hub.clear()
    assert await fetch(hub, tmp_path) == weights
    assert sum(request.sent for request in bodies(hub)) <= len(weights) - first + 2 * BLOCK


async def test_the_scheduler_is_told_the_paths(
    hub: HubServer, weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By which it orders the files of a model."""
    paths: list[str] = []
    real = Downloader.enter

    def noted(downloader: Downloader, file: FetchFile, **options: Any) -> None:
        paths.append(file.path)
        real(downloader, file, **options)

    monkeypatch.setattr(Downloader, "enter", noted)
    assert await fetch(hub, tmp_path) == weights
    assert sorted(paths) == sorted(path.name for path in (hub.root / "org/big").iterdir())


async def test_pruning_in_mid_download_costs_nothing(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """`hf cache prune` unlinks partials without asking: what the descriptor has is copied, not fetched again."""
    stall = Stall(1000)
    hub.faults.add(stall, path="^/cdn/", when=lambda r: (r.range or "").startswith(f"bytes={3 * BLOCK}"))
    async with opened(hub, tmp_path) as one, anyio.create_task_group() as group:
        group.start_soon(one.prefetch, "org/big")
        await hub.until(lambda: maps(tmp_path, blocks=3))
        for path in tmp_path.glob("models--*/blobs/*.incomplete"):
            path.unlink()
        stall.gate.open()
    locks_are_free(tmp_path)
    (found,) = tmp_path.glob("models--*/snapshots/*/model.safetensors")
    assert found.read_bytes() == weights
    assert sum(request.sent for request in bodies(hub)) == len(weights)


def maps(cache: Path, *, least: int = WRITTEN, blocks: int = 1) -> list[Path]:
    """The maps of the weights that have so many blocks, at least in that state."""
    found = []
    for path in cache.glob("models--*/blobs/*.map.incomplete"):
        with suppress(FileNotFoundError):  # a small file, published this moment
            read = decode(path.read_bytes(), path.name.split(".yaie-")[0])
            if read is not None and read[0].blocks > 1 and sum(state >= least for state in read[1]) >= blocks:
                found.append(path)
    return found


async def test_a_pruned_partial_is_rescued_at_its_next_touch(
    hub: HubServer, weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only in the end, so that a kill right after loses nothing; and with what is there of a block."""
    monkeypatch.setattr(assembly, "_TOUCH_SECONDS", 0.05)
    half, stands = BLOCK // 2, Stall(BLOCK // 2)
    hub.faults.add(stands, path="^/cdn/", when=lambda r: (r.range or "").startswith(f"bytes={2 * BLOCK}-"))
    async with opened(hub, tmp_path) as one, anyio.create_task_group() as group:
        group.start_soon(one.prefetch, "org/big")
        await hub.until(lambda: maps(tmp_path, blocks=4) and _written(tmp_path) >= len(weights) - half)
        (before,) = maps(tmp_path)
        for path in tmp_path.glob("models--*/blobs/*.incomplete"):
            path.unlink(missing_ok=True)  # a probe of the folder's clock lives for a moment
        await hub.until(lambda: any(path != before for path in maps(tmp_path)))
    (found,) = tmp_path.glob("models--*/snapshots/*/model.safetensors")
    assert found.read_bytes() == weights
    assert sum(request.sent for request in bodies(hub)) == len(weights)
    assert any((request.range or "").startswith(f"bytes={2 * BLOCK + half}-") for request in bodies(hub))


def _written(cache: Path) -> int:
    """Bytes of the largest partial that are no hole."""
    return max((path.stat().st_blocks * 512 for path in cache.glob("models--*/blobs/*.incomplete")), default=0)


async def test_a_partial_that_another_has_claimed_is_left_to_it(
    hub: HubServer, weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its old owner stops, waits for the new one, and takes the blob that that one publishes."""
    monkeypatch.setattr(assembly, "_TOUCH_SECONDS", 0.05)
    last = Stall(0)
    hub.faults.add(last, path="^/cdn/", when=lambda r: (r.range or "").endswith(f"-{len(weights) - 1}"), times=None)
    async with opened(hub, tmp_path) as one, anyio.create_task_group() as group:
        group.start_soon(one.prefetch, "org/big")
        await hub.until(lambda: maps(tmp_path) and any(request.fault for request in hub.requests))
        (ours,) = maps(tmp_path)
        etag = ours.name.split(".yaie-")[0]
        theirs = ours.with_name(file_name(etag, "0123abcd", MAP))
        ours.rename(theirs)  # the one atomic step of a claim
        await hub.until(lambda: not any(str(tmp_path) in name for name in _open_files() if "yaie-" in name))
        before = len(hub.requests)
        (ours.parent / etag).write_bytes(weights)
        theirs.unlink()
    (found,) = tmp_path.glob("models--*/snapshots/*/model.safetensors")
    assert found.read_bytes() == weights
    assert len(hub.requests) == before


def _open_files() -> list[str]:
    names = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            names.append(os.readlink(f"/proc/self/fd/{fd}"))
    return names


async def test_bytes_are_put_on_the_disk_as_they_come(
    hub: HubServer, weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks are synced, and recorded so, while the rest of the file is still on its way."""
    monkeypatch.setattr(assembly, "_SYNC_STEP", BLOCK)
    last = Stall(0)
    hub.faults.add(last, path="^/cdn/", when=lambda r: (r.range or "").endswith(f"-{len(weights) - 1}"))
    async with opened(hub, tmp_path) as one, anyio.create_task_group() as group:
        group.start_soon(one.prefetch, "org/big")
        await hub.until(lambda: maps(tmp_path, least=SYNCED))
        assert not list(tmp_path.glob("models--*/blobs/" + "?" * 64))
        last.gate.open()


FAULTS = st.sampled_from(
    [Cut(BLOCK // 3), Cut(1), Reset(5000), IgnoreRange(), WrongRange(4096), LyingRange(1), Extra(3), Html(), Chunked(),
     Gzip(), Status(503, {"Retry-After": "0"}), Status(500), Status(403), Status(404), LyingLength(1), Corrupt(77)]
)  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(faults=st.lists(st.tuples(FAULTS, st.integers(1, 3)), max_size=5), verify=st.booleans())
def test_any_sequence_of_faults(
    faults: list[tuple[Any, int]], verify: bool, tmp_path_factory: pytest.TempPathFactory, hub_tiny: HubServer
) -> None:
    """Right bytes or one of our errors, and afterwards, without faults, right bytes."""
    hub, content = hub_tiny, (hub_tiny.root / "org/big/model.safetensors").read_bytes()
    cache = tmp_path_factory.mktemp("cache")
    hub.clear()
    for fault, times in faults:
        hub.faults.add(fault, path="^/cdn/", times=times)
    lies = any(isinstance(fault, Corrupt) for fault, _ in faults) and not verify

    async def main() -> None:
        try:
            found = await fetch(hub, cache, verify=verify)
            assert found == content or lies
        except LoaderError:
            locks_are_free(cache)
        hub.clear()
        found = await fetch(hub, cache, verify=verify)
        assert found == content or lies

    anyio.run(main)


@pytest.fixture(scope="module")
def hub_tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("models")
    put(root, BLOCK + BLOCK // 2)
    with HubServer(root) as server:
        yield server

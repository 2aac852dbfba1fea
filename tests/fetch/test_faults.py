"""Faults that do not pass, that cost nothing they need not, or that come on both ways of reading a body."""

import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fetch.fetching import bodies, fetch, locks_are_free, nothing_is_linked, opened, put, sent
from tests.support.faults import (
    Both,
    Chunked,
    Corrupt,
    Cut,
    Drip,
    Extra,
    Fault,
    Gzip,
    Headers,
    Html,
    IgnoreRange,
    LyingLength,
    LyingRange,
    Redirect,
    Request,
    Reset,
    Stall,
    Status,
    WrongRange,
)
from tests.support.hub import HubServer
from tests.support.stopwatch import Stopwatch
from yaie_async import Hub, HubUnavailableError, IntegrityError, LoaderError, StalledError
from yaie_async.core.errors import ModelFileNotFoundError
from yaie_async.store.blockmap import BLOCK

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def weights(hub_root: Path) -> bytes:
    return put(hub_root)


@pytest.mark.parametrize(
    ("fault", "times"),
    [
        (Cut(BLOCK // 2), 3),
        (Reset(1000), 2),
        (IgnoreRange(), None),
        (WrongRange(BLOCK), 2),
        (LyingRange(7), 2),
        (Extra(10), None),
        (Html(), 1),
        (Chunked(), None),
        (Gzip(), None),
        (Status(503, {"Retry-After": "0"}), 2),
        (Corrupt(3 * BLOCK), 1),
        (Stall(1000), 1),
    ],
    ids=lambda value: str(value)[:24],
)
async def test_the_stock_path_has_the_same_outcomes(
    fault: Fault, times: int | None, hub: HubServer, weights: bytes, tmp_path: Path
) -> None:
    """Through a client of the user's a fault ends as it does over our own transport."""
    hub.faults.add(fault, path="^/cdn/", times=times)
    async with httpx.AsyncClient() as client:
        assert await fetch(hub, tmp_path, client=client, stall=0.5 if isinstance(fault, Stall) else 10) == weights


@pytest.mark.parametrize(
    ("fault", "expected", "told"),
    [
        (Html(), HubUnavailableError, "HTML page"),
        (WrongRange(BLOCK), HubUnavailableError, "the server sends bytes|416"),
        (LyingRange(7), HubUnavailableError, "the server sends bytes"),
        (Cut(0), HubUnavailableError, r"connection to 127\.0\.0\.2 failed"),
        (Reset(), HubUnavailableError, r"connection to 127\.0\.0\.2 failed"),
        (Stall(-1), StalledError, "sent nothing"),
        (Stall(0), StalledError, "sent nothing"),
        (Drip(30), StalledError, "sent nothing, or almost nothing, in time"),
        (Status(403), HubUnavailableError, "403"),
        (Status(429), HubUnavailableError, "limits your rate"),
        (Status(503), HubUnavailableError, "503"),
        (Status(404), ModelFileNotFoundError, "does not have"),
        (Status(416), HubUnavailableError, "416"),
        (Status(418), HubUnavailableError, "418"),
        (Redirect("ftp://127.0.0.1/x"), HubUnavailableError, "redirects from http to ftp"),
        (Redirect("file:///etc/passwd"), HubUnavailableError, "redirects from http to file"),
        (Corrupt(10), IntegrityError, "arrived with wrong contents twice"),
        (Headers({"content-range": "bytes 0-4194303/7"}), IntegrityError, "arrived with wrong contents twice"),
    ],
    ids=lambda value: str(value)[:24],
)
async def test_a_fault_that_stays_is_named(
    fault: Fault, expected: type[LoaderError], told: str, hub: HubServer, weights: bytes, tmp_path: Path
) -> None:
    """The error says what the server did and names model and file; nothing is linked, and the next run is right."""
    hub.faults.add(fault, path="^/cdn/", times=None)
    with pytest.raises(expected, match=told) as caught:
        await fetch(hub, tmp_path, stall=0.2 if isinstance(fault, (Stall, Drip)) else 10)
    assert (caught.value.model, caught.value.file) == ("org/big", "model.safetensors")
    nothing_is_linked(tmp_path)
    locks_are_free(tmp_path)
    hub.clear()
    assert await fetch(hub, tmp_path) == weights


@pytest.mark.parametrize("fault", [LyingLength(5), Extra(10)], ids=str)
@pytest.mark.parametrize("stock", [False, True], ids=["ours", "stock"])
async def test_an_answer_that_is_too_long_costs_nothing_again(
    fault: Fault, stock: bool, hub: HubServer, weights: bytes, tmp_path: Path
) -> None:
    """What was asked for is there: no byte of it is asked for again."""
    hub.faults.add(fault, path="^/cdn/", times=None)
    async with httpx.AsyncClient() as client:
        assert await fetch(hub, tmp_path, client=client if stock else None) == weights
    assert sent(hub) <= len(weights) + 10 * len(bodies(hub))
    assert len({request.range for request in bodies(hub)}) == len(bodies(hub))


async def test_a_page_of_html_costs_nothing_that_is_there(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """A captive portal in mid-download does not throw away what has arrived."""
    hub.faults.add(Html(), path="^/cdn/", when=_starts_at(2 * BLOCK))
    assert await fetch(hub, tmp_path) == weights
    assert sum(request.sent for request in bodies(hub) if request.fault is None) == len(weights)


def _starts_at(offset: int) -> Any:
    def starts(request: Request) -> bool:
        return (request.range or "").startswith(f"bytes={offset}-")

    return starts


@pytest.mark.parametrize("verify", [True, False])
async def test_a_resumed_range_that_is_answered_with_all(
    verify: bool, hub: HubServer, weights: bytes, tmp_path: Path
) -> None:
    """200 to a range that goes on in the middle is never appended."""
    hub.faults.add(Cut(1000), path="^/cdn/", when=_starts_at(BLOCK))
    hub.faults.add(IgnoreRange(), path="^/cdn/", when=_starts_at(BLOCK + 1000))
    assert await fetch(hub, tmp_path, verify=verify) == weights
    assert any(_starts_at(BLOCK + 1000)(request) for request in bodies(hub))


@pytest.mark.parametrize("verify", [True, False])
async def test_another_version_half_way(verify: bool, hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """An old version of the first ranges is not spliced with the rest: by digest, and without by etag."""
    old = Both(Headers({"etag": '"old"'}), Corrupt(0, 2 * BLOCK))
    hub.faults.add(old, path="^/cdn/", when=lambda r: (r.range or "").startswith("bytes=0-"))
    assert await fetch(hub, tmp_path, verify=verify) == weights


async def test_a_server_that_changes_all_the_time_is_refused_without_digests(
    hub: HubServer, weights: bytes, tmp_path: Path
) -> None:
    """With `verify=False` a second change of etag is an error: nothing is linked."""
    hub.faults.add(Headers({"etag": '"other"'}), path="^/cdn/", when=lambda r: (r.range or "")[6:8] == "0-", times=None)
    with pytest.raises(IntegrityError, match="the server offers"):
        await fetch(hub, tmp_path, verify=False)
    nothing_is_linked(tmp_path)


@pytest.mark.parametrize(
    ("status", "path"),
    [(429, "^/api/"), (503, "/resolve/.*safetensors$"), (503, "^/cdn/")],
    ids=["info", "resolve", "body"],
)
async def test_retry_after_is_waited_for(
    status: int, path: str, hub: HubServer, weights: bytes, tmp_path: Path
) -> None:
    """What the Hub or its CDN asks us to wait is waited, and then it goes on."""
    hub.faults.add(Status(status, {"Retry-After": "1"}), path=path)
    before = time.monotonic()
    assert await fetch(hub, tmp_path) == weights
    assert 1 <= time.monotonic() - before < 6


async def test_an_expired_url_is_renewed_once(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """All ranges that meet a URL that has run out share one new one."""
    seen = 0

    def expired(request: Request) -> bool:
        return not request.path.endswith("/") and len(_resolves(hub)) < 2 and not _starts_at(0)(request)

    hub.faults.add(Status(403), path="^/cdn/", when=expired, times=None)
    assert await fetch(hub, tmp_path) == weights
    seen = len(_resolves(hub))
    assert seen == 2, hub.lines


def _resolves(hub: HubServer) -> list[Request]:
    return [one for one in hub.requests if one.path.endswith("/model.safetensors") and "/resolve/" in one.path]


@pytest.mark.parametrize("stock", [False, True], ids=["ours", "stock"])
async def test_the_only_connection_drips(stock: bool, hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """A few bytes a second, for ever, with nothing to compare them with: as silence, and kept all the same."""
    hub.faults.add(Drip(30), path="^/cdn/", when=_starts_at(0))
    async with httpx.AsyncClient() as client:
        assert await fetch(hub, tmp_path, max_connections=1, client=client if stock else None, stall=0.5) == weights
    first, second, *_ = bodies(hub)
    assert 0 < first.sent < 100
    assert second.range is not None
    assert not _starts_at(0)(second)


async def test_a_connection_is_slow(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """A slow line is waited for: what is well above a drip is no fault."""
    hub.faults.add(Drip(5_000), path="^/cdn/", when=_starts_at(4 * BLOCK))  # over two seconds
    assert await fetch(hub, tmp_path, max_connections=4, stall=1.0) == weights
    assert any(request.fault for request in bodies(hub))
    assert sent(hub) == len(weights)


async def test_a_stale_edge_is_asked_no_more(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """416 to a range of the file: the Hub is asked for another URL, and nothing that is there is lost."""
    hub.faults.add(Status(416), path="^/cdn/", when=_starts_at(BLOCK), times=1)
    assert await fetch(hub, tmp_path, max_connections=1) == weights
    assert len(_resolves(hub)) == 2
    assert sum(request.sent for request in bodies(hub) if request.fault is None) == len(weights)


async def test_silence_for_ever_keeps_what_came(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """StalledError counts the attempts; the next run asks only for what is missing."""
    hub.faults.add(Stall(-1), path="^/cdn/", when=lambda r: not _starts_at(0)(r), times=None)
    async with opened(hub, tmp_path, stall=1.0, max_connections=1) as one:
        with pytest.raises(StalledError, match="kept") as caught:
            await one.prefetch("org/big")
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.attempts == 4
    hub.clear()
    assert await fetch(hub, tmp_path) == weights
    assert sent(hub) == len(weights) - BLOCK


@pytest.mark.parametrize("stock", [False, True], ids=["ours", "stock"])
@pytest.mark.parametrize("status", [401, 403, 410])
async def test_a_cdn_that_refuses_new_urls_is_named_at_once(
    status: int, stock: bool, hub: HubServer, weights: bytes, tmp_path: Path
) -> None:
    """A URL that the Hub has just given can't have expired: the host is blocked, and waiting does not help."""
    hub.faults.add(Status(status), path="^/cdn/", times=None)
    watch = Stopwatch()
    async with (
        httpx.AsyncClient() as own,
        Hub(endpoint=hub.url, cache_dir=tmp_path, client=own if stock else None) as one,
    ):
        with pytest.raises(HubUnavailableError, match=rf"HTTP {status} from 127\.0\.0\.2.*blocked") as caught:
            await one.prefetch("org/big")
    assert watch.seconds < 2
    assert (caught.value.status, caught.value.file) == (status, "model.safetensors")
    assert len(bodies(hub)) == 2


async def test_a_cdn_that_refuses_for_a_while_in_between(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """One that has sent bytes of the file is not blocked: its refusals are waited out as ever."""
    hub.faults.add(Status(403), path="^/cdn/", when=lambda r: not _starts_at(0)(r), times=3)
    assert await fetch(hub, tmp_path, max_connections=1) == weights


async def test_a_page_instead_of_a_body_is_said_with_its_host(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """A log-in page or one that says that the host is blocked."""
    hub.faults.add(Html(), path="^/cdn/", times=None)
    with pytest.raises(HubUnavailableError, match=r"127\.0\.0\.2 sends an HTML page"):
        await fetch(hub, tmp_path)


async def test_an_answer_of_the_cdn_is_not_the_hub_s(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """What refuses for good by another status is named too."""
    hub.faults.add(Status(451), path="^/cdn/", times=None)
    with pytest.raises(HubUnavailableError, match=r"127\.0\.0\.2 answered HTTP 451"):
        await fetch(hub, tmp_path)

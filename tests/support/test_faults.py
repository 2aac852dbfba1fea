"""Tests of the faults themselves, with a client that does not hide them."""

from __future__ import annotations

from pathlib import Path

import anyio
import httpx
import pytest

from tests.support import faults
from tests.support.hub import HubServer
from tests.support.stopwatch import Stopwatch

DATA = bytes(range(256)) * 1000
URL = "/org/name/resolve/main/config.json"


@pytest.fixture
def hub_root(hub_root: Path) -> Path:
    model = hub_root / "org" / "name"
    model.mkdir(parents=True)
    (model / "config.json").write_bytes(DATA)
    return hub_root


def test_requests_are_recorded_with_what_they_got(hub: HubServer) -> None:
    """Each request is recorded with its method, path, query, range, host, status and sent bytes."""
    httpx.get(hub.url + URL + "?a=b", headers={"Range": "bytes=10-19"})
    (seen,) = hub.requests
    assert (seen.method, seen.path, seen.query, seen.range) == ("GET", URL, {"a": "b"}, "bytes=10-19")
    assert (seen.status, seen.sent) == (206, 10)
    assert hub.url.endswith(seen.host)


def test_a_rule_applies_as_often_as_it_says(hub: HubServer) -> None:
    """A rule applies `times` times; further requests are answered without the fault."""
    rule = hub.faults.add(faults.Status(503, {"Retry-After": "1"}), path="config", method="GET", times=2)
    with httpx.Client(base_url=hub.url) as client:
        answers = [client.get(URL) for _ in range(3)]
        assert client.head(URL).status_code == 200
    assert [answer.status_code for answer in answers] == [503, 503, 200]
    assert answers[0].headers["retry-after"] == "1"
    assert rule.hits == 2


def test_a_cut_body_is_shorter_than_promised(hub: HubServer) -> None:
    """A cut body ends after exactly the given bytes, and the connection is closed."""
    hub.faults.add(faults.Cut(after=1000))
    received = bytearray()
    with httpx.stream("GET", hub.url + URL) as answer:
        assert answer.headers["content-length"] == str(len(DATA))
        with pytest.raises(httpx.RemoteProtocolError):
            for chunk in answer.iter_raw():
                received += chunk
    assert received == DATA[:1000]
    assert hub.requests[0].sent == 1000


@pytest.mark.parametrize("after", [None, 1000])
def test_a_reset_connection_is_a_read_error(hub: HubServer, after: int | None) -> None:
    """The client sees a reset as ECONNRESET, before the head or in the body."""
    hub.faults.add(faults.Reset(after))
    with pytest.raises(httpx.ReadError):
        httpx.get(hub.url + URL)


@pytest.mark.anyio
@pytest.mark.parametrize("after", [-1, 0, 100_000])
async def test_a_stalled_answer_goes_on_when_its_gate_opens(hub: HubServer, after: int) -> None:
    """A stall withholds the rest of the answer until its gate is opened."""
    stall = faults.Stall(after)
    hub.faults.add(stall)
    answers: list[httpx.Response] = []

    async def get() -> None:
        async with httpx.AsyncClient() as client:
            answers.append(await client.get(hub.url + URL))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(get)
        await hub.until(lambda: hub.requests and hub.requests[0].sent == max(after, 0))
        assert not answers
        stall.gate.open()
    assert answers[0].content == DATA


@pytest.mark.anyio
async def test_a_hub_stops_while_an_answer_is_stalled(hub_root: Path) -> None:
    """A hub stops despite stalled answers and open connections."""
    with HubServer(hub_root) as hub:
        hub.faults.add(faults.Stall(-1))
        async with anyio.create_task_group() as tasks, httpx.AsyncClient() as client:

            async def get() -> None:
                with pytest.raises(httpx.TransportError):
                    await client.get(hub.url + URL)

            tasks.start_soon(get)
            await hub.until(lambda: hub.requests)
            watch = Stopwatch()
            await anyio.to_thread.run_sync(hub.__exit__, None, None, None)
            assert watch.seconds < 1


def test_a_dripped_body_takes_its_time(hub: HubServer) -> None:
    """A dripped body arrives completely, at its rate."""
    hub.faults.add(faults.Drip(rate=2_560_000))
    answer = httpx.get(hub.url + URL)
    assert answer.content == DATA
    assert answer.elapsed.total_seconds() >= 0.1


def test_corrupt_bytes_are_at_their_offset_in_the_file(hub: HubServer) -> None:
    """Wrong bytes are at an offset of the file, whatever the requested range."""
    hub.faults.add(faults.Corrupt(15), times=None)
    for header, at in (("bytes=10-19", 5), ("bytes=0-99", 15)):
        body = httpx.get(hub.url + URL, headers={"Range": header}).content
        assert [index for index, byte in enumerate(body) if byte != DATA[index + 15 - at]] == [at]
    assert httpx.get(hub.url + URL, headers={"Range": "bytes=20-29"}).content == DATA[20:30]


@pytest.mark.parametrize(
    ("fault", "status", "content_range", "body"),
    [
        (faults.IgnoreRange(), 200, None, DATA),
        (faults.WrongRange(-4), 206, f"bytes 6-15/{len(DATA)}", DATA[6:16]),
        (faults.LyingRange(+4), 206, f"bytes 14-23/{len(DATA)}", DATA[10:20]),
        (faults.Extra(3), 206, f"bytes 10-19/{len(DATA)}", DATA[10:20] + b"\0\0\0"),
        (faults.Chunked(), 206, f"bytes 10-19/{len(DATA)}", DATA[10:20]),
        (faults.Gzip(), 206, f"bytes 10-19/{len(DATA)}", DATA[10:20]),
    ],
)
def test_ranges_go_wrong_as_told(
    hub: HubServer, fault: faults.Fault, status: int, content_range: str | None, body: bytes
) -> None:
    """Each range fault answers with its status, range and body."""
    hub.faults.add(fault)
    answer = httpx.get(hub.url + URL, headers={"Range": "bytes=10-19"})
    assert (answer.status_code, answer.headers.get("content-range")) == (status, content_range)
    assert answer.content == body


@pytest.mark.parametrize("by", [-5, 5])
def test_a_length_can_lie(hub: HubServer, by: int) -> None:
    """A lying length is larger or smaller than the body, also for HEAD."""
    hub.faults.add(faults.LyingLength(by), times=2)
    assert int(httpx.head(hub.url + URL).headers["content-length"]) == len(DATA) + by
    if by > 0:
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(hub.url + URL)
    else:
        assert httpx.get(hub.url + URL).content == DATA[:by]


def test_redirects_pages_and_headers_are_replaced(hub: HubServer) -> None:
    """A redirect loop, an HTML page, and missing or hostile headers reach the client."""
    redirect = hub.faults.add(faults.Redirect(), times=None)
    with pytest.raises(httpx.TooManyRedirects):
        httpx.get(hub.url + URL, follow_redirects=True)
    assert redirect.hits == 21
    hub.clear()
    assert not hub.requests
    hub.faults.add(faults.Html())
    hub.faults.add(faults.Strip("ETag", "X-Repo-Commit"))
    hub.faults.add(faults.Headers({"ETag": '"../x"'}))
    html, stripped, hostile = (httpx.get(hub.url + URL) for _ in range(3))
    assert (html.status_code, html.headers["content-type"]) == (200, "text/html")
    assert not {"etag", "x-repo-commit"}.intersection(stripped.headers)
    assert hostile.headers["etag"] == '"../x"'


def test_a_models_info_can_be_rewritten(hub: HubServer) -> None:
    """A model's info can lack sizes, and contain a hostile path or digest."""
    hub.faults.add(faults.without_blobs())
    hub.faults.add(faults.rename_file("config.json", "../x"))
    hub.faults.add(faults.set_etag("config.json", "a/b"))
    answers = [httpx.get(hub.url + "/api/models/org/name?blobs=true").json() for _ in range(3)]
    (bare,), (renamed,), (hostile,) = (answer["siblings"] for answer in answers)
    assert bare == {"rfilename": "config.json"}
    assert renamed["rfilename"] == "../x"
    assert hostile["blobId"] == "a/b"

"""Numbers, texts and nesting that a server chooses: bounded before they are used, and errors of ours in the end."""

import gzip
import json
import re
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from tests.fetch.fetching import fetch, locks_are_free, nothing_is_linked, opened, put
from tests.support.faults import (
    Answer,
    Both,
    EditJson,
    Fault,
    Headers,
    Redirect,
    Status,
    Strip,
    set_etag,
    without_blobs,
)
from tests.support.hub import HubServer
from tests.support.servers import RawServer, answering
from yaie_async import LoaderError, ModelLoader
from yaie_async.fetch import metadata
from yaie_async.fetch.failures import Asked, TransientError, asked_wait
from yaie_async.fetch.http import answer

pytestmark = pytest.mark.anyio

MANY = "9" * 5000
ODD = "\x1b]0;owned\x07\x1b[31m\u202e\u200bsaid\r\n" + "x" * 9000


def _short(value: object) -> str:
    return re.sub("0x[0-9a-f]{8,}", "", str(value))[:40]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def weights(hub_root: Path) -> bytes:
    return put(hub_root, 100_000)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "9" * 400}, 1e9),
        ({"retry-after": MANY}, 1e9),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "\u0663"}, None),
        ({"retry-after": "\u00b2"}, None),
        ({"retry-after": "Fri, 31 Dec 99999 23:59:59 GMT"}, None),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, 1e9),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 -2359"}, 1e9),
        ({"retry-after": "Fri, 31 Dec 0001 23:59:59 +2359"}, 0.0),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59"}, 1e9),
        ({"retry-after": f"Fri, {MANY} Dec 2026 23:59:59 GMT"}, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"retry-after": "\x00"}, None),
        ({"retry-after": "," * 90_000}, None),
        ({"ratelimit": f'"api";r=0;t={MANY}'}, 1e9),
        ({"ratelimit": '"api";r=0;t=\u0663'}, None),
        ({"ratelimit": "r=0 " * 25_000}, None),
        ({"ratelimit": '"api";r=0;t=55'}, 55.0),
    ],
    ids=_short,
)
def test_how_long_a_server_may_ask_to_wait(headers: dict[str, str], expected: float | None) -> None:
    """Any text is understood, or passed by, at once; no number is larger than what may be computed with."""
    begun = time.process_time()
    assert asked_wait(headers) == expected
    assert time.process_time() - begun < 0.5


FOR_METADATA = [
    Status(404, {"X-Note": "caf\xe9 \x80"}),
    Status(404, {"X-Error-Message": ODD.encode().decode("latin-1").replace("\r\n", " ")}),
    Status(400, body=json.dumps({"error": ODD}).encode()),
    Status(400, body=b"[" * 60_000),
    Status(400, body=b'{"error":' * 7000),
    Status(400, body=b'{"error": %s}' % MANY.encode()),
    Status(400, body=b"\xff\xfe" + b"\0" * 100),
    Status(429, {"Retry-After": MANY}),
    Status(503, {"Retry-After": "Fri, 31 Dec 99999 23:59:59 GMT"}),
    Status(503, {"Retry-After": "Fri, 31 Dec 9999 23:59:59 -2359", "RateLimit": f"r=0;t={MANY}"}),
    Status(200, body=b"[" * 100_000),
    Status(200, body=b'{"sha":' * 100_000),
    Status(200, body=b'{"sha": %s}' % MANY.encode()),
    Status(200, body=b'{"sha": "\\ud800"}'),
    Redirect("http://\x1b[31m.example/"),
    Redirect("x" * 9000 + "://127.0.0.1/"),
    Redirect("http://" + "x" * 60_000 + "/"),
    Redirect("http://127.0.0.1:" + MANY + "/"),
    Redirect("http://a..b/"),
    Redirect("http://\xe9\xff/"),
    EditJson(lambda info: info.update(sha=MANY)),
    EditJson(lambda info: info.update(siblings=[{"rfilename": ODD + "/../x"}])),
    EditJson(lambda info: info["siblings"][0].update(size=10**4000, blobId="a" * 40)),
    EditJson(lambda info: info["siblings"].append({"rfilename": "config.json", "size": 1e400, "blobId": "a" * 40})),
    set_etag("model.safetensors", ODD),
]


def is_fit_to_show(error: LoaderError) -> None:
    """Its text can be printed as it is, and read."""
    assert str(error).isprintable()
    assert len(str(error)) < 2500
    assert "x" * 1000 not in repr({name: value for name, value in vars(error).items() if name != "file"})


@pytest.mark.parametrize("fault", FOR_METADATA, ids=_short)
async def test_metadata_out_of_bounds(fault: Fault, hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """An error of ours, or the right bytes; never another exception, and nothing that a terminal would obey."""
    hub.faults.add(fault, path="^/api/", times=None)
    try:
        assert await fetch(hub, tmp_path) == weights
    except LoaderError as error:
        is_fit_to_show(error)
        nothing_is_linked(tmp_path)
    locks_are_free(tmp_path)
    hub.clear()
    assert await fetch(hub, tmp_path) == weights


async def test_the_server_s_words_arrive(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """What is left of them after that is in the error, and among its attributes."""
    hub.faults.add(Status(400, {"X-Note": "caf\xe9"}, json.dumps({"error": ODD}).encode()), path="^/api/")
    with pytest.raises(LoaderError, match="owned") as caught:
        await fetch(hub, tmp_path)
    message = vars(caught.value)["server_message"]
    assert message.startswith(" ]0;owned  [31m  said") and len(message) <= 300


async def test_a_plan_of_too_large_numbers(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """Sizes and counts that no file has are unknown ones."""

    def edit(info: Any) -> None:
        info["safetensors"] = {"parameters": {"F16": 10**4000, "F32": -1, "BF16": True, "I8": 7}}

    hub.faults.add(EditJson(edit), path="^/api/", times=None)
    async with opened(hub, tmp_path) as one:
        plan = await ModelLoader("org/big", hub=one).plan()
    assert plan.bytes_to_fetch > len(weights)


@pytest.mark.parametrize(
    "fault",
    [
        Both(without_blobs(), Headers({})),
        Headers({"x-linked-size": MANY}),
        Headers({"x-linked-size": "\xb2"}),
        Headers({"x-linked-etag": '"' + "x" * 9000 + '"'}),
        Headers({"x-linked-etag": "\x1b[31m"}),
        Headers({"x-repo-commit": MANY}),
        Strip("x-linked-etag", "x-linked-size", "content-length"),
    ],
    ids=_short,
)
async def test_headers_out_of_bounds(fault: Fault, hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """The same for the sizes and etags of a mirror whose listing has none."""
    hub.faults.add(without_blobs(), path="^/api/", times=None)
    hub.faults.add(fault, method="HEAD", times=None)
    try:
        assert await fetch(hub, tmp_path) == weights
    except LoaderError as error:
        is_fit_to_show(error)


@pytest.mark.parametrize("stock", [False, True], ids=["ours", "stock"])
@pytest.mark.parametrize(
    "headers",
    [
        {"content-range": f"bytes 0-99999/{MANY}"},
        {"content-range": f"bytes 0-{MANY}/100000"},
        {"content-range": "bytes 0-99999/\u0663".encode().decode("latin-1")},
        {"content-range": "\x1b[31m" + "x" * 9000},
        {"content-type": "text/html" + "x" * 9000},
        {"etag": "\x1b[31m" + "x" * 9000},
        {"content-encoding": "\x1b[31m" + "x" * 9000},
    ],
    ids=_short,
)
async def test_the_head_of_a_body_out_of_bounds(
    headers: dict[str, str], stock: bool, hub: HubServer, weights: bytes, tmp_path: Path
) -> None:
    """The same for what comes with a body."""
    put(hub.root, 9_000_000)
    hub.faults.add(Headers(headers), path="^/cdn/", times=None, when=lambda request: bool(request.range))
    hub.faults.add(Headers({"etag": '"a"'}), path="^/cdn/", times=1)
    async with httpx.AsyncClient() as own:
        for verify in (True, False):
            try:
                await fetch(hub, tmp_path / str(verify), verify=verify, client=own if stock else None)
            except LoaderError as error:
                is_fit_to_show(error)


@pytest.mark.parametrize("body", [False, True], ids=["stock", "ours"])
@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: " + MANY.encode(),
        b"HTTP/1.1 200 OK\r\nContent-Length: -1",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 5000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: x",
        b"HTTP/1.1 " + MANY.encode() + b" OK",
        b"HTTP/9.9 200 OK",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x",
        b"HTTP/1.1 200 \x1b[31m" + b"x" * 90_000,
        b"HTTP/1.1 200 OK\r\n\x1b[31m" + b"x" * 9000,
        b"HTTP/1.1 407 \x1b[31m" + b"x" * 9000 + b"\r\nContent-Length: 0",
        b"\x1b[31m" + b"x" * 9000,
    ],
    ids=_short,
)
async def test_a_head_that_is_none(head: bytes, body: bool, hub: HubServer, tmp_path: Path) -> None:
    """What can't be HTTP is an error of ours, or passes; its text is cut."""
    asked = Asked("org/big", "main", None, has_token=False)
    with RawServer(answering(head + b"\r\n\r\n")) as server:
        async with opened(hub, tmp_path, endpoint=server.url.removesuffix("/file")) as one:
            with pytest.raises((LoaderError, TransientError)) as caught, anyio.fail_after(5):
                async with answer(one.session, "GET", server.url, asked=asked, timeout=1, body=body) as response:
                    if len(await response.aread()) == 0:
                        raise LoaderError("an empty body")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1500


def packed(size: int, times: int = 1, encoding: str = "gzip") -> Answer:
    """An answer of that many bytes, compressed that often."""
    body = b"[]," * (size // 3)
    for _ in range(times):
        body = gzip.compress(body, 1)
    return Answer(
        "", 200, {"content-encoding": ", ".join([encoding] * times), "content-type": "application/json"}, body
    )


class Packed(Fault):
    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    def edit_answer(self, answer: Answer) -> None:
        answer.headers = self.answer.headers
        answer.replace_body(self.answer.body)


@pytest.fixture
def peak() -> Iterator[Callable[[], float]]:
    """The most memory since the start of the test that Python has held at once, in MB."""
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    yield lambda: (tracemalloc.get_traced_memory()[1] - before) / 1e6
    tracemalloc.stop()


@pytest.mark.parametrize("stock", [False, True], ids=["ours", "stock"])
@pytest.mark.parametrize("answer", [packed(60_000_000), packed(60_000_000, 2), packed(60_000_000, 1, "deflate")])
@pytest.mark.parametrize(("path", "times"), [("/resolve/.*/config.json$", None), ("^/cdn/", None), ("^/cdn/", 1)])
async def test_a_file_unpacks_to_no_more_than_its_size(
    path: str,
    times: int | None,
    answer: Answer,
    stock: bool,
    peak: Callable[[], float],
    hub: HubServer,
    weights: bytes,
    tmp_path: Path,
) -> None:
    """Small files and weights: what is more than was announced is never in memory."""
    hub.faults.add(Packed(answer), path=path, times=times)
    try:
        async with httpx.AsyncClient() as own:
            assert await fetch(hub, tmp_path, client=own if stock else None) == weights
        assert times
    except LoaderError as error:
        is_fit_to_show(error)
        linked = list(tmp_path.glob(f"models--*/snapshots/*/{error.file}"))
        assert not linked
    assert peak() < 20


@pytest.mark.parametrize("status", [200, 404])
async def test_metadata_unpacks_within_a_limit(
    status: int, peak: Callable[[], float], hub: HubServer, weights: bytes, tmp_path: Path
) -> None:
    """A listing of more than 100 MB is none; of a refusal only the beginning is unpacked."""
    hub.faults.add(Both(Packed(packed(150_000_000)), Code(status)), path="^/api/", times=None)
    tracemalloc.reset_peak()
    with pytest.raises(LoaderError, match="an endless answer" if status == 200 else "no public model"):
        await fetch(hub, tmp_path)
    assert peak() < (260 if status == 200 else 20)  # a growing buffer is copied


class Torn(Fault):
    def edit_answer(self, answer: Answer) -> None:
        answer.replace_body(gzip.compress(answer.body)[:-9], content_encoding="gzip")


@dataclass
class Code(Fault):
    status: int

    def edit_answer(self, answer: Answer) -> None:
        answer.status = self.status


@pytest.mark.parametrize(
    "body",
    [b"[" + b"[]," * 7_000_000 + b"[]]", b"[" + b"0," * 7_000_000 + b"0]", b"[" + b"{}," * 7_000_000 + b"{}]"],
    ids=["lists", "numbers", "dictionaries"],
)
async def test_a_listing_of_too_many_values(
    body: bytes, peak: Callable[[], float], hub: HubServer, weights: bytes, tmp_path: Path
) -> None:
    """They are counted before they are objects, which take many times the memory of their text."""
    hub.faults.add(Status(200, body=body), path="^/api/", times=None)
    with pytest.raises(LoaderError, match="not JSON"):
        await fetch(hub, tmp_path)
    assert peak() < 150


async def test_a_listing_of_too_many_files(
    hub: HubServer, weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is a limit to them too."""
    assert metadata.MOST_FILES == 500_000
    monkeypatch.setattr(metadata, "MOST_FILES", 3)
    assert await fetch(hub, tmp_path) == weights
    (hub.root / "org" / "big" / "more.json").write_text("{}")
    with pytest.raises(LoaderError, match="too many files"):
        await fetch(hub, tmp_path / "again")


async def test_a_coding_that_is_unknown(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    """An answer that can't be read is said to be one, with its coding; an empty coding is none."""
    hub.faults.add(Headers({"content-encoding": "zz\x1b"}), path="^/api/", times=None)
    with pytest.raises(LoaderError, match="zz"):
        await fetch(hub, tmp_path)
    hub.clear()
    for coding in ("", "identity", "Identity"):
        hub.faults.add(Headers({"content-encoding": coding}), path="^/(api|cdn)/", times=2)
        assert await fetch(hub, tmp_path / coding) == weights
    hub.faults.add(Torn(), path="^/(api|cdn)/", times=2)
    assert await fetch(hub, tmp_path / "torn") == weights

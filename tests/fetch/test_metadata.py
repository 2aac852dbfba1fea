"""What a Hub says of a model, and what it may not say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.file_download import _normalize_etag

from tests.fetch.fetching import QUICK, opened, put
from tests.support.faults import (
    Answer,
    Both,
    Cut,
    EditJson,
    Fault,
    Headers,
    Redirect,
    Reset,
    Stall,
    Status,
    Strip,
    set_etag,
    without_blobs,
)
from tests.support.hub import HubServer
from tests.support.loops import on_one_loop
from tests.support.stopwatch import Stopwatch
from yaie_async import HubUnavailableError, ModelNotFoundError, RevisionNotFoundError, StalledError, UnsafeFileError
from yaie_async.core.manifest import RepoFile
from yaie_async.fetch import metadata
from yaie_async.fetch.metadata import commit_of, complete, listing_of, normal_etag, tree_of
from yaie_async.fetch.retry import RetryPolicy

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "IMPATIENT", RetryPolicy(attempts=2, first_wait=0.01))


@pytest.fixture
def hub_root(hub_root: Path) -> Path:
    put(hub_root, 100)
    return hub_root


async def test_one_request_tells_all(anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """Commit, sizes and etags come by one request: of an LFS file sha256 and size of its contents."""
    async with opened(hub, tmp_path) as one:
        listing = await listing_of(one.session, "org/big", "main")
    (request,) = hub.requests
    assert (request.path, request.query) == ("/api/models/org/big/revision/main", {"blobs": "true"})
    weights, config = listing.files["model.safetensors"], listing.files["config.json"]
    assert (weights.size, len(weights.etag or "")) == (100, 64)
    assert (config.size, len(config.etag or "")) == (23, 40)


async def test_a_mirror_that_leaves_sizes_out(anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """A file without size or etag in the listing gets both by a HEAD, and they are the same."""
    async with opened(hub, tmp_path) as one:
        whole = await listing_of(one.session, "org/big", "main")
        assert whole.commit is not None
        hub.faults.add(without_blobs())
        bare = await listing_of(one.session, "org/big", "main")
        assert set(bare.files.values()) == {RepoFile(path) for path in whole.files}
        hub.clear()
        for path, file in whole.files.items():
            assert await complete(one.session, "org/big", whole.commit, bare.files[path]) == file
        assert {request.method for request in hub.requests} == {"HEAD"}
        hub.clear()
        for file in whole.files.values():
            assert await complete(one.session, "org/big", whole.commit, file) is file
    assert not hub.requests


@on_one_loop
@pytest.mark.parametrize(
    "change",
    [
        {"size": None},
        {"size": -1},
        {"size": "23"},
        {"blobId": None},
        {"blobId": 3},
        {"lfs": {}},
        {"lfs": {"sha256": "0" * 64}},
        {"lfs": {"size": 3}},
    ],
)
async def test_an_entry_that_says_half_is_asked_about(
    change: dict[str, Any], anyio_backend: Any, hub: HubServer, tmp_path: Path
) -> None:
    """A file without a usable size and etag counts as one of which nothing is known."""

    def edit(info: Any) -> None:
        info["siblings"] = [{"rfilename": "config.json", "size": 23, "blobId": "0" * 40} | change]

    hub.faults.add(EditJson(edit))
    async with opened(hub, tmp_path) as one:
        listing = await listing_of(one.session, "org/big", "main")
    assert listing.files["config.json"] == RepoFile("config.json")


SHA = f'"sha": "{"0" * 40}"'


@on_one_loop
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>Log in</html>",
        b"\xff\xfe",
        b"[" * 100_000,
        b"null",
        b"[]",
        b"3",
        b"{}",
        b'{"sha": 3, "siblings": []}',
        b'{"sha": "main", "siblings": []}',
        f"{{{SHA}}}".encode(),
        f'{{{SHA}, "siblings": 3}}'.encode(),
        f'{{{SHA}, "siblings": [3]}}'.encode(),
        f'{{{SHA}, "siblings": [{{"rfilename": 3}}]}}'.encode(),
    ],
)
async def test_an_answer_that_is_no_hub_s(body: bytes, anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """200 with anything but a model's info is said, with the hint at a login page, and is not tried again."""
    hub.faults.add(Status(200, body=body), times=None)
    async with opened(hub, tmp_path) as one:
        with pytest.raises(HubUnavailableError, match="org/big: this is not how a Hub answers.*login page"):
            await listing_of(one.session, "org/big", "main")
    assert len(hub.requests) == 1


class Endless(Fault):
    """Brackets and blanks for ten seconds."""

    def edit_answer(self, answer: Answer) -> None:
        answer.replace_body(b"[" + b" " * (20 << 20))
        answer.rate = 2 << 20


# httpx's generators can't be closed from outside; only under trio does that make a warning, off by default.
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
async def test_a_listing_without_end(anyio_backend: Any, hub: HubServer, tmp_path: Path, monkeypatch: Any) -> None:
    """A listing of more bytes than any has is given up in the middle."""
    monkeypatch.setattr(metadata, "_LARGEST_LISTING", 100_000)
    hub.faults.add(Endless())
    async with opened(hub, tmp_path) as one:
        watch = Stopwatch()
        with pytest.raises(HubUnavailableError, match="an endless answer"):
            await listing_of(one.session, "org/big", "main")
        assert watch.seconds < 5


@on_one_loop
@pytest.mark.parametrize("path", ["../x", "a/../../x", "/x", "C:\\x", "\ud800"])
async def test_a_path_that_leaves_the_folder(path: str, anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """One hostile path spoils the whole listing, wanted or not."""
    hub.faults.add(EditJson(lambda info: info["siblings"].append({"rfilename": path})))
    async with opened(hub, tmp_path) as one:
        with pytest.raises(UnsafeFileError) as caught:
            await listing_of(one.session, "org/big", "main")
    assert (caught.value.model, caught.value.file) == ("org/big", path)


@on_one_loop
@pytest.mark.parametrize("etag", ["../x", "a/b", "..", "a\\b", "\ud800", "x" * 300])
async def test_an_etag_that_is_no_name(etag: str, anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """An etag becomes the name of a file: one that can't be is refused, from the listing and from a HEAD."""
    hub.faults.add(set_etag("config.json", etag))
    async with opened(hub, tmp_path) as one:
        with pytest.raises(UnsafeFileError, match=r"config\.json of org/big"):
            await listing_of(one.session, "org/big", "main")
        if etag.isascii():
            hub.faults.add(Headers({"ETag": f'"{etag}"'}))
            with pytest.raises(UnsafeFileError, match=r"config\.json of org/big"):
                await complete(one.session, "org/big", "main", RepoFile("config.json"))


@on_one_loop
async def test_a_head_without_an_etag(anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """A file whose blob would have no name is named."""
    hub.faults.add(Strip("ETag"), method="HEAD")
    async with opened(hub, tmp_path) as one:
        with pytest.raises(
            HubUnavailableError, match=r"no etag and size to a request for config\.json of org/big"
        ) as caught:
            await complete(one.session, "org/big", "main", RepoFile("config.json"))
    assert caught.value.file == "config.json"


@on_one_loop
@pytest.mark.parametrize("missing", ["X-Repo-Commit", "Content-Length", "X-Linked-Size"])
@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
async def test_a_head_that_leaves_out_what_can_be_known_otherwise(
    missing: str, file: str, anyio_backend: Any, hub: HubServer, tmp_path: Path
) -> None:
    """The commit was asked for, and the size is told by a request for the first byte."""
    hub.faults.add(Strip(missing), method="HEAD", times=None)
    async with opened(hub, tmp_path) as one:
        expected = (await listing_of(one.session, "org/big", "main")).files[file]
        assert await complete(one.session, "org/big", "main", RepoFile(file)) == expected


async def test_the_tree_tells_what_the_listing_leaves_out(anyio_backend: Any, hub_root: Path, tmp_path: Path) -> None:
    """Before any HEAD, in as many pages as it has, and its digests are digests."""
    for number in range(4):
        (hub_root / "org/big" / f"{number}.json").write_text("{}")
    with HubServer(hub_root, page_size=3) as hub:
        await _by_pages(hub, tmp_path)


async def _by_pages(hub: HubServer, cache: Path) -> None:
    hub.faults.add(without_blobs(), path="/revision/", times=None)
    async with opened(hub, cache) as one:
        whole = await tree_of(one.session, "org/big", (await listing_of(one.session, "org/big", "main")).commit or "")
        assert {path: (file.size, len(file.etag or "")) for path, file in whole.items() if path > "a"} == {
            "config.json": (23, 40),
            "model.safetensors": (100, 64),
            "tokenizer_config.json": (2, 40),
        }
        assert len(whole) == 7
        await one.prefetch("org/big")
    assert not [request for request in hub.requests if request.method == "HEAD"]


@on_one_loop
@pytest.mark.parametrize("link", ["http://127.0.0.1:999999/x", "http://127.0.0.1:abc/", "?page=", "http://[/"])
async def test_pages_without_end(link: str, anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """A page that brings no file is the last, and an address that is none ends the listing."""
    pages = iter(range(10_000))

    class Next(Fault):
        def edit_answer(self, answer: Answer) -> None:
            answer.headers["link"] = f'<{link}{next(pages) if link.startswith("?") else ""}>; rel="next"'

    hub.faults.add(without_blobs(), path="/revision/", times=None)
    hub.faults.add(Next(), path="/tree/", times=None)
    async with opened(hub, tmp_path) as one:
        await one.prefetch("org/big")
    assert next(pages) <= 3


@on_one_loop
@pytest.mark.parametrize(
    "answer", [Status(404), Status(500), Status(200, body=b"3"), Headers({"Link": "<?>; rel=next"})]
)
async def test_a_mirror_without_a_tree(answer: Fault, anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """A HEAD for each file is left; a page that leads to itself is read once."""
    hub.faults.add(without_blobs(), path="^/api/", times=None)
    hub.faults.add(Both(without_blobs(), answer) if isinstance(answer, Headers) else answer, path="/tree/", times=None)
    async with opened(hub, tmp_path) as one:
        one.session.policy = QUICK
        await one.prefetch("org/big")
    assert len([request for request in hub.requests if request.method == "HEAD"]) == 3


async def test_metadata_is_that_of_the_last_answer_of_the_hub(
    anyio_backend: Any, hub: HubServer, tmp_path: Path
) -> None:
    """Etag, size and commit of a redirect within the Hub are not taken, those of the one to the CDN are."""
    target = "/org/big/resolve/main/model.safetensors"
    hub.faults.add(Redirect(target, status=307), path="^/org/old/")
    async with opened(hub, tmp_path) as one:
        expected = (await listing_of(one.session, "org/big", "main")).files["model.safetensors"]
        assert await complete(one.session, "org/old", "main", RepoFile("model.safetensors")) == expected


# -- the commit of a branch ---------------------------------------------------------------------------------


async def test_the_smallest_request_there_is(anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """The commit of a branch costs one request without the list of files."""
    async with opened(hub, tmp_path) as one:
        listing = await listing_of(one.session, "org/big", "main")
        hub.clear()
        assert await commit_of(one.session, "org/big", "main") == listing.commit
    (request,) = hub.requests
    assert request.query == {"expand": "sha"}


@on_one_loop
@pytest.mark.parametrize("body", [b"{}", b"null", b'{"sha": "x"}', b"<html>"])
async def test_a_mirror_that_does_not_know_expand(
    body: bytes, anyio_backend: Any, hub: HubServer, tmp_path: Path
) -> None:
    """Where the small request brings no commit, one HEAD of config.json does."""
    hub.faults.add(Status(200, body=body), path="^/api/")
    async with opened(hub, tmp_path) as one:
        commit = await commit_of(one.session, "org/big", "main")
    assert hub.lines == ["GET /api/models/org/big/revision/main", "HEAD /org/big/resolve/main/config.json"]
    assert len(commit) == 40


async def test_a_portal_instead_of_the_hub(anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """A page of HTML to both is an unavailable Hub, so that whoever has a snapshot can use it."""
    hub.faults.add(Status(200, body=b"<html>"), times=None)
    async with opened(hub, tmp_path) as one:
        with pytest.raises(HubUnavailableError):
            await commit_of(one.session, "org/big", "main")


async def test_it_does_not_wait_long_for_a_hub_that_is_down(anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """Who has a snapshot tries twice, not as often as who has nothing."""
    hub.faults.add(Status(503), times=None)
    async with opened(hub, tmp_path) as one:
        with pytest.raises(HubUnavailableError) as caught:
            await commit_of(one.session, "org/big", "main")
        assert (caught.value.attempts, caught.value.status, len(hub.requests)) == (2, 503, 2)
        hub.clear()
        hub.faults.add(Status(503), times=None)
        with pytest.raises(HubUnavailableError) as caught:
            await listing_of(one.session, "org/big", "main")
        assert caught.value.attempts == one.session.policy.attempts == len(hub.requests)


async def test_a_hub_that_says_nothing(anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """Silence for as long as HF_HUB_ETAG_TIMEOUT, again and again, is a StalledError."""
    hub.faults.add(Stall(-1), times=None)
    async with opened(hub, tmp_path) as one:
        one.session.settings = replace(one.session.settings, metadata_timeout=0.2)
        with pytest.raises(StalledError, match="org/big") as caught:
            await listing_of(one.session, "org/big", "main")
    assert caught.value.attempts == len(hub.requests) == 4


async def test_a_failure_that_passes(anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """503, a reset, half an answer: the next attempt brings the listing."""
    for fault in (Status(503), Reset(), Cut(5)):
        hub.faults.add(fault)
    async with opened(hub, tmp_path) as one:
        assert (await listing_of(one.session, "org/big", "main")).files
    assert len(hub.requests) == 4


async def test_names_with_odd_characters(anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """A revision is one segment of the URL, whatever it holds; a file's slashes stay slashes."""
    (hub.root / "org" / "big" / "sub").mkdir()
    (hub.root / "org" / "big" / "sub" / "with space #1?.json").write_text("{}")
    async with opened(hub, tmp_path) as one:
        listing = await listing_of(one.session, "org/big", "main")
        assert listing.commit is not None
        file = RepoFile("sub/with space #1?.json")
        assert await complete(one.session, "org/big", listing.commit, file) == listing.files[file.path]
        for revision in ("refs/pr/1", "a b?c#d%2F"):
            with pytest.raises(RevisionNotFoundError) as caught:
                await listing_of(one.session, "org/big", revision)
            assert caught.value.revision == revision
            assert hub.requests[-1].path == f"/api/models/org/big/revision/{revision}"
        with pytest.raises(ModelNotFoundError):
            await listing_of(one.session, "org/none", "main")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"etag": '"abc"'}, "abc"),
        ({"etag": 'W/"abc"'}, "abc"),
        ({"etag": "abc"}, "abc"),
        ({"etag": 'W/"Wabc"'}, "Wabc"),
        ({"etag": '"W/abc"'}, "W/abc"),
        ({"etag": "WWW/x"}, "x"),
        ({"etag": '"pointer"', "x-linked-etag": '"contents"'}, "contents"),
        ({}, None),
        ({"etag": ""}, None),
    ],
)
def test_an_etag_is_normalised_as_the_official_client_does(headers: dict[str, str], expected: str | None) -> None:
    """The name of a blob is shared with the official client, quirks included."""
    assert normal_etag(headers) == expected
    value = headers.get("x-linked-etag") or headers.get("etag")
    assert value in ("", None) or _normalize_etag(value) == expected

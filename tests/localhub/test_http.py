"""Tests of requests that the official client does not send: ranges, forged URLs and hostile paths."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from huggingface_hub import snapshot_download

from tests.localhub.conftest import CONFIG, WEIGHTS
from tests.support.hub import HubServer
from yaie_async.localhub import cached_models, models
from yaie_async.localhub.body import RangeNotSatisfiable, select_range
from yaie_async.localhub.cached_models import CachedModels
from yaie_async.localhub.models import Snapshot

URL = "/org/name/resolve/main/"
SIZE = len(WEIGHTS)


def signed_url(hub: HubServer) -> str:
    return httpx.get(f"{hub.url}{URL}model.safetensors").headers["location"]


@pytest.mark.parametrize(
    ("header", "chosen"),
    [
        (None, None),
        ("bytes=0-0", (0, 1)),
        ("bytes=90-", (90, 100)),
        ("bytes=90-1000", (90, 100)),
        ("bytes=-10", (90, 100)),
        ("bytes=-1000", (0, 100)),
        ("bytes=5-4", None),
        ("bytes=-", None),
        ("bytes=0-1,3-4", None),
        ("bytes=a-b", None),
        ("lines=0-1", None),
        ("bytes=1-" + "9" * 5000, None),
    ],
)
def test_a_range_is_one_interval_or_ignored(header: str | None, chosen: tuple[int, int] | None) -> None:
    """A single byte range is clipped to the file; any other header is ignored."""
    assert select_range(header, None, '"e"', 100) == chosen


@pytest.mark.parametrize(("header", "size"), [("bytes=100-", 100), ("bytes=-0", 100), ("bytes=0-", 0)])
def test_a_range_outside_the_file_is_unsatisfiable(header: str, size: int) -> None:
    """A range without a byte of the file is not satisfiable."""
    with pytest.raises(RangeNotSatisfiable):
        select_range(header, None, '"e"', size)


def test_the_cdn_serves_ranges_under_its_own_etag(hub: HubServer) -> None:
    """The CDN answers with 206 and 416 and honours If-Range, with an etag that differs from the Hub's."""
    with httpx.Client() as client:
        redirect = client.get(f"{hub.url}{URL}model.safetensors")
        assert redirect.status_code == 302
        assert redirect.headers["x-linked-size"] == str(SIZE)
        url = redirect.headers["location"]
        whole = client.get(url)
        assert (whole.status_code, whole.content) == (200, WEIGHTS)
        etag = whole.headers["etag"]
        assert etag not in (redirect.headers["etag"], redirect.headers["x-linked-etag"])
        part = client.get(url, headers={"Range": "bytes=1000000-1099999", "If-Range": etag})
        assert (part.status_code, part.content) == (206, WEIGHTS[1_000_000:1_100_000])
        assert part.headers["content-range"] == f"bytes 1000000-1099999/{SIZE}"
        other = client.get(url, headers={"Range": "bytes=0-9", "If-Range": redirect.headers["x-linked-etag"]})
        assert (other.status_code, len(other.content)) == (200, SIZE)
        outside = client.get(url, headers={"Range": f"bytes={SIZE}-"})
        assert (outside.status_code, outside.headers["content-range"]) == (416, f"bytes */{SIZE}")


def test_small_files_serve_ranges_in_place(hub: HubServer) -> None:
    """A small file is served in place, with the same headers for HEAD and GET, and with ranges."""
    head = httpx.head(f"{hub.url}{URL}config.json")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(CONFIG))
    assert head.headers["accept-ranges"] == "bytes"
    assert len(head.headers["x-repo-commit"]) == 40
    part = httpx.get(f"{hub.url}{URL}config.json", headers={"Range": "bytes=1-4"})
    assert (part.status_code, part.content, part.headers["etag"]) == (206, CONFIG[1:5], head.headers["etag"])
    assert httpx.get(f"{hub.url}{URL}empty.txt").content == b""


@pytest.mark.parametrize("lifetime", [3600, -1])
def test_a_signed_url_is_good_for_its_time_and_its_file(hub_root: Path, lifetime: float) -> None:
    """A signed URL works until it expires, and not if its path, time or signature was changed."""
    with HubServer(hub_root, url_lifetime=lifetime) as hub:
        url = signed_url(hub)
        assert httpx.get(url).status_code == (200 if lifetime > 0 else 403)
        path, query = url.split("?")
        for forged in (
            f"{path.replace('model.safetensors', 'config.json')}?{query}",
            f"{path}?{query.replace('Expires=', 'Expires=9')}",
            f"{url}0",
            f"{path}?Expires=x&Signature=%E2%98%83",
            path,
        ):
            assert httpx.get(forged).status_code == 403
        with HubServer(hub_root) as other:
            assert httpx.get(url.replace(hub.cdn_url, other.cdn_url)).status_code == 403


def test_the_cdn_ignores_authorization(hub_root: Path) -> None:
    """A signed URL works without a token and with a wrong one."""
    with HubServer(hub_root, tokens=("good",)) as hub:
        redirect = httpx.get(f"{hub.url}{URL}model.safetensors", headers={"Authorization": "Bearer good"})
        url = redirect.headers["location"]
        assert httpx.get(url).status_code == 200
        assert httpx.get(url, headers={"Authorization": "Bearer bad"}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        b"../secret.txt",
        b"%2e%2e/secret.txt",
        b"..%2fsecret.txt",
        b"..%2f..%2f..%2fsecret.txt",
        b"sub/../config.json",
        b"./config.json",
        b"%2Fetc/passwd",
        b"/etc/passwd",
        b"..%5csecret.txt",
        b"config.json%00",
        b"%00",
        b"%ff",
        b"config.json/",
        b"sub",
        b"outside.txt",
        b"folder/secret.txt",
        b"dangling",
    ],
)
def test_no_path_leads_outside_the_model(hub_root: Path, path: bytes) -> None:
    """Paths with dots (encoded or not), absolute paths, NULs and links that leave the root are not found."""
    secret = hub_root.parent / "elsewhere" / "secret.txt"
    secret.parent.mkdir()
    for place in (secret, hub_root / "org" / "secret.txt"):
        place.write_text("secret")
    model = hub_root / "org" / "name"
    (model / "outside.txt").symlink_to(secret)
    (model / "folder").symlink_to(secret.parent)
    (model / "dangling").symlink_to("nowhere")
    with HubServer(hub_root / "org") as hub:
        assert hub.raw_get(b"/name/resolve/main/config.json") == 200
        assert hub.raw_get(b"/name/resolve/main/" + path) == 404


@pytest.mark.parametrize(
    "model",
    [b"..", b"%2e%2e", b"org/..", b"..%2felsewhere", b"org%2f..%2f..%2felsewhere", b".", b"%00", b"org/%ff"],
)
def test_no_model_is_outside_the_root(hub_root: Path, model: bytes) -> None:
    """A model's name has one or two plain segments; any other name is not found."""
    elsewhere = hub_root.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "config.json").write_text("{}")
    with HubServer(hub_root) as hub:
        assert hub.raw_get(b"/api/models/" + model) in (401, 404)
        assert hub.raw_get(b"/" + model + b"/resolve/main/config.json") in (401, 404)


def test_a_link_inside_the_root_is_served(hub_root: Path) -> None:
    """A link to a file of another model under the root is served as a file."""
    (hub_root / "org" / "name" / "linked.json").symlink_to("../../gpt2/config.json")
    with HubServer(hub_root) as hub:
        assert httpx.get(f"{hub.url}{URL}linked.json").content == CONFIG


def _a_link(file: Path, outside: Path) -> None:
    file.unlink()
    file.symlink_to(outside / file.name)


def _a_folder_link(file: Path, outside: Path) -> None:
    file.parent.rename(outside.with_name("moved"))
    file.parent.symlink_to(outside)


def _a_fifo(file: Path, outside: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _nothing(file: Path, outside: Path) -> None:
    file.unlink()


def _a_longer_file(file: Path, outside: Path) -> None:
    file.write_bytes(WEIGHTS + b"more")


@pytest.mark.parametrize("name", ["model.safetensors", "sub/dir/vocab.txt"])
@pytest.mark.parametrize("hashed", [False, True])
@pytest.mark.parametrize("swap", [_a_link, _a_folder_link, _a_fifo, _nothing, _a_longer_file])
def test_what_is_swapped_in_after_the_listing_is_not_sent(
    hub_root: Path, swap: Callable[[Path, Path], None], hashed: bool, name: str
) -> None:
    """The file is opened beneath the root and must be the listed one: else 503, and the next request lists again."""
    file, outside = hub_root / "org/name" / name, hub_root.parent / "outside"
    outside.mkdir()
    (outside / file.name).write_bytes(b"secret")
    os.truncate(outside / file.name, file.stat().st_size)
    with HubServer(hub_root, cdn=False) as hub:
        listed = hub.app._models.snapshot
        if hashed:
            httpx.head(f"{hub.url}{URL}{name}")

        def then_swapped(model: str, revision: str) -> Snapshot:
            snapshot = listed(model, revision)
            swap(file, outside)
            return snapshot

        hub.app._models.snapshot = then_swapped  # type: ignore[method-assign]
        answer = httpx.get(f"{hub.url}{URL}{name}")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert name in answer.headers["x-error-message"]
        hub.app._models.snapshot = listed  # type: ignore[method-assign]
        again = httpx.get(f"{hub.url}{URL}{name}")
        assert again.is_success == (swap is _a_longer_file)
        assert b"secret" not in answer.content + again.content


@pytest.mark.parametrize("cached", [False, True])
def test_a_request_for_a_file_of_a_known_commit_lists_no_others(
    hub_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    """It looks at that file alone, on the Hub and its CDN; a changed one is no longer the commit's."""
    with HubServer(hub_root) as hub:
        if cached:
            snapshot_download("org/name", endpoint=hub.url, cache_dir=tmp_path / "cache")
            hub.app._models = CachedModels(tmp_path / "cache")
        commit = httpx.get(f"{hub.url}/api/models/org/name").json()["sha"]
        at = f"{hub.url}/org/name/resolve/{commit}/"
        for module in (models, cached_models):
            monkeypatch.setattr(module, "listing", None)
        assert httpx.get(f"{at}sub/dir/vocab.txt").text == "a\nb\n"
        assert httpx.get(f"{at}model.safetensors", follow_redirects=True).content == WEIGHTS
        assert httpx.get(f"{at}none.txt").headers["x-error-code"] == "EntryNotFound"
        monkeypatch.undo()
        if not cached:
            (hub_root / "org" / "name" / "config.json").write_text("{}")
            assert httpx.get(f"{at}sub/dir/vocab.txt").text == "a\nb\n"
            assert httpx.get(f"{at}config.json").headers["x-error-code"] == "RevisionNotFound"
            assert httpx.get(f"{at}sub/dir/vocab.txt").headers["x-error-code"] == "RevisionNotFound"


def test_one_file_is_found_where_the_listing_has_it(hub_root: Path) -> None:
    """And nowhere else: not by other spellings, through linked folders, or in folders that are no part of a model."""
    top = hub_root / "org" / "name"
    (top / ".git").mkdir()
    (top / ".git" / "config").touch()
    (top / "folder").symlink_to("sub")
    (top / "link.json").symlink_to("config.json")
    (top / "outside").symlink_to("/etc/passwd")
    os.mkfifo(top / "fifo")
    files = models.listing(top, hub_root)
    assert "link.json" in files
    there = [path.relative_to(top).as_posix() for path in top.rglob("*")]
    odd = ["", ".", "sub/../config.json", "./config.json", "sub//dir/vocab.txt", "/etc/passwd", "../name/config.json",
           "folder/dir/vocab.txt", "config.json/", "config.json/x", "\0", "x" * 300, "x/" * 3000 + "x"]  # fmt: skip
    for path in [*there, *odd]:
        assert models.one_file(path, top, hub_root) == ({path: files[path]} if path in files else {})
    (hub_root / "alias").symlink_to("org/name")
    assert "sub/dir/vocab.txt" in models.one_file("sub/dir/vocab.txt", hub_root / "alias", hub_root)


def test_only_a_number_of_files_is_remembered(hub_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the models that were asked for last."""
    plain = models.PlainModels(hub_root)
    monkeypatch.setattr(models, "_MOST_ENTRIES", 10)  # org/name has 6 files and 2 folders, gpt2 2 files and a folder
    for name in ("one", "two"):
        shutil.copytree(hub_root / "gpt2", hub_root / name)
    for name in ("org/name", "gpt2", "one", "gpt2", "two"):
        plain.snapshot(name, "main")
    assert list(plain._listed) == ["one", "gpt2", "two"]


def test_only_whole_files_are_served(hub_root: Path) -> None:
    """A FIFO and names that are not printable are not listed, and do not block the hub."""
    model = hub_root / "org" / "name"
    os.mkfifo(model / "fifo")
    (model / "new\nline").touch()
    Path(os.fsdecode(os.fsencode(model) + b"/\xff")).touch()
    with HubServer(hub_root) as hub:
        names = [s["rfilename"] for s in httpx.get(f"{hub.url}/api/models/org/name?blobs=true").json()["siblings"]]
        assert len(names) == 6
        assert hub.raw_get(URL.encode() + b"fifo") == 404


@pytest.mark.parametrize("target", ["/", "/proc", "linked"])
def test_a_model_that_is_a_link_to_elsewhere_is_not_found(hub_root: Path, target: str) -> None:
    """Nothing there is looked at, and the model is in no list; a link to itself in a model hides no file of it."""
    for link in (hub_root / "linked", hub_root / "org" / "linked", hub_root / "org" / "name" / "0"):
        link.symlink_to(target)
    with HubServer(hub_root) as hub:
        assert hub.app.names() == ["gpt2", "org/name"]
        for model in ("linked", "org/linked"):
            answer = httpx.get(f"{hub.url}/api/models/{model}", headers={"Authorization": "Bearer any"})
            assert (answer.status_code, answer.headers["x-error-code"]) == (404, "RepoNotFound")
        assert httpx.get(f"{hub.url}{URL}config.json").content == CONFIG


def test_a_snapshot_that_is_a_link_to_elsewhere_is_not_found(tmp_path: Path) -> None:
    """In a cache it is a commit that does not exist."""
    snapshots = tmp_path / "cache" / "models--org--name" / "snapshots"
    snapshots.mkdir(parents=True)
    (snapshots / ("0" * 40)).symlink_to("/")
    with HubServer(tmp_path / "cache") as hub:
        assert hub.app.names() == []
        answer = httpx.get(f"{hub.url}/api/models/org/name/revision/{'0' * 40}")
        assert (answer.status_code, answer.headers["x-error-code"]) == (404, "RevisionNotFound")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user who may not read a folder")
@pytest.mark.parametrize(
    ("closed", "mode"), [("", 0), ("", 0o444), ("sub", 0), ("sub/dir/vocab.txt", 0), ("model.safetensors", 0)]
)
def test_what_the_server_may_not_read_is_said_by_name(hub_root: Path, closed: str, mode: int) -> None:
    """A model without one of its files would be taken for the whole; the path on this machine is not told."""
    with tempfile.TemporaryDirectory() as parent:  # tmp_path is closed to other users
        Path(parent).chmod(0o755)
        root = Path(shutil.copytree(hub_root, Path(parent, "models")))
        (root / "org" / "name" / closed).chmod(mode)
        paths = ("/api/models/org/name?blobs=true", URL + (closed or "config.json"))
        _assert_refused(
            root, Path("org/name", closed), paths, names=["gpt2", "org/name"] if closed or mode else ["gpt2"]
        )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user who may not read a folder")
@pytest.mark.parametrize("closed", [".", "snapshots", "snapshots/*"])
def test_what_the_server_may_not_read_of_a_cache_is_said_by_name(hub: HubServer, closed: str) -> None:
    """Its model is not missing: a client would ask for a token."""
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        root = Path(parent, "cache")
        snapshot_download("org/name", endpoint=hub.url, cache_dir=root)
        model = root / "models--org--name"
        [folder] = model.glob(closed) if closed != "." else [model]
        folder.chmod(0)
        _assert_refused(root, folder.relative_to(root), ("/api/models/org/name", URL + "config.json"), names=[])


def _assert_refused(root: Path, closed: Path, paths: tuple[str, ...], *, names: list[str]) -> None:
    """Assert that a server that is another user answers 403 to each request, and names `closed` or what is in it."""
    with HubServer(root, cdn=False) as hub, httpx.Client(base_url=hub.url) as client:
        client.get("/gpt2/resolve/main/config.json")  # whatever is imported for a request is imported by now
        os.seteuid(65534)
        try:
            answers = [client.get(path) for path in paths]
            assert hub.app.names() == names
        finally:
            os.seteuid(0)
    for answer in answers:
        said = answer.json()["error"]
        assert (answer.status_code, said.startswith(f"The server can't read {closed}")) == (403, True), said
        assert said.endswith(": Permission denied. Check the folder that it serves.")


@pytest.mark.parametrize("kind", ["many", "deep"])
def test_a_folder_without_end_is_refused(hub_root: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """It has too many files or too deep folders; other models are served."""
    if kind == "many":
        monkeypatch.setattr(models, "_MOST_ENTRIES", 5)
    else:
        Path(hub_root / "org" / "name", *"a" * 102).mkdir(parents=True)
        Path(hub_root / "org" / "name", *"a" * 102, "file").touch()
    with HubServer(hub_root) as hub:
        answer = httpx.get(f"{hub.url}{URL}config.json")
        assert answer.status_code == 403
        assert "org/name: it has more than" in answer.headers["x-error-message"]
        assert httpx.get(f"{hub.url}/gpt2/resolve/main/config.json").content == CONFIG


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/api/agent-harnesses", 404),
        ("GET", "/api/models", 404),
        ("GET", "/api/models/org/name/other/main", 404),
        ("POST", "/api/models/org/name", 405),
        ("DELETE", URL + "config.json", 405),
        ("GET", "/api/models/org/name/paths-info/main", 405),
        ("GET", "/api/models/org/name/tree/main?cursor=x", 400),
        ("GET", "/api/models/org/name/tree/main?limit=x", 400),
        ("POST", "/api/models/org/name/paths-info/main", 200),
        ("HEAD", "/api/models/org/name", 200),
        ("GET", "/api/whoami-v2", 401),
    ],
)
def test_other_requests_have_their_status(hub: HubServer, method: str, path: str, status: int) -> None:
    """Unknown paths, wrong methods and bad arguments are refused with the matching status."""
    assert httpx.request(method, hub.url + path).status_code == status

"""One repository's folder: refs, links and the official listing.

tests/loader/test_official_client.py tests that it equals the folder of the official client.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
from huggingface_hub import file_download

from yaie_async.core.errors import CacheAccessError
from yaie_async.core.manifest import RepoFile
from yaie_async.store.cache import RepoCache

COMMIT, OTHER = "a" * 40, "b" * 40
ETAG = "c" * 64


@pytest.fixture
def cache(tmp_path: Path) -> RepoCache:
    cache = RepoCache(tmp_path / "cache", "org/name")
    cache.prepare(COMMIT)
    cache.blob(ETAG).write_bytes(b"content")
    return cache


@pytest.fixture
def without_symlinks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set HF_HUB_DISABLE_SYMLINKS, which is read at import."""
    monkeypatch.setattr(file_download.constants, "HF_HUB_DISABLE_SYMLINKS", True)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


# -- refs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("revision", ["main", "refs/pr/1", "v1.0"])
def test_a_ref_is_the_commit_and_nothing_more(revision: str, cache: RepoCache) -> None:
    """A ref holds 40 digits without a newline, is nested where the revision has slashes, and leaves no other file."""
    cache.write_ref(revision, COMMIT)
    cache.write_ref(revision, OTHER)
    assert (cache.folder / "refs" / revision).read_bytes() == OTHER.encode()
    assert cache.commit_of(revision) == OTHER
    assert names(cache.folder / "refs") == [revision]


def test_a_commit_gets_no_ref(cache: RepoCache) -> None:
    """A revision that is a full commit resolves to itself and is not stored."""
    cache.write_ref(COMMIT, COMMIT)
    assert not (cache.folder / "refs").exists()
    assert cache.commit_of(COMMIT) == COMMIT


def test_an_unchanged_ref_is_not_written(cache: RepoCache) -> None:
    """A ref is written only if it changes, so that a read-only cache is usable and readers see no new file."""
    cache.write_ref("main", COMMIT)
    ref = cache.folder / "refs" / "main"
    inode = ref.stat().st_ino
    cache.write_ref("main", COMMIT)
    assert ref.stat().st_ino == inode


def test_a_newline_is_ignored_and_removed(cache: RepoCache) -> None:
    """A ref that another tool ended with a newline is read, and then rewritten as the official client expects it."""
    ref = cache.folder / "refs" / "main"
    ref.parent.mkdir()
    ref.write_text(COMMIT + "\n")
    assert cache.commit_of("main") == COMMIT
    cache.write_ref("main", COMMIT)
    assert ref.read_bytes() == COMMIT.encode()


@pytest.mark.parametrize("content", [b"", b"main", b"\xff\xfe\x00", COMMIT[:39].encode(), COMMIT.upper().encode()])
def test_a_damaged_ref_is_no_ref(content: bytes, cache: RepoCache) -> None:
    """A ref that holds no commit counts as missing and is replaced."""
    ref = cache.folder / "refs" / "main"
    ref.parent.mkdir()
    ref.write_bytes(content)
    assert cache.commit_of("main") is None
    cache.write_ref("main", COMMIT)
    assert cache.commit_of("main") == COMMIT


def test_a_ref_that_can_t_be_written_is_no_error(cache: RepoCache) -> None:
    """If a ref can't be written, nothing is raised and no file is left."""
    (cache.folder / "refs").write_text("a file where the folder should be")
    cache.write_ref("main", COMMIT)
    (cache.folder / "refs").unlink()
    (cache.folder / "refs" / "main").mkdir(parents=True)
    cache.write_ref("main", COMMIT)
    assert os.listdir(cache.folder / "refs") == ["main"]
    assert cache.commit_of("main") is None


# -- links --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["config.json", "sub/dir/config.json"])
def test_a_link_is_relative(path: str, cache: RepoCache) -> None:
    """A link in a snapshot is relative, so that a cache can be moved."""
    cache.link(COMMIT, path, ETAG, fresh=True)
    pointer = cache.pointer(COMMIT, path)
    assert os.readlink(pointer) == "../" * (2 + path.count("/")) + f"blobs/{ETAG}"
    assert pointer.read_bytes() == b"content"
    assert cache.files(COMMIT) == {path: RepoFile(path, 7, ETAG)}
    moved = cache.root.rename(cache.root.with_name("moved"))
    assert (moved / pointer.relative_to(cache.root)).read_bytes() == b"content"


def test_a_good_link_is_left_alone(cache: RepoCache) -> None:
    """Linking again changes nothing."""
    cache.link(COMMIT, "config.json", ETAG, fresh=True)
    inode = cache.pointer(COMMIT, "config.json").lstat().st_ino
    cache.link(COMMIT, "config.json", ETAG, fresh=False)
    assert cache.pointer(COMMIT, "config.json").lstat().st_ino == inode


@pytest.mark.parametrize("stale", ["dangling", "file"])
def test_a_stale_entry_is_replaced(stale: str, cache: RepoCache) -> None:
    """A dangling link or a stale copy is replaced, and no temporary file is left."""
    pointer = cache.pointer(COMMIT, "config.json")
    pointer.symlink_to("../../blobs/gone") if stale == "dangling" else pointer.write_bytes(b"stale")
    assert cache.has(COMMIT, "config.json") is (stale == "file")
    cache.link(COMMIT, "config.json", ETAG, fresh=True)
    assert pointer.read_bytes() == b"content"
    assert names(cache.blobs) == [ETAG]


def test_a_dangling_link_is_a_missing_file(cache: RepoCache) -> None:
    """A link to a removed blob does not count as a file of the snapshot."""
    cache.link(COMMIT, "config.json", ETAG, fresh=True)
    cache.blob(ETAG).unlink()
    assert not cache.has(COMMIT, "config.json")
    assert cache.files(COMMIT) == {}


@pytest.mark.usefixtures("without_symlinks")
def test_without_symlinks_a_fresh_blob_is_moved_and_an_older_one_copied(cache: RepoCache) -> None:
    """As the official client does, a fresh blob is moved into the snapshot and an older one copied."""
    cache.link(COMMIT, "old.json", ETAG, fresh=False)
    assert names(cache.blobs) == [ETAG]
    cache.link(COMMIT, "new.json", ETAG, fresh=True)
    assert names(cache.blobs) == []
    for name in ("old.json", "new.json"):
        assert not cache.pointer(COMMIT, name).is_symlink()
        assert cache.pointer(COMMIT, name).read_bytes() == b"content"


@pytest.mark.usefixtures("without_symlinks")
def test_without_symlinks_a_blob_that_another_load_has_just_moved(cache: RepoCache) -> None:
    """If the blob is already at the place to link it to, nothing is raised; if it is nowhere, that is an error."""
    cache.link(COMMIT, "config.json", ETAG, fresh=True)
    cache.link(COMMIT, "config.json", ETAG, fresh=False)
    with pytest.raises(CacheAccessError):
        cache.link(COMMIT, "other.json", ETAG, fresh=False)
    assert names(cache.blobs) == []
    assert not cache.has(COMMIT, "other.json")


def test_a_shared_blob_is_linked_through_and_never_written(cache: RepoCache, tmp_path: Path) -> None:
    """A blob that is a link into the official shared store keeps its name, its target and its mode."""
    store = cache.root / "blobs" / "cc"
    store.mkdir(parents=True)
    payload = store / "payload"
    payload.write_bytes(b"shared")
    payload.chmod(0o444)
    cache.blob(ETAG).unlink()
    cache.blob(ETAG).symlink_to(os.path.relpath(payload, cache.blobs))
    cache.link(COMMIT, "model.safetensors", ETAG, fresh=False)
    assert cache.pointer(COMMIT, "model.safetensors").read_bytes() == b"shared"
    assert cache.files(COMMIT) == {"model.safetensors": RepoFile("model.safetensors", 6, ETAG)}
    assert os.readlink(cache.blob(ETAG)) == os.path.relpath(payload, cache.blobs)
    assert payload.stat().st_mode & 0o777 == 0o444


def test_a_link_that_can_t_be_made_is_a_cache_access_error(cache: RepoCache) -> None:
    """A file in the place of a folder is a CacheAccessError that names it."""
    cache.pointer(COMMIT, "sub").write_text("")
    with pytest.raises(CacheAccessError, match="sub"):
        cache.link(COMMIT, "sub/config.json", ETAG, fresh=True)


# -- the official listing -----------------------------------------------------------------------------------


def write_tree(cache: RepoCache, content: object) -> None:
    tree = cache.folder / "trees" / f"{COMMIT}.json"
    tree.parent.mkdir(exist_ok=True)
    tree.write_text(content if isinstance(content, str) else json.dumps(content))


def test_the_official_listing_is_read(cache: RepoCache) -> None:
    """Sizes and etags are those of the content: for LFS files sha256 and size, never those of the pointer file."""
    files = {
        "config.json": {"size": 3, "blob_id": "d" * 40},
        "model.safetensors": {"size": 135, "blob_id": "e" * 40, "lfs_sha256": ETAG, "lfs_size": 9000},
    }
    write_tree(cache, {"format_version": 1, "files": files})
    assert cache.tree(COMMIT) == {
        "config.json": RepoFile("config.json", 3, "d" * 40),
        "model.safetensors": RepoFile("model.safetensors", 9000, ETAG),
    }
    assert cache.tree(OTHER) is None


_DAMAGED_LISTINGS: list[object] = [[], {"a": None}, {"a": {}}, {"a": {"size": 1}}]


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "3", {"files": {}}, {"format_version": 2, "files": {}}, {"format_version": 1}]
    + [{"format_version": 1, "files": files} for files in _DAMAGED_LISTINGS],
)
def test_a_listing_of_another_format_is_not_used(content: object, cache: RepoCache) -> None:
    """A damaged listing, or one of a later format, counts as missing."""
    write_tree(cache, content)
    assert cache.tree(COMMIT) is None


# -- folders ------------------------------------------------------------------------------------------------


def test_reading_creates_nothing(tmp_path: Path) -> None:
    """Reading a cache that does not exist makes no folder."""
    cache = RepoCache(tmp_path / "cache", "org/name")
    assert cache.commit_of("main") is None
    assert cache.files(COMMIT) == {}
    assert not cache.has(COMMIT, "config.json")
    assert cache.tree(COMMIT) is None
    assert os.listdir(tmp_path) == []


def test_preparing_twice_changes_nothing(cache: RepoCache) -> None:
    """The folders and the cache tag are made once; an existing tag is not overwritten."""
    (cache.root / "CACHEDIR.TAG").write_text("theirs")
    cache.prepare(COMMIT)
    assert (cache.root / "CACHEDIR.TAG").read_text() == "theirs"
    assert cache.snapshot(COMMIT).is_dir()


# -- what others may have put there -------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["snapshots", "snapshots/commit", "snapshots/commit/sub"])
def test_a_linked_folder_is_not_written_into(folder: str, cache: RepoCache, tmp_path: Path) -> None:
    """What is linked into a snapshot stays in the cache, wherever a link would lead."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = cache.folder / folder.replace("commit", COMMIT)
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(elsewhere)
    cache.blob("etag").write_bytes(b"x")
    with pytest.raises(CacheAccessError, match="link to another folder") as caught:
        cache.link(COMMIT, "sub/file", "etag", fresh=True)
    assert caught.value.path == str(path)
    if folder != "snapshots/commit/sub":
        with pytest.raises(CacheAccessError, match="link to another folder"):
            cache.prepare(COMMIT)
    assert not [file for file in elsewhere.rglob("*") if not file.is_dir()]


def test_refs_that_lead_elsewhere_are_not_written(cache: RepoCache, tmp_path: Path) -> None:
    """A ref is kept in the cache or not at all."""
    (tmp_path / "elsewhere").mkdir()
    (cache.folder / "refs").symlink_to(tmp_path / "elsewhere")
    cache.write_ref("main", COMMIT)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_fifo_is_no_file(cache: RepoCache) -> None:
    """A FIFO in the place of a ref, a listing, a file or a blob counts as missing, and nothing waits for it."""
    cache.prepare(COMMIT)
    for path in (cache.folder / "refs" / "main", cache.folder / "trees" / f"{COMMIT}.json", cache.pointer(COMMIT, "x")):
        path.parent.mkdir(exist_ok=True)
        os.mkfifo(path)
    assert cache.commit_of("main") is None
    assert cache.tree(COMMIT) is None
    assert not cache.has(COMMIT, "x")
    assert cache.files(COMMIT) == {}
    cache.write_ref("main", COMMIT)
    assert cache.commit_of("main") == COMMIT

"""Tests of the cache shared with the official client, in both directions, with and without symlinks."""

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download
from huggingface_hub.utils._shared_blobs import publish_blob_to_shared_store, shared_blob_target

from tests.loader.conftest import Put
from tests.support.faults import EditJson, Redirect, Stall
from tests.support.hub import HubServer
from tests.support.programs import require_program
from yaie_async import CacheAccessError, Hub, ModelLoader, OfflineError

NO_NETWORK = "http://127.0.0.1:9"


def fetch(url: str, cache: Path, model: str = "org/big", **options: Any) -> Path:
    return anyio.run(ModelLoader(model, endpoint=url, cache_dir=cache, **options).prefetch)


def child(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    return done.stdout


def official(hub: HubServer, cache: Path, **environment: str) -> None:
    child(
        "from huggingface_hub import snapshot_download\n"
        f"snapshot_download('org/big', endpoint={hub.url!r}, cache_dir={str(cache)!r})",
        **environment,
    )


def ours(hub: HubServer, cache: Path, **environment: str) -> None:
    child(
        "import anyio; from yaie_async import ModelLoader\n"
        f"anyio.run(ModelLoader('org/big', endpoint={hub.url!r}, cache_dir={str(cache)!r}).prefetch)",
        **environment,
    )


def layout(cache: Path) -> dict[str, tuple[str, str]]:
    """Return every file and folder with its mode and, for a link, its target."""
    found = {}
    for folder, folders, files in os.walk(cache):
        for name in folders + files:
            path = Path(folder, name)
            kind = os.readlink(path) if path.is_symlink() else ""
            found[path.relative_to(cache).as_posix()] = (oct(stat.S_IMODE(path.lstat().st_mode)), kind)
    return found


@pytest.mark.parametrize("umask", ["022", "077", "002"])
@pytest.mark.parametrize("symlinks", ["0", "1"])
def test_we_write_what_the_official_client_writes(
    umask: str, symlinks: str, hub: HubServer, put_fake: Put, tmp_path: Path
) -> None:
    """Names, links, modes and bytes equal the official client's, except for its listing."""
    put_fake("org/big", 5 << 20)
    before = os.umask(int(umask, 8))
    try:
        official(hub, tmp_path / "theirs", HF_HUB_DISABLE_SYMLINKS=symlinks)
        ours(hub, tmp_path / "ours", HF_HUB_DISABLE_SYMLINKS=symlinks)
    finally:
        os.umask(before)
    theirs, mine = layout(tmp_path / "theirs"), layout(tmp_path / "ours")
    theirs = {path: told for path, told in theirs.items() if "/trees" not in path}
    assert mine == theirs
    for path in mine:
        one, other = tmp_path / "ours" / path, tmp_path / "theirs" / path
        if one.is_file():
            assert one.read_bytes() == other.read_bytes(), path


@pytest.mark.parametrize("symlinks", ["0", "1"])
def test_the_official_client_takes_what_we_wrote(symlinks: str, hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """The official client finds our snapshot complete, online (without a download) and offline."""
    put_fake("org/big")
    ours(hub, tmp_path, HF_HUB_DISABLE_SYMLINKS=symlinks)
    hub.clear()
    found = Path(snapshot_download("org/big", endpoint=hub.url, cache_dir=tmp_path))
    assert not [line for line in hub.lines if line.startswith(("GET /org/", "GET /cdn/"))]
    assert (found / "model.safetensors").stat().st_size == 9 << 20
    hub.clear()
    again = snapshot_download("org/big", endpoint=hub.url, cache_dir=tmp_path, local_files_only=True)
    one = hf_hub_download("org/big", "config.json", endpoint=hub.url, cache_dir=tmp_path, local_files_only=True)
    assert Path(one).parent == Path(again) == found
    assert not hub.requests


@pytest.mark.parametrize("symlinks", ["0", "1"])
def test_we_take_what_the_official_client_wrote(symlinks: str, hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """We load the official client's snapshot with one small request by branch, and none by commit or offline."""
    put_fake("org/big")
    official(hub, tmp_path, HF_HUB_DISABLE_SYMLINKS=symlinks)
    hub.clear()
    found = fetch(hub.url, tmp_path)
    assert [(request.path, request.query) for request in hub.requests] == [
        ("/api/models/org/big/revision/main", {"expand": "sha"})
    ]
    hub.clear()
    assert fetch(hub.url, tmp_path, revision=found.name) == found
    assert fetch(NO_NETWORK, tmp_path, local_files_only=True) == found
    assert not hub.requests


def test_a_cache_that_the_official_client_half_filled_is_completed(
    hub: HubServer, put_fake: Put, tmp_path: Path
) -> None:
    """Its single files are kept and the rest is fetched; offline the error names the missing files."""
    put_fake("org/big")
    hf_hub_download("org/big", "config.json", endpoint=hub.url, cache_dir=tmp_path)
    with pytest.raises(OfflineError, match="yaie-async prefetch org/big"):
        fetch(hub.url, tmp_path, local_files_only=True)
    hub.clear()
    found = fetch(hub.url, tmp_path)
    assert (found / "tokenizer_config.json").exists()
    assert not [line for line in hub.lines if line.endswith("config.json") and "tokenizer" not in line]


def test_the_cache_tools_find_nothing_wrong(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """The scan, `hf cache verify`, `hf cache ls` and `hf cache prune` accept our cache."""
    put_fake("org/big")
    cache = tmp_path / "cache"
    found = fetch(hub.url, cache)
    scanned = scan_cache_dir(cache)
    assert not scanned.warnings
    (repo,) = scanned.repos
    assert repo.repo_id == "org/big"
    assert {revision.commit_hash for revision in repo.revisions} == {found.name}
    assert repo.refs.keys() == {"main"}
    hf = [sys.executable, "-c", "from huggingface_hub.cli.hf import main; main()"]
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache)}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [*hf, "cache", *arguments], capture_output=True, text=True, timeout=60, env=environment, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "org/big" in run("verify", "org/big")
    assert "org/big" in run("ls")
    run("prune", "--yes")
    assert fetch(NO_NETWORK, cache, local_files_only=True) == found


def test_a_ref_is_forty_hex_digits_and_a_commit_gets_none(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """refs/main has 40 hex digits without a newline, and a load by commit writes no ref."""
    put_fake("org/big")
    found = fetch(hub.url, tmp_path / "one")
    assert (tmp_path / "one/models--org--big/refs/main").read_bytes() == found.name.encode()
    fetch(hub.url, tmp_path / "two", revision=found.name)
    assert not (tmp_path / "two/models--org--big/refs").exists()


def test_revisions_with_slashes(put_fake: Put, hub: HubServer, tmp_path: Path) -> None:
    """refs/pr/1 is one segment in the URL, and nested folders in the cache."""
    put_fake("org/big")
    first = fetch(hub.url, tmp_path / "cache")
    (tmp_path / "cache/models--org--big/refs/refs/pr").mkdir(parents=True)
    (tmp_path / "cache/models--org--big/refs/refs/pr/1").write_text(first.name)
    with HubServer(tmp_path / "cache") as other:
        found = fetch(other.url, tmp_path / "mine", revision="refs/pr/1")
        assert found.name == first.name
        assert (tmp_path / "mine/models--org--big/refs/refs/pr/1").read_text() == first.name


def test_a_corrupt_blob_is_never_linked(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """An existing blob with a wrong byte is fetched again into another inode."""
    directory = put_fake("org/big")
    snapshot = fetch(hub.url, tmp_path)
    blob = (snapshot / "model.safetensors").resolve()
    inode = blob.stat().st_ino
    content = bytearray(blob.read_bytes())
    content[4096] ^= 1
    blob.write_bytes(content)
    (snapshot / "model.safetensors").unlink()
    fetch(hub.url, tmp_path)
    assert blob.read_bytes() == (directory / "model.safetensors").read_bytes()
    assert blob.stat().st_ino != inode


def test_a_blob_in_the_shared_store_is_used_and_never_written(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """A blob that links into the official shared store is used; a damaged one is replaced by a private copy."""
    directory = put_fake("org/big", 1 << 20)
    cache = tmp_path / "cache"
    snapshot = fetch(hub.url, cache)
    blob = (snapshot / "model.safetensors").resolve()
    store = cache / "blobs" / "ab"
    store.mkdir(parents=True)
    (cache / "blobs" / ".huggingface-shared-blobs").write_text("1\n")
    payload = blob.rename(store / ("ab" * 32))
    payload.chmod(0o444)
    blob.symlink_to(os.path.relpath(payload, blob.parent))
    (snapshot / "model.safetensors").unlink()
    hub.clear()
    fetch(hub.url, cache)
    assert not [line for line in hub.lines if line.startswith("GET /cdn/")]
    assert blob.is_symlink()
    assert not scan_cache_dir(cache).warnings
    payload.chmod(0o644)
    payload.write_bytes(bytes(1 << 20))
    (snapshot / "model.safetensors").unlink()
    fetch(hub.url, cache)
    assert not blob.is_symlink()
    assert blob.read_bytes() == (directory / "model.safetensors").read_bytes()
    assert payload.read_bytes() == bytes(1 << 20)


@pytest.mark.parametrize("symlinks", ["0", "1"])
def test_files_of_equal_content_and_empty_ones(symlinks: str, hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """Files of equal content share one blob, and an empty file needs no request."""
    directory = put_fake("org/big")
    (directory / "vocab.json").write_text("same")
    (directory / "vocab.txt").write_text("same")
    (directory / "merges.txt").write_text("")
    ours(hub, tmp_path, HF_HUB_DISABLE_SYMLINKS=symlinks)
    snapshot = fetch(NO_NETWORK, tmp_path, local_files_only=True)
    assert (snapshot / "vocab.json").read_text() == (snapshot / "vocab.txt").read_text() == "same"
    assert (snapshot / "merges.txt").read_bytes() == b""
    assert not [line for line in hub.lines if "merges" in line]
    assert len([line for line in hub.lines if "/vocab." in line]) == 1


def test_a_renamed_model_is_cached_under_the_name_asked_for(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """A 307 to the new name is followed for metadata and files; the cache folder has the requested name."""
    put_fake("org/new")
    commit = fetch(hub.url, tmp_path / "new", "org/new").name
    hub.faults.add(Redirect("/api/models/org/new/revision/main?blobs=true", status=307), path="^/api/models/org/old")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        where = f"/org/new/resolve/{commit}/{name}"
        hub.faults.add(Redirect(where, status=307), path=f"^/org/old/resolve/.*/{name}$", times=None)
    found = fetch(hub.url, tmp_path / "old", "org/old")
    assert found == tmp_path / "old/models--org--old/snapshots" / commit
    assert (found / "model.safetensors").stat().st_size == 9 << 20


def test_a_read_only_cache_still_loads_what_it_has(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """A complete snapshot in a read-only cache loads; for an incomplete one the error names the folder."""
    put_fake("org/big")
    put_fake("org/other")
    cache = tmp_path / "cache"
    found = fetch(hub.url, cache)
    with read_only(cache):
        assert fetch(hub.url, cache) == found
        assert fetch(NO_NETWORK, cache, local_files_only=True) == found
        with pytest.raises(CacheAccessError, match="can't be written") as caught:
            fetch(hub.url, cache, "org/other")
        assert caught.value.errno == errno.EROFS
    assert fetch(hub.url, cache, "org/other").exists()


@pytest.mark.parametrize("moved_on", [False, True])
def test_a_read_only_cache_that_is_enough_for_the_load(
    moved_on: bool, hub: HubServer, put_fake: Put, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What the Hub has beyond what is cached, a small file or a later commit, stops no load, and is named."""
    directory, cache = put_fake("org/big", 1 << 20), tmp_path / "cache"
    (directory / "special_tokens_map.json").write_text("{ }")
    found = snapshot_download(
        "org/big", endpoint=hub.url, cache_dir=cache, ignore_patterns=None if moved_on else "special*"
    )
    if moved_on:
        (directory / "README.md").write_text("a new commit")
        (directory / "model.safetensors").write_bytes(bytes(1 << 20))
    with read_only(cache):
        loader = ModelLoader("org/big", endpoint=hub.url, cache_dir=cache)
        assert anyio.run(loader.prefetch) == Path(found)
        assert loader.commit == Path(found).name
        (record,) = (record for record in caplog.records if record.levelname == "WARNING")
        assert "can't be written, so" in record.getMessage()
        assert ("without special_tokens_map.json" in record.getMessage()) is not moved_on
        if not moved_on:

            async def choose() -> None:
                async with Hub(endpoint=hub.url, cache_dir=cache) as opened:
                    await opened.prefetch("org/big", include="special*")

            with pytest.raises(CacheAccessError, match="can't be written"):
                anyio.run(choose)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Mount a folder over itself read-only, since modes do not stop root."""
    mount = require_program("mount", "mount")
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    try:
        subprocess.run([mount, "--bind", folder, folder], check=True, capture_output=True)
        subprocess.run([mount, "-o", "remount,ro,bind", folder], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"mounting is not permitted here: {error.stderr.decode()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("symlinks", ["0", "1"])
def test_a_kill_between_any_two_links_leaves_nothing_that_looks_whole(
    symlinks: str, hub: HubServer, put_fake: Put, tmp_path: Path
) -> None:
    """After a kill right before the nth link or move, the snapshot is refused offline, except after the last."""
    directory = put_fake("org/big", 1 << 20)
    (directory / "special_tokens_map.json").write_text("{ }")
    code = (
        "import os, signal, sys, anyio\n"
        "from yaie_async import ModelLoader\n"
        "left = int(sys.argv[1])\n"
        "def hook(event, arguments):\n"
        "    global left\n"
        "    if event in ('os.symlink', 'os.rename') and '/snapshots/' in os.fspath(arguments[1]):\n"
        "        if left == 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        left -= 1\n"
        "sys.addaudithook(hook)\n"
        "anyio.run(ModelLoader('org/big', endpoint=sys.argv[2], cache_dir=sys.argv[3]).prefetch)\n"
    )
    links = len(list(directory.iterdir()))
    probed = 0
    for count in range(20):
        cache = tmp_path / str(count)
        done = subprocess.run(
            [sys.executable, "-c", code, str(count), hub.url, str(cache)],
            check=False,
            timeout=60,
            capture_output=True,
            env={**os.environ, "HF_HUB_DISABLE_SYMLINKS": symlinks},
        )
        if done.returncode == 0:
            break
        probed += 1
        with pytest.raises(OfflineError):
            fetch(NO_NETWORK, cache, local_files_only=True)
        assert (fetch(hub.url, cache) / "config.json").exists()
        assert not list(cache.rglob("*.incomplete"))
    assert probed >= links


def test_config_json_is_the_last_link(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """Links are made in order: small files, tokenizer_config.json, weights, config.json."""
    directory = put_fake("org/big", 1 << 20)
    (directory / "vocab.json").write_text("{ }")
    code = (
        "import os, sys, anyio\n"
        "from yaie_async import ModelLoader\n"
        "def hook(event, arguments):\n"
        "    if event == 'os.symlink': print(os.path.basename(arguments[1]))\n"
        "sys.addaudithook(hook)\n"
        f"anyio.run(ModelLoader('org/big', endpoint={hub.url!r}, cache_dir={str(tmp_path / 'cache')!r}).prefetch)\n"
    )
    # The official client tests twice whether symlinks work.
    linked = [name for name in child(code).split() if not name.startswith("dummy")]
    assert sorted(linked[:2]) == ["tokenizer.json", "vocab.json"]
    assert linked[2:] == ["tokenizer_config.json", "model.safetensors", "config.json"]


def test_no_foreign_names(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """Even during a download the official client's scan reports no warnings."""
    put_fake("org/big")
    cache = tmp_path / "cache"
    stall = Stall(1000)
    hub.faults.add(stall, path="^/cdn/")

    async def main() -> None:
        async with anyio.create_task_group() as group, Hub(endpoint=hub.url, cache_dir=cache) as opened:
            group.start_soon(opened.prefetch, "org/big")
            await hub.until(lambda: any(request.fault for request in hub.requests))
            assert not scan_cache_dir(cache).warnings
            assert {path.name for path in cache.iterdir()} <= {"CACHEDIR.TAG", ".locks", "models--org--big"}
            stall.gate.open()

    anyio.run(main)


def test_the_official_listing_decides_offline(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """By the official client's listing a missing tokenizer file is detected offline."""
    put_fake("org/big")
    official(hub, tmp_path)
    (trees,) = (tmp_path / "models--org--big/trees").iterdir()
    assert "tokenizer.json" in json.loads(trees.read_bytes())["files"]
    (tmp_path / f"models--org--big/snapshots/{trees.stem}/tokenizer.json").unlink()
    with pytest.raises(OfflineError):
        fetch(NO_NETWORK, tmp_path, local_files_only=True)


def test_a_cache_that_can_t_be_made_is_an_error_of_ours(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """A file in place of the cache folder is a LoaderError that names it."""
    put_fake("org/big")
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheAccessError, match="file"):
        fetch(hub.url, tmp_path / "file")


# -- the official client's shared store ---------------------------------------------------------------------

XET = "ab" * 32


@pytest.fixture
def shared(hub: HubServer, put_fake: Put, tmp_path: Path) -> Path:
    """The file of the store that has the weights of a copy of `org/big`, put there by the official client."""
    directory, cache = put_fake("org/big", 1 << 20), tmp_path / "cache"
    shutil.copytree(directory, hub.root / "org" / "copy")
    found = Path(snapshot_download("org/copy", endpoint=hub.url, cache_dir=cache), "model.safetensors")
    blob = str(found.parent / found.readlink())
    assert publish_blob_to_shared_store(blob_path=blob, xet_hash=XET, cache_dir=cache, expected_size=1 << 20)

    def add_hash(entries: Any) -> None:
        for entry in entries:
            entry |= {"xetHash": XET} if entry["path"] == "model.safetensors" else {}

    hub.clear()
    hub.faults.add(EditJson(add_hash), path="/tree/", times=None)
    return cache / "blobs" / "ab" / XET


def test_a_file_that_another_repository_has_is_linked(shared: Path, hub: HubServer, tmp_path: Path) -> None:
    """It is not fetched again, and the official client knows of the new link."""
    cache = tmp_path / "cache"
    weights = fetch(hub.url, cache) / "model.safetensors"
    assert weights.resolve() == shared
    assert weights.read_bytes() == (hub.root / "org/big/model.safetensors").read_bytes()
    assert not [request for request in hub.requests if request.path.startswith("/cdn/")]
    blob = weights.parent / weights.readlink()
    assert os.path.relpath(blob, cache) in shared.with_name(f"{XET}.refs").read_text().splitlines()
    assert shared_blob_target(Path(os.path.normpath(blob)), cache) == shared
    scanned = scan_cache_dir(cache)
    assert not scanned.warnings
    (big,) = [repo for repo in scanned.repos if repo.repo_id == "org/big"]
    (revision,) = big.revisions
    scanned.delete_revisions(revision.commit_hash).execute()
    assert shared.exists(), "the copy still uses it"


@pytest.mark.parametrize("damage", ["refs that block", "a flipped bit", "another size", "a link", "switched off"])
def test_a_shared_file_that_is_not_right_is_not_linked(
    damage: str, shared: Path, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes are hashed first; what is not right is fetched, and left as it is."""
    content = bytearray(shared.read_bytes())
    shared.chmod(0o644)
    if damage == "refs that block":
        shared.with_name(f"{XET}.refs").unlink()
        os.mkfifo(shared.with_name(f"{XET}.refs"))
    elif damage == "a flipped bit":
        content[7] ^= 1
        shared.write_bytes(content)
    elif damage == "another size":
        shared.write_bytes(content[:-1])
    elif damage == "a link":
        shared.rename(tmp_path / "elsewhere")
        shared.symlink_to(tmp_path / "elsewhere")
    else:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_SHARED_BLOBS", True)
    before = shared.read_bytes()
    weights = fetch(hub.url, tmp_path / "cache") / "model.safetensors"
    assert weights.read_bytes() == (hub.root / "org/big/model.safetensors").read_bytes()
    assert weights.resolve().parent.name == "blobs"
    assert shared.read_bytes() == before

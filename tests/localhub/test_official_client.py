"""Tests of the protocol with the unchanged official client."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile, RepoFolder

from tests.localhub.conftest import CONFIG, WEIGHTS
from tests.support.hub import HubServer

FILES = {
    ".gitattributes",
    "config.json",
    "empty.txt",
    "model.safetensors",
    "sub/dir/vocab.txt",
    "sub/with space #1?.json",
}
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@pytest.fixture
def api(hub: HubServer) -> HfApi:
    return HfApi(hub.url, token=False)


def test_a_snapshot_is_the_directory(hub: HubServer, tmp_path: Path) -> None:
    """`snapshot_download` fetches every file, names blobs by digest, verifies them, and repeats with one request."""
    cache = tmp_path / "cache"
    snapshot = Path(snapshot_download("org/name", endpoint=hub.url, cache_dir=cache, token=False))
    source = hub.root / "org" / "name"
    found = {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()}
    assert found == FILES
    assert all((snapshot / name).read_bytes() == (source / name).read_bytes() for name in FILES)
    blobs = {path.name for path in (cache / "models--org--name" / "blobs").iterdir()}
    assert {SHA256, git_id(CONFIG)} <= blobs
    assert (cache / "models--org--name" / "refs" / "main").read_text() == snapshot.name

    assert HfApi(hub.url).verify_repo_checksums("org/name", cache_dir=cache).checked_count == len(FILES)
    hub.clear()
    assert snapshot == Path(snapshot_download("org/name", endpoint=hub.url, cache_dir=cache, token=False))
    assert hub.lines == ["GET /api/models/org/name/revision/main"]


def test_files_of_lfs_come_from_the_cdn_without_the_token(hub: HubServer, tmp_path: Path) -> None:
    """An LFS file is redirected to the CDN, which never receives the token; a small file is served in place."""
    for name in ("model.safetensors", "config.json"):
        hf_hub_download("org/name", name, endpoint=hub.url, cache_dir=tmp_path / "cache", token="secret")
    body, config = (request for request in hub.requests if request.method == "GET")
    assert body.path.startswith("/cdn/org/name/")
    assert body.path.endswith("/model.safetensors")
    assert f"http://{body.host}" == hub.cdn_url
    assert body.authorization is None
    assert config.path.endswith("/config.json")
    assert f"http://{config.host}" == hub.url
    assert config.authorization == "Bearer secret"


def test_without_a_cdn_files_of_lfs_are_served_in_place(hub_root: Path, tmp_path: Path) -> None:
    """Without a CDN an LFS file is served in place."""
    with HubServer(hub_root, cdn=False) as hub:
        path = hf_hub_download("org/name", "model.safetensors", endpoint=hub.url, cache_dir=tmp_path / "cache")
        assert Path(path).read_bytes() == WEIGHTS
        assert Path(path).resolve().name == SHA256
        assert [request.status for request in hub.requests] == [200, 200]


def test_model_info_tells_sizes_and_digests_when_asked(api: HfApi) -> None:
    """With `files_metadata` the listing has git ids, sizes and sha256, without it only names."""
    bare = api.model_info("org/name")
    assert bare.siblings is not None
    assert {sibling.rfilename for sibling in bare.siblings} == FILES
    assert {sibling.size for sibling in bare.siblings} == {None}
    full = api.model_info("org/name", files_metadata=True, revision=bare.sha)
    assert full.sha == bare.sha
    assert full.siblings is not None
    files = {sibling.rfilename: sibling for sibling in full.siblings}
    assert (files["config.json"].size, files["config.json"].blob_id) == (len(CONFIG), git_id(CONFIG))
    weights = files["model.safetensors"]
    assert weights.lfs is not None
    assert (weights.lfs.sha256, weights.lfs.size, weights.size) == (SHA256, len(WEIGHTS), len(WEIGHTS))
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{SHA256}\nsize {len(WEIGHTS)}\n"
    assert (weights.blob_id, weights.lfs.pointer_size) == (git_id(pointer.encode()), len(pointer))


def test_expand_tells_what_is_asked_for(api: HfApi) -> None:
    """`expand=["sha"]` returns the commit without a listing."""
    info = api.model_info("org/name", expand=["sha"])
    assert info.sha == api.model_info("org/name").sha
    assert info.siblings is None


def test_a_model_at_the_top_has_one_segment(api: HfApi) -> None:
    """A model directly under the root has a name of one segment, and its folders are not models."""
    assert api.model_info("gpt2").id == "gpt2"
    assert api.repo_exists("gpt2")
    for missing in ("gpt2/onnx", "org", "org/other", "name"):
        assert not api.repo_exists(missing)


@pytest.mark.parametrize("page_size", [1, 3, 1000])
def test_a_tree_comes_in_pages(hub_root: Path, page_size: int) -> None:
    """A recursive tree lists every file and folder once, with any page size."""
    with HubServer(hub_root, page_size=page_size) as hub:
        entries = list(HfApi(hub.url).list_repo_tree("org/name", recursive=True))
        assert len(hub.requests) == -(-8 // page_size)
    assert len(entries) == 8
    assert {entry.path for entry in entries if isinstance(entry, RepoFile)} == FILES
    assert {entry.path for entry in entries if isinstance(entry, RepoFolder)} == {"sub", "sub/dir"}


def test_a_tree_can_be_of_one_folder(api: HfApi) -> None:
    """The tree of a folder lists its direct entries; a missing folder is EntryNotFound."""
    paths = {entry.path for entry in api.list_repo_tree("org/name", "sub", expand=True)}
    assert paths == {"sub/dir", "sub/with space #1?.json"}
    assert {entry.path for entry in api.list_repo_tree("org/name", "sub/dir")} == {"sub/dir/vocab.txt"}
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree("org/name", "no"))


def test_paths_info_leaves_out_what_is_not_there(api: HfApi) -> None:
    """`get_paths_info` describes existing files and folders and omits the other paths."""
    config, folder = api.get_paths_info("org/name", ["config.json", "sub", "no", "../x"], expand=True)
    assert isinstance(config, RepoFile)
    assert (config.size, config.blob_id) == (len(CONFIG), git_id(CONFIG))
    assert config.last_commit is not None
    assert isinstance(folder, RepoFolder)


def test_what_is_not_there_is_told_apart(hub: HubServer, tmp_path: Path) -> None:
    """A missing model, revision and file each raise their own error."""

    def download(model: str, file: str, revision: str | None = None) -> None:
        hf_hub_download(model, file, revision=revision, endpoint=hub.url, cache_dir=tmp_path / "cache")

    with pytest.raises(RepositoryNotFoundError):
        download("org/other", "config.json")
    for revision in ("v1", "0" * 40, "refs/pr/1", "a\nb", "\N{SNOWMAN}"):
        with pytest.raises(RevisionNotFoundError):
            download("org/name", "config.json", revision)
    with pytest.raises(RemoteEntryNotFoundError):
        download("org/name", "no.json")
    # The client records the absence for the commit in the error response.
    (commit,) = (tmp_path / "cache" / "models--org--name" / ".no_exist").iterdir()
    assert commit.name == HfApi(hub.url).model_info("org/name").sha
    with pytest.raises(RevisionNotFoundError):
        HfApi(hub.url).model_info("org/name", revision="v1")


def test_a_changed_file_is_a_new_commit(api: HfApi, hub: HubServer) -> None:
    """Changing a file makes a new commit, and the old one is not found."""
    before = api.model_info("org/name", files_metadata=True)
    (hub.root / "org" / "name" / "config.json").write_bytes(b"{}")
    after = api.model_info("org/name", files_metadata=True)
    assert before.sha != after.sha
    assert git_id(b"{}") in {sibling.blob_id for sibling in after.siblings or ()}
    with pytest.raises(RevisionNotFoundError):
        api.model_info("org/name", revision=before.sha)


def test_tokens_are_needed_where_there_are_any(hub_root: Path) -> None:
    """If the hub has tokens, a model is found with one of them, and looks missing without."""
    with HubServer(hub_root, tokens=("good",)) as hub:
        assert HfApi(hub.url, token="good").whoami()["name"] == "local"
        assert HfApi(hub.url, token="good").model_info("gpt2").sha
        for api, model, status in (
            (HfApi(hub.url, token=False), "gpt2", 401),
            (HfApi(hub.url, token=False), "other", 401),
            (HfApi(hub.url, token="good"), "other", 404),
        ):
            with pytest.raises(RepositoryNotFoundError) as missing:
                api.model_info(model)
            assert missing.value.response.status_code == status
        with pytest.raises(HfHubHTTPError, match="Invalid credentials") as invalid:
            HfApi(hub.url, token="bad").model_info("gpt2")
        assert not isinstance(invalid.value, RepositoryNotFoundError)


def test_a_gate_guards_the_files(hub_root: Path, tmp_path: Path) -> None:
    """The files of a gated model need a token with access; its description does not."""
    with HubServer(hub_root, gated={"org/name": {"granted"}}) as hub:

        def download(token: str | bool) -> str:
            return hf_hub_download(
                "org/name", "config.json", endpoint=hub.url, cache_dir=tmp_path / str(token), token=token
            )

        assert HfApi(hub.url, token=False).model_info("org/name").gated == "manual"
        for token, status in ((False, 401), ("other", 403)):
            with pytest.raises(GatedRepoError) as gated:
                download(token)
            assert gated.value.response.status_code == status
        assert Path(download("granted")).read_bytes() == CONFIG


def test_an_hf_cache_is_a_hub(hub: HubServer, tmp_path: Path) -> None:
    """A cache filled by the official client is served with the same commit, blobs and branch."""
    first, second = tmp_path / "first", tmp_path / "second"
    commit = Path(snapshot_download("org/name", endpoint=hub.url, cache_dir=first)).name
    pull = first / "models--org--name" / "refs" / "refs" / "pr" / "1"
    pull.parent.mkdir(parents=True)
    pull.write_text(commit)
    with HubServer(first) as mirror:
        snapshot = Path(snapshot_download("org/name", revision="refs/pr/1", endpoint=mirror.url, cache_dir=second))
        assert HfApi(mirror.url).model_info("org/name").sha == commit
        for missing in ("gpt2", "org--name", "models--org--name"):
            # The official client would refuse to request such names.
            assert httpx.get(f"{mirror.url}/api/models/{missing}").headers["x-error-code"] == "RepoNotFound"
        for revision in ("refs/../main", "../snapshots", "0" * 40):
            with pytest.raises(RevisionNotFoundError):
                HfApi(mirror.url).model_info("org/name", revision=revision)
        # Raw, since a client's URL library would remove these dots.
        assert mirror.raw_get(b"/api/models/org/name/revision/%2e%2e") == 404
    assert snapshot.name == commit
    blobs = [{path.name for path in cache.glob("*/blobs/*")} for cache in (first, second)]
    assert blobs[0] == blobs[1]
    assert len(blobs[0]) == len(FILES)


@pytest.mark.parametrize("removed", ["", "snapshots/*/config.json"])
def test_a_snapshot_that_is_fetched_again_is_served_when_it_is_whole(
    hub: HubServer, tmp_path: Path, removed: str
) -> None:
    """Also where it was whole before: its repository was removed, or a file."""
    cache = tmp_path / "cache"
    commit = Path(snapshot_download("org/name", endpoint=hub.url, cache_dir=cache)).name
    with HubServer(cache) as mirror:
        urls = [f"{mirror.url}/api/models/org/name/revision/{commit}"]
        urls.append(f"{mirror.url}/org/name/resolve/{commit}/empty.txt")
        assert [httpx.get(url).status_code for url in urls] == [200, 200]
        if removed:
            [file] = (cache / "models--org--name").glob(removed)
            file.unlink()
        else:
            shutil.rmtree(cache / "models--org--name")
            snapshot_download("org/name", endpoint=hub.url, cache_dir=cache, allow_patterns="empty.txt")
        assert [httpx.get(url).headers.get("x-error-code") for url in urls] == ["RevisionNotFound"] * 2
        snapshot_download("org/name", endpoint=hub.url, cache_dir=cache)
        assert [httpx.get(url).status_code for url in urls] == [200, 200]


@pytest.mark.parametrize("absolute", [False, True])
def test_a_blob_in_the_shared_store_is_served(hub: HubServer, tmp_path: Path, absolute: bool) -> None:
    """Two links lead to it: snapshot, blob, store. Its etag is the blob's name, and all of it is in the cache."""
    first, second = tmp_path / "first", tmp_path / "second"
    snapshot = Path(snapshot_download("org/name", endpoint=hub.url, cache_dir=first))
    blob, stored = first / "models--org--name/blobs" / SHA256, first / "blobs/aa" / f"aa{SHA256[2:]}"
    stored.parent.mkdir(parents=True)
    blob.rename(stored)
    blob.symlink_to(stored if absolute else f"../../blobs/aa/{stored.name}")
    with HubServer(first) as mirror:
        assert httpx.head(f"{mirror.url}/org/name/resolve/{snapshot.name}/model.safetensors").headers["x-linked-etag"]
        again = Path(snapshot_download("org/name", endpoint=mirror.url, cache_dir=second))
    assert (again / "model.safetensors").read_bytes() == WEIGHTS
    assert (again / "model.safetensors").resolve().name == SHA256


def test_a_cache_without_links_is_a_hub(hub: HubServer, tmp_path: Path) -> None:
    """Files of a cache without symlinks are hashed, since there are no blob names."""
    cache = tmp_path / "cache"
    script = (
        "import sys; from huggingface_hub import snapshot_download;"
        "snapshot_download('org/name', endpoint=sys.argv[1], cache_dir=sys.argv[2])"
    )
    subprocess.run(
        [sys.executable, "-c", script, hub.url, str(cache)],
        check=True,
        capture_output=True,
        env={"HF_HUB_DISABLE_SYMLINKS": "1", "HF_HOME": str(tmp_path / "home")},
    )
    with HubServer(cache) as mirror:
        siblings = HfApi(mirror.url).model_info("org/name", files_metadata=True).siblings
    assert {s.lfs.sha256 for s in siblings or () if s.lfs} == {SHA256}
    assert git_id(CONFIG) in {sibling.blob_id for sibling in siblings or ()}

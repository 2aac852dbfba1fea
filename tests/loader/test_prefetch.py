"""Tests of Hub.prefetch: one plan for all models, names with revisions, and files chosen by patterns."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.loader.conftest import Put
from tests.support.faults import EditJson, Status
from tests.support.hub import HubServer
from yaie_async import (
    DiskFullError,
    Hub,
    InvalidArgumentError,
    ModelLoader,
    ModelNotFoundError,
    OfflineError,
    PrefetchError,
    Progress,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _on_each_loop(anyio_backend: Any) -> None:
    """Runs all tests of this module on asyncio, uvloop and trio."""


def bodies(hub: HubServer) -> list[str]:
    return [line for line in hub.lines if "/cdn/" in line or "/resolve/" in line]


def names(snapshot: Path) -> set[str]:
    return {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()}


async def test_the_disk_is_checked_for_all_together(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """Two models that only fit alone are refused with their sum, before any body is requested."""
    share = int(shutil.disk_usage(tmp_path).free * 0.6)

    def grow(info: dict[str, Any]) -> None:
        for sibling in info["siblings"]:
            if "lfs" in sibling:
                sibling["lfs"]["size"] = share

    for name in ("org/a", "org/b"):
        put_fake(name, 1000)
    hub.faults.add(EditJson(grow), path="^/api/models/org/[ab]/", times=None)
    async with Hub(endpoint=hub.url, cache_dir=tmp_path) as one:
        with pytest.raises(PrefetchError) as caught:
            await one.prefetch("org/a", "org/none", "org/b")
    failures = caught.value.failures
    assert [type(error) for error in failures.values()] == [DiskFullError, ModelNotFoundError, DiskFullError]
    full = failures["org/a"]
    assert isinstance(full, DiskFullError)
    assert 2 * share <= full.needed < 2 * share + 1000
    assert "Together" in str(full)
    assert failures["org/a"] is not failures["org/b"]
    assert not bodies(hub)


async def test_no_body_before_all_are_planned(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """While the listing of one model fails, no bodies are requested; then all models are fetched."""
    for name in ("org/a", "org/b"):
        put_fake(name, 1000)
    hub.faults.add(Status(503, {"Retry-After": "0.2"}), path="^/api/models/org/b", times=2)
    async with Hub(endpoint=hub.url, cache_dir=tmp_path) as one:
        assert set(await one.prefetch("org/a", "org/b")) == {"org/a", "org/b"}
    lines = hub.lines
    last_listing = max(number for number, line in enumerate(lines) if "/api/models/" in line)
    assert len([line for line in lines if "/api/models/org/b" in line]) == 3
    assert not [line for line in lines[:last_listing] if "/cdn/" in line or "/resolve/" in line]


async def test_both_names_with_revisions(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """`org/a`, `org/a@main` and revision="main" are one model, fetched and reported once; a commit is another."""
    put_fake("org/a", 1000)
    events: list[Progress] = []
    async with Hub(endpoint=hub.url, cache_dir=tmp_path, on_progress=events.append) as one:
        found = await one.prefetch("org/a@main", "org/a")
        commit = found["org/a"].name
        assert {event.model for event in events} == {"org/a@main"}
        assert len(bodies(hub)) == len(set(bodies(hub)))
        hub.clear()
        found |= await one.prefetch(f"org/a@{commit}", "org/a@main", revision="nonsense")
        assert not bodies(hub)
        with pytest.raises(PrefetchError) as caught:
            await one.prefetch("org/a", "org/a@main", "org/a@", revision="nonsense")
    assert list(found) == ["org/a@main", "org/a", f"org/a@{commit}"]
    assert len(set(found.values())) == 1
    assert [type(error).__name__ for error in caught.value.failures.values()] == [
        "RevisionNotFoundError",
        "InvalidArgumentError",
    ]
    assert list(caught.value.snapshots) == ["org/a@main"]


async def test_revisions_that_share_a_file(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """A file that two revisions share is sent once and linked in both snapshots."""
    directory = put_fake("org/a", 5 << 20)
    commits = []
    for text in ("{}", "{ }"):  # the cache holds both commits
        (directory / "generation_config.json").write_text(text)
        async with Hub(endpoint=hub.url, cache_dir=tmp_path / "served") as one:
            commits.append((await one.prefetch("org/a"))["org/a"].name)
    both_names = [f"org/a@{commit}" for commit in commits]
    with HubServer(tmp_path / "served") as both:
        async with Hub(endpoint=both.url, cache_dir=tmp_path / "mine") as one:
            found = await one.prefetch(*both_names)
        assert sum(request.sent for request in both.requests if request.path.startswith("/cdn/")) == 5 << 20
    assert [found[name].name for name in both_names] == commits
    (blob,) = {(snapshot / "model.safetensors").resolve() for snapshot in found.values()}
    assert blob.read_bytes() == (directory / "model.safetensors").read_bytes()


# -- files chosen by patterns -------------------------------------------------------------------------------


async def test_patterns_choose_as_the_official_client_does(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """Patterns choose among all files of the repository, exactly as the official client."""
    from huggingface_hub import snapshot_download

    directory = put_fake("org/a", 1000)
    (directory / "onnx").mkdir()
    for name in ("onnx/model.onnx", "onnx/x.json", "flax_model.msgpack", "README.md"):
        (directory / name).write_bytes(os.urandom(10))
    for number, (include, exclude) in enumerate(
        [("*.json", ()), (["onnx/", "*.md"], "*.json"), ((), ["*.safetensors", "onnx/"]), ("*", ())]
    ):
        ours, theirs = tmp_path / f"{number}", tmp_path / f"theirs{number}"
        async with Hub(endpoint=hub.url, cache_dir=ours) as one:
            snapshot = (await one.prefetch("org/a", include=include, exclude=exclude))["org/a"]

        def official(target: Path = theirs, allow: Any = include, ignore: Any = exclude) -> str:
            return snapshot_download(
                "org/a",
                endpoint=hub.url,
                cache_dir=target,
                allow_patterns=list(allow) if isinstance(allow, tuple) and allow else allow or None,
                ignore_patterns=list(ignore) if isinstance(ignore, tuple) and ignore else ignore or None,
            )

        from anyio import to_thread

        expected = Path(await to_thread.run_sync(official))
        assert names(snapshot) == names(expected)
        assert all((snapshot / name).read_bytes() == (directory / name).read_bytes() for name in names(snapshot))
        assert not list(ours.rglob("*.incomplete"))


@pytest.mark.parametrize("symlinks", [True, False])
async def test_a_choice_does_not_look_whole(
    symlinks: bool, hub: HubServer, put_fake: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot chosen by patterns is not complete: a later load fetches missing files, such as tokenizer.json.

    Offline, the same patterns find their files without a request.
    """
    if not symlinks:
        monkeypatch.setattr("yaie_async.store.cache.are_symlinks_supported", lambda *_: False)
    directory = put_fake("org/a", 1000)
    (directory / "vocab.json").write_text("{}")
    (directory / "merges.txt").write_text("{}")
    async with Hub(endpoint=hub.url, cache_dir=tmp_path) as one:
        snapshot = (await one.prefetch("org/a", exclude="tokenizer.json"))["org/a"]
        assert names(snapshot) == names(directory) - {"tokenizer.json"}
    offline = Hub(endpoint=hub.url, cache_dir=tmp_path, local_files_only=True)
    hub.clear()
    async with offline:
        assert await offline.prefetch("org/a", include=["*.json", "*.safetensors"]) == {"org/a": snapshot}
        with pytest.raises(OfflineError):
            await offline.prefetch("org/b", include="*.json")
    assert not hub.requests
    assert await ModelLoader("org/a", endpoint=hub.url, cache_dir=tmp_path).prefetch() == snapshot
    assert names(snapshot) == names(directory)


async def test_a_choice_leaves_a_whole_snapshot_whole(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """Fetching more files by patterns after a load does not make later loads request the listing."""
    directory = put_fake("org/a", 1000)
    (directory / "README.md").write_text("read me")
    async with Hub(endpoint=hub.url, cache_dir=tmp_path) as one:
        snapshot = (await one.prefetch("org/a"))["org/a"]
        await one.prefetch("org/a", include=["*.md", "*.json"])
        assert (snapshot / "README.md").exists()
        hub.clear()
        await one.prefetch(f"org/a@{snapshot.name}")
    assert not hub.requests


async def test_patterns_that_match_nothing(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """Patterns that match nothing are an error that lists the files, before any download."""
    put_fake("org/a", 1000)
    async with Hub(endpoint=hub.url, cache_dir=tmp_path) as one:
        with pytest.raises(InvalidArgumentError, match=r"No file of org/a matches \(include \*\.safetensor; .* It has"):
            await one.prefetch("org/a", include="*.safetensor")
    assert not bodies(hub)

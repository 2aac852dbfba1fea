"""Tests of `yaie-async verify`, which sends no request and changes nothing unless it is to repair."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.support.command import Command
from tests.support.faults import Stall, Status
from tests.support.hub import HubServer
from tests.support.waiting import wait_until
from yaie_async.cli import repair
from yaie_async.cli.options import LoadOptions
from yaie_async.cli.verify import verify


@pytest.fixture
def cached(command: Command, hub: HubServer) -> Command:
    """The command line with two cached models, and a cleared record of requests."""
    assert command.run("prefetch", "org/one", "org/two").code == 0
    hub.clear()
    return command


def blob_of(command: Command, model: str, file: str) -> Path:
    return next(command.cache.glob(f"models--{model.replace('/', '--')}/snapshots/*/{file}")).resolve()


def test_a_whole_cache(cached: Command, hub: HubServer) -> None:
    """All files of an intact cache are ok, without a request."""
    done = cached.run("verify", "--json")
    assert done.code == 0
    assert done.json["ok"] is True
    assert {model: found["ok"] for model, found in done.json["models"].items()} == {"org/one": 4, "org/two": 4}
    assert "All is well: 8 files" in cached.run("verify").out
    assert hub.requests == []


def test_a_flipped_byte_and_a_blob_that_is_gone(cached: Command, hub: HubServer) -> None:
    """A corrupt and a missing blob are reported with their files, nothing is deleted, and the advice repairs them."""
    corrupt = blob_of(cached, "org/one", "model.safetensors")
    content = bytearray(corrupt.read_bytes())
    content[1000] ^= 1
    corrupt.write_bytes(content)
    gone = blob_of(cached, "org/two", "tokenizer.json")
    gone.unlink()

    done = cached.run("verify", "--json")
    assert done.code == 1
    one, two = done.json["models"]["org/one"], done.json["models"]["org/two"]
    assert (one["ok"], one["corrupt"], two["ok"], two["missing"]) == (3, 1, 3, 1)
    assert one["bad"][0]["blob"] == str(corrupt)
    assert one["bad"][0]["files"][0].endswith("/model.safetensors")
    assert two["bad"][0]["status"] == "missing"
    assert corrupt.read_bytes() == content

    said = cached.run("verify", "org/one")
    assert said.code == 1
    assert str(corrupt) in said.out
    assert "yaie-async verify --repair org/one" in said.out
    assert hub.requests == []

    done = cached.run("verify", "--repair", "--json")
    assert (done.code, done.json["ok"], done.json["repair"]["left"]) == (0, True, [])
    files = sorted(name.split("/", 3)[3] for name in done.json["repair"]["fetched"])
    assert files == ["model.safetensors", "tokenizer.json"]
    bodies = [request.path for request in hub.requests if request.method == "GET" and "/resolve/" in request.path]
    assert all(path.endswith(("model.safetensors", "tokenizer.json")) for path in bodies), bodies
    assert cached.run("verify").code == 0


def test_a_repair_that_the_hub_fails(cached: Command, hub: HubServer) -> None:
    """What is damaged is removed, what is still missing is said, and the next repair ends it."""
    corrupt = blob_of(cached, "org/one", "tokenizer.json")
    corrupt.write_bytes(b"[]")
    hub.faults.add(Status(404), path="/resolve/", times=None)
    done = cached.run("verify", "--repair")
    assert done.code == 1
    assert not corrupt.exists()
    assert "ModelFileNotFoundError: " in done.out
    assert "Not all is repaired." in done.out
    hub.clear()
    done = cached.run("verify", "--repair")
    assert done.code == 0, done.out
    assert "fetched again: org/one/" in done.out
    assert "All is repaired." in done.out
    assert corrupt.read_bytes() == b"{}"


def test_a_repair_offline(cached: Command) -> None:
    """It is refused before anything is removed."""
    corrupt = blob_of(cached, "org/one", "tokenizer.json")
    corrupt.write_bytes(b"[]")
    cached.env["HF_HUB_OFFLINE"] = "1"
    assert cached.run("verify", "--repair", "--json").json["error"]["type"] == "OfflineError"
    assert corrupt.exists()


@pytest.fixture
def shared(cached: Command) -> Path:
    """A damaged file of the official client's shared store, to which blobs of both models and a dataset's are links."""
    blob = blob_of(cached, "org/one", "tokenizer.json")
    payload = cached.cache / "blobs" / "ab" / ("ab" * 32)
    payload.parent.mkdir(parents=True)
    (cached.cache / "blobs" / ".huggingface-shared-blobs").write_text("1\n")
    blob.rename(payload)
    other = blob_of(cached, "org/two", "tokenizer.json")
    assert other.name == blob.name
    other.unlink()
    third = cached.cache / "datasets--org--three" / "blobs" / "x"
    third.parent.mkdir(parents=True)
    for link in (blob, other, third):
        link.symlink_to(f"../../blobs/ab/{payload.name}")
    payload.write_bytes(b"[]")
    payload.chmod(0o444)
    return payload


def test_a_shared_file_is_not_touched_without_consent(cached: Command, shared: Path) -> None:
    """Only the repository's own link is replaced, by a file of its own; the others that use the file are named."""
    done = cached.run("verify", "--repair", "org/one")
    assert done.code == 1
    assert f"{shared} is still damaged (other repositories use it too: datasets/org/three, org/two)" in done.out
    assert shared.read_bytes() == b"[]"
    blob = blob_of(cached, "org/one", "tokenizer.json")
    assert (blob.parent.parent.name, blob.read_bytes()) == ("models--org--one", b"{}")
    assert cached.run("verify", "org/one").code == 0
    assert cached.run("verify", "org/two").code == 1


def test_a_shared_file_is_removed_with_consent(cached: Command, shared: Path) -> None:
    """All links to it are removed, and every model that used it gets the file again."""
    done = cached.run("verify", "--repair", "--yes", "org/one", "--json")
    assert done.code == 1
    assert done.json["repair"]["left"] == ["datasets/org/three has lost the file: fetch it again with its own client."]
    assert sorted(name.split("/")[1] for name in done.json["repair"]["fetched"]) == ["one", "two"]
    assert not shared.exists()
    assert not list(cached.cache.glob("datasets--org--three/blobs/*"))
    assert cached.run("verify").code == 0


def link_of(command: Command, model: str) -> Path:
    """The blob of a model that is a link to the shared file."""
    return next(blob for blob in command.cache.glob(f"models--org--{model}/blobs/*") if blob.is_symlink())


def lock_of(blob: Path) -> FileLock:
    """The lock of a blob that the official client holds while it writes one."""
    return FileLock(blob.parents[2] / ".locks" / blob.parents[1].name / f"{blob.name}.lock")


Verify = Callable[..., dict[str, Any]]


@pytest.fixture
def verify_here(cached: Command) -> Verify:
    """`verify` in this process, where a function answers questions; None only looks."""

    def run(*models: str, agrees: Callable[[str], bool] | None = lambda _: True) -> dict[str, Any]:
        options = LoadOptions(cached.cache, None, cached.endpoint, False, None, False, False)
        return verify([*models], options, agrees).document

    return run


@pytest.mark.parametrize("held", ["the blob's lock", "the store's lock"])
def test_what_another_process_is_at_work_on_is_left(
    cached: Command, shared: Path, verify_here: Verify, monkeypatch: pytest.MonkeyPatch, held: str
) -> None:
    """It is not waited for without end, and said; the next repair succeeds."""
    blob = link_of(cached, "one")
    lock = lock_of(blob) if held == "the blob's lock" else FileLock(f"{shared}.lock")
    monkeypatch.setattr(repair, "_PATIENCE", 0.01)
    with lock:
        (left,) = verify_here("org/one")["repair"]["left"]
        assert (
            left == f"{blob} was left as it is: another process is at work on it. Repair it again when that has ended."
        )
        assert blob.is_symlink()
        assert shared.exists()
    assert len(verify_here("org/one")["repair"]["fetched"]) == 2
    assert "error" not in verify_here(agrees=None)


def test_a_link_that_another_process_is_at_work_on_is_left(
    cached: Command, shared: Path, verify_here: Verify, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other model's file is missing then, which its own repair mends."""
    blob = link_of(cached, "two")
    monkeypatch.setattr(repair, "_PATIENCE", 0.01)
    with lock_of(blob):
        done = verify_here("org/one")["repair"]
        assert f"{blob} was left as it is" in done["left"][1]
        assert [name.split("/")[1] for name in done["fetched"]] == ["one"]
    assert verify_here("org/two")["repair"]["left"] == []
    assert "error" not in verify_here(agrees=None)


def test_what_another_process_has_repaired_meanwhile_is_kept(
    cached: Command, shared: Path, verify_here: Verify
) -> None:
    """Its digest is looked at again with its lock held."""
    blob = link_of(cached, "one")

    def repaired(question: str) -> bool:
        blob.unlink()
        blob.write_bytes(b"{}")
        os.utime(blob, (1, 1))
        return True

    verify_here("org/one", agrees=repaired)
    assert blob.stat().st_mtime == 1
    assert not shared.exists()
    assert "error" not in verify_here(agrees=None)


@pytest.mark.parametrize("killed", ["after the shared file", "after all links"])
def test_a_repair_that_is_killed(
    cached: Command, hub: HubServer, shared: Path, verify_here: Verify, killed: str
) -> None:
    """What is gone then is missing, by name, in each model that used it; repairs and loads fetch it again."""
    if killed == "after the shared file":
        shared.unlink()
    else:
        hub.faults.add(Stall(-1), path="/resolve/", times=None)
        with cached.started("verify", "--repair", "--yes", "org/one") as process:
            wait_until(lambda: process.poll() is not None or any(request.fault for request in hub.requests))
        hub.faults.clear()
    (bad,) = verify_here("org/two", agrees=None)["models"]["org/two"]["bad"]
    assert (bad["status"], [name.split("/")[1] for name in bad["files"]]) == ("missing", ["tokenizer.json"])
    assert verify_here("org/two")["repair"]["left"] == []
    assert cached.run("prefetch", "org/one").code == 0
    assert "error" not in verify_here(agrees=None)


@pytest.mark.parametrize(("answer", "removed"), [(b"y\n", True), (b"n\n", False)])
def test_the_question_on_a_terminal(cached: Command, shared: Path, answer: bytes, removed: bool) -> None:
    """It names the file and who uses it, and a no keeps the file."""
    ours, theirs = pty.openpty()
    os.write(ours, answer)
    done = subprocess.run(
        [sys.executable, "-m", "yaie_async", "verify", "--repair", "org/one"],
        cwd=cached.home,
        env=cached.environment,
        stdin=theirs,
        capture_output=True,
        text=True,
        check=False,
    )
    os.close(ours)
    os.close(theirs)
    assert f"{shared} is damaged, and outside of org/one; other repositories use it too" in done.stderr
    assert shared.exists() is not removed
    assert ("All is repaired." in done.stdout) is False, "the dataset's file is gone, or the shared one is damaged"


def test_yes_is_an_answer_to_repair_alone(command: Command) -> None:
    """Without --repair it is wrong usage."""
    assert command.run("verify", "--yes").code == 2


def test_names_that_are_not_cached_or_no_ids(cached: Command) -> None:
    """A model that is not cached and a name that is not a repo id are errors; an empty cache is not."""
    assert cached.run("verify", "org/none", "--json").json["error"]["type"] == "OfflineError"
    assert cached.run("verify", "./here", "--json").json["error"]["type"] == "InvalidArgumentError"
    empty = cached.run("verify", "--cache-dir", str(cached.home / "empty"))
    assert empty.code == 0
    assert "No model is cached" in empty.out


def test_files_that_are_no_links_and_blobs_without_a_digest(cached: Command) -> None:
    """Files in a cache without symlinks are checked by the official client's listing, else they are unknown."""
    blob = blob_of(cached, "org/one", "tokenizer.json")
    pointer = next(cached.cache.glob("models--org--one/snapshots/*/tokenizer.json"))
    pointer.unlink()
    blob.rename(pointer)
    (blob.parent / "no-digest").write_bytes(b"x")
    found = cached.run("verify", "org/one", "--json").json["models"]["org/one"]
    assert (found["ok"], found["unknown"]) == (3, 2)


@pytest.mark.parametrize("way", ["a linked snapshot", "a link to it", "a linked blob"])
def test_a_file_outside_the_cache_is_never_removed(cached: Command, tmp_path: Path, way: str) -> None:
    """Whatever links lead there, and whatever it is called."""
    outside = tmp_path / "outside"
    outside.mkdir()
    precious = outside / ("0" * 40)
    precious.write_text("mine")
    repo = cached.cache / "models--org--one"
    (snapshot,) = (repo / "snapshots").iterdir()
    if way == "a linked snapshot":
        (repo / "snapshots" / ("1" * 40)).symlink_to(outside)
        (repo / "trees").mkdir()
        files = {precious.name: {"size": 4, "blob_id": "2" * 40}}
        (repo / "trees" / f"{'1' * 40}.json").write_text(json.dumps({"format_version": 1, "files": files}))
    elif way == "a link to it":
        (snapshot / "extra.json").symlink_to(precious)
    else:
        (repo / "blobs" / ("3" * 40)).symlink_to(precious)
        (snapshot / "extra.json").symlink_to(repo / "blobs" / ("3" * 40))
    done = cached.run("verify", "--repair", "--yes")
    assert precious.read_text() == "mine"
    assert done.code == 1
    assert "outside of the cache" in done.out

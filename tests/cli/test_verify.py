"""Tests of `yaie-async verify`, which sends no request and changes nothing."""

from pathlib import Path

import pytest

from tests.support.command import Command
from tests.support.hub import HubServer


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
    assert f"rm {corrupt}" in said.out
    assert "yaie-async prefetch org/one" in said.out
    corrupt.unlink()
    assert cached.run("prefetch", "org/one", "org/two").code == 0
    assert cached.run("verify", "org/one", "org/two").code == 0


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

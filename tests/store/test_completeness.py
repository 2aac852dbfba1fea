"""How complete a snapshot is for a load, as far as the disk proves it."""

import json
import os
import time
from itertools import combinations
from pathlib import Path

import pytest

from yaie_async.core.manifest import Need, RepoFile, WeightRules
from yaie_async.store import completeness
from yaie_async.store.cache import RepoCache
from yaie_async.store.completeness import Completeness, read

COMMIT = "a" * 40
# In the order in which this package links them.
ORDER = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "config.json")


@pytest.fixture
def cache(tmp_path: Path) -> RepoCache:
    cache = RepoCache(tmp_path / "cache", "org/name")
    cache.prepare(COMMIT)
    return cache


def enter(cache: RepoCache, *paths: str, content: str = "{}") -> None:
    """Link files one after the other, with different times."""
    for path in paths:
        etag = path.replace("/", "_").ljust(40, "0")
        cache.blob(etag).write_text(content)
        latest = max((link.lstat().st_ctime_ns for link in cache.snapshot(COMMIT).rglob("*")), default=0)
        while not cache.has(COMMIT, path):
            cache.link(COMMIT, path, etag, fresh=True)
            if cache.pointer(COMMIT, path).lstat().st_ctime_ns <= latest:
                cache.pointer(COMMIT, path).unlink()
                time.sleep(0.001)


def completeness_of(
    cache: RepoCache, *, weights: bool = True, code: bool = False, rules: WeightRules | None = None
) -> Completeness:
    return completeness.snapshot_state(cache, COMMIT, Need(weights, code, rules or WeightRules())).completeness


def write_tree(cache: RepoCache, *paths: str) -> None:
    tree = cache.folder / "trees" / f"{COMMIT}.json"
    tree.parent.mkdir()
    files = {path: {"size": 2, "blob_id": path.ljust(40, "0")} for path in paths}
    tree.write_text(json.dumps({"format_version": 1, "files": files}))


def test_all_files_linked_in_our_order_are_complete(cache: RepoCache) -> None:
    """All files in this package's order are complete, for the tokenizer and for the model."""
    enter(cache, *ORDER)
    assert completeness_of(cache) is completeness_of(cache, weights=False) is Completeness.COMPLETE


@pytest.mark.parametrize("count", range(len(ORDER)))
def test_a_kill_before_any_link_is_seen(count: int, cache: RepoCache) -> None:
    """After a kill between two links config.json is missing, so no load is complete."""
    enter(cache, *ORDER[:count])
    assert completeness_of(cache) is completeness_of(cache, weights=False) is Completeness.MISSING


def test_weights_after_a_tokenizer(cache: RepoCache) -> None:
    """A tokenizer fetched alone is complete; the model is once its weights are linked."""
    *small, config = [path for path in ORDER if path != "model.safetensors"]
    enter(cache, *small, config)
    assert (completeness_of(cache, weights=False), completeness_of(cache)) == (
        Completeness.COMPLETE,
        Completeness.MISSING,
    )
    enter(cache, "model.safetensors")
    assert completeness_of(cache) is Completeness.COMPLETE


def test_a_sharded_set_is_complete_with_its_last_shard(cache: RepoCache) -> None:
    """Without one of the index's shards, or without the index, the model is missing."""
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    enter(cache, *shards)
    enter(cache, *(path for path in ORDER if path != "model.safetensors"))
    assert completeness_of(cache) is Completeness.MISSING
    index = json.dumps({"metadata": {}, "weight_map": {"a": shards[0], "b": shards[1]}})
    enter(cache, "model.safetensors.index.json", content=index)
    assert completeness_of(cache) is Completeness.COMPLETE
    cache.pointer(COMMIT, shards[0]).unlink()
    assert completeness_of(cache) is Completeness.MISSING


@pytest.mark.parametrize(
    "order",
    [
        ("config.json", "tokenizer_config.json", "tokenizer.json"),
        ("config.json", "tokenizer_config.json"),
        ("tokenizer_config.json", "config.json", "tokenizer.json"),
        ("tokenizer_config.json", "config.json"),
        ("config.json",),
        ("tokenizer_config.json", "tokenizer.json", "config.json"),
    ],
)
def test_another_order_proves_nothing(order: tuple[str, ...], cache: RepoCache) -> None:
    """Files that transformers fetched one by one are usable offline; online the Hub is asked for missing files."""
    enter(cache, *order)
    assert completeness_of(cache, weights=False) is Completeness.USABLE


def test_a_copied_cache_is_usable(cache: RepoCache) -> None:
    """A cache that was copied with other times is no longer proved complete, but usable."""
    enter(cache, *ORDER)
    for path in reversed(ORDER):
        pointer = cache.pointer(COMMIT, path)
        target = os.readlink(pointer)
        pointer.unlink()
        time.sleep(0.006)
        pointer.symlink_to(target)
    assert completeness_of(cache) is Completeness.USABLE


def test_code_is_never_proved_by_order(cache: RepoCache) -> None:
    """Only a listing proves which .py files a repository has."""
    enter(cache, "modeling_x.py", *ORDER)
    assert completeness_of(cache, code=True) is Completeness.USABLE
    assert completeness_of(cache) is Completeness.COMPLETE


def test_the_official_listing_decides(cache: RepoCache) -> None:
    """With the official client's listing only all of the files are complete, and no subset of them."""
    write_tree(cache, *ORDER, "modeling_x.py", "README.md", "onnx/model.onnx")
    for count in range(len(ORDER)):
        for some in combinations(ORDER, count):
            other = RepoCache(cache.root, "org/name")
            for path in cache.snapshot(COMMIT).iterdir():
                path.unlink()
            enter(other, *some)
            assert completeness_of(other) is Completeness.MISSING
    enter(cache, *ORDER)
    assert completeness_of(cache) is Completeness.COMPLETE
    assert completeness_of(cache, code=True) is Completeness.MISSING
    enter(cache, "modeling_x.py")
    assert completeness_of(cache, code=True) is Completeness.COMPLETE


def test_a_dangling_link_is_missing(cache: RepoCache) -> None:
    """A file whose blob was removed is missing, whatever the snapshot lists."""
    enter(cache, *ORDER)
    os.unlink(cache.pointer(COMMIT, "model.safetensors").resolve())
    assert completeness_of(cache) is Completeness.MISSING
    assert completeness_of(cache, weights=False) is Completeness.COMPLETE


def test_weights_of_another_kind_do_not_count(cache: RepoCache) -> None:
    """A pickle does not count if pickles are refused, nor if another variant is requested."""
    enter(cache, *("pytorch_model.bin" if path == "model.safetensors" else path for path in ORDER))
    assert completeness_of(cache) is Completeness.COMPLETE
    assert completeness_of(cache, rules=WeightRules(pickle=False)) is Completeness.MISSING
    assert completeness_of(cache, rules=WeightRules(variant="fp16")) is Completeness.MISSING


def test_a_file_is_read_from_the_link_or_the_blob(cache: RepoCache) -> None:
    """A file that is verified but not linked yet can be read; a file that is neither is None."""
    etag = "d" * 40
    file = RepoFile("config.json", 2, etag)
    assert read(cache, COMMIT, file) is None
    cache.blob(etag).write_text('{"a": 1}')
    assert read(cache, COMMIT, file) == b'{"a": 1}'
    cache.link(COMMIT, "config.json", etag, fresh=True)
    assert read(cache, COMMIT, RepoFile("config.json")) == b'{"a": 1}'


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000])
def test_a_damaged_config_is_an_error_of_the_model(content: bytes, cache: RepoCache) -> None:
    """A config.json that is no JSON, or nested without end, gives no complete model but an error that says why."""
    enter(cache, *ORDER)
    cache.pointer(COMMIT, "config.json").resolve().write_bytes(content)
    found = completeness.snapshot_state(cache, COMMIT, Need(weights=True))
    assert found.completeness is Completeness.MISSING
    assert found.error is not None and found.error.file == "config.json"


def test_an_index_that_is_not_cached_may_be_on_the_hub(cache: RepoCache) -> None:
    """config.json names an index, and only the tokenizer was fetched: the cache can't say that the model is broken."""
    enter(cache, *(path for path in ORDER if path not in ("model.safetensors", "config.json")))
    enter(cache, "config.json", content='{"transformers_weights": "odd.safetensors.index.json"}')
    found = completeness.snapshot_state(cache, COMMIT, Need(weights=True))
    assert (found.completeness, found.error) == (Completeness.MISSING, None)


def test_the_official_listing_is_enough_for_a_plan(cache: RepoCache) -> None:
    """Its files are known before config.json is linked, which is the last link of a fetch."""
    write_tree(cache, *ORDER)
    enter(cache, *(path for path in ORDER if path != "config.json"))
    found = completeness.snapshot_state(cache, COMMIT, Need(weights=True))
    assert found.completeness is Completeness.MISSING
    assert found.manifest is not None
    assert {file.path for file in found.manifest.files} == set(ORDER)

"""Each parser of foreign bytes, fed with damaged ones: an error of ours or a value, soon, and in little memory.

`python -m tests.test_fuzz --seconds 3600` goes on for an hour with new seeds, and prints figures.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from yaie_async.cli.models_file import read_models
from yaie_async.core.errors import LoaderError
from yaie_async.core.manifest import Listing, Need, RepoFile, draft
from yaie_async.fetch.body import _offset
from yaie_async.fetch.code import _repositories
from yaie_async.fetch.content import parse_json
from yaie_async.fetch.failures import Asked, TransientError, asked_wait, failure
from yaie_async.fetch.location import StartOverError
from yaie_async.fetch.metadata import _file, _listing, normal_etag
from yaie_async.fetch.redirects import target_of
from yaie_async.loader.source import find_source
from yaie_async.model.header import HeaderError, parse_header
from yaie_async.store.blockmap import BLOCK, HEADER_SIZE, WRITTEN, MapHeader, Owner, decode
from yaie_async.store.cache import RepoCache

COMMIT, ETAG = "c0ffee" * 6 + "c0de", "c0ffee" * 10 + "c0de"
ASKED = Asked("org/model", COMMIT, "model.safetensors", has_token=False)
_SECONDS = 5.0  # of CPU time: what takes longer hangs on larger input

_HEADER = MapHeader(ETAG, 3 * BLOCK + 7, f"{ETAG}.yaie-01234567.incomplete", Owner("host", "boot", "pid:[1]", 7, 9))
_MAP = _HEADER.encode() + _HEADER.encode_blocks(bytes([0, WRITTEN, 0, 0])) + _HEADER.encode_slot(BLOCK // 2)
_LISTING = {
    "sha": COMMIT,
    "siblings": [
        {"rfilename": "config.json", "size": 23, "blobId": "0" * 40},
        {"rfilename": "a/model.safetensors", "lfs": {"sha256": ETAG, "size": 100, "pointerSize": 9}, "size": 100},
    ],
    "safetensors": {"parameters": {"F16": 50}},
}
_TREE = [
    {"type": "file", "path": "config.json", "size": 23, "oid": "0" * 40},
    {"type": "file", "path": "w", "size": 1, "oid": "1" * 40, "lfs": {"oid": ETAG, "size": 9}, "xetHash": "ab" * 32},
]
_CACHED_TREE = {"format_version": 1, "files": {"a.json": {"size": 3, "blob_id": "0" * 40, "lfs_size": 9}}}
_CONFIG = {
    "model_type": "llama",
    "transformers_weights": "odd.safetensors.index.json",
    "auto_map": {"AutoModel": "org/code--x.X", "AutoTokenizer": ["org/other--y.Y", None]},
}
_INDEX = {"metadata": {"total_size": 9}, "weight_map": {"a": "odd-1.safetensors", "b": "odd-2.safetensors"}}
_TENSORS = {"a": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}, "__metadata__": {"format": "pt"}}
_HEADERS = {
    "content-range": "bytes 0-99/100",
    "content-length": "100",
    "content-type": "application/json",
    "retry-after": "3",
    "ratelimit": '"api";r=0;t=30',
    "x-error-code": "GatedRepo",
    "x-error-message": "You have no access to it",
    "location": "https://cdn.example.com/x?signature=y",
    "etag": f'W/"{ETAG}"',
    "www-authenticate": "Bearer",
}
_ODD: list[Any] = [
    *(None, True, -1, 0, 0.5, 1e400, 2**63, 10**400, "", "../x", "/etc/passwd", "x" * 10_000, "\x1b[31m", "\ud800"),
    *(
        [],
        {},
        [[]],
        {"": None},
        "a\0b",
        "org/a--b.C",
        "a" * 200 + "/b",
        "\u202e",
        ["x"] * 300,
        "con",
        "a\nb",
        "-1",
        "१",
    ),
]


def odd_json(random: Random, document: Any) -> bytes:
    """A document with values, keys, or bytes of its text exchanged."""
    changed = json.loads(json.dumps(document))
    for _ in range(random.choice((0, 1, 1, 2, 5))):
        changed = _changed(random, changed)
    if random.random() < 0.02:
        changed = json.loads("[" * 300 + "]" * 300)
    text = json.dumps(changed, ensure_ascii=random.random() < 0.8).encode("utf-8", "surrogatepass")
    return odd_bytes(random, text) if random.random() < 0.3 else text


def _changed(random: Random, value: Any) -> Any:
    if isinstance(value, dict) and value and random.random() < 0.8:
        key = random.choice(list(value))
        if random.random() < 0.15:
            return {**{k: v for k, v in value.items() if k != key}, str(random.choice(_ODD)): value[key]}
        return {**value, key: _changed(random, value[key])}
    if isinstance(value, list) and value and random.random() < 0.8:
        at = random.randrange(len(value))
        return [*value[:at], _changed(random, value[at]), *value[at + (random.random() < 0.9) :]]
    return random.choice(_ODD)


def odd_bytes(random: Random, data: bytes) -> bytes:
    """Bytes with some exchanged, left out, doubled, or put in."""
    for _ in range(random.choice((1, 1, 2, 8))):
        at = random.randrange(len(data) + 1)
        stop = min(len(data), at + random.choice((0, 1, 4, 60)))
        middle = random.choice(
            (
                b"",
                random.randbytes(4),
                data[at:stop] * 2,
                b"\0" * 40,
                b"9" * 500,
                b"[" * 500,
                b"\xff\xfe",
                b"\r\n",
                b"@",
            )
        )
        data = data[:at] + middle + data[stop:]
    return data


def _headers(random: Random) -> httpx.Response:
    raw = [(name.encode(), value.encode()) for name, value in _HEADERS.items() if random.random() < 0.7]
    raw = [(name, odd_bytes(random, value) if random.random() < 0.4 else value) for name, value in raw]
    raw = [(name, value.translate(None, b"\r\n\0")) for name, value in raw]  # which no HTTP parser lets through
    return httpx.Response(random.choice((200, 206, 301, 302, 401, 403, 404, 416, 429, 500, 503, 999)), headers=raw)


def _listings(random: Random, _folder: Path) -> None:
    _listing(_parsed(odd_json(random, _LISTING)), ASKED)


def _trees(random: Random, _folder: Path) -> None:
    entries = _parsed(odd_json(random, _TREE))
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict):
            _file(entry, ASKED, path="path", blob="oid", digest="oid")


def _parsed(text: bytes) -> Any:
    try:
        return parse_json(text)
    except (ValueError, RecursionError):  # "something that is not JSON"
        return None


def _answers(random: Random, _folder: Path) -> None:
    response = _headers(random)
    asked_wait(response.headers)
    normal_etag(response.headers)
    with suppress(LoaderError):
        target_of(response, "https://hub.example.com/org/model", ASKED)
    with suppress(LoaderError, TransientError, StartOverError):
        _offset(response, ASKED, 0, 100, 100)
    body = odd_json(random, {"error": "No access", "errors": [{"message": "x"}]}).decode(errors="replace")
    raise failure(
        response.status_code, response.headers, body, "https://hub.example.com/x", ASKED, hub=random.random() < 0.5
    )


def _maps(random: Random, _folder: Path) -> None:
    raw = odd_bytes(random, _MAP)
    found = decode(raw, ETAG)
    if found is not None:
        header, state = found
        assert 0 <= header.recorded_bytes(state) <= header.size
        header.decode_slots(raw[HEADER_SIZE + header.blocks :], state)


def _manifests(random: Random, folder: Path) -> None:
    names = ("config.json", "odd.safetensors.index.json", "odd-1.safetensors", "odd-2.safetensors")
    files = {path: RepoFile(path, 9, ETAG) for path in names}
    made = draft(Listing(COMMIT, files), Need(weights=True, code=True), model="org/model", folder=folder)
    config, index = odd_json(random, _CONFIG), odd_json(random, _INDEX)
    (folder / "tokenizer_config.json").write_bytes(odd_json(random, _CONFIG))
    try:
        made = made.sharpened(lambda file: config if file.path == "config.json" else index)
    finally:
        _repositories(made)


def _tensors(random: Random, _folder: Path) -> None:
    text = odd_json(random, _TENSORS)
    parse_header(text, 8 + len(text) + 12)


def _caches(random: Random, folder: Path) -> None:
    cache = RepoCache(folder, "org/model")
    for path, content in (
        (cache.folder / "trees" / f"{COMMIT}.json", odd_json(random, _CACHED_TREE)),
        (cache.folder / "refs" / "main", odd_bytes(random, COMMIT.encode())),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    cache.tree(COMMIT)
    cache.commit_of("main")


def _models_files(random: Random, folder: Path) -> None:
    (folder / "models.txt").write_bytes(odd_bytes(random, b"org/one@main\n# a comment\n\norg/two\n./here\n"))
    read_models(folder / "models.txt")


def _targets(random: Random, _folder: Path) -> None:
    seeds = ("org/model", "https://huggingface.co/org/model/tree/main", "./x", "~/y", "hf://org/model@main", "gpt2")
    text = odd_bytes(random, random.choice(seeds).encode()).decode("utf-8", "surrogateescape")
    find_source(text, random.choice((None, "main", text)))


PARSERS: dict[str, Callable[[Random, Path], None]] = {
    "listing": _listings,
    "tree": _trees,
    "answer": _answers,
    "map": _maps,
    "config and index": _manifests,
    "header": _tensors,
    "cached listing and ref": _caches,
    "models file": _models_files,
    "target": _targets,
}
_OURS = (LoaderError, TransientError, StartOverError)


def run_one(name: str, seed: int, folder: Path) -> tuple[bool, float]:
    """Feed a parser once. Return whether it took the bytes, and the CPU seconds."""
    begun, taken = time.process_time(), True
    try:
        PARSERS[name](Random(f"{name} {seed}"), folder)
    except HeaderError:  # becomes the reason in an error of ours
        taken = False
    except _OURS as error:
        taken, text = False, str(error)
        if not text.isprintable() or len(text) > 5000:
            raise AssertionError(ascii(text)) from error
    return taken, time.process_time() - begun


@pytest.mark.parametrize("name", PARSERS)
def test_no_exception_but_ours(name: str, tmp_path: Path) -> None:
    """Of 1,000 inputs some are taken, and the others are refused by an error of ours with text that can be shown."""
    taken = 0
    for seed in range(1000):
        try:
            right, seconds = run_one(name, seed, tmp_path)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
        taken += right
        assert seconds < _SECONDS, f"seed {seed}"
    assert taken > 0 or name == "answer"


def _main(seconds: float, first: int) -> None:
    figures = dict.fromkeys(PARSERS, (0, 0, 0.0))
    until, seed = time.monotonic() + seconds, first
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < until:
            seed += 1
            for name, (cases, taken, slowest) in figures.items():
                try:
                    right, took = run_one(name, seed, Path(folder))
                except Exception:
                    print(f"{name}, seed {seed}", file=sys.stderr)
                    raise
                figures[name] = (cases + 1, taken + right, max(slowest, took))
    for name, (cases, taken, slowest) in figures.items():
        print(f"{name}: {cases:,} inputs, {taken:,} taken, the slowest took {slowest * 1000:.0f} ms of CPU time")
    print(f"largest resident set: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    _main(float(sys.argv[sys.argv.index("--seconds") + 1]), first=10**6)

"""Tests of bad input: a clear LoaderError, and nothing in the cache is lost."""

import fcntl
import json
import os
import pickle
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.loader.conftest import Put, prefetch
from tests.support.faults import (
    Corrupt,
    Cut,
    Extra,
    Headers,
    Html,
    LyingLength,
    Redirect,
    Stall,
    Status,
    rename_file,
    set_etag,
    without_blobs,
)
from tests.support.hub import HubServer
from tests.support.programs import require_program
from yaie_async import (
    DiskFullError,
    HubUnavailableError,
    IncompatibleModelError,
    IntegrityError,
    LoaderError,
    ModelFileNotFoundError,
    ModelLoader,
    TokenMissingError,
    UnsafeFileError,
)
from yaie_async.core.tasks import task_group

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_retries")]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def check_cache(cache: Path) -> None:
    """Check that no lock is held, no link dangles, and no snapshot without weights has a config.json."""
    for lock in cache.glob(".locks/*/*.lock"):
        with lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for path in cache.glob("models--*/snapshots/*/**/*"):
        assert path.exists(), path
    for snapshot in cache.glob("models--*/snapshots/*"):
        if (snapshot / "config.json").exists():
            assert list(snapshot.glob("*.safetensors")), snapshot


@contextmanager
def failing(kind: type[LoaderError], cache: Path, says: str) -> Iterator[list[Any]]:
    """Check that the block raises `kind`, that the error pickles and has a message, and that the cache is valid."""
    errors: list[Any] = []
    with pytest.raises(kind, match=says) as caught:
        yield errors
    errors.append(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (type(caught.value), str(caught.value))
    check_cache(cache)


async def test_a_wrong_digest_once_and_always(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """A corrupt file is fetched again; if it is corrupt again, IntegrityError has both digests."""
    directory = put_fake("org/big")
    hub.faults.add(Corrupt(100), path="^/cdn/")
    found = await prefetch(hub, tmp_path / "once")
    assert (found / "model.safetensors").read_bytes() == (directory / "model.safetensors").read_bytes()
    hub.faults.add(Corrupt(100), path="^/cdn/", times=None)
    with failing(IntegrityError, tmp_path / "always", "arrived with wrong contents twice") as errors:
        await prefetch(hub, tmp_path / "always")
    (error,) = errors
    assert (error.model, error.file) == ("org/big", "model.safetensors")
    assert len(error.expected) == len(error.found) == 64
    assert error.expected != error.found
    assert isinstance(error, OSError)
    assert not list((tmp_path / "always").rglob("*.incomplete"))


async def test_a_lying_length(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """A small file whose length differs from the listing is an IntegrityError."""
    put_fake("org/big")
    hub.faults.add(LyingLength(5), path="/tokenizer.json$", times=None)
    with failing(LoaderError, tmp_path, r"tokenizer\.json"):
        await prefetch(hub, tmp_path)


@pytest.mark.parametrize("fault", [Cut(50), Extra(10)], ids=["cut", "extra"])
async def test_a_body_that_is_cut_or_too_long_is_put_right(
    fault: Any, hub: HubServer, put_fake: Put, tmp_path: Path
) -> None:
    """A truncated body is continued with a range request; bytes beyond the end are not written."""
    directory = put_fake("org/big")
    hub.faults.add(fault, path="^/cdn/", times=2)
    found = await prefetch(hub, tmp_path)
    assert (found / "model.safetensors").read_bytes() == (directory / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("fault", "where", "says"),
    [
        (Html(), "^/api/", "login page"),
        (Html(), "/tokenizer.json$", "HTML page"),
        (Redirect(), "^/api/", "redirects"),
        (Redirect("ftp://elsewhere/x"), "^/api/", "ftp"),
        (Redirect("http://"), "^/api/", "org/big"),
        (Status(418), "^/api/", "418"),
    ],
    ids=["html", "html-file", "redirects", "scheme", "no-url", "status"],
)
async def test_what_is_no_hub_is_told_so(
    fault: Any, where: str, says: str, hub: HubServer, put_fake: Put, tmp_path: Path
) -> None:
    """A captive portal, a redirect loop or a foreign scheme is an error with the response and what to check."""
    put_fake("org/big")
    hub.faults.add(fault, path=where, times=None)
    with failing(LoaderError, tmp_path, says) as errors:
        await prefetch(hub, tmp_path)
    assert "HF_ENDPOINT" in str(errors[0])
    assert isinstance(errors[0], HubUnavailableError | IntegrityError)


async def test_a_file_name_that_leaves_the_folder(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """A path with `../` in the listing is refused before anything is written."""
    put_fake("org/big")
    hub.faults.add(rename_file("tokenizer.json", "../../evil.json"), path="^/api/", times=None)
    with failing(UnsafeFileError, tmp_path, "evil"):
        await prefetch(hub, tmp_path)
    assert not list(tmp_path.rglob("evil*"))


async def test_a_weight_map_that_leaves_the_folder(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """A path with `../` in the shard index is refused, and no shard is linked."""
    directory = put_fake("org/big")
    (directory / "model.safetensors").rename(directory / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "../../../evil.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with failing(UnsafeFileError, tmp_path, "evil"):
        await prefetch(hub, tmp_path)


async def test_an_index_with_a_shard_that_is_not_there(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """A shard of the index that the repository lacks is named in the error."""
    directory = put_fake("org/big")
    (directory / "model.safetensors").rename(directory / "model-00001-of-00002.safetensors")
    index = {
        "metadata": {},
        "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
    }
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with failing(ModelFileNotFoundError, tmp_path, "model-00002-of-00002"):
        await prefetch(hub, tmp_path)


@pytest.mark.parametrize("etag", ["a/b", "..", "../../x"])
async def test_an_etag_that_is_no_name(etag: str, hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """An etag with a slash can't name a blob: it is refused from the listing and from HEAD."""
    put_fake("org/big")
    hub.faults.add(set_etag("tokenizer.json", etag), path="^/api/")
    with failing(UnsafeFileError, tmp_path, "etag"):
        await prefetch(hub, tmp_path)
    hub.faults.clear()
    hub.faults.add(without_blobs(), path="^/api/", times=None)
    hub.faults.add(Headers({"etag": f'"{etag}"', "x-linked-etag": f'"{etag}"'}), method="HEAD", times=None)
    with failing(UnsafeFileError, tmp_path, "etag"):
        await prefetch(hub, tmp_path)


async def test_no_token_where_one_is_asked_for(hub: HubServer, tmp_path: Path) -> None:
    """token=True without a stored token is an error that says how to log in."""
    with failing(TokenMissingError, tmp_path, "hf auth login"):
        await prefetch(hub, tmp_path, token=True)


async def test_what_is_no_model(hub: HubServer, hub_root: Path, tmp_path: Path) -> None:
    """The error for an adapter, a GGUF file or a folder without weights says which of them it is."""
    for name, files, says in (
        ("org/adapter", ("adapter_config.json",), "adapter"),
        ("org/gguf", ("model.gguf",), "GGUF"),
        ("org/empty", ("README.md",), "config.json"),
        ("org/flax", ("config.json", "flax_model.msgpack"), "flax_model.msgpack"),
    ):
        (hub_root / name).mkdir(parents=True)
        for file in files:
            (hub_root / name / file).write_text("{}")
        with failing(IncompatibleModelError, tmp_path, says) as errors:
            await prefetch(hub, tmp_path, name)
        assert errors[0].model == name


def _truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def _garbage(path: Path) -> None:
    path.write_bytes(b"\xff" * 1000)


@pytest.mark.parametrize("damage", [_truncated, _garbage])
async def test_damaged_weights(damage: Callable[[Path], None], hub: HubServer, put: Put, tmp_path: Path) -> None:
    """The error for weights that are broken on the Hub names the file; what was cached before still loads."""
    put("org/good")
    damage(put("org/bad") / "model.safetensors")
    options: dict[str, Any] = {"endpoint": hub.url, "cache_dir": tmp_path}
    await ModelLoader("org/good", **options).load_model()
    with failing(LoaderError, tmp_path, r"model\.safetensors") as errors:
        await ModelLoader("org/bad", **options).load_model()
    assert errors[0].file == "model.safetensors"
    assert await ModelLoader("org/good", local_files_only=True, **options).load_model() is not None


class _Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/yaie-async-was-here",)


async def test_a_pickle_with_code_in_it(hub: HubServer, put: Put, tmp_path: Path) -> None:
    """A pytorch_model.bin with code is refused, and the code does not run."""
    import torch

    directory = put("org/bin", "dialogpt")
    torch.save({"transformer.wte.weight": _Evil()}, directory / "pytorch_model.bin")
    with failing(UnsafeFileError, tmp_path, r"pytorch_model\.bin"):
        try:
            await ModelLoader("org/bin", endpoint=hub.url, cache_dir=tmp_path).load_model()
        finally:
            # Not check_cache, which expects safetensors: the weights of this snapshot are a pickle.
            next(tmp_path.glob("models--*/snapshots/*/config.json")).unlink()
    assert not Path("/tmp/yaie-async-was-here").exists()


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    mount = require_program("mount", "mount")
    folder.mkdir()
    try:
        subprocess.run([mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True, capture_output=True)
    except (subprocess.CalledProcessError, OSError) as error:
        pytest.skip(f"mounting is not permitted here: {error}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


async def test_a_disk_that_is_too_small(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """A model that does not fit on the disk is refused before the first body; smaller models still fit."""
    put_fake("org/big", 9 << 20)
    put_fake("org/little", 1 << 20)
    cache = tmp_path / "disk"
    with small_disk(cache, "6m"):
        await prefetch(hub, cache, "org/little")
        hub.clear()
        with failing(DiskFullError, cache, "more bytes") as errors:
            await prefetch(hub, cache)
        assert errors[0].needed > errors[0].free > 0
        assert errors[0].errno == 28
        assert [line for line in hub.lines if "/resolve/" in line or "/cdn/" in line] == []
        assert (await prefetch(hub, cache, "org/little", local_files_only=True)).exists()


async def test_a_disk_that_fills_up_meanwhile(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """ENOSPC during a body is a DiskFullError; the written bytes are kept and used once there is room."""
    directory = put_fake("org/big", 24 << 20)
    cache = tmp_path / "disk"
    with small_disk(cache, "40m"):
        stall = Stall(0)
        hub.faults.add(stall, path="^/cdn/", times=None)

        async def fill() -> None:
            await hub.until(lambda: any(request.fault for request in hub.requests))
            (cache / "filler").write_bytes(b"x" * (28 << 20))
            stall.gate.open()

        with failing(DiskFullError, cache, "disk is full"):
            async with task_group() as group:
                group.start_soon(fill)
                await prefetch(hub, cache)
        assert list(cache.rglob("*.map.incomplete"))
        (cache / "filler").unlink()
        hub.faults.clear()
        found = await prefetch(hub, cache)
        assert (found / "model.safetensors").read_bytes() == (directory / "model.safetensors").read_bytes()
        assert not list(cache.rglob("*.incomplete"))

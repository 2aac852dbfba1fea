"""Tests of the digests of files: requests take turns at the threads that hash."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.support.waiting import until
from yaie_async.localhub import blob_id
from yaie_async.localhub.blob_id import BlobIds
from yaie_async.localhub.models import File, listing


@pytest.mark.anyio
async def test_a_large_request_leaves_turns_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anyio_backend: Any
) -> None:
    """A request for one file is answered while another one for many files still hashes."""
    for number in range(300):
        (tmp_path / f"{number}.txt").write_text("text")
    files = list((await anyio.to_thread.run_sync(listing, tmp_path, tmp_path)).values())
    monkeypatch.setattr(blob_id, "_SLICE", 0.0)
    blob_ids, done = BlobIds(), anyio.Event()

    async def hash_all() -> None:
        assert len(await blob_ids.of(*files)) == 300
        done.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hash_all)
        await until(lambda: blob_ids._known)
        await blob_ids.of(files[-1])
        assert not done.is_set()


@pytest.mark.anyio
async def test_a_large_file_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anyio_backend: Any
) -> None:
    """Requests that wait for the hash of one large file leave threads to another one and to small files."""
    for name, size in (("held.bin", 11 << 20), ("other.bin", 11 << 20), ("config.json", 2)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    files = await anyio.to_thread.run_sync(listing, tmp_path, tmp_path)
    hash_file, hashed, release = blob_id._hash_file, [], threading.Event()

    def held(file: File, algorithm: Any) -> str:
        hashed.append(file.path)
        if file.path == "held.bin":
            release.wait()
        return hash_file(file, algorithm)

    monkeypatch.setattr(blob_id, "_hash_file", held)
    blob_ids = BlobIds()
    async with anyio.create_task_group() as tasks:
        try:
            for _ in range(5):
                tasks.start_soon(blob_ids.of, files["held.bin"])
            await until(lambda: hashed)
            tasks.start_soon(blob_ids.of, *files.values())
            with anyio.fail_after(20):
                assert len(await blob_ids.of(files["config.json"], files["other.bin"])) == 2
        finally:
            release.set()
    assert hashed.count("held.bin") == 1

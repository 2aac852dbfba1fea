"""Caches on mounts that lack what a local disk has."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest

from tests.loader.conftest import Put
from tests.support.fuse import mounted
from tests.support.hub import HubServer
from tests.support.loops import on_one_loop
from yaie_async import CacheAccessError, Hub

pytestmark = [pytest.mark.anyio, on_one_loop]


async def _prefetch(hub: HubServer, cache: Path) -> Path:
    async with Hub(endpoint=hub.url, cache_dir=cache) as one:
        return (await one.prefetch("org/big"))["org/big"]


@pytest.mark.parametrize(
    ("lack", "says", "level"),
    [
        ("space", "how much is free at .* is not known", logging.INFO),
        ("locks", "can't be locked .No locks available.", logging.WARNING),
    ],
)
async def test_what_can_be_done_without(
    lack: str,
    says: str,
    level: int,
    anyio_backend: Any,
    hub: HubServer,
    put_fake: Put,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A mount that says 0 of 0 free, or has no locks: the log says so once, and the files are right."""
    directory = put_fake("org/big", 1 << 20)
    with mounted(tmp_path, lack) as mount, caplog.at_level(logging.INFO, logger="yaie_async"):
        snapshot = await _prefetch(hub, mount / "cache")
        assert (snapshot / "model.safetensors").read_bytes() == (directory / "model.safetensors").read_bytes()
    found = [record for record in caplog.records if re.search(says, record.getMessage())]
    assert [record.levelno for record in found] == [level]


async def test_what_takes_only_whole_files_is_named(
    anyio_backend: Any, hub: HubServer, put_fake: Put, tmp_path: Path
) -> None:
    """The error says what is lacking and where to go, and nothing is left in the cache."""
    put_fake("org/big", 1 << 20)
    with mounted(tmp_path, "offsets") as mount:
        with pytest.raises(CacheAccessError, match=r"takes no writes at an offset.* HF_HUB_CACHE"):
            await _prefetch(hub, mount / "cache")
        assert not list((mount / "cache").rglob("*.incomplete"))

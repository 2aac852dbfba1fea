"""A cache, a hub that goes wrong, and whatever happens to both, in any order that hypothesis can think of."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.fetch.fetching import locks_are_free, opened, put, sent
from tests.support.faults import (
    Chunked,
    Corrupt,
    Cut,
    Extra,
    Gzip,
    Headers,
    Html,
    IgnoreRange,
    LyingLength,
    LyingRange,
    Redirect,
    Reset,
    Stall,
    Status,
    Strip,
    WrongRange,
    without_blobs,
)
from tests.support.hub import HubServer
from yaie_async import LoaderError
from yaie_async.store.blockmap import BLOCK

_PASSING = st.sampled_from(
    [Cut(0), Cut(1), Reset(), Html(), Status(503, {"Retry-After": "0"}), Status(429), Status(500), Status(403),
     Status(404), Status(416), Redirect(), Redirect("ftp://127.0.0.1/x"), Stall(100), Strip("etag"), without_blobs()]
)  # fmt: skip

# Those that bring bytes which some client takes for others.
_LYING = st.sampled_from(
    [Cut(BLOCK // 3), Reset(5000), IgnoreRange(), WrongRange(4096), WrongRange(-7), LyingRange(1), Extra(3), Chunked(),
     Gzip(), LyingLength(1), LyingLength(-1), Corrupt(77), Headers({"etag": '"other"'})]
)  # fmt: skip

_PLACES = st.sampled_from(["^/cdn/", "/resolve/.*safetensors", "/resolve/", "^/api/"])
_TIMES = st.integers(1, 3)
_WRONG = st.lists(
    st.tuples(_PASSING, _PLACES, _TIMES) | st.tuples(_LYING, st.just("^/cdn/"), _TIMES), min_size=1, max_size=3
)
_Wrong = list[tuple[Any, str, int]]


class Machine(RuleBasedStateMachine):
    """What is in the cache is right after every step, and at the end the model loads as the hub has it by then."""

    def __init__(self, hub: HubServer, cache: Path) -> None:
        super().__init__()
        hub.clear()
        self.hub = hub
        self.cache = cache
        self.versions = [put(hub.root, BLOCK + BLOCK // 2)]
        self.whole = False  # the cache has the newest
        self.lied = False  # who asked not to verify may have been given wrong bytes from then on

    @rule()
    def the_server_recovers(self) -> None:
        self.hub.faults.clear()

    @rule(verify=st.booleans())
    def a_fetch_of_the_same(self, verify: bool) -> None:
        anyio.run(self._fetch, False, 2, verify or self.lied)

    @rule(wrong=_WRONG, stock=st.booleans(), width=st.integers(1, 4), verify=st.booleans())
    def a_fetch(self, wrong: _Wrong, stock: bool, width: int, verify: bool) -> None:
        self._go_wrong(wrong)
        anyio.run(self._fetch, stock, width, verify or self.lied)

    @rule(wrong=_WRONG, verify=st.booleans())
    def two_at_once(self, wrong: _Wrong, verify: bool) -> None:
        self._go_wrong(wrong)

        async def main() -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(self._fetch, False, 2, verify or self.lied)
                group.start_soon(self._fetch, True, 2)

        anyio.run(main)

    @rule(wrong=_WRONG, after=st.integers(0, BLOCK + BLOCK // 2))
    def a_fetch_is_cancelled(self, wrong: _Wrong, after: int) -> None:
        self._go_wrong(wrong)

        async def main() -> None:
            before, ended = sent(self.hub), anyio.Event()

            async def fetch() -> None:
                await self._fetch(False, 2)
                ended.set()

            async with anyio.create_task_group() as group:
                group.start_soon(fetch)
                while not ended.is_set() and sent(self.hub) - before <= after:
                    await anyio.sleep(0.001)
                group.cancel_scope.cancel()

        anyio.run(main)

    @rule()
    def partials_are_pruned(self) -> None:
        for path in self.cache.rglob("*.incomplete"):
            path.unlink()

    @rule(at=st.integers(0, BLOCK))
    def the_disk_flips_a_byte_of_a_partial(self, at: int) -> None:
        for path in self.cache.rglob("*.yaie-*.incomplete"):
            self.lied = True
            with path.open("r+b") as file:
                size = path.stat().st_size
                file.seek(at % size)
                byte = file.read(1)
                file.seek(at % size)
                file.write(bytes([byte[0] ^ 1]))

    def _go_wrong(self, wrong: _Wrong) -> None:
        """The server goes wrong, and there is something to fetch: else most steps would find all of it cached."""
        if self.whole:
            self.whole = False
            self.versions.append(put(self.hub.root, BLOCK + BLOCK // 2 + len(self.versions)))
        for fault, place, times in wrong:
            self.lied |= isinstance(fault, Corrupt)
            self.hub.faults.add(fault, path=place, times=times)

    async def _fetch(self, stock: bool, width: int, verify: bool = True) -> None:
        """Right bytes, of a version that the hub has or had, or one of our errors."""
        async with httpx.AsyncClient() as client:
            options = {"client": client} if stock else {}
            with suppress(LoaderError):
                async with opened(
                    self.hub, self.cache, stall=0.05, max_connections=width, verify=verify, **options
                ) as one:
                    snapshot = (await one.prefetch("org/big"))["org/big"]
                assert (snapshot / "model.safetensors").read_bytes() in self.versions
                assert (snapshot / "config.json").read_bytes() == b'{"model_type": "llama"}'
                self.whole = True

    @invariant()
    def what_is_published_is_right(self) -> None:
        for path in self.cache.glob("models--*/blobs/*"):
            if len(path.name) == 64:
                assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
        for path in self.cache.glob("models--*/snapshots/*/*"):
            assert path.exists()

    @invariant()
    def nothing_is_held(self) -> None:
        locks_are_free(self.cache)
        opened_still = []
        for fd in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                opened_still.append(os.readlink(f"/proc/self/fd/{fd}"))
        assert not [path for path in opened_still if path.startswith(str(self.cache))]

    def teardown(self) -> None:
        self.hub.faults.clear()
        anyio.run(self._whole)

    async def _whole(self) -> None:
        async with opened(self.hub, self.cache) as one:
            snapshot = (await one.prefetch("org/big"))["org/big"]
        blob = (snapshot / "model.safetensors").resolve()
        assert blob.read_bytes() == self.versions[-1]
        assert not list(blob.parent.glob(f"{blob.name}.*"))  # no partial of it is left


def test_whatever_happens(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Faults, cancels, prunes, new versions and two clients at once, in any order."""
    with HubServer(tmp_path_factory.mktemp("models")) as hub:

        class HubMachine(Machine):
            def __init__(self) -> None:
                super().__init__(hub, tmp_path_factory.mktemp("cache"))

        run_state_machine_as_test(
            HubMachine,
            settings=settings(
                max_examples=12, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )

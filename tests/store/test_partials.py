"""Partials on a real disk: killed at any point, claimed by several processes, pruned, damaged, out of space."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from yaie_async.core.errors import CacheAccessError, DiskFullError
from yaie_async.store import claims, diskio, owners, partials
from yaie_async.store.blockmap import (
    BLOCK,
    HEADER_SIZE,
    SLOT,
    SYNCED,
    WRITTEN,
    MapHeader,
    Owner,
    block_count,
    decode,
)
from yaie_async.store.claims import claim_or_create, discard_orphans, has_live_owner, resumable_bytes
from yaie_async.store.diskio import write_all
from yaie_async.store.partials import STEP, Ownership, Partial

ETAG = "c0ffee" * 10 + "c0de"
SIZE = 5 * BLOCK + 1000
HOST = Owner("another", "another boot", "pid:[1]", 1, 1)


@cache
def _content(block: int, length: int) -> bytes:
    return (random.Random(block).randbytes(64) * (length // 64 + 1))[:length]


def _block(block: int) -> bytes:
    return _content(block, min(BLOCK, SIZE - block * BLOCK))


@cache
def _whole(size: int) -> bytes:
    return b"".join(_block(i) for i in range(block_count(size)))


WHOLE = _whole(SIZE)


def _write(partial: Partial, *blocks: int) -> None:
    for block in blocks:
        write_all(partial.fd, _block(block), block * BLOCK)
        partial.record(block, block + 1)


def _claim(directory: Path) -> Partial:
    return claim_or_create(directory, ETAG, SIZE)


def _have(partial: Partial) -> list[int]:
    """The recorded blocks; each must be right on the disk."""
    have = [i for i, there in enumerate(partial.blocks) if there]
    assert all(os.pread(partial.fd, BLOCK, i * BLOCK) == _block(i) for i in have)
    return have


def _names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def _map(directory: Path) -> Path:
    (path,) = directory.glob("*.map.incomplete")
    return path


def _age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def _forge(path: Path, **changes: Any) -> None:
    """Change fields of a map's header and keep it a valid map."""
    raw = path.read_bytes()
    found = decode(raw, ETAG)
    assert found is not None
    header = replace(found[0], **changes)
    path.write_bytes(header.encode() + header.encode_blocks(found[1]) + raw[HEADER_SIZE + header.blocks :])


def _fork(fn: Callable[[], object]) -> int:
    """Run `fn` in a child process, which exits with 0, or with 1 if it raises. Return its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child uses none of the threads
        pid = os.fork()
    if pid == 0:
        try:
            fn()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def _wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _left_behind(directory: Path, *blocks: int, sync: bool = False) -> None:
    """Have a process write blocks and get killed."""

    def child() -> None:
        partial = Partial.create(directory, ETAG, SIZE)
        _write(partial, *blocks)
        if sync:
            partial.sync()
        os.kill(os.getpid(), signal.SIGKILL)

    assert _wait(_fork(child)) == -signal.SIGKILL


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that grants every lock."""
    monkeypatch.setattr("fcntl.flock", lambda _fd, _how: None)


class TestOneProcess:
    def test_the_files_are_as_the_layout_says(self, blobs: Path) -> None:
        partial = _claim(blobs)
        data, its_map = _names(blobs)
        assert data.startswith(f"{ETAG}.yaie-")
        assert data.endswith(".incomplete")
        assert its_map == data.removesuffix("incomplete") + "map.incomplete" or its_map.endswith(".map.incomplete")
        assert (blobs / data).stat().st_size == SIZE
        assert (blobs / data).stat().st_blocks == 0
        partial.discard()
        assert _names(blobs) == []

    def test_recorded_blocks_are_found_by_the_next_claim(self, blobs: Path) -> None:
        partial = _claim(blobs)
        _write(partial, 0, 2, 5)
        partial.keep()
        again = _claim(blobs)
        assert _have(again) == [0, 2, 5]
        assert again.recorded_bytes == resumable_bytes(blobs, ETAG, SIZE) == 2 * BLOCK + 1000
        assert len(_names(blobs)) == 2
        again.discard()

    def test_a_partial_in_use_is_not_claimed_by_its_own_process(self, blobs: Path) -> None:
        first, second = _claim(blobs), _claim(blobs)
        assert len(_names(blobs)) == 4
        assert first.touch() is second.touch() is Ownership.OURS
        first.discard()
        second.discard()

    def test_a_published_partial_has_the_blobs_name_and_leaves_nothing(self, blobs: Path) -> None:
        _left_behind(blobs, 1)
        partial = Partial.create(blobs, ETAG, SIZE)
        _write(partial, *range(6))
        partial.sync()
        assert partial.publish() == blobs / ETAG
        assert partial.fd == -1
        discard_orphans(blobs, ETAG)
        assert _names(blobs) == [ETAG]
        assert (blobs / ETAG).read_bytes() == WHOLE

    def test_a_shared_blob_is_replaced_and_not_written_through(self, blobs: Path, tmp_path: Path) -> None:
        shared = tmp_path / "shared"
        shared.write_bytes(b"not ours")
        partial = _claim(blobs)
        (blobs / ETAG).symlink_to(shared)
        _write(partial, *range(6))
        partial.publish()
        assert shared.read_bytes() == b"not ours"
        assert (blobs / ETAG).read_bytes() == WHOLE

    def test_an_empty_blob(self, blobs: Path) -> None:
        partial = claim_or_create(blobs, ETAG, 0)
        assert (partial.blocks, partial.recorded_bytes) == (b"", 0)
        partial.sync()
        assert partial.publish().read_bytes() == b""

    @pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
    def test_the_kernel_applies_the_umask(self, blobs: Path, umask: int, mode: int) -> None:
        def child() -> None:
            os.umask(umask)
            partial = _claim(blobs)
            assert {path.stat().st_mode & 0o777 for path in blobs.iterdir()} == {mode}
            _write(partial, *range(6))
            assert partial.publish().stat().st_mode & 0o777 == mode

        assert _wait(_fork(child)) == 0

    def test_a_partial_of_another_size_or_without_its_data_file_is_discarded(self, blobs: Path) -> None:
        for spoil in ("size", "missing", "shorter"):
            _left_behind(blobs, 0, 1)
            (data,) = set(blobs.glob("*.incomplete")) - set(blobs.glob("*.map.incomplete"))
            if spoil == "size":
                partial = claim_or_create(blobs, ETAG, SIZE + 1)
            else:
                data.unlink() if spoil == "missing" else os.truncate(data, SIZE - 1)
                partial = _claim(blobs)
            assert not any(partial.blocks)
            assert len(_names(blobs)) == 2
            partial.discard()

    def test_a_map_can_name_no_file_of_another_directory(self, blobs: Path, tmp_path: Path) -> None:
        _left_behind(blobs, 0)
        victim = tmp_path / "victim"
        victim.write_bytes(bytes(SIZE))
        _forge(_map(blobs), data="../victim")
        partial = _claim(blobs)
        assert not any(partial.blocks)
        _write(partial, 0)
        discard_orphans(blobs, ETAG)
        assert victim.read_bytes() == bytes(SIZE)

    def test_a_link_in_the_place_of_a_data_file_is_not_followed(self, blobs: Path, tmp_path: Path) -> None:
        _left_behind(blobs, 0)
        victim = tmp_path / "victim"
        victim.write_bytes(bytes(SIZE))
        (data,) = set(blobs.glob("*.incomplete")) - set(blobs.glob("*.map.incomplete"))
        data.unlink()
        data.symlink_to(victim)
        partial = _claim(blobs)
        _write(partial, *range(6))
        assert victim.read_bytes() == bytes(SIZE)

    def test_the_fullest_of_several_orphans_is_claimed_and_the_others_are_removed(self, blobs: Path) -> None:
        _left_behind(blobs, 0)
        _left_behind(blobs, 0, 1)  # `create` makes a new partial and does not claim the first
        _left_behind(blobs, 5)
        partial = _claim(blobs)
        assert _have(partial) == [0, 1]
        _write(partial, *range(6))
        partial.publish()
        discard_orphans(blobs, ETAG)
        assert _names(blobs) == [ETAG]

    def test_the_files_of_other_blobs_and_other_programs_stay(self, blobs: Path) -> None:
        blobs.mkdir()
        names = [
            f"{ETAG}.incomplete",
            f"{ETAG}.e502fd7a.incomplete",
            f"x{ETAG}.yaie-e502fd7a.incomplete",
            "abc",
        ]
        for name in names:
            (blobs / name).write_bytes(b"")
            _age(blobs / name, 3600)
        _claim(blobs).discard()
        discard_orphans(blobs, ETAG)
        assert _names(blobs) == sorted(names)

    def test_writers_on_several_threads(self, blobs: Path) -> None:
        partial = _claim(blobs)
        done = threading.Event()

        def keep_syncing() -> None:
            while not done.is_set():
                partial.sync()

        syncer = threading.Thread(target=keep_syncing)
        writers = [threading.Thread(target=_write, args=(partial, i, i + 3)) for i in range(3)]
        for thread in (syncer, *writers):
            thread.start()
        for thread in writers:
            thread.join()
        done.set()
        syncer.join()
        partial.sync()
        found = decode(_map(blobs).read_bytes(), ETAG)
        assert found is not None
        assert found[1] == bytes([SYNCED]) * 6
        partial.discard()


class TestKilled:
    def test_at_random_moments_every_recorded_block_is_right_and_none_is_lost(self, blobs: Path) -> None:
        rng = random.Random(0)
        have: set[int] = set()

        def child() -> None:
            partial = _claim(blobs)
            for block in random.sample(range(6), 6):
                if not partial.blocks[block]:
                    _write(partial, block)
            partial.publish()

        for _ in range(40):
            pid = _fork(child)
            time.sleep(rng.uniform(0, 0.03))
            os.kill(pid, signal.SIGKILL)
            _wait(pid)
            if (blobs / ETAG).exists():
                break
            if blobs.exists() and any(blobs.glob("*.map.incomplete")):
                partial = _claim(blobs)
                assert have <= set(_have(partial))
                have = set(_have(partial))
                partial.keep()
        else:
            assert _wait(_fork(child)) == 0
        discard_orphans(blobs, ETAG)
        assert _names(blobs) == [ETAG]
        assert (blobs / ETAG).read_bytes() == WHOLE

    @pytest.mark.parametrize("action", ["create", "claim", "claim by copy", "keep", "publish", "rescue"])
    def test_between_any_two_lines_of_the_store(self, tmp_path: Path, action: str) -> None:
        """Each line makes at most one system call, so this is between any two system calls as well."""
        # Forking a process that has imported torch takes 17 ms, and each line takes two forks: this one has not.
        code = "import sys; from tests.store import test_partials as t; t._kill_at_each_line(sys.argv[1], sys.argv[2])"
        done = subprocess.run(
            [sys.executable, "-c", code, action, str(tmp_path)],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def _kill_at_each_line(action: str, folder: str) -> None:
    """Kill a process at the first line of `action`, then one at the second, until one comes to its end; check each."""
    global SIZE  # noqa: PLW0603 - of a process of its own
    SIZE = BLOCK + 1000  # small, because it is written hundreds of times
    diskio._COPY_SIZE = BLOCK
    for line in range(1, 2000):
        blobs = Path(folder, str(line))
        if action.startswith("claim"):
            _left_behind(blobs, 0, 1, sync=True)
        if action == "claim by copy":
            _forge(_map(blobs), owner=HOST)
            _age(_map(blobs), 61)
        code = _wait(_fork(lambda: _killed_in(action, blobs, line)))  # noqa: B023 - waited for
        if code == 0:
            assert line > 5
            return
        assert code == -signal.SIGKILL
        if action == "claim by copy":
            # After a kill in the middle of a claim, the orphan counts as the silent owner's.
            for path in blobs.glob("*.map.incomplete"):
                _age(path, 61)
        if not (blobs / ETAG).exists():
            partial = _claim(blobs)
            if action != "create":
                assert _have(partial) == [0, 1], f"lost by a kill at line {line}"
            _write(partial, 0, 1)
            partial.publish()
        discard_orphans(blobs, ETAG)
        assert _names(blobs) == [ETAG], f"left behind by a kill at line {line}"
        assert (blobs / ETAG).read_bytes() == _whole(SIZE)
        shutil.rmtree(blobs)
    raise AssertionError("it never ended")


def _killed_in(action: str, blobs: Path, line: int) -> None:
    """Run `action`, and kill the process at the given line of the store's code."""
    partial = None
    if action in ("keep", "publish", "rescue"):
        partial = Partial.create(blobs, ETAG, SIZE)
        _write(partial, 0, 1)
    left = line
    ours = tuple(module.__file__ for module in (partials, claims, owners, diskio))

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in ours:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    if partial is None:
        _claim(blobs)
    else:
        getattr(partial, action)()
    sys.settrace(None)


class TestBegun:
    """The beginnings of blocks that are not written in full."""

    FIRST = BLOCK + 3 * STEP + 1000  # as far as the second block is written
    LAST = 5 * BLOCK + 700  # as far as the last block is written, of 1,000 bytes

    def _begin(self, partial: Partial) -> None:
        for start, stop in ((BLOCK, self.FIRST), (5 * BLOCK, self.LAST)):
            for at in range(start, stop, 50_000):
                data = WHOLE[at : min(at + 50_000, stop)]
                write_all(partial.fd, data, at)
                partial.extend(at, at + len(data))

    def test_a_kept_partial_has_all_of_them(self, blobs: Path) -> None:
        partial = _claim(blobs)
        _write(partial, 0)
        self._begin(partial)
        everything = BLOCK + (self.FIRST - BLOCK) + 700
        assert partial.recorded_bytes == everything
        partial.keep()
        assert resumable_bytes(blobs, ETAG, SIZE) == everything
        again = _claim(blobs)
        assert again.begun == ((BLOCK, self.FIRST), (5 * BLOCK, self.LAST))
        assert _have(again) == [0]
        self._finish(again, BLOCK, self.FIRST)
        assert list(again.begun) == [(5 * BLOCK, self.LAST)]
        again.keep()
        last = _claim(blobs)
        assert (_have(last), last.begun) == ([0, 1], ((5 * BLOCK, self.LAST),))
        self._finish(last, 5 * BLOCK, self.LAST)
        _write(last, 2, 3, 4)
        assert last.begun == ()
        assert last.publish().read_bytes() == WHOLE

    @staticmethod
    def _finish(partial: Partial, start: int, position: int) -> None:
        stop = min(start + BLOCK, SIZE)
        write_all(partial.fd, WHOLE[position:stop], position)
        partial.extend(position, stop)

    def test_a_kill_costs_less_than_a_step_for_each(self, blobs: Path) -> None:
        def child() -> None:
            self._begin(Partial.create(blobs, ETAG, SIZE))
            os.kill(os.getpid(), signal.SIGKILL)

        assert _wait(_fork(child)) == -signal.SIGKILL
        again = _claim(blobs)
        ((start, position),) = again.begun  # of the last block less than a step is written
        assert start == BLOCK
        assert self.FIRST - STEP < position <= self.FIRST
        assert os.pread(again.fd, position - start, start) == WHOLE[start:position]

    def test_a_slot_is_used_again(self, blobs: Path) -> None:
        """The map grows by the blocks that are begun at once, not by those that ever were."""
        partial = _claim(blobs)
        for block in range(5):
            write_all(partial.fd, _block(block), block * BLOCK)
            partial.extend(block * BLOCK, block * BLOCK + STEP)
            partial.extend(block * BLOCK + STEP, (block + 1) * BLOCK)
        assert _map(blobs).stat().st_size == HEADER_SIZE + 6 + SLOT
        assert partial.begun == ()

    @pytest.mark.parametrize("how", ["copied", "rescued"])
    def test_a_copy_has_them_too(self, blobs: Path, how: str) -> None:
        partial = _claim(blobs)
        _write(partial, 0)
        self._begin(partial)
        if how == "rescued":
            for path in blobs.iterdir():
                path.unlink()
            again = partial.rescue()
        else:
            partial.keep()
            os.link(_map(blobs), blobs.parent / "a second name")
            again = _claim(blobs)
        assert (_have(again), again.begun) == ([0], ((BLOCK, self.FIRST), (5 * BLOCK, self.LAST)))
        for start, stop in again.begun:
            assert os.pread(again.fd, stop - start, start) == WHOLE[start:stop]

    def test_after_a_reboot_none_is_believed(self, blobs: Path) -> None:
        """Their bytes may not have reached the disk; nor is a slot believed when its block is begun again."""
        partial = _claim(blobs)
        self._begin(partial)
        partial.keep()
        _forge(_map(blobs), owner=replace(owners.this_process(), boot="another"))
        again = _claim(blobs)
        assert again.begun == ()
        again.keep()
        assert _claim(blobs).begun == ()

    @given(at=st.integers(0, 2 * SLOT - 1), garbage=st.binary(min_size=1, max_size=SLOT))
    def test_a_garbled_slot_says_nothing(self, at: int, garbage: bytes) -> None:
        """A slot is right as a whole or free, and that of another file is no slot."""
        header = TestDamagedMaps.HEADER
        right = header.encode_slot(self.FIRST) + header.encode_slot(self.LAST)
        raw = (right[:at] + garbage + right[at + len(garbage) :])[: len(right)]
        found = header.decode_slots(raw, bytes(6))
        assert {slot.position for slot in found.values()} <= {self.FIRST, self.LAST}
        assert len(found) == sum(raw[i : i + SLOT] == right[i : i + SLOT] for i in (0, SLOT))
        other = replace(header, data=f"{ETAG}.yaie-76543210.incomplete")
        assert other.decode_slots(right, bytes(6)) == {}
        assert header.decode_slots(right, b"\0\1\0\0\0\1") == {}

    @given(position=st.integers(0, 2**64 - 1))
    def test_a_slot_for_no_place_says_nothing(self, position: int) -> None:
        """A position behind the end, or between two blocks, has no block that it could be the beginning of."""
        header = TestDamagedMaps.HEADER
        found = header.decode_slots(header.encode_slot(position), bytes(6))
        assert bool(found) == (0 < position < SIZE and position % BLOCK != 0)


class TestClaims:
    def test_of_two_processes_exactly_one_wins(self, tmp_path: Path) -> None:
        """Both processes believe that they hold the lock, so this does not depend on working locks."""
        for attempt in range(15):
            blobs = tmp_path / str(attempt)
            _left_behind(blobs, 0, 1, 2)
            # A pipe for each step: from one pipe the faster child could read the slower one's byte.
            begin, end = os.pipe(), os.pipe()

            def child(blobs: Path = blobs, begin: int = begin[0], end: int = end[0]) -> None:
                os.read(begin, 1)
                partial = _claim(blobs)
                (blobs / f"{os.getpid()}.{len(_have(partial))}").touch()
                os.read(end, 1)  # stays the owner until both have claimed
                assert partial.touch() is Ownership.OURS

            pids = [_fork(child) for _ in range(2)]
            os.write(begin[1], b"12")
            while len(list(blobs.glob("*.[03]"))) < 2:
                time.sleep(0.002)
            os.write(end[1], b"12")
            assert [_wait(pid) for pid in pids] == [0, 0]
            for fd in (*begin, *end):
                os.close(fd)
            assert sorted(path.suffix for path in blobs.glob("*.[03]")) == [".0", ".3"]

    @pytest.mark.parametrize("file", ["data", "map"])
    @pytest.mark.parametrize("way", ["another user's", "a second name", "writable by all"])
    def test_what_others_can_write_is_copied(self, blobs: Path, file: str, way: str) -> None:
        """Its bytes are kept, and whoever held the old file open can't write into the new one, nor into the blob."""
        if way == "another user's" and os.geteuid() != 0:
            pytest.skip("only root can give a file away")
        _left_behind(blobs, 0, 1)
        (data,) = (each for each in blobs.iterdir() if ".map." not in each.name)
        path = _map(blobs) if file == "map" else data
        if way == "another user's":
            os.chown(path, 12345, -1)
        elif way == "a second name":
            os.link(path, blobs.parent / "mine too")
        else:
            path.chmod(0o666)
        held = os.open(data, os.O_RDWR)
        partial = _claim(blobs)
        assert _have(partial) == [0, 1]
        assert not os.path.samestat(os.fstat(held), os.fstat(partial.fd))
        os.pwrite(held, b"evil", 0)
        os.close(held)
        _write(partial, *range(2, -(-SIZE // BLOCK)))
        assert partial.publish().read_bytes() == WHOLE
        assert _names(blobs) == [ETAG]

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can be other users")
    @pytest.mark.parametrize("stray", ["a partial", "data without a map", "a damaged map", "a closed map", "a fifo"])
    def test_what_another_user_left_in_a_sticky_folder_is_passed_by(self, blobs: Path, stray: str) -> None:
        """Nothing of it can be removed there, and nothing of it is in the way."""

        def theirs() -> None:
            os.setuid(12345)
            path = blobs / f"{ETAG}.yaie-01234567.map.incomplete"
            if stray == "a partial":
                _write(Partial.create(blobs, ETAG, SIZE), 0)
            elif stray == "data without a map":
                (blobs / f"{ETAG}.yaie-01234567.incomplete").touch()
            elif stray == "a damaged map":
                path.write_bytes(b"x")
            elif stray == "a closed map":
                path.touch(0o000)
            else:
                os.mkfifo(path)

        def ours() -> None:
            os.setuid(12346)
            partial = _claim(blobs)
            _write(partial, *range(6))
            assert partial.publish().read_bytes() == WHOLE
            discard_orphans(blobs, ETAG)
            assert not has_live_owner(blobs, ETAG)

        blobs.mkdir()
        for folder in (blobs, *blobs.parents):
            if folder == Path(tempfile.gettempdir()):
                break
            folder.chmod(0o1777)
        assert _wait(_fork(theirs)) == 0
        assert _wait(_fork(ours)) == 0

    def test_a_claimer_that_was_overtaken_leaves_the_winner_alone(
        self, blobs: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Held up in the middle of its claim, it finds the map renamed, and its own name is not written into that."""
        _left_behind(blobs, 0, 1)
        have: list[int] = []
        claimed, go = os.pipe(), os.pipe()

        def winner() -> None:
            partial = _claim(blobs)
            os.write(claimed[1], bytes(_have(partial)))
            os.read(go[0], 1)
            assert partial.touch() is Ownership.OURS

        def held_up(fd: int, data: bytes | memoryview, offset: int) -> None:
            monkeypatch.undo()
            pids.append(_fork(winner))
            have.extend(os.read(claimed[0], 9))
            write_all(fd, data, offset)

        pids: list[int] = []
        monkeypatch.setattr(claims, "write_all", held_up)
        assert _have(_claim(blobs)) == []
        assert have == [0, 1]
        os.write(go[1], b"1")
        assert _wait(pids[0]) == 0
        for fd in (*claimed, *go):
            os.close(fd)

    def test_a_partial_of_a_living_owner_is_not_claimed(self, blobs: Path) -> None:
        ready, go = os.pipe()

        def child() -> None:
            _write(Partial.create(blobs, ETAG, SIZE), 0)
            os.write(go, b"1")
            time.sleep(60)

        pid = _fork(child)
        os.read(ready, 1)
        try:
            assert _have(_claim(blobs)) == []
        finally:
            os.kill(pid, signal.SIGKILL)
        # Dead, but a zombie: it has not been waited for.
        while owners.start_time(pid) is not None:
            time.sleep(0.001)
        assert _have(_claim(blobs)) == [0]
        _wait(pid)
        os.close(ready)
        os.close(go)

    def test_discarding_orphans_keeps_partials_of_living_owners(self, blobs: Path) -> None:
        partial = _claim(blobs)
        discard_orphans(blobs, ETAG)
        assert partial.touch() is Ownership.OURS
        assert len(_names(blobs)) == 2

    def test_a_reused_process_id_is_another_process(self, blobs: Path) -> None:
        partial = _claim(blobs)
        _write(partial, 0)
        owner = owners.this_process()
        _forge(_map(blobs), owner=replace(owner, started=owner.started - 1))
        assert _have(_claim(blobs)) == [0]

    def test_an_owner_of_another_process_namespace_is_gone(self, blobs: Path) -> None:
        """A container that was started again can't look it up, but has the lock that it would hold."""
        _left_behind(blobs, 0, 1)
        _forge(_map(blobs), owner=replace(owners.this_process(), pid_namespace="other", host="other"))
        assert _have(_claim(blobs)) == [0, 1]

    def test_an_owner_elsewhere_is_gone_only_after_a_silence(self, blobs: Path) -> None:
        _left_behind(blobs, 0, 1, sync=True)
        _forge(_map(blobs), owner=replace(owners.this_process(), pid=2**22 + 1, boot="other"))
        first = _map(blobs)
        _age(first, 58)
        other = _claim(blobs)
        assert _have(other) == []
        other.discard()
        _age(first, 61)
        assert _have(_claim(blobs)) == [0, 1]
        assert len(_names(blobs)) == 2

    @pytest.mark.usefixtures("no_locks")
    def test_without_working_locks_an_owner_is_gone_only_after_a_silence(self, blobs: Path) -> None:
        _left_behind(blobs, 0, 1)
        other = _claim(blobs)
        assert _have(other) == []
        other.discard()
        _age(_map(blobs), 61)
        assert _have(_claim(blobs)) == [0, 1]

    def test_times_are_compared_with_the_file_systems_clock(self, blobs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """No owner is silent for a machine whose own clock is an hour ahead."""
        _left_behind(blobs, 0, sync=True)
        _forge(_map(blobs), owner=HOST)
        ahead = time.time() + 3600
        monkeypatch.setattr(time, "time", lambda: ahead)
        assert _have(_claim(blobs)) == []

    def test_a_silent_owner_that_wakes_up_does_no_harm(self, blobs: Path) -> None:
        """It writes into its own inode only, until it sees that another process has claimed the partial."""
        sleeper = _claim(blobs)
        _write(sleeper, 0, 1)
        sleeper.sync()
        sleeper._page = replace(sleeper._header, owner=HOST).encode()
        os.pwrite(sleeper._map_fd, sleeper._page, 0)
        _age(_map(blobs), 61)
        ours = _claim(blobs)
        os.pwrite(sleeper.fd, b"garbage" * 100, 0)
        sleeper.record(3, 4)
        assert sleeper.touch() is Ownership.LOST
        sleeper.keep()
        assert _have(ours) == [0, 1]
        assert ours.touch() is Ownership.OURS
        _write(ours, *range(6))
        assert ours.publish().read_bytes() == WHOLE
        assert _names(blobs) == [ETAG]

    def test_a_claim_by_copy_that_was_killed_leaves_the_owner_silent_and_not_dead(
        self, blobs: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The dead claimer is not the last writer: the silent owner before it may still write into the inode."""
        _left_behind(blobs, 0, 1, sync=True)
        _forge(_map(blobs), owner=HOST)
        _age(_map(blobs), 61)
        inode = next(path.stat().st_ino for path in blobs.iterdir() if ".map" not in path.name)

        def killed(*_: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        with monkeypatch.context() as patch:
            patch.setattr(partials, "copy_sparse", killed)
            assert _wait(_fork(lambda: _claim(blobs))) == -signal.SIGKILL
        taken = [_claim(blobs)]
        for path in blobs.glob("*.map.incomplete"):
            if path != taken[0]._map_path:
                _age(path, 61)
        taken.append(_claim(blobs))
        assert [_have(one) for one in taken] == [[], [0, 1]]
        assert inode not in [os.fstat(one.fd).st_ino for one in taken]

    def test_a_touch_shows_that_the_owner_lives(self, blobs: Path) -> None:
        partial = _claim(blobs)
        _age(_map(blobs), 3600)
        assert partial.touch() is Ownership.OURS
        assert time.time() - _map(blobs).stat().st_mtime < 60
        assert has_live_owner(blobs, ETAG)
        partial.keep()
        assert not has_live_owner(blobs, ETAG)
        shutil.rmtree(blobs)
        assert not has_live_owner(blobs, ETAG)

    def test_a_copying_owner_shows_that_it_lives(self, blobs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pruned = _claim(blobs)
        _write(pruned, 0)
        shutil.rmtree(blobs)
        ages = []

        def slowly(*args: int) -> Iterator[int]:
            for count in diskio.copy_sparse(*args):
                _age(_map(blobs), 3600)
                yield count
                ages.append(time.time() - _map(blobs).stat().st_mtime)

        monkeypatch.setattr(partials, "copy_sparse", slowly)
        pruned.rescue()
        assert len(ages) == 4
        assert max(ages) < 60

    def test_discard_removes_nothing_of_a_claimer(self, blobs: Path) -> None:
        loser = _claim(blobs)
        _write(loser, 0)
        _map(blobs).rename(blobs / f"{ETAG}.yaie-00000000.map.incomplete")
        assert loser.touch() is Ownership.LOST
        before = _names(blobs)
        loser.discard()
        assert _names(blobs) == before

    @pytest.mark.usefixtures("no_locks")
    def test_a_map_that_was_read_before_another_claim_is_given_back(
        self, blobs: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without locks: B reads the map, A claims it, and B renames the map that A has renamed."""
        first = _claim(blobs)
        _write(first, 0)
        first.keep()
        seen_by_b = claims._read_maps(blobs, ETAG)
        a = _claim(blobs)
        seen_by_b = [replace(one, path=a._map_path) for one in seen_by_b]
        monkeypatch.setattr(claims, "_read_maps", lambda *_: seen_by_b)
        b = _claim(blobs)
        assert _have(b) == []
        assert a.touch() is b.touch() is Ownership.OURS

    def test_after_a_reboot_only_synced_blocks_are_believed(self, blobs: Path) -> None:
        partial = _claim(blobs)
        _write(partial, 0, 1)
        partial.sync()
        _write(partial, 2)
        partial.keep()
        owner = owners.this_process()
        _forge(_map(blobs), owner=replace(owner, boot="the boot before"), released=True)
        again = _claim(blobs)
        assert _have(again) == [0, 1]
        again.keep()
        again = _claim(blobs)
        assert _have(again) == [0, 1], "the disbelieved block was recorded again"

    def test_a_map_left_by_a_killed_publication_is_removed(self, blobs: Path) -> None:
        _left_behind(blobs, 0)
        (data,) = set(blobs.glob("*.incomplete")) - set(blobs.glob("*.map.incomplete"))
        data.rename(blobs / ETAG)
        discard_orphans(blobs, ETAG)
        assert _names(blobs) == [ETAG]

    @pytest.mark.usefixtures("no_locks")
    def test_data_without_a_map_is_removed_after_a_silence(self, blobs: Path) -> None:
        blobs.mkdir()
        stray = blobs / f"{ETAG}.yaie-01234567.incomplete"
        stray.touch()
        discard_orphans(blobs, ETAG)
        assert stray.exists()
        _age(stray, 61)
        discard_orphans(blobs, ETAG)
        assert not stray.exists()


class TestDamagedMaps:
    HEADER = MapHeader(ETAG, SIZE, f"{ETAG}.yaie-01234567.incomplete", HOST)
    STATE = bytes([0, WRITTEN, SYNCED, 0, WRITTEN, 0])
    RAW = HEADER.encode() + HEADER.encode_blocks(STATE)

    def test_an_encoded_map_is_decoded(self) -> None:
        assert decode(self.RAW, ETAG) == (self.HEADER, bytearray(self.STATE))

    @given(length=st.integers(0, len(RAW) + 5))
    def test_a_map_of_another_length_is_refused(self, length: int) -> None:
        if length != len(self.RAW):
            assert decode(self.RAW[:length].ljust(length, b"\0"), ETAG) is None

    @given(at=st.integers(0, len(RAW) - 1), garbage=st.binary(min_size=1, max_size=50))
    def test_a_garbled_map_is_right_or_refused(self, at: int, garbage: bytes) -> None:
        raw = (self.RAW[:at] + garbage + self.RAW[at + len(garbage) :])[: len(self.RAW)]
        found = decode(raw, ETAG)
        if found is None:
            return
        header, state = found
        assert header == self.HEADER
        every = [header.encode_blocks(bytes([value]) * 6) for value in (WRITTEN, SYNCED)]
        for block, value in enumerate(state):
            byte = raw[HEADER_SIZE + block]
            # A garbled byte may record a block only by being the one right value of 127.
            assert value == 0 or self.STATE[block] or byte in (every[0][block], every[1][block])

    @given(at=st.integers(HEADER_SIZE, len(RAW) - 1), fill=st.sampled_from([b"\x01", b"\xff", b"\x7f"]))
    def test_a_run_of_one_byte_records_nothing(self, at: int, fill: bytes) -> None:
        raw = self.RAW[:at] + fill * (len(self.RAW) - at)
        assert decode(raw, ETAG) is None or raw == self.RAW

    def test_another_blobs_map_is_refused(self) -> None:
        assert decode(self.RAW, "0" * 64) is None
        other = replace(self.HEADER, data=f"{ETAG}.yaie-76543210.incomplete")
        assert decode(other.encode() + self.RAW[HEADER_SIZE:], ETAG) is None

    @pytest.mark.parametrize("change", ["version", "block_size"])
    def test_another_versions_map_is_refused(self, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("yaie_async.store.blockmap." + {"version": "VERSION", "block_size": "BLOCK"}[change], 1)
        page = self.HEADER.encode()
        monkeypatch.undo()
        assert decode(page + self.RAW[HEADER_SIZE:], ETAG) is None

    def test_names_longer_than_the_page_are_refused(self) -> None:
        with pytest.raises(ValueError, match="longer than its header"):
            replace(self.HEADER, etag="x" * 5000).encode()

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        cut=st.integers(0, HEADER_SIZE + 6),
        garbage=st.binary(max_size=8),
    )
    def test_a_damaged_map_on_the_disk_is_right_or_discarded(self, blobs: Path, cut: int, garbage: bytes) -> None:
        shutil.rmtree(blobs, ignore_errors=True)
        partial = _claim(blobs)
        _write(partial, 1, 2, 4)
        partial.keep()
        path = _map(blobs)
        path.write_bytes(path.read_bytes()[:cut] + garbage)
        again = _claim(blobs)
        assert set(_have(again)) <= {1, 2, 4}
        _write(again, *range(6))
        again.publish()
        discard_orphans(blobs, ETAG)
        assert _names(blobs) == [ETAG]

    @pytest.mark.parametrize("kind", ["fifo", "sparse", "folder", "link"])
    def test_what_is_no_map_is_passed_by(self, blobs: Path, kind: str) -> None:
        """A FIFO would block its reader for ever, and a sparse file would be read whole."""
        blobs.mkdir()
        path = blobs / f"{ETAG}.yaie-01234567.map.incomplete"
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "sparse":
            with path.open("wb") as file:
                file.truncate(1 << 40)
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to("/dev/zero")
        partial = _claim(blobs)
        _write(partial, *range(6))
        assert partial.publish().read_bytes() == WHOLE
        discard_orphans(blobs, ETAG)

    @pytest.mark.parametrize(
        "change",
        [
            {"size": "5"},
            {"size": 5.0},
            {"size": True},
            {"size": 1 << 80},
            {"size": -1},
            {"data": 7},
            {"data": None},
            {"released": "no"},
            {"etag": [ETAG]},
            {"owner": {**asdict(HOST), "pid": "../../etc"}},
            {"owner": {**asdict(HOST), "started": None}},
            {"owner": {**asdict(HOST), "boot": 7}},
            {"owner": {**asdict(HOST), "more": 1}},
            {"owner": []},
            {"more": 1},
        ],
        ids=repr,
    )
    def test_fields_of_other_types_are_refused(self, change: dict[str, Any]) -> None:
        """Whoever may write into the cache can write a map with a right checksum."""
        fields = {**json.loads(self.RAW[8:HEADER_SIZE]), **change}
        body = json.dumps(fields).encode().ljust(HEADER_SIZE - 8)
        assert decode(b"%08x" % zlib.crc32(body) + body + self.RAW[HEADER_SIZE:], ETAG) is None
        body = b"[" * (HEADER_SIZE - 8)
        assert decode(b"%08x" % zlib.crc32(body) + body, ETAG) is None

    def test_a_damaged_map_without_working_locks_stays_for_a_minute(self, blobs: Path, no_locks: None) -> None:
        blobs.mkdir()
        path = blobs / f"{ETAG}.yaie-01234567.map.incomplete"
        path.touch()
        _claim(blobs).discard()
        assert path.exists()
        _age(path, 61)
        _claim(blobs).discard()
        assert not path.exists()


class TestPruned:
    def test_the_bytes_survive(self, blobs: Path) -> None:
        partial = _claim(blobs)
        _write(partial, 0, 3)
        os.pwrite(partial.fd, b"half a block", 4 * BLOCK)
        for path in blobs.iterdir():
            path.unlink()
        assert partial.touch() is Ownership.PRUNED
        rescued = partial.rescue()
        assert partial.fd == -1
        assert _have(rescued) == [0, 3]
        assert os.pread(rescued.fd, 12, 4 * BLOCK) == b"half a block"
        assert rescued.touch() is Ownership.OURS
        assert os.fstat(rescued.fd).st_blocks * 512 < 3 * BLOCK
        assert len(_names(blobs)) == 2
        _write(rescued, *range(6))
        assert rescued.publish().read_bytes() == WHOLE

    @pytest.mark.parametrize("which", ["*.map.incomplete", "*[0-9a-f].incomplete"])
    def test_one_of_the_two_files_is_pruned(self, blobs: Path, which: str) -> None:
        partial = _claim(blobs)
        _write(partial, 0)
        (path,) = blobs.glob(which)
        path.unlink()
        assert partial.touch() is Ownership.PRUNED
        rescued = partial.rescue()
        _write(rescued, *range(6))
        rescued.publish()
        discard_orphans(blobs, ETAG)
        assert _names(blobs) == [ETAG]

    @pytest.mark.parametrize("folder", [False, True])
    def test_pruned_just_before_the_publication(self, blobs: Path, folder: bool) -> None:
        """By `hf cache prune`, or by `hf cache rm` of the whole repository: the folder is made again with the blob."""
        partial = _claim(blobs)
        _write(partial, *range(6))
        if folder:
            shutil.rmtree(blobs.parent)
        else:
            for path in blobs.iterdir():
                path.unlink()
        assert partial.publish().read_bytes() == WHOLE
        assert _names(blobs) == [ETAG]

    def test_the_whole_folder_is_removed(self, blobs: Path) -> None:
        partial = _claim(blobs)
        _write(partial, 0, 1)
        shutil.rmtree(blobs)
        assert partial.touch() is Ownership.PRUNED
        assert _have(partial.rescue()) == [0, 1]

    def test_keep_and_discard_make_nothing_again(self, blobs: Path) -> None:
        for end in ("keep", "discard"):
            partial = _claim(blobs)
            shutil.rmtree(blobs)
            getattr(partial, end)()
            assert not blobs.exists()

    def test_the_official_tool(self, tmp_path: Path) -> None:
        """`hf cache prune` finds the files of a partial."""
        from huggingface_hub import scan_cache_dir

        repo = tmp_path / "models--org--name"
        (repo / "snapshots" / ("0" * 40)).mkdir(parents=True)
        partial = _claim(repo / "blobs")
        found = scan_cache_dir(tmp_path).incomplete_files
        assert len(found) == 2
        partial.discard()


class TestDisk:
    @staticmethod
    @contextmanager
    def _small_disk(path: Path, size: int) -> Iterator[Path]:
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
        try:
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("mount is not installed")
        if result.returncode:
            pytest.skip(f"a tmpfs can't be mounted: {result.stderr.strip()}")
        try:
            yield path / "blobs"
        finally:
            subprocess.run(["umount", "-l", str(path)], check=True)

    def test_a_full_disk_when_a_partial_is_made(self, tmp_path: Path) -> None:
        with self._small_disk(tmp_path / "disk", 64 << 10) as blobs:
            blobs.mkdir()
            with pytest.raises(OSError, match="No space"):
                (blobs / "filler").write_bytes(bytes(1 << 20))
            with pytest.raises(DiskFullError) as caught:
                _claim(blobs)
            assert (caught.value.needed, caught.value.free, caught.value.errno) == (SIZE, 0, errno.ENOSPC)
            assert _names(blobs) == ["filler"]

    def test_a_partial_on_a_full_disk_stays_and_can_be_resumed(self, tmp_path: Path) -> None:
        with self._small_disk(tmp_path / "disk", 2 * BLOCK + (128 << 10)) as blobs:
            partial = _claim(blobs)
            _write(partial, 0)
            with pytest.raises(OSError, match="No space"):
                while True:
                    _write(partial, 1, 2)
            partial.keep()
            again = _claim(blobs)
            assert 0 in _have(again)
            again.discard()

    def test_a_full_disk_during_a_rescue_leaves_the_pruned_partial_open(self, tmp_path: Path) -> None:
        with self._small_disk(tmp_path / "disk", 3 * BLOCK + (128 << 10)) as blobs:
            partial = _claim(blobs)
            _write(partial, 0, 1)
            for path in blobs.iterdir():
                path.unlink()
            with pytest.raises(DiskFullError) as caught:
                partial.rescue()
            assert caught.value.needed == 2 * BLOCK
            assert _names(blobs) == []
            assert _have(partial) == [0, 1]
            partial.discard()

    @pytest.mark.parametrize("call", ["ftruncate", "pwrite"])
    def test_a_file_system_for_sequential_writes(self, blobs: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
        """The error names the reason and HF_HUB_CACHE, and nothing is left."""

        def fail(*_: object) -> int:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        monkeypatch.setattr(os, call, fail)
        with pytest.raises(CacheAccessError, match=r"takes no writes at an offset.* HF_HUB_CACHE"):
            _claim(blobs)
        assert _names(blobs) == []

    def test_a_directory_that_can_t_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(CacheAccessError):
            _claim(tmp_path / "file" / "blobs")

    def test_a_failing_disk(self, blobs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(_fd: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        partial = _claim(blobs)
        _write(partial, *range(6))
        monkeypatch.setattr(partials, "fdatasync", fail)
        for act in (partial.sync, partial.publish):
            with pytest.raises(CacheAccessError) as caught:
                act()
            assert caught.value.errno == errno.EIO
        assert len(_names(blobs)) == 2
        partial.keep()

    def test_recorded_bytes(self) -> None:
        three_blocks = MapHeader(ETAG, 2 * BLOCK + 7, "data", HOST)
        assert replace(three_blocks, size=0).recorded_bytes(b"") == 0
        assert three_blocks.recorded_bytes(b"\1\0\1") == BLOCK + 7
        assert three_blocks.recorded_bytes(b"\1\0\0") == BLOCK

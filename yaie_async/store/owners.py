"""Whether the owner of a partial is gone, without asking any clock but the file system's own."""

from __future__ import annotations

import os
import platform
import secrets
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from yaie_async.store.blockmap import Owner, data_name

# Twelve times the interval at which owners touch their maps.
SILENCE = 60.0


class Takeover(Enum):
    """How an orphan may be taken over."""

    IN_PLACE = "its owner can write no more"
    BY_COPY = "its owner is silent, and may wake up and write: only what it had recorded is taken, by copy"


@dataclass(frozen=True, slots=True)
class Here:
    """What a claimer knows about itself and the directory.

    Attributes:
        owner: this process.
        lock_held: it holds the blob's lock.
        locks_work: such a lock shuts others out in this directory.
        clock_ns: the mtime of a file that was touched just now.
    """

    owner: Owner
    lock_held: bool
    locks_work: bool
    clock_ns: int

    def is_silent(self, mtime_ns: int) -> bool:
        return self.clock_ns - mtime_ns >= SILENCE * 1e9

    def takeover(self, owner: Owner, *, released: bool, alive: bool, mtime_ns: int) -> Takeover | None:
        """How a partial of `owner` may be taken over, or None if it may not.

        Args:
            released: the owner says that it writes no more.
            alive: a process of that number runs here, if `owner` is of this boot and process namespace.
            mtime_ns: when the map was last touched.
        """
        if not self.lock_held:
            return None
        if released or (self.locks_work and not alive and self._has_place_of(owner)):
            return Takeover.IN_PLACE
        return Takeover.BY_COPY if self.is_silent(mtime_ns) else None

    def _has_place_of(self, owner: Owner) -> bool:
        mine, theirs = ((o.host, o.boot, o.pid_namespace) for o in (self.owner, owner))
        return bool(owner.boot) and mine == theirs


def look_around(directory: Path, etag: str, *, lock_held: bool) -> Here:
    """Find out about this process and `directory`, by one file that is made and removed there."""
    # A name that `hf cache prune` and our own cleaning know, should we be killed before the unlink.
    path = directory / data_name(etag, secrets.token_hex(4))
    first = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        os.utime(first)
        return Here(this_process(), lock_held, _locks_work(first, path), os.fstat(first).st_mtime_ns)
    finally:
        os.close(first)
        with suppress(FileNotFoundError):
            os.unlink(path)


def _locks_work(first: int, path: Path) -> bool:
    """Whether a second descriptor is refused the lock that the first one has, as filelock takes it."""
    try:
        import fcntl
    except ImportError:
        return False
    try:
        second = os.open(path, os.O_RDWR)
    except OSError:
        return False  # pruned meanwhile, perhaps
    try:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # no locks here at all
    else:
        return False
    finally:
        os.close(second)


def this_process() -> Owner:
    """This process, as another one would look it up. Not remembered: a fork would inherit it."""
    boot = pid_namespace = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        pid_namespace = os.readlink("/proc/self/ns/pid")
    return Owner(platform.node(), boot, pid_namespace, os.getpid(), start_time(os.getpid()) or 0)


def is_alive(owner: Owner) -> bool:
    """Whether that very process runs, if it is one of this boot and process namespace."""
    return start_time(owner.pid) == owner.started


def start_time(pid: int) -> int | None:
    """When the process started, in ticks since boot; None if there is none, or only what is left of it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    state, *fields = stat.rpartition(b")")[2].split()
    return None if state in (b"Z", b"X") else int(fields[18])

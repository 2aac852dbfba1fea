"""Whether the owner of a partial is gone. Times are compared with the file system's clock only."""

import os
import platform
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from yaie_async.store.blockmap import DATA, MapHeader, Owner, file_name

# Seconds without a touch after which an owner counts as silent: twelve times the interval of its touches.
SILENCE = 60.0

# The files of an owner that can no longer write are continued, those of a silent one, which may still write, copied.
ClaimMode = Literal["in place", "by copy"]


@dataclass(frozen=True, slots=True)
class Claimer:
    """What a claim in one directory is decided by. Only the holder of the blob's lock may claim."""

    process: Owner  # this process
    locks_work: bool  # whether flock in this directory excludes a second descriptor
    clock_ns: int  # the mtime of a file that was touched just now

    def mode(self, header: MapHeader | None, mtime_ns: int) -> ClaimMode | None:
        """How a partial may be claimed whose map was last touched at `mtime_ns`; None if it may not.

        `header` is None for a damaged map, and for a data file without a map (then `mtime_ns` is that file's).
        """
        silent = self.clock_ns - mtime_ns >= SILENCE * 1e9
        if header is None:  # a wrong guess costs the owner a copy (`Partial.rescue`)
            return "in place" if self.locks_work or silent else None
        if header.released or (self.locks_work and self._knows_dead(header.owner)):
            return "in place"
        return "by copy" if silent else None

    def _knows_dead(self, owner: Owner) -> bool:
        """Whether that very process has ended, where it is one of this boot.

        One of another process namespace, as in a container that was started again, can't be looked up. It would hold
        the blob's lock, which the caller has, and which works between all processes of one kernel.
        """
        if not owner.boot or owner.boot != self.process.boot:
            return False
        return owner.pid_namespace != self.process.pid_namespace or start_time(owner.pid) != owner.started


def probe(directory: Path, etag: str) -> Claimer:
    """Probe the directory's clock and flock with a temporary file."""
    # Named like a partial, so that `hf cache prune` and `discard_orphans` remove it if a kill comes before the unlink.
    path = directory / file_name(etag, secrets.token_hex(4), DATA)
    first = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        os.utime(first)
        return Claimer(this_process(), _locks_work(first, path), os.fstat(first).st_mtime_ns)
    finally:
        os.close(first)
        with suppress(FileNotFoundError):
            os.unlink(path)


def _locks_work(first: int, path: Path) -> bool:
    """Whether a second descriptor can't get the lock (of the kind that filelock takes) that the first one holds."""
    with suppress(ImportError, OSError):  # no fcntl on Windows; pruned meanwhile; a file system without locks
        import fcntl

        with open(path, "rb+") as second:
            try:
                for file in (first, second):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def this_process() -> Owner:
    """This process as an owner. Not cached, because a forked child would inherit it."""
    boot = pid_namespace = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        pid_namespace = os.readlink("/proc/self/ns/pid")
    return Owner(platform.node(), boot, pid_namespace, os.getpid(), start_time(os.getpid()) or 0)


def start_time(pid: int) -> int | None:
    """Start time of a process in ticks since boot; None if it does not run (a zombie does not)."""
    with suppress(OSError):
        state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if state in (b"Z", b"X") else int(fields[18])
    return None

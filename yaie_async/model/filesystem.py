"""Whether a directory is on a local file system, where written bytes are visible through every descriptor at once."""

import os
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")

# Any other may be a network file system, which shows pages late, or evicts them under a mapping (SIGBUS).
_LOCAL = {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"}


def is_local(directory: Path) -> bool:
    """Whether `directory` is known to be on a local file system. False where that is unknown (not on Linux)."""
    try:
        mounts = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return False
    return file_system(os.path.realpath(directory), mounts) in _LOCAL


def file_system(path: str, mounts: str) -> str | None:
    """The type of the file system of `path`, by the lines of /proc/self/mountinfo (see proc(5)).

    Device numbers don't help: those of stat for btrfs and overlay are not listed there.
    """
    found: tuple[int, str | None] = (-1, None)
    for line in mounts.splitlines():
        mounted, _, source = line.partition(" - ")
        point = _unescaped(mounted.split(" ")[4])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= found[0]:  # of two at one place, the later one hides the other
            found = len(point), source.split(" ")[0]
    return found[1]


def _unescaped(point: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        point = point.replace(code, character)
    return point

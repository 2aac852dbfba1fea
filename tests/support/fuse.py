"""A file system in user space (FUSE, by ctypes) that shows a folder, and lacks what some mounts of the cloud lack.

`python -m tests.support.fuse FOLDER MOUNT LACK` runs one until it is unmounted; `mounted` does that for a test. What is
lacking: "space" (statfs says 0 of 0, FUSE's default), "offsets" (a file is only appended to), or "locks".
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import time_ns
from typing import Any

import pytest

from tests.support.programs import require_program
from tests.support.waiting import wait_until

_ROOT = Path(__file__).parents[2]
_NOW, _OMIT = (1 << 30) - 1, (1 << 30) - 2  # UTIME_NOW and UTIME_OMIT
_int, _void, _char, _size = ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t

# The operations of libfuse 3, in their order; all that are None here are left out.
_OPERATIONS: dict[str, tuple[Any, ...] | None] = {
    "getattr": (_char, _void, _void),
    "readlink": (_char, _void, _size),
    "mknod": None,
    "mkdir": (_char, ctypes.c_uint),
    "unlink": (_char,),
    "rmdir": (_char,),
    "symlink": (_char, _char),
    "rename": (_char, _char, ctypes.c_uint),
    "link": None,
    "chmod": (_char, ctypes.c_uint, _void),
    "chown": None,
    "truncate": (_char, ctypes.c_longlong, _void),
    "open": (_char, _void),
    "read": (_char, _void, _size, ctypes.c_longlong, _void),
    "write": (_char, _void, _size, ctypes.c_longlong, _void),
    "statfs": (_char, _void),
    **dict.fromkeys(("flush", "release", "fsync", "setxattr", "getxattr", "listxattr", "removexattr", "opendir")),
    "readdir": (_char, _void, _void, ctypes.c_longlong, _void, _int),
    **dict.fromkeys(("releasedir", "fsyncdir", "init", "destroy", "access")),
    "create": (_char, ctypes.c_uint, _void),
    "lock": None,
    "utimens": (_char, _void, _void),
    **dict.fromkeys(("bmap", "ioctl", "poll", "write_buf", "read_buf")),
    "flock": (_char, _void, _int),
    **dict.fromkeys(("fallocate", "copy_file_range", "lseek")),
}
_FILL = ctypes.CFUNCTYPE(_int, _void, _char, _void, ctypes.c_longlong, _int)


class _Stat(ctypes.Structure):
    """`struct stat` of x86-64."""

    _fields_ = (
        ("device", ctypes.c_ulonglong),
        ("inode", ctypes.c_ulonglong),
        ("links", ctypes.c_ulonglong),
        ("mode", ctypes.c_uint),
        ("uid", ctypes.c_uint),
        ("gid", ctypes.c_uint),
        ("pad", ctypes.c_uint),
        ("numbers", ctypes.c_ulonglong * 4),  # device, size, size of a block, blocks
        ("times", ctypes.c_longlong * 6),
        ("reserved", ctypes.c_longlong * 3),
    )


class _Shown:
    """The operations, by the names that libfuse has for them."""

    def __init__(self, folder: Path, lack: str) -> None:
        self._folder = os.fsencode(folder)
        self._lack = lack

    def _at(self, path: bytes) -> bytes:
        return self._folder + path

    def getattr(self, path: bytes, out: int, _info: int) -> None:
        found = os.lstat(self._at(path))
        seconds = [
            part for ns in (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns) for part in divmod(ns, 10**9)
        ]
        stat = _Stat(found.st_dev, found.st_ino, found.st_nlink, found.st_mode, found.st_uid, found.st_gid, 0)
        stat.numbers[:] = (found.st_rdev, found.st_size, found.st_blksize, found.st_blocks)
        stat.times[:] = seconds
        ctypes.memmove(out, ctypes.byref(stat), ctypes.sizeof(stat))

    def readlink(self, path: bytes, out: int, size: int) -> None:
        target = os.readlink(self._at(path))[: size - 1] + b"\0"
        ctypes.memmove(out, target, len(target))

    def mkdir(self, path: bytes, mode: int) -> None:
        os.mkdir(self._at(path), mode)

    def unlink(self, path: bytes) -> None:
        os.unlink(self._at(path))

    def rmdir(self, path: bytes) -> None:
        os.rmdir(self._at(path))

    def symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, self._at(path))

    def rename(self, old: bytes, new: bytes, _flags: int) -> None:
        os.rename(self._at(old), self._at(new))

    def chmod(self, path: bytes, mode: int, _info: int) -> None:
        os.chmod(self._at(path), mode)

    def truncate(self, path: bytes, size: int, _info: int) -> None:
        if self._lack == "offsets" and size:
            raise OSError(errno.EOPNOTSUPP, "")
        os.truncate(self._at(path), size)

    def open(self, path: bytes, _info: int) -> None:
        os.stat(self._at(path))

    def read(self, path: bytes, out: int, size: int, offset: int, _info: int) -> int:
        with open(self._at(path), "rb") as file:
            file.seek(offset)
            data = file.read(size)
        ctypes.memmove(out, data, len(data))
        return len(data)

    def write(self, path: bytes, data: int, size: int, offset: int, _info: int) -> int:
        with open(self._at(path), "r+b") as file:
            if self._lack == "offsets" and offset != os.fstat(file.fileno()).st_size:
                raise OSError(errno.EOPNOTSUPP, "")
            file.seek(offset)
            return file.write(ctypes.string_at(data, size))

    def statfs(self, _path: bytes, out: int) -> None:
        found = os.statvfs(self._folder)
        blocks = [0] * 3 if self._lack == "space" else [found.f_blocks, found.f_bfree, found.f_bavail]
        numbers = (ctypes.c_ulong * 5)(found.f_bsize, found.f_frsize, *blocks)
        ctypes.memmove(out, numbers, ctypes.sizeof(numbers))

    def readdir(self, path: bytes, buffer: int, fill: int, _offset: int, _info: int, _flags: int) -> None:
        for name in (b".", b"..", *os.listdir(self._at(path))):
            _FILL(fill)(buffer, name, None, 0, 0)

    def create(self, path: bytes, mode: int, _info: int) -> None:
        os.close(os.open(self._at(path), os.O_CREAT | os.O_RDWR, mode))

    def utimens(self, path: bytes, times: int, _info: int) -> None:
        parts = ctypes.cast(times, ctypes.POINTER(ctypes.c_long * 4)).contents
        now = time_ns() if parts[3] in (_NOW, _OMIT) else parts[2] * 10**9 + parts[3]
        os.utime(self._at(path), ns=(now, now), follow_symlinks=False)

    def flock(self, _path: bytes, _info: int, _operation: int) -> None:
        if self._lack == "locks":
            raise OSError(errno.ENOLCK, "")


def _callback(operation: Callable[..., int | None]) -> Callable[..., int]:
    def call(*arguments: Any) -> int:
        try:
            return operation(*arguments) or 0
        except OSError as error:
            return -(error.errno or errno.EIO)

    return call


def _serve(folder: str, mount: str, lack: str) -> None:
    shown = _Shown(Path(folder), lack)
    kinds: dict[str, Any] = {
        name: ctypes.CFUNCTYPE(_int, *kind) if kind else _void for name, kind in _OPERATIONS.items()
    }
    table = type("Operations", (ctypes.Structure,), {"_fields_": [*kinds.items()]})()
    for name, kind in kinds.items():
        if kind is not _void and (name != "flock" or lack == "locks"):  # the kernel has locks of its own
            setattr(table, name, kind(_callback(getattr(shown, name))))
    arguments = [b"fuse", b"-f", b"-s", b"-o", b"attr_timeout=0,entry_timeout=0", os.fsencode(mount)]
    library = ctypes.CDLL(ctypes.util.find_library("fuse3"))
    vector = (_char * len(arguments))(*arguments)
    sys.exit(library.fuse_main_real(len(arguments), vector, ctypes.byref(table), ctypes.sizeof(table), None))


@contextmanager
def mounted(top: Path, lack: str) -> Iterator[Path]:
    """A mount that lacks something; skips the test where none can be made."""
    if not os.access("/dev/fuse", os.W_OK) or os.geteuid() != 0 or platform.machine() != "x86_64":
        pytest.skip("needs /dev/fuse on x86-64, as root")
    require_program("fusermount3", "fuse3")
    folder, mount = top / "shown", top / "mount"
    folder.mkdir()
    mount.mkdir()
    command = [sys.executable, "-m", "tests.support.fuse", str(folder), str(mount), lack]
    with subprocess.Popen(command, cwd=_ROOT, env=os.environ | {"PYTHONPATH": str(_ROOT)}) as process:
        try:
            wait_until(lambda: os.path.ismount(mount) or process.poll() is not None)
            if process.poll() is not None:
                pytest.skip("mounting by FUSE is not permitted here")
            yield mount
        finally:
            subprocess.run(["umount", "-l", str(mount)], check=False)
            process.wait(60)


if __name__ == "__main__":
    _serve(*sys.argv[1:])

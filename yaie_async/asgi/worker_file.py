"""The files through which the workers of a server share their states, in the user's runtime folder.

Each worker holds the lock of its own file. A file that is not locked belongs to a worker that has ended, and the next
one that looks removes it. All of this blocks, so it runs off the event loop.
"""

import errno
import json
import os
import secrets
import stat
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any

with suppress(ImportError):  # Windows: `_folder` says so
    import fcntl

_PREFIX = "worker-"
_HEADER = 18  # checksum and length of the text that follows, in hexadecimal

# Bounds of what is read: files, and bytes of one file.
_MOST, _LARGEST = 1024, 1 << 20


# Errors that say nothing about the file.
_TEMPORARY = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO)


class WorkerFile:
    """The file of this worker, and a view of the others. A forked child gets one of its own."""

    def __init__(self) -> None:
        self._fd: int | None = None
        self._name = ""

    def write(self, document: dict[str, Any]) -> None:
        """Write the state of this worker. A reader gets it whole, the last one, or none.

        Raises:
            OSError: the runtime folder can't be used.
        """
        text = json.dumps(document).encode()
        with _folder() as folder:
            # The first time, in a forked child, or after somebody has removed it.
            if self._fd not in _locked or not os.fstat(self._fd).st_nlink:
                self._drop()
                self._create(folder)
            assert self._fd is not None
            data = b"%08x %08x " % (zlib.crc32(text), len(text)) + text
            if os.pwrite(self._fd, data, 0) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._name)

    def others(self) -> list[Any]:
        """Return what the other living workers of this user have written, of all servers. It may be any JSON.

        Raises:
            OSError: the runtime folder can't be used.
        """
        with _folder() as folder:
            with os.scandir(folder) as entries:
                names = [entry.name for entry in islice(entries, _MOST) if entry.name.startswith(_PREFIX)]
            found = []
            for name in names:
                if name != self._name:
                    try:
                        found.append(_read(folder, name))
                    except (OSError, ValueError) as error:
                        if isinstance(error, OSError) and error.errno in _TEMPORARY:
                            raise
                        # It has just ended, or is no file of ours.
            return found

    def close(self) -> None:
        """Remove the file."""
        if self._fd in _locked:
            with suppress(OSError), _folder() as folder:
                os.unlink(self._name, dir_fd=folder)
            self._drop()

    def _drop(self) -> None:
        fd, self._fd, self._name = self._fd, None, ""
        if fd in _locked:  # else it is the parent's, of which this process is a fork
            _locked.remove(fd)
            os.close(fd)

    def _create(self, folder: int) -> None:
        while self._fd is None:
            self._name = f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
            self._fd = os.open(self._name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
            _locked.add(self._fd)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            if not os.fstat(self._fd).st_nlink:  # another worker saw it before it was locked, and removed it
                self._drop()


_locked: set[int] = set()


def _unlock() -> None:
    """Close the descriptors in a forked child: one that outlives the worker would keep its file locked."""
    while _locked:
        os.close(_locked.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)


def _read(folder: int, name: str) -> Any:
    """Return what a living worker has written, and remove the file of one that has ended.

    Raises:
        OSError, ValueError: there is nothing to return.
    """
    # A FIFO of that name would block without O_NONBLOCK.
    fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return _parse(fd)
        os.unlink(name, dir_fd=folder)
        raise ValueError
    finally:
        os.close(fd)


def _parse(fd: int) -> Any:
    for _ in range(3):  # it may be written at this moment
        data = os.pread(fd, _LARGEST, 0)
        checksum, length = int(data[:8], 16), int(data[9:17], 16)
        text = data[_HEADER : _HEADER + length]
        if zlib.crc32(text) == checksum:
            return json.loads(text)
    raise ValueError


@contextmanager
def _folder() -> Iterator[int]:
    """Open the runtime folder, which only this user can read or write; make it if it does not exist."""
    if os.name != "posix":
        raise OSError(errno.ENOSYS, "not on this system")
    user = os.geteuid()
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    # The XDG specification: a relative path is invalid and ignored. The session's own may not exist in a service.
    own = os.path.isabs(runtime) and os.access(runtime, os.W_OK | os.X_OK)
    path = os.path.join(runtime, "yaie-async") if own else os.path.join(tempfile.gettempdir(), f"yaie-async-{user}")
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    # All files are then opened beneath this descriptor, so that nothing planted at the path matters.
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        found = os.fstat(folder)
        if found.st_uid != user or found.st_mode & 0o077:
            raise PermissionError(errno.EACCES, "is not private to this user", path)
        yield folder
    finally:
        os.close(folder)

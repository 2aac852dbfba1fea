"""Opens files beneath a folder. Links are followed where they stay beneath it, even if they change meanwhile."""

import ctypes
import errno
import os
from pathlib import Path

# To read a file. A FIFO without a writer and a terminal open at once too; the caller closes what is no regular file.
READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# To look at a file without opening it, which a device might notice. Only Linux has this.
LOOK = os.O_PATH | os.O_CLOEXEC if hasattr(os, "O_PATH") else READ
_FOLDER = LOOK | os.O_DIRECTORY

# The kernel gives up with EAGAIN if any folder of the machine moves meanwhile; a walk meets a link that is new.
_TRIES = 8

_SYS_OPENAT2 = 437  # on all architectures that torch is built for
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_BENEATH = 0x08


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


# The libc has no function for openat2 before glibc 2.43.
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_OpenHow), ctypes.c_size_t)


def open_beneath(root: Path, path: str, flags: int) -> int:
    """Return a new descriptor of the file at `path` beneath the folder `root`, itself a path without links. Blocks.

    Raises:
        OSError: EXDEV where the path, or a link on it, leads outside; else as `os.open`.
    """
    folder = os.open(root, _FOLDER)
    try:
        return _openat2(folder, path, flags)
    except OSError as error:
        # No openat2 in this kernel (ENOSYS) or sandbox (EPERM), or an absolute link, which may still lead beneath.
        if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EAGAIN, errno.EXDEV):
            raise
    finally:
        os.close(folder)
    return _walk(root, path, flags)


def _openat2(folder: int, path: str, flags: int) -> int:
    how = _OpenHow(flags, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
    for _ in range(_TRIES):
        opened: int = _syscall(_SYS_OPENAT2, folder, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
        if opened >= 0:
            return opened
        if (code := ctypes.get_errno()) != errno.EAGAIN:
            break
    raise OSError(code, os.strerror(code), path)


def _walk(root: Path, path: str, flags: int) -> int:
    """Resolve all links, and open the result folder by folder without following any."""
    for _ in range(_TRIES):
        here = os.open(root, _FOLDER)
        try:
            resolved = Path(os.path.realpath(os.path.join(root, path)))
            if not resolved.is_relative_to(root):
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
            *folders, name = resolved.relative_to(root).parts or (".",)
            for folder in folders:
                above, here = here, os.open(folder, _FOLDER | os.O_NOFOLLOW, dir_fd=here)
                os.close(above)
            return os.open(name, flags | os.O_NOFOLLOW, dir_fd=here)
        except OSError as error:
            # Something became a link (O_NOFOLLOW says ELOOP, with O_DIRECTORY ENOTDIR), or is none any more (EINVAL).
            if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.EINVAL):
                raise
            changed = error
        finally:
            os.close(here)
    raise changed

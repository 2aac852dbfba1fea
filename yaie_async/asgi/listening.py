"""The sockets on which this process serves: by them the workers of one server know each other. Linux only.

All of this reads /proc, and runs off the event loop.
"""

import os
import socket
from contextlib import suppress
from dataclasses import dataclass

# The lowest descriptors, among which a server's are. Connections come later.
_MOST = 1024


@dataclass(frozen=True, slots=True)
class Listening:
    """The server sockets of this process.

    Attributes:
        sockets: "socket:[inode]" of each. Workers of one server have inherited the same one.
        addresses: the address of each that shares its port with others (SO_REUSEPORT). There each worker may have its
            own socket, as in Granian.
    """

    sockets: frozenset[str] = frozenset()
    addresses: frozenset[str] = frozenset()


def listening() -> Listening:
    """Find the sockets of this process that listen, or are bound so that they will.

    Raises:
        OSError: they can't be seen now, for example without a free descriptor.
    """
    sockets, addresses = set(), set()
    with suppress(FileNotFoundError):  # no /proc
        network = os.readlink("/proc/self/ns/net")
        for fd in sorted(int(name) for name in os.listdir("/proc/self/fd"))[:_MOST]:
            with suppress(OSError):  # closed meanwhile
                link = os.readlink(f"/proc/self/fd/{fd}")
                # Blocking ones are left alone: `_address` may set the other mode (see socket.setdefaulttimeout).
                if link.startswith("socket:") and not os.get_blocking(fd) and (address := _address(fd)) is not None:
                    sockets.add(link)
                    if address:
                        addresses.add(f"{network} {address}")
    return Listening(frozenset(sockets), frozenset(addresses))


def _address(fd: int) -> str | None:
    """The address of a server socket that shares its port, "" for any other server socket, None for no such socket."""
    one = socket.socket(fileno=fd)
    try:
        internet = one.family in (socket.AF_INET, socket.AF_INET6)
        if one.type != socket.SOCK_STREAM or not (_listens(one) or (internet and _is_bound_only(one))):
            return None
        shares = internet and one.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
        return str(one.getsockname()) if shares else ""
    finally:
        one.detach()  # it is not ours to close


def _listens(one: socket.socket) -> bool:
    return bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _is_bound_only(one: socket.socket) -> bool:
    """Whether a socket has an address and no peer. Granian's workers inherit one of these."""
    try:
        one.getpeername()
    except OSError:
        return bool(one.getsockname()[1])
    return False


def supervised(sockets: frozenset[str]) -> frozenset[int] | None:
    """Find the workers of this process's supervisor: its children with one of these sockets, this one among them.

    There are none if the parent has none of the sockets, and so is no supervisor. None if that can never be seen.

    Raises:
        OSError: it can't be seen now.
    """
    parent = os.getppid()
    try:
        if not _has(parent, sockets):
            return frozenset()
        children: set[int] = set()
        for thread in os.listdir(f"/proc/{parent}/task"):
            with open(f"/proc/{parent}/task/{thread}/children", encoding="ascii") as file:
                children.update(map(int, file.read().split()))
    except FileNotFoundError:
        return frozenset() if parent <= 1 else None
    except PermissionError:  # another user's, as under gunicorn's --user
        return None
    workers = {os.getpid()}
    for child in children:
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):  # it has ended
            if _has(child, sockets):
                workers.add(child)
    return frozenset(workers)


def _has(pid: int, sockets: frozenset[str]) -> bool:
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile
            if os.readlink(f"/proc/{pid}/fd/{name}") in sockets:
                return True
    return False

"""A link slower than loopback: a network namespace for the servers, shaped by `tc tbf`. Needs root."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """The network in which servers run.

    Attributes:
        host: their address.
        prefix: the words before a command that run it there.
        what: a description of the link; "" for loopback.
    """

    host: str = "127.0.0.1"
    prefix: tuple[str, ...] = ()
    what: str = ""


class NoLink(Exception):
    """Raised when this machine can't create a link; the message has the reason."""


@contextmanager
def link(rate: str) -> Iterator[Place]:
    """Create a link that limits the bytes from the servers to `rate` ("1gbit").

    Raises:
        NoLink: without root, `ip`, `tc`, or kernel support of namespaces, veth and tbf.
    """
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        raise NoLink("it needs root" if not missing else f"it needs {' and '.join(missing)} (Debian package iproute2)")
    # Names and addresses derived from the process id, so that two benchmarks can run at once.
    number = os.getpid() % 16384
    name, ours, theirs = f"bench{number}", f"bo{number}", f"bt{number}"
    near, far = (f"10.211.{number // 64}.{number % 64 * 4 + i}" for i in (1, 2))
    inside = ("ip", "netns", "exec", name)
    try:
        _run("ip", "netns", "add", name)
        try:
            _run("ip", "link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name)
            _run("ip", "addr", "add", f"{near}/30", "dev", ours)
            _run("ip", "link", "set", ours, "up")
            _run(*inside, "ip", "addr", "add", f"{far}/30", "dev", theirs)
            _run(*inside, "ip", "link", "set", theirs, "up")
            _run(*inside, "ip", "link", "set", "lo", "up")
            # A burst of about 2 ms. With a smaller one, the kernel's timer can't keep the rate.
            burst = "2500kb" if rate.endswith("0gbit") else "256kb"
            _run(
                *inside,
                "tc",
                "qdisc",
                "add",
                "dev",
                theirs,
                "root",
                "tbf",
                "rate",
                rate,
                "burst",
                burst,
                *_QUEUE,
            )
        except BaseException:
            _run("ip", "netns", "del", name)
            raise
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoLink(
            f"the link of {rate} could not be created: {getattr(error, 'stderr', '') or error}".strip()
        ) from error
    try:
        yield Place(far, inside, f"a link of {rate} (tc tbf)")
    finally:
        _run("ip", "netns", "del", name)  # also deletes the pair of interfaces


_QUEUE = ("latency", "50ms")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)

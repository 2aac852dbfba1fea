"""The client under test, a sink in memory, and what it may leave behind: nothing."""

from __future__ import annotations

import os
import ssl
import threading
from contextlib import suppress

import httpx

from yaie_async.fetch.stop import Stop
from yaie_async.fetch.transport import DrainableStream, DrainTransport, drainable


def make_client(
    context: ssl.SSLContext | None = None,
    *,
    timeout: httpx.Timeout | float = 5,
    max_connections: int = 4,
) -> httpx.AsyncClient:
    transport = DrainTransport(context or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), max_connections)
    return httpx.AsyncClient(transport=transport, timeout=timeout, headers={"Accept-Encoding": "identity"})


class Memory:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.calls = 0
        self.largest = 1 << 30

    def write(self, data: memoryview, stopped: Stop) -> None:
        assert not stopped.is_set()
        self.data += data
        self.calls += 1


def body_of(response: httpx.Response) -> DrainableStream:
    body = drainable(response)
    assert body is not None
    return body


async def drain(client: httpx.AsyncClient, url: str) -> bytes:
    """The body of a GET, drained."""
    sink = Memory()
    async with client.stream("GET", url) as response:
        assert await body_of(response).drain_into(sink) == len(sink.data)
    return bytes(sink.data)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("yaie_async")]


def sockets() -> int:
    count = 0
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of the listing itself is gone
            count += os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:")
    return count

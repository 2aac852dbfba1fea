"""A local hub for tests, which records its requests and applies faults."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.support.faults import Answer, Fault, Faults, Request
from tests.support.waiting import until
from yaie_async.localhub import LocalHub, running


class HubServer:
    """A `LocalHub` in this process, which is also its own CDN at `cdn_url`, another origin.

        with HubServer(root, tokens=("good",)) as hub: ...

    Attributes:
        requests: all requests so far, in the order of arrival, including those to the CDN.
        faults: the faults; see tests/support/faults.py.
    """

    url: str
    cdn_url: str

    def __init__(self, root: Path, *, cdn: bool = True, **options: Any) -> None:
        """Serve `root`. `options` are those of `LocalHub`; `cdn=False` serves LFS files in place."""
        self.root = root
        self.faults = Faults()
        self.app = LocalHub(root, **options)
        self._cdn = cdn
        self._lock = threading.Lock()
        self._requests: list[Request] = []
        self._servers = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as servers:
            self.url = servers.enter_context(running(self._serve))
            self.cdn_url = servers.enter_context(running(self._serve, host="127.0.0.2"))
            self._servers = servers.pop_all()
        if self._cdn:
            self.app.cdn = self.cdn_url
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._servers.close()

    @property
    def requests(self) -> list[Request]:
        with self._lock:
            return list(self._requests)

    @property
    def lines(self) -> list[str]:
        """The requests as lines `GET /path`."""
        return [f"{request.method} {request.path}" for request in self.requests]

    def clear(self) -> None:
        """Forget requests and faults."""
        self.faults.clear()
        with self._lock:
            self._requests.clear()

    def raw_get(self, target: bytes) -> int:
        """Request a target that a client's URL library would change, such as `/a/../b`; return the status."""
        address = urlsplit(self.url)
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: hub\r\nConnection: close\r\n\r\n")
            with connection.makefile("rb") as answer:
                return int(answer.readline().split()[1])

    async def until(self, condition: Callable[[], object], *, seconds: float = 60) -> None:
        """Wait until a condition on the server's state is true, such as `lambda: hub.requests`.

        Raises:
            TimeoutError: it did not become true.
        """
        await until(condition, seconds=seconds)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        request = Request(scope["method"], scope["path"], query, headers)
        with self._lock:
            self._requests.append(request)
        request.fault = self.faults.take(request)
        if request.fault is None:
            await self.app(scope, receive, _counting(request, send))
        else:
            await _serve_faulty(self.app, request, request.fault, scope, receive, send)


def _counting(request: Request, send: Send) -> Send:
    async def counted(message: Message) -> None:
        if message["type"] == "http.response.start":
            request.status = message["status"]
        # Counted first: a client that has read the bytes may check the count before this task runs again.
        request.sent += len(message.get("body", b""))
        await send(message)

    return counted


async def _serve_faulty(
    app: ASGIApp, request: Request, fault: Fault, scope: Scope, receive: Receive, send: Send
) -> None:
    asked = dict(request.headers)
    fault.edit_request(asked)
    raw_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in asked.items()]
    answer = await _answer_of(app, {**scope, "headers": raw_headers}, receive)
    fault.edit_answer(answer)
    if request.method == "HEAD":
        answer.body = b""
    # uvicorn's own object for this request, since no ASGI message breaks a connection.
    connection = send.__self__  # type: ignore[attr-defined]
    delivery = _Delivery(request, answer, connection, _counting(request, send))
    if await _first_of(delivery.run(), _gone(receive)) == 0 and delivery.breaks:
        # uvicorn logs a request without an answer as an error, unless the client has disconnected before.
        await _gone(receive)


async def _answer_of(app: ASGIApp, scope: Scope, receive: Receive) -> Answer:
    """Call the hub and return its answer from memory."""
    messages: list[Message] = []
    finished = asyncio.Event()

    async def keep(message: Message) -> None:
        messages.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            finished.set()

    body_read = False

    async def receive_body() -> Message:
        # The real `receive` is kept to detect a disconnect: a body can be read through it only once.
        nonlocal body_read
        if not body_read:
            message = await receive()
            body_read = not message.get("more_body")
            return message
        await finished.wait()
        return {"type": "http.disconnect"}

    await app(scope, receive_body, keep)
    start = messages[0]
    url = f"{scope['scheme']}://{dict(scope['headers'])[b'host'].decode()}{scope['raw_path'].decode()}"
    return Answer(
        url,
        start["status"],
        {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in start["headers"]},
        b"".join(message.get("body", b"") for message in messages[1:]),
    )


class _Delivery:
    """Sends an edited answer, by ASGI if its framing is valid and else as raw bytes."""

    def __init__(self, request: Request, answer: Answer, connection: Any, send: Send) -> None:
        self._request = request
        self._answer = answer
        self._transport: asyncio.Transport = connection.transport
        self._drain = connection.flow.drain
        self._send = send
        self.breaks = answer.raw or answer.reset or answer.close_after is not None

    async def run(self) -> None:
        answer = self._answer
        if answer.reset and answer.close_after is None:
            self._abort()
            return
        if answer.stall_after == -1:
            await self._wait()
        await self._head()
        for piece in self._pieces():
            if answer.rate is not None:
                await asyncio.sleep(len(piece) / answer.rate)
            await self._write(piece)
            if self._request.sent == answer.stall_after:
                await self._wait()
        if not self.breaks:
            await self._send({"type": "http.response.body"})
        elif answer.reset:
            await self._flushed()
            self._abort()
        else:
            self._transport.close()

    async def _head(self) -> None:
        answer = self._answer
        headers = list(answer.headers.items())
        if self.breaks:
            headers.append(("connection", "close"))
            head = "".join(f"{name}: {value}\r\n" for name, value in headers)
            self._transport.write(f"HTTP/1.1 {answer.status} \r\n{head}\r\n".encode("latin-1"))
            self._request.status = answer.status
        else:
            raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
            await self._send({"type": "http.response.start", "status": answer.status, "headers": raw})
        if answer.stall_after == 0:
            await self._wait()

    def _pieces(self) -> Iterator[bytes]:
        answer = self._answer
        end = len(answer.body) if answer.close_after is None else min(answer.close_after, len(answer.body))
        # Each piece takes 1/20 s, so that a slow body arrives evenly and no sleep is long.
        size = 64 * 1024 if answer.rate is None else max(1, int(answer.rate / 20))
        at = 0
        while at < end:
            upto = min(at + size, end)
            if answer.stall_after is not None and at < answer.stall_after < upto:
                upto = answer.stall_after
            yield answer.body[at:upto]
            at = upto

    async def _write(self, piece: bytes) -> None:
        if not self.breaks:
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
            return
        self._request.sent += len(piece)
        self._transport.write(piece)
        await self._drain()

    async def _wait(self) -> None:
        assert self._answer.gate is not None
        # Shielded, since a cancelled wait would cancel the gate for all answers.
        await asyncio.shield(asyncio.wrap_future(self._answer.gate.future))

    async def _flushed(self) -> None:
        while self._transport.get_write_buffer_size():
            await asyncio.sleep(0.001)

    def _abort(self) -> None:
        opened = self._transport.get_extra_info("socket")
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _first_of(*calls: Any) -> int:
    """Run coroutines until one of them ends, and return its index."""
    ended: list[int] = []

    async with anyio.create_task_group() as tasks:

        async def run(index: int, call: Any) -> None:
            await call
            ended.append(index)
            tasks.cancel_scope.cancel()

        for index, call in enumerate(calls):
            tasks.start_soon(run, index, call)
    return ended[0]

"""The bytes of a file as an HTTP answer: whole, or the one range that was asked for (RFC 9110, section 14)."""

from __future__ import annotations

import io
import re
from pathlib import Path

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

# Large enough that the hop into a thread, about 50 us, is lost in the time that the read takes.
_CHUNK = 1024 * 1024

# 19 digits are enough for any file, and int() refuses text of some thousands.
_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII)


class RangeNotSatisfiable(ValueError):
    """Raised when a range lies outside the file."""


def select_range(header: str | None, if_range: str | None, etag: str, size: int) -> tuple[int, int] | None:
    """Return the first byte and the end (exclusive) to serve, or None for the whole file.

    A header that is no single byte range is ignored, as the RFC allows, and so is one whose `If-Range` names other
    contents.

    Raises:
        RangeNotSatisfiable: the range lies outside the file.
    """
    match = _RANGE.fullmatch(header or "")
    if match is None or (if_range is not None and if_range != etag):
        return None
    first, last = match.groups()
    if not first and not last:
        return None
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    if start >= size:
        raise RangeNotSatisfiable
    return start, end


def file_response(request: Request, source: Path, size: int, headers: dict[str, str]) -> Response:
    """Return a file, or the range of it that the request asks for.

    `headers` holds the `ETag` and whatever else goes with every answer about the file.
    """
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
    if request.method == "HEAD":
        return Response(headers=headers | {"Content-Length": str(size)})
    asked = request.headers
    try:
        chosen = select_range(asked.get("range"), asked.get("if-range"), headers["ETag"], size)
    except RangeNotSatisfiable:
        return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{size}"})
    if chosen is None:
        return FileBody(source, 0, size, 200, headers)
    start, end = chosen
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return FileBody(source, start, end, 206, headers)


class FileBody(Response):
    """Bytes `start` to `end` (exclusive) of a file, read in threads a chunk at a time."""

    def __init__(self, source: Path, start: int, end: int, status_code: int, headers: dict[str, str]) -> None:
        super().__init__(status_code=status_code, headers=headers | {"Content-Length": str(end - start)})
        self._source = source
        self._start = start
        self._end = end

    async def __call__(
        self,
        scope: Scope,  # noqa: ARG002 - of ASGI
        receive: Receive,
        send: Send,
    ) -> None:
        """Send the answer.

        Raises:
            OSError: the file can't be read, or became shorter, which the client sees as a body cut short.
        """
        # Buffered, since its lock keeps a close from pulling the descriptor from under a read in a thread.
        opened = await anyio.to_thread.run_sync(self._open)
        try:
            async with anyio.create_task_group() as tasks:
                # Servers drop what is sent to a client that left, so nothing else would end the reading.
                tasks.start_soon(_until_disconnect, receive, tasks.cancel_scope)
                await self._send(opened, send)
                tasks.cancel_scope.cancel()
        finally:
            opened.close()

    def _open(self) -> io.BufferedReader:
        opened = self._source.open("rb")
        opened.seek(self._start)
        return opened

    async def _send(self, opened: io.BufferedReader, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        left = self._end - self._start
        while left:
            chunk = await anyio.to_thread.run_sync(opened.read, min(_CHUNK, left))
            if not chunk:
                raise OSError(f"{self._source} became shorter while it was served")
            left -= len(chunk)
            await send({"type": "http.response.body", "body": chunk, "more_body": left > 0})
        if self._start == self._end:
            await send({"type": "http.response.body"})


async def _until_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()

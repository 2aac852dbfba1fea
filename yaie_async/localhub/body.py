"""The body of a response: a whole file, or one range of it (RFC 9110, section 14)."""

import io
import re

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from yaie_async.localhub.models import File

# Bytes per read: 2 GB/s on one connection. A client that does not read costs twice as much memory.
_CHUNK = 256 * 1024

# 19 digits are enough for any file; int() refuses a text of several thousand.
_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII)


class RangeNotSatisfiable(ValueError):
    """Raised when a range lies outside the file (HTTP 416)."""


def select_range(header: str | None, if_range: str | None, etag: str, size: int) -> tuple[int, int] | None:
    """Return the start and the exclusive end of the requested range, or None for the whole file.

    The header is ignored if it is not a single byte range, as the RFC allows, and if `if_range` is another etag.

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


def file_response(request: Request, file: File, headers: dict[str, str]) -> Response:
    """Return the response with a file, or with the requested range of it.

    `headers` are those of every response about this file; they contain its `ETag`.
    """
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
    if request.method == "HEAD":
        return Response(headers=headers | {"Content-Length": str(file.size)})
    fields = request.headers
    try:
        chosen = select_range(fields.get("range"), fields.get("if-range"), headers["ETag"], file.size)
    except RangeNotSatisfiable:
        return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{file.size}"})
    if chosen is None:
        return FileBody(file, 0, file.size, 200, headers)
    start, end = chosen
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size}"
    return FileBody(file, start, end, 206, headers)


class FileBody(Response):
    """Bytes `start` to `end` (exclusive) of a file, read chunk by chunk in threads."""

    def __init__(self, file: File, start: int, end: int, status_code: int, headers: dict[str, str]) -> None:
        super().__init__(status_code=status_code, headers=headers | {"Content-Length": str(end - start)})
        self._file = file
        self._start = start
        self._end = end

    async def __call__(
        self,
        scope: Scope,  # noqa: ARG002 - an argument of ASGI
        receive: Receive,
        send: Send,
    ) -> None:
        """Send the response, or end early when the client disconnects.

        **Cancellation:** control returns when the current read in a thread has ended.

        **Raises:** FileChanged, before anything is sent, if the file is not the listed one. OSError, if it can't be
        read or became shorter; the client then receives a truncated body.
        """
        # A buffered reader: its lock keeps `close` from closing the descriptor during a read in a thread.
        opened = await anyio.to_thread.run_sync(self._open)
        try:
            async with anyio.create_task_group() as tasks:
                # Servers discard what is sent to a disconnected client, so only this task can end the reads.
                tasks.start_soon(_until_disconnect, receive, tasks.cancel_scope)
                await self._send(opened, send)
                tasks.cancel_scope.cancel()
        finally:
            opened.close()

    def _open(self) -> io.BufferedReader:
        opened = self._file.open()
        opened.seek(self._start)
        return opened

    async def _send(self, opened: io.BufferedReader, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        left = self._end - self._start
        while left:
            chunk = await anyio.to_thread.run_sync(opened.read, min(_CHUNK, left))
            if not chunk:
                raise OSError(f"{self._file.path} became shorter while it was served.")
            left -= len(chunk)
            await send({"type": "http.response.body", "body": chunk, "more_body": left > 0})
        if self._start == self._end:
            await send({"type": "http.response.body"})


async def _until_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()

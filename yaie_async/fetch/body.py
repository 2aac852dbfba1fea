"""One request for a range: what the head of the response must say, and how its body is read into the range."""

import re
from contextlib import aclosing

import httpx

from yaie_async.core.errors import printable
from yaie_async.core.threads import run_owned
from yaie_async.core.trace import span
from yaie_async.fetch.content import pieces
from yaie_async.fetch.failures import Asked, TransientError
from yaie_async.fetch.location import Location, OtherBytesError, StartOverError
from yaie_async.fetch.ranges import FullError, Range
from yaie_async.fetch.stop import Stop
from yaie_async.fetch.transport import drainable

# Bytes that are gathered before a thread writes them. With one piece more (64 KiB) they are less than 128 KiB, so that
# a kill costs less than 256 KiB (store/partials.py).
_WRITE = 64 * 1024
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")


class RangesIgnoredError(StartOverError):
    """Raised when the server sends the whole file whatever range is requested."""


async def read_range(location: Location, of: Range) -> None:
    """Request what is missing of a range and write it; the whole file where `of.file.whole`.

    **Cancellation:** every thread has ended, and `of.position` says how much is written.

    **Raises:** TransientError when the range is not complete and a retry may help; RangesIgnoredError, OtherBytesError;
    LoaderError.
    """
    asked, size = location.asked, of.file.size
    start = 0 if of.file.whole else of.position
    ranged = (start, of.stop) != (0, size)
    try:
        async with location.get(f"bytes={start}-{of.stop - 1}" if ranged else None) as response:
            of.begin(_offset(response, asked, start, of.stop, size))
            stream = drainable(response)
            track = stream.track if stream else f"body of {asked.file} from byte {start}"
            with span(track, "body", model=asked.model, file=asked.file, start=start, stop=of.stop):
                if stream is not None:
                    await stream.drain_into(of)
                else:
                    await _copy(response, of, None if ranged else size, location.timeout)
    except (FullError, TransientError):
        if of.position < of.stop:  # else how the response ends does not matter
            raise
    if of.position < of.stop:
        raise asked.transient(f"the body ended at byte {of.position:,} of {of.stop:,}", "truncated")


def _offset(response: httpx.Response, asked: Asked, start: int, stop: int, size: int) -> int:
    """Check that the response is what was requested; return where in the file its body begins."""
    headers = response.headers
    encoded = headers.get("content-encoding", "identity") != "identity"
    if headers.get("content-type", "").startswith("text/html") and not (asked.file or "").endswith(".html"):
        # Most likely from a captive portal. It says nothing about the bytes that are already here.
        raise asked.transient(f"{response.url.host} sends an HTML page instead (is there a log-in page?)", "range")
    if response.status_code == 206:
        sent = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
        if sent and sent[3] not in ("*", str(size)):
            raise OtherBytesError(size, int(sent[3]))
        if encoded:
            raise RangesIgnoredError
        if sent is None or (int(sent[1]), int(sent[2])) != (start, stop - 1):
            text = printable(headers.get("content-range", "a part without its place in the file"))
            raise asked.transient(f"bytes {start}-{stop - 1} were requested, the server sends {text}", "range")
        return start
    if (start, stop) != (0, size):
        raise RangesIgnoredError
    length = headers.get("content-length")
    if length is not None and not encoded and length != str(size):
        raise OtherBytesError(size, printable(length))
    return 0


async def _copy(response: httpx.Response, of: Range, most: int | None, timeout: float) -> None:
    """Read as httpx does: for bodies of unknown length, encoded bodies, proxies and a user's client."""
    buffer = bytearray()
    stopped = Stop()

    async def write() -> None:
        data = memoryview(bytes(buffer))
        buffer.clear()
        await run_owned(lambda: of.write(data, stopped), interrupt=stopped.set, name="write")

    received = 0
    try:
        async with aclosing(pieces(response, timeout)) as arriving:
            async for chunk in arriving:
                received += len(chunk)
                if most is not None and received > most:
                    raise OtherBytesError(most, f"more than {most}")
                buffer += chunk
                if len(buffer) >= _WRITE:
                    await write()
    finally:
        if buffer:
            await write()  # bytes that arrived before a failure are not requested again

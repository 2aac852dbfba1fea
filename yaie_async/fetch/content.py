"""The body of a response that is read on the event loop, in time and within bounds."""

import json
import time
import zlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import anyio
import httpx

from yaie_async.fetch.pace import SLOWEST, Pace

_WAITS = 10  # timeouts that a whole body of metadata may take
_PIECE = 1 << 20  # bytes that are decoded at once
_MOST_VALUES = 6_000_000  # of JSON, each up to 70 bytes; a listing of half a million files has fewer


async def content(response: httpx.Response, most: int, timeout: float) -> bytes:
    """The whole body; only its beginning where it has more than `most` bytes. `timeout` is in seconds, for each wait.

    **Cancellation:** the connection is closed with the response.

    **Raises:** httpx.HTTPError.
    """
    body, deadline = bytearray(), time.monotonic() + _WAITS * timeout
    async with aclosing(pieces(response, timeout)) as arriving:
        async for piece in arriving:
            body += piece
            if len(body) > most:
                break
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout("the answer does not end")
    return bytes(body)


async def pieces(response: httpx.Response, timeout: float) -> AsyncGenerator[bytes, None]:
    """Yield the body as it arrives, decoded in small pieces, where httpx would decode a thousandfold at once.

    **Cancellation:** the connection is closed with the response.

    **Raises:** httpx.HTTPError; ReadTimeout for less than `SLOWEST`, and where only framing arrives for `timeout`.
    """
    arriving, pace, decoder = response.aiter_raw(), Pace(timeout), _decoder(response)
    while True:
        begun = time.monotonic()
        try:
            with anyio.fail_after(timeout):
                chunk = await anext(arriving)
        except StopAsyncIteration:
            break
        except TimeoutError as error:
            raise httpx.ReadTimeout("no bytes of the body") from error
        if pace.too_slow(len(chunk), time.monotonic() - begun):
            raise httpx.ReadTimeout(f"under {SLOWEST} bytes a second")
        if decoder is None:
            yield chunk
        while decoder and chunk and not decoder.eof:
            try:
                yield decoder.decompress(chunk, _PIECE)
            except zlib.error as error:
                raise httpx.DecodingError(str(error)) from error
            chunk = decoder.unconsumed_tail
    if decoder:
        yield decoder.flush()
        if not decoder.eof:
            raise httpx.DecodingError("the compressed body ends early")


def parse_json(body: bytes) -> Any:
    """The value of a JSON text; ValueError or RecursionError for any other, and for more values than a listing has."""
    if sum(map(body.count, (b"[", b"{", b","))) > _MOST_VALUES:
        raise ValueError("too many values")
    return json.loads(body)


def _decoder(response: httpx.Response) -> Any:
    coding = response.headers.get("content-encoding", "").strip().lower()
    if coding in ("", "identity"):
        return None
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise httpx.DecodingError(f"the answer has the coding {coding!r}, which was not asked for")
    return zlib.decompressobj(zlib.MAX_WBITS | 32)  # either of the two by its header

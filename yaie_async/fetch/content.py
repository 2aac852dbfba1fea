"""The body of a response that is read on the event loop, in time and within bounds."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import anyio
import httpx

from yaie_async.fetch.pace import SLOWEST, Pace

# A whole body of metadata may take this many times as long as one wait for its next bytes.
_WAITS = 10


async def content(response: httpx.Response, most: int, timeout: float) -> bytes:
    """The whole body; only its beginning where it has more than `most` bytes. `timeout` is in seconds, for each wait.

    **Cancellation:** the connection is closed with the response.

    **Raises:** httpx.HTTPError.
    """
    body = bytearray()
    deadline = time.monotonic() + _WAITS * timeout
    async with aclosing(pieces(response, timeout)) as arriving:
        async for piece in arriving:
            body += piece
            if len(body) > most:
                break
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout("the answer does not end")
    return bytes(body)


async def pieces(response: httpx.Response, timeout: float) -> AsyncGenerator[bytes, None]:
    """Yield the body as it arrives. Close the generator where it is left early.

    **Cancellation:** the connection is closed with the response.

    **Raises:** httpx.HTTPError; ReadTimeout for less than `SLOWEST`, and where only framing arrives for `timeout`.
    """
    arriving, pace, chunk = response.aiter_bytes(), Pace(timeout), b""
    while True:
        begun = time.monotonic()
        try:
            with anyio.fail_after(timeout):
                chunk = await anext(arriving)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise httpx.ReadTimeout("no bytes of the body") from error
        if pace.too_slow(len(chunk), time.monotonic() - begun):
            raise httpx.ReadTimeout(f"under {SLOWEST} bytes a second")
        yield chunk

"""The status as server-sent events, for the page and for whoever wants to watch."""

from __future__ import annotations

import time
from contextlib import suppress

import anyio

from yaie_async.asgi.run import Run
from yaie_async.asgi.types import Receive, Send
from yaie_async.core.tasks import task_group

# Seconds between events: as quick as an eye needs, as slow as hundreds of readers allow.
INTERVAL = 0.25

# Seconds after which a comment shows proxies, and us, that the other end is still there.
HEARTBEAT = 15.0

# Seconds after which a stream ends, for its reader to ask anew. A worker that has answered as many requests as it
# should (uvicorn's --limit-max-requests, gunicorn's --max-requests) waits for its answers, and tells them nothing.
LIFETIME = 20.0

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would keep events until its buffer is full
    (b"x-content-type-options", b"nosniff"),
]


async def stream(run: Run, receive: Receive, send: Send) -> None:
    """Answer with the status, at once and then whenever it has changed, until the client leaves or the server stops.

    After a while it ends by itself, with an event `again`: whoever still wants to know opens another.

    Nothing is queued: each event is the newest status at the time of its sending, so a reader that is slow gets
    fewer of them.
    """

    async def leave() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        group.cancel_scope.cancel()

    with suppress(OSError):  # how ASGI tells of a client that left
        async with task_group() as group:
            group.start_soon(leave)
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            await _tell(run, send)
            group.cancel_scope.cancel()


async def _tell(run: Run, send: Send) -> None:
    # Reconnect a second after a loss: a server that restarts is soon back.
    text = b"retry: 1000\n\n"
    last, begun = b"", time.monotonic()
    sent = begun
    while not run.stopping and time.monotonic() - begun < LIFETIME:
        told = run.told()
        if told != last:
            text += b"data: " + told + b"\n\n"
            last = told
        elif time.monotonic() - sent > HEARTBEAT:
            text = b":\n\n"
        if text:
            await send({"type": "http.response.body", "body": text, "more_body": True})
            text, sent = b"", time.monotonic()
        await anyio.sleep(INTERVAL)
    await send({"type": "http.response.body", "body": b"" if run.stopping else b"event: again\ndata: {}\n\n"})

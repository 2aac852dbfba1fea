"""The status as a stream of server-sent events."""

import time
from contextlib import suppress

import anyio

from yaie_async.asgi.run import Run
from yaie_async.asgi.types import Receive, Send
from yaie_async.core.tasks import task_group

# Seconds between two looks at the status: fast enough for a person, cheap enough for hundreds of readers.
INTERVAL = 0.25

# Seconds without an event after which a comment is sent, so that proxies keep the connection open.
HEARTBEAT = 15.0

# Seconds after which a stream ends and its reader reconnects. A worker that has reached its limit of requests
# (uvicorn's --limit-max-requests, gunicorn's --max-requests) waits for open responses without notifying them.
LIFETIME = 20.0

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back until its buffer is full
    (b"x-content-type-options", b"nosniff"),
]


async def stream(run: Run, receive: Receive, send: Send) -> None:
    """Send the status at once and after each change, until the client disconnects or the server stops.

    The stream ends after `LIFETIME` with an event `again`, which asks the client to reconnect. Events are not
    queued: each one is the status at the time of sending, so a slow client receives fewer events.

    **Cancellation:** at once.

    **Raises:** what `receive` raises. An OSError of `send`, which means that the client has left, ends the stream.
    """

    async def end_on_disconnect() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        group.cancel_scope.cancel()

    with suppress(OSError):  # raised by `send` when the client has left, as ASGI specifies
        async with task_group() as group:
            group.start_soon(end_on_disconnect)
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            await _send_events(run, send)
            group.cancel_scope.cancel()


async def _send_events(run: Run, send: Send) -> None:
    # The client reconnects one second after a lost connection: a restarting server is back soon.
    text = b"retry: 1000\n\n"
    last, start = b"", time.monotonic()
    sent = start
    while not run.stopping and time.monotonic() - start < LIFETIME:
        await run.look()
        status = run.encoded_status()
        if status != last:
            text += b"data: " + status + b"\n\n"
            last = status
        elif time.monotonic() - sent > HEARTBEAT:
            text = b":\n\n"
        if text:
            await send({"type": "http.response.body", "body": text, "more_body": True})
            text, sent = b"", time.monotonic()
        await anyio.sleep(INTERVAL)
    await send({"type": "http.response.body", "body": b"" if run.stopping else b"event: again\ndata: {}\n\n"})

"""The ASGI application of a warm-up: probes, the status as JSON and as events, and the page."""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from urllib.parse import quote

from yaie_async.asgi.events import stream
from yaie_async.asgi.page import PAGE, POLICY
from yaie_async.asgi.retry import PREFIX, answer_retry
from yaie_async.asgi.run import Run
from yaie_async.asgi.types import Receive, Scope, Send

_JSON = "application/json"


class App:
    """An ASGI application: mount it with `app.mount("/warmup", warmup.app)`, or serve it by itself.

    It handles the lifespan too. A server that serves it, or an application that forwards its lifespan, starts the
    warm-up and ends it.

    Args:
        current_run: returns the run of this event loop, and starts one where there is none.
        lifespan: returns the context manager that is entered while the server runs.
    """

    def __init__(
        self, current_run: Callable[[], Run], lifespan: Callable[[], AbstractAsyncContextManager[object]]
    ) -> None:
        self._current_run = current_run
        self._lifespan = lifespan

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request, reject a WebSocket, or handle the lifespan.

        **Cancellation:** at once; a cancelled lifespan ends the loads that it started.

        **Raises:** what `receive` and `send` raise.
        """
        if scope["type"] == "lifespan":
            await self._handle_lifespan(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await receive()
            await send({"type": "websocket.close"})

    async def _handle_lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        async with self._lifespan():
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = _path_in_mount(scope)
        if path.startswith(PREFIX):
            await self._retry(scope, path.removeprefix(PREFIX), send)
        elif path not in ("", "/", "/livez", "/readyz", "/status", "/events"):
            await _send(send, scope, 404, b"Not found.\n")
        elif scope["method"] not in ("GET", "HEAD"):
            await _send(send, scope, 405, b"Only GET and HEAD are allowed.\n", headers={"allow": "GET, HEAD"})
        elif path == "":
            # The page requests the relative URL "events", which needs the slash.
            await _send(send, scope, 307, b"", headers={"location": quote(scope.get("root_path", "")) + "/"})
        elif path == "/livez":
            await _send(send, scope, 200, b"ok\n")
        elif path == "/readyz":
            await self._readyz(scope, send)
        elif path == "/status":
            await _send(send, scope, 200, self._current_run().status().encoded(), _JSON)
        elif path == "/events" and scope["method"] == "GET":
            await stream(self._current_run(), receive, send)
        else:
            await _send(send, scope, 200, PAGE, "text/html; charset=utf-8", {"content-security-policy": POLICY})

    async def _retry(self, scope: Scope, name: str, send: Send) -> None:
        if scope["method"] == "POST":
            code, text = answer_retry(self._current_run(), name, scope["headers"])
            await _send(send, scope, code, text.encode() + b"\n")
        else:
            await _send(send, scope, 405, b"Only POST is allowed.\n", headers={"allow": "POST"})

    async def _readyz(self, scope: Scope, send: Send) -> None:
        status = self._current_run().status()
        code = {"ready": 200, "loading": 503, "failed": 500}[status.state]
        headers = {"retry-after": str(status.retry_after)} if code == 503 else {}
        await _send(send, scope, code, status.encoded(), _JSON, headers)


def _path_in_mount(scope: Scope) -> str:
    """The path below the mount point: ASGI's `path` begins with the mount's own path, `root_path`."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path.removeprefix(root) if path == root or path.startswith(root + "/") else path


async def _send(
    send: Send,
    scope: Scope,
    status: int,
    body: bytes,
    content_type: str = "text/plain; charset=utf-8",
    headers: Mapping[str, str] | None = None,
) -> None:
    fields = {
        "content-type": content_type,
        "content-length": str(len(body)),
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
        **(headers or {}),
    }
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

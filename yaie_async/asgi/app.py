"""What is served under the mount: probes, the status, its events, and the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from urllib.parse import quote

from yaie_async.asgi.events import stream
from yaie_async.asgi.page import PAGE, POLICY
from yaie_async.asgi.run import Run
from yaie_async.asgi.types import Receive, Scope, Send

_JSON = "application/json"


class App:
    """An ASGI application, for `app.mount("/warmup", warmup.app)`, or by itself.

    By itself, or if an application of one's own hands its lifespan on to it, it warms up from the server's start
    to its end.

    Args:
        begun: the run of this event loop, begun if it was not.
        lifespan: what to be inside of while the server runs.
    """

    def __init__(self, begun: Callable[[], Run], lifespan: Callable[[], AbstractAsyncContextManager[object]]) -> None:
        self._begun = begun
        self._lifespan = lifespan

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await receive()
            await send({"type": "websocket.close"})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        async with self._lifespan():
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = _path_in_mount(scope)
        if path not in ("", "/", "/livez", "/readyz", "/status", "/events"):
            await _send(send, scope, 404, b"not found\n")
        elif scope["method"] not in ("GET", "HEAD"):
            await _send(send, scope, 405, b"only GET\n", headers={"allow": "GET, HEAD"})
        elif path == "":
            # The page asks for "events" beside itself, so it needs the slash.
            await _send(send, scope, 307, b"", headers={"location": quote(scope.get("root_path", "")) + "/"})
        elif path == "/livez":
            await _send(send, scope, 200, b"ok\n")
        elif path == "/readyz":
            await self._readyz(scope, send)
        elif path == "/status":
            await _send(send, scope, 200, self._begun().status().encoded(), _JSON)
        elif path == "/events" and scope["method"] == "GET":
            await stream(self._begun(), receive, send)
        else:
            await _send(send, scope, 200, PAGE, "text/html; charset=utf-8", {"content-security-policy": POLICY})

    async def _readyz(self, scope: Scope, send: Send) -> None:
        status = self._begun().status()
        code = {"ready": 200, "loading": 503, "failed": 500}[status.state]
        headers = {"retry-after": str(status.retry_after)} if code == 503 else {}
        await _send(send, scope, code, status.encoded(), _JSON, headers)


def _path_in_mount(scope: Scope) -> str:
    """The path below where the app is mounted: ASGI's `path` has the mount's in front, `root_path`."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path.removeprefix(root) if path == root or path.startswith(root + "/") else path


async def _send(
    send: Send,
    scope: Scope,
    status: int,
    body: bytes,
    kind: str = "text/plain; charset=utf-8",
    headers: Mapping[str, str] | None = None,
) -> None:
    told = {
        "content-type": kind,
        "content-length": str(len(body)),
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
        **(headers or {}),
    }
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in told.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

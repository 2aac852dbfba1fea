"""The ASGI application of a warm-up: probes, the status as JSON and as events, and the page."""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import get_args
from urllib.parse import parse_qs, quote

from yaie_async.asgi.events import stream
from yaie_async.asgi.metrics import exposition
from yaie_async.asgi.page import PAGE, POLICY
from yaie_async.asgi.retry import PREFIX, answer_retry
from yaie_async.asgi.run import Run
from yaie_async.asgi.status import ModelStatus, Status
from yaie_async.asgi.types import Receive, Scope, Send
from yaie_async.asgi.worker_state import WorkerScope
from yaie_async.core.threads import run_owned

_JSON = "application/json"

_PATHS = {"", "/", "/livez", "/readyz", "/status", "/events", "/metrics"}

# The path of the probe of one model begins with this.
_READYZ = "/readyz/"


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
        page = quote(scope.get("root_path", "")) + "/"
        raw = (scope.get("raw_path") or b"/").decode("latin-1")
        if path == "/" and not raw.endswith("/"):  # Litestar adds a slash to every path in a mount
            path, page = "", "/" + quote(raw.strip("/"), safe="/%") + "/"
        elif path != "/":
            path = path.removesuffix("/")
        if path.startswith(PREFIX):
            await self._retry(scope, path.removeprefix(PREFIX), send)
        elif path not in _PATHS and not path.startswith(_READYZ):
            await _send(send, scope, 404, b"Not found.\n")
        elif scope["method"] not in ("GET", "HEAD"):
            await _send(send, scope, 405, b"Only GET and HEAD are allowed.\n", headers={"allow": "GET, HEAD"})
        elif path == "":
            # The page requests the relative URL "events", which needs the slash.
            await _send(send, scope, 307, b"", headers={"location": page})
        elif path == "/livez":
            await _send(send, scope, 200, b"ok\n")
        elif path == "/readyz" or path.startswith(_READYZ):
            await self._readyz(scope, path.removeprefix("/readyz").removeprefix("/"), send)
        elif path == "/status":
            run = self._current_run()
            await run.look()
            await _send(send, scope, 200, run.status().encoded(), _JSON)
        elif path == "/metrics":
            await self._metrics(scope, send)
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

    async def _readyz(self, scope: Scope, name: str, send: Send) -> None:
        asked = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("worker", ["any"])[-1]
        if asked not in get_args(WorkerScope):
            await _send(send, scope, 400, b"worker is self, all or any: /readyz?worker=self\n")
            return
        run = self._current_run()
        if name and name not in run.loads:
            text = f"No model is named {name!r}; there are: {', '.join(run.loads)}.\n"
            await _send(send, scope, 404, text.encode())
            return
        state = await run.state([name] if name else run.required, asked)
        status: Status | ModelStatus = run.loads[name].status() if name else run.status()
        code = {"ready": 200, "loading": 503, "failed": 500}[state]
        headers = {"retry-after": str(status.retry_after)} if code == 503 else {}
        await _send(send, scope, code, json.dumps(status.as_json()).encode(), _JSON, headers)

    async def _metrics(self, scope: Scope, send: Send) -> None:
        workers = await self._current_run().workers()
        try:
            text, content_type = await run_owned(partial(exposition, workers), name="metrics")
        except ImportError:
            text = b"Install the extra: pip install 'yaie-async[metrics]', or pip install '.[metrics]' in a checkout.\n"
            await _send(send, scope, 404, text)
        else:
            await _send(send, scope, 200, text, content_type)


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

"""Running an ASGI application in a thread of this process, for as long as a `with` block."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any, cast

import anyio
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send


@contextlib.contextmanager
def running(app: ASGIApp, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve `app` in a thread with an event loop of its own, and yield the URL of its origin.

    It answers when this yields. At the end open connections are dropped, requests that are under way are cancelled,
    and the thread has ended. The caller's signal handlers, loop and logging are left alone.

    Raises:
        OSError: the address is in use or not ours; the message names it.
    """
    listener = _listen(host, port)
    name = f"[{host}]" if ":" in host else host
    url = f"http://{name}:{listener.getsockname()[1]}"
    server = _Server(app)
    thread = threading.Thread(target=server.run_in_thread, args=(listener,), name=f"serve {url}", daemon=True)
    thread.start()
    try:
        server.ready.wait()
        if server.failure is not None:
            raise RuntimeError(f"the server of {url} did not start") from server.failure
        yield url
    finally:
        server.stop()
        thread.join()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"can't serve on {host}:{port}: {error.strerror}") from error
    return listener


class _Server(uvicorn.Server):
    """uvicorn without its polling: stock, it takes 0.1 s to notice a stop and then waits for every client."""

    def __init__(self, app: ASGIApp) -> None:
        self.ready = threading.Event()
        self.failure: BaseException | None = None
        self._app = app
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._requests: set[anyio.CancelScope] = set()
        super().__init__(
            uvicorn.Config(
                # uvicorn's types for ASGI are its own, and equal to Starlette's.
                cast("Any", self._cancellable),
                interface="asgi3",
                loop="asyncio",
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                date_header=False,
                # Longer than httpx keeps an idle connection (5 s), or a client may reuse one that is just closing.
                timeout_keep_alive=60,
            )
        )

    def run_in_thread(self, listener: socket.socket) -> None:
        try:
            asyncio.run(self.serve(sockets=[listener]))
        except BaseException as error:
            # Before it was ready this is raised by `running`; after, by the thread, as any thread's failure is.
            if self.ready.is_set():
                raise
            self.failure = error
        finally:
            listener.close()
            self.ready.set()

    def stop(self) -> None:
        self.ready.wait()  # a Ctrl-C may come before it is
        if self._loop is not None:
            # The loop is closed already if the server failed.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stopping.set)

    async def _cancellable(self, scope: Scope, receive: Receive, send: Send) -> None:
        # An anyio scope, not task.cancel(): that one would leave a thread reading a file which is being closed.
        with anyio.CancelScope() as cancel_scope:
            self._requests.add(cancel_scope)
            try:
                await self._app(scope, receive, send)
            finally:
                self._requests.discard(cancel_scope)

    async def main_loop(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.ready.set()
        await self._stopping.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        del sockets  # closed with the servers that listen on them
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        # One turn of the loop, for uvicorn to learn that they are gone: it logs a request without an answer as an
        # error, unless the client has left.
        await asyncio.sleep(0)
        for cancel_scope in list(self._requests):
            cancel_scope.cancel()
        if self.server_state.tasks:
            await asyncio.wait(list(self.server_state.tasks))

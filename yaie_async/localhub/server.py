"""Serves an ASGI application from a thread of this process during a `with` block."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any, cast

import anyio
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from yaie_async.localhub.connections import Connections, most_connections

_BACKLOG = 2048  # connections that wait to be accepted
_ACCEPTED = 16  # those that are accepted in a row, before the first of them can be refused
_UNSENT = 128 * 1024  # bytes that the kernel takes for a client: by itself megabytes, which hides how slow one is


@contextlib.contextmanager
def running(app: ASGIApp, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve `app` in a thread with an event loop of its own, and yield the URL of its origin.

    The server answers when this yields. At the end it drops open connections and cancels running requests, and the
    thread has ended. The caller's signal handlers, event loop and logging are not changed.

    Raises:
        OSError: when the address is in use or is none of this machine; the message names it.
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
    # By this number asyncio knows TCP and turns Nagle's algorithm off, which made each small answer 40 ms late.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # connections inherit it
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"can't serve on {host}:{port}: {error.strerror}") from error
    return listener


class _Server(uvicorn.Server):
    """uvicorn that stops at once: on its own it takes 0.1 s to notice a stop, and then waits for every client.

    It also bounds the connections and the time that it waits for a client, which uvicorn does for idle ones alone.

    This uses names that uvicorn does not document: `main_loop`, `shutdown`, `servers`, `server_state`, `transport`.
    In a release that has others, it ends within about a second, by `should_exit` and `timeout_graceful_shutdown`.
    Without `http_protocol_class`, connections are bounded by `limit_concurrency`, and a client has all the time.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.ready = threading.Event()
        self.failure: BaseException | None = None
        self._app = app
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._requests: set[anyio.CancelScope] = set()
        self._stops_at_once = False
        most = most_connections()
        self._connections = Connections(most)
        config = uvicorn.Config(
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
            # Longer than httpx keeps an idle connection (5 s): else a client may reuse one as it is closed.
            timeout_keep_alive=60,
            timeout_graceful_shutdown=1,
            backlog=_ACCEPTED,
        )
        config.load()
        make = getattr(config, "http_protocol_class", None)
        if make is None:
            config.limit_concurrency = most
        else:
            config.http_protocol_class = cast("Any", self._connections.protocol(make))
        super().__init__(config)

    def run_in_thread(self, listener: socket.socket) -> None:
        try:
            asyncio.run(self._run(listener))
        except BaseException as error:
            # `running` raises it if the server was not ready yet; else the thread does, as threads do.
            if self.ready.is_set():
                raise
            self.failure = error
        finally:
            listener.close()
            self.ready.set()

    async def _run(self, listener: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        serving = self._loop.create_task(self.serve(sockets=[listener]))
        while not (serving.done() or getattr(self, "started", True)):  # noqa: ASYNC110 - uvicorn sets no event
            await asyncio.sleep(0.001)
        if not serving.done():
            listener.listen(_BACKLOG)
            self.ready.set()
        await serving

    def stop(self) -> None:
        self.ready.wait()  # a Ctrl-C may come before it is
        if self._loop is not None:
            # The loop is closed already if the server failed.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        self.should_exit = self.force_exit = True
        self._stopping.set()
        if not self._stops_at_once:
            self._cancel_requests()

    def _cancel_requests(self) -> None:
        for cancel_scope in list(self._requests):
            cancel_scope.cancel()

    async def _cancellable(self, scope: Scope, receive: Receive, send: Send) -> None:
        # An anyio scope, not task.cancel(): that one would leave a thread reading a file which is being closed.
        with anyio.CancelScope() as cancel_scope:
            self._requests.add(cancel_scope)
            try:
                await self._connections.serve(self._app, scope, receive, send)
            finally:
                self._requests.discard(cancel_scope)

    async def main_loop(self) -> None:
        self._stops_at_once = True
        await self._stopping.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            servers, tasks = self.servers, self.server_state.tasks
            transports = [connection.transport for connection in self.server_state.connections]
        except AttributeError:
            self._cancel_requests()
            await super().shutdown(sockets)
            return
        for server in servers:
            server.close()
        for transport in transports:
            transport.abort()
        # One turn of the loop, in which uvicorn sees that the clients are gone: it logs a request without an answer as
        # an error, unless its client has left.
        await asyncio.sleep(0)
        self._cancel_requests()
        if tasks:
            await asyncio.wait(list(tasks))

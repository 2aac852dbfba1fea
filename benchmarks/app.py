"""A web application that loads a model: `python -m benchmarks.app MODE ENDPOINT MODEL CACHE PORT`.

`/load` starts the load. `/ping` answers "0" until the model is ready, then "1", and "x" if the load failed.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

import uvicorn

from benchmarks.loading import build_stock, download_official, to_thread, us


class App:
    """A plain ASGI application, since a framework would add to the measured latency."""

    def __init__(self, mode: str, endpoint: str, model: str, cache: Path) -> None:
        self._mode, self._where = mode, (endpoint, model, cache)
        self._task: asyncio.Task[None] | None = None
        self._loaded: object = None

    async def __call__(self, scope: dict[str, Any], _receive: Any, send: Any) -> None:
        if scope["path"] == "/load":
            self._task = asyncio.create_task(self._load())
        failed = self._task is not None and self._task.done() and self._task.exception() is not None
        body = b"x" if failed else b"1" if self._loaded else b"0"
        headers = [(b"content-length", b"1")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _load(self) -> None:
        if self._mode == "us":
            self._loaded = await us(*self._where)(None)
        elif self._mode == "to_thread":
            self._loaded = await to_thread(*self._where)(None)
        else:
            self._loaded = build_stock(download_official(*self._where))


if __name__ == "__main__":
    app: Any = App(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    uvicorn.run(app, port=int(sys.argv[5]), loop="asyncio", http="h11", lifespan="off", log_level="error")

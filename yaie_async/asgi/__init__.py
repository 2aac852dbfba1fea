"""Models that warm up while a web server is already answering: for FastAPI, Starlette and plain ASGI.

    warmup = Warmup(chat=ModelLoader("org/name"))
    app = FastAPI(lifespan=warmup.lifespan)
    app.mount("/warmup", warmup.app)                # livez, readyz, status, events, and a page to watch

Needs none of these frameworks, and importing it imports none.
"""

from yaie_async.asgi.warmup import Warmup

__all__ = ["Warmup"]

"""Warm-up of models in the background of an async web server: FastAPI, Starlette or plain ASGI.

    warmup = Warmup(chat=ModelLoader("org/name"))
    app = FastAPI(lifespan=warmup.lifespan)
    app.mount("/warmup", warmup.app)                # livez, readyz, status, events, and a status page

This package imports none of these frameworks.
"""

from yaie_async.asgi.status import ModelStatus, Status
from yaie_async.asgi.warmup import Warmup

__all__ = ["ModelStatus", "Status", "Warmup"]

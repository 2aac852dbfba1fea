"""A read-only Hub on this machine: it serves a directory of models, or an HF cache, by the Hub's HTTP protocol.

    app = LocalHub("models")                # an ASGI application for any server
    with running(app) as url:               # or in a thread, here
        snapshot_download("org/name", endpoint=url)

Needs the extra `serve` (starlette and uvicorn).
"""

try:
    import starlette  # noqa: F401
    import uvicorn  # noqa: F401
except ImportError as missing:
    raise ImportError(
        f"yaie_async.localhub needs starlette and uvicorn ({missing}): pip install 'yaie-async[serve]'",
        name=missing.name,
    ) from missing

from yaie_async.localhub.hub import LocalHub
from yaie_async.localhub.server import running

__all__ = ["LocalHub", "running"]

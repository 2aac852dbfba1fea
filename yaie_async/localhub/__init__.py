"""A local Hub: serves a directory of models, or an HF cache, by the Hub's HTTP protocol, read-only.

    app = LocalHub("models")                # an ASGI application for any server
    with running(app) as url:               # or serve it in a thread of this process
        snapshot_download("org/name", endpoint=url)

Needs the extra `serve` (starlette and uvicorn).
"""

try:
    import starlette  # noqa: F401
    import uvicorn  # noqa: F401
except ImportError as _missing:
    raise ImportError(
        f"yaie_async.localhub needs starlette and uvicorn ({_missing}). Install them: pip install 'yaie-async[serve]'",
        name=_missing.name,
    ) from _missing

from yaie_async.localhub.hub import LocalHub
from yaie_async.localhub.server import running

__all__ = ["LocalHub", "running"]

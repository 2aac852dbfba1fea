"""Paying for the imports before the first load."""

from __future__ import annotations

from functools import partial

from yaie_async.core.threads import run_detached
from yaie_async.loader.hub import import_layers
from yaie_async.model.responsive import quick_switching, smooth_imports


async def warm_imports() -> None:
    """Import torch, transformers and all else that any load imports, in a thread, with the event loop kept awake.

    A server that awaits it before it serves has no import left to do beside its requests, but for the module of a
    model's own class. Later calls cost nothing; concurrent ones wait for the first. It sets process-wide what a
    `ModelLoader` with `responsive=True` does, and restores it.

    **Cancellation:** control returns at once; the thread imports on to its end.

    **Raises:** LoaderError when one of the libraries is missing or broken.
    """
    with quick_switching():
        with smooth_imports():
            await run_detached(import_layers, name="layers")
        from yaie_async.model.imports import import_libraries

        await run_detached(partial(import_libraries, responsive=True), name="imports")

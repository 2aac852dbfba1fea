"""The imports of a load, done before the first load."""

from functools import partial

from yaie_async.core.threads import run_detached
from yaie_async.loader.hub import import_layers
from yaie_async.model.responsive import quick_switching, smooth_imports


async def warm_imports() -> None:
    """Import torch, transformers and all else that loads import, in a thread, while the event loop stays responsive.

    A server that awaits it before it accepts requests has no import left but the module of a model's own class. Later
    calls cost nothing; concurrent calls wait for the first. It changes and restores the same process-wide settings as a
    `ModelLoader` with `responsive=True`.

    **Cancellation:** control returns at once; the thread finishes its imports.

    **Raises:** LoaderError when one of the libraries is missing or broken.
    """
    with quick_switching():
        with smooth_imports():
            await run_detached(import_layers, name="layers")
        from yaie_async.model.imports import import_libraries

        await run_detached(partial(import_libraries, responsive=True), name="imports")

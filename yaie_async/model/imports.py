"""Imports torch and transformers: seconds of work, done in a worker thread and never when a module is imported."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from yaie_async.core.compat import version
from yaie_async.core.errors import LoaderError
from yaie_async.core.trace import span
from yaie_async.model.compat import OPENMP, TORCH, preload
from yaie_async.model.responsive import leaving_a_core, open_libraries, smooth_imports
from yaie_async.store.history import Took, last_time, remember

# Two threads that import the same packages for the first time can meet in an import cycle; Python then breaks
# the deadlock by handing one of them a half-initialised module (importlib's _DeadlockError).
_importing = threading.Lock()

_running: tuple[float, int, Took | None] | None = None  # when it began, the modules there were, and the last time


def import_progress() -> tuple[float | None, float | None]:
    """The share of the modules that are imported, and the seconds left, both by the last time; None where unknown."""
    running = _running  # read once: the import may end meanwhile
    if running is None or (last := running[2]) is None:
        return None, None
    began, modules, _ = running
    left = last.seconds - (time.monotonic() - began)
    share = (len(sys.modules) - modules) / last.count
    return min(max(share, 0.0), 1.0), left if left >= 0 else None


@contextmanager
def _measured() -> Iterator[None]:
    """Measure the import in the block and keep its time for the next, unless a part of it was done before."""
    global _running  # noqa: PLW0603 - one import for all loads of the process
    if "torch" in sys.modules or "transformers" in sys.modules:
        yield
        return
    what = f"import torch {version('torch')} transformers {version('transformers')}"
    began, modules, _ = _running = time.monotonic(), len(sys.modules), last_time(what)
    try:
        yield
        remember(what, Took(time.monotonic() - began, len(sys.modules) - modules))
    finally:
        _running = None


def import_libraries(*, responsive: bool = False) -> None:
    """Import torch, accelerate and what a build needs of transformers. Cheap from the second call on.

    Where it is to be `responsive`, the GIL is left to other threads as far as `yaie_async.model.responsive` can. Raises
    LoaderError when a library is missing or broken in this environment.
    """
    with _importing, span("imports", "imports"), _measured(), ExitStack() as stack:
        if responsive:
            stack.enter_context(smooth_imports())
            with span("imports", "open libraries"):
                # OpenMP counts the cores as it is loaded: before one of them is kept free, or else none is.
                if open_libraries(OPENMP) or open_libraries(TORCH):
                    stack.enter_context(leaving_a_core())
                open_libraries(TORCH)
        try:
            with span("imports", "import torch"):
                import torch  # noqa: F401
            with span("imports", "import accelerate"):
                import accelerate  # noqa: F401
            with span("imports", "import transformers"):
                from transformers import (  # noqa: F401
                    AutoConfig,
                    AutoModelForCausalLM,
                    AutoTokenizer,
                    GenerationMixin,
                    PreTrainedModel,
                    PreTrainedTokenizerFast,
                )

                preload()
        except ImportError as error:
            message = (
                f"A library that builds models can't be imported: {error}. "
                "Reinstall it in this environment: pip install --upgrade torch transformers accelerate."
            )
            raise LoaderError(message) from error

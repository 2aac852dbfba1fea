"""Imports torch and transformers: seconds of work, done in a worker thread and never when a module is imported."""

import threading
from contextlib import ExitStack

from yaie_async.core.errors import LoaderError
from yaie_async.core.trace import span
from yaie_async.model.compat import OPENMP, TORCH, preload
from yaie_async.model.responsive import leaving_a_core, open_libraries, smooth_imports

# Two threads that import the same packages for the first time can meet in an import cycle; Python then breaks
# the deadlock by handing one of them a half-initialised module (importlib's _DeadlockError).
_importing = threading.Lock()


def import_libraries(*, responsive: bool = False) -> None:
    """Import torch, accelerate and what a build needs of transformers. Cheap from the second call on.

    Where it is to be `responsive`, the GIL is left to other threads as far as `yaie_async.model.responsive` can. Raises
    LoaderError when a library is missing or broken in this environment.
    """
    with _importing, span("imports", "imports"), ExitStack() as stack:
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

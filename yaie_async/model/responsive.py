"""Keep the event loop responsive while another thread imports and builds: shorten how long that thread holds the GIL.

Of the longest stalls a tenth remains: the initialisation of `torch._C` (benchmarks/README.md).

gc and the switch interval are process-wide. Their users are counted over concurrent loads, and the last one restores
them, unless other code has changed them since. torch's thread count is left alone, because `set_num_threads`
stays in force for every thread that first uses torch in that window.
"""

import gc
import glob
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from types import ModuleType

from yaie_async.core.threads import cores
from yaie_async.model.compat import TORCH_MODULE

# Seconds. With Python's default of 5 ms the importing thread keeps the GIL for that long while the loop waits for it.
_INTERVAL = 0.0005


class _Held:
    """A process-wide setting with several users at once; the last one restores it."""

    def __init__(self, hold: Callable[[], Callable[[], None]]) -> None:
        self._hold = hold
        self._lock = threading.Lock()
        self._users = 0
        self._restore: Callable[[], None] = lambda: None

    @contextmanager
    def held(self) -> Iterator[None]:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._restore = self._hold()
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._restore()


def _hold_interval() -> Callable[[], None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(_INTERVAL)
    ours = sys.getswitchinterval()

    def restore() -> None:
        if sys.getswitchinterval() == ours:
            sys.setswitchinterval(before)

    return restore


def _hold_gc() -> Callable[[], None]:
    if not gc.isenabled():
        return lambda: None
    gc.disable()
    return gc.enable


def _hold_extensions() -> Callable[[], None]:
    before = ExtensionFileLoader.create_module

    def create_module(self: ExtensionFileLoader, spec: ModuleSpec) -> ModuleType:
        # The libraries of torch's module are loaded by then; its own initialisation is the longest call of all.
        with nullcontext() if spec.name == TORCH_MODULE else cores().all_seen():
            return before(self, spec)

    def restore() -> None:
        if ExtensionFileLoader.create_module is create_module:
            ExtensionFileLoader.create_module = before  # type: ignore[method-assign]

    ExtensionFileLoader.create_module = create_module  # type: ignore[method-assign]
    return restore


_interval = _Held(_hold_interval)
_gc = _Held(_hold_gc)
_extensions = _Held(_hold_extensions)

# The imports after which all objects are frozen, once a process each. The official client is imported with the Hub.
_unfrozen = {"huggingface_hub", "torch"}

# For the time of a load: the loop gets the GIL back within half a millisecond.
quick_switching: Callable[[], AbstractContextManager[None]] = _interval.held


@contextmanager
def smooth_imports() -> Iterator[None]:
    """Disable garbage collection during imports: it would walk the new objects again and again.

    If torch or the official client was imported in the block, all objects of the process are then excluded from later
    collections: `gc.freeze()` is permanent. Without it the first collection walks all of them, for 350-1,050 ms.
    """
    fresh = {name for name in _unfrozen if name not in sys.modules}
    with _gc.held():
        yield
        if arrived := {name for name in fresh & _unfrozen if name in sys.modules}:
            _unfrozen.difference_update(arrived)
            gc.freeze()


@contextmanager
def leaving_a_core() -> Iterator[None]:
    """Keep one CPU core free for the event loop while this thread imports or builds. See `yaie_async.core.affinity`.

    Extension modules are still loaded with all cores visible: OpenBLAS (in numpy and scipy) and OpenMP count them when
    they are loaded, and would have one thread too few for the rest of the process. No core is kept free where Python
    loads such modules in another way.
    """
    if "create_module" not in vars(ExtensionFileLoader):
        yield
        return
    with _extensions.held(), cores().one_left_free():
        yield


def open_libraries(names: tuple[str, ...]) -> bool:
    """Load shared libraries of torch without the GIL, before the import that needs them.

    `dlopen` is called as a foreign function: `ctypes.CDLL(path)` would hold the GIL (until Python 3.13). Where that
    fails, the import loads them itself.

    `names` are patterns of file names, in the order of loading. True if any of them is loaded now.
    """
    if "torch" in sys.modules:
        return True
    loaded = False
    with suppress(ImportError, ValueError, OSError, AttributeError):
        import ctypes

        spec = importlib.util.find_spec("torch")
        dlopen = ctypes.CDLL(None).dlopen
        dlopen.restype = ctypes.c_void_p
        dlopen.argtypes = (ctypes.c_char_p, ctypes.c_int)
        for folder in (spec.submodule_search_locations if spec else None) or ():
            for name in names:
                for path in glob.glob(os.path.join(glob.escape(folder), "lib", name)):
                    loaded |= dlopen(os.fsencode(path), os.RTLD_NOW) is not None
    return loaded

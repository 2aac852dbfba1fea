"""Keeping the event loop awake while another thread imports and builds: what is left is the GIL.

Measured on two cores with a 2 ms heartbeat, importing torch and transformers cold: the longest stall is
218-223 ms with nothing done, 19-20 ms with what is done here (what remains is `torch._C` initialising).

gc and the switch interval are process-wide: both are counted over concurrent loads, and given back by the last
one only if they are still what was set here. torch's thread count is left alone, because `set_num_threads`
sticks to every thread that first uses torch in that window.
"""

from __future__ import annotations

import gc
import glob
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from types import ModuleType

from yaie_async.core.threads import cores

# Seconds. Python's default of 5 ms lets the importing thread keep the GIL that long against a waiting loop.
_INTERVAL = 0.0005


class _Held:
    """A process-wide setting that several users hold at once; the last one restores it."""

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
        # What `torch._C` is linked to is loaded by then; its own initialisation is the longest call of all.
        with nullcontext() if spec.name == "torch._C" else cores().all_seen():
            return before(self, spec)

    def restore() -> None:
        if ExtensionFileLoader.create_module is create_module:
            ExtensionFileLoader.create_module = before  # type: ignore[method-assign]

    ExtensionFileLoader.create_module = create_module  # type: ignore[method-assign]
    return restore


# What `import torch` maps; a library's own dependencies come with it.
TORCH = ("libc10.so", "libtorch_cpu.so", "libtorch_cuda.so", "libtorch_python.so")
# What counts the cores as it is loaded, where torch's package has it (a wheel has).
OPENMP = ("libgomp*", "libiomp*", "libomp*")

_interval = _Held(_hold_interval)
_gc = _Held(_hold_gc)
_extensions = _Held(_hold_extensions)

# The imports whose objects are to be frozen, each once a process. The official client comes with the Hub.
_unfrozen = {"huggingface_hub", "torch"}

# While a load runs, the loop gets the GIL back within half a millisecond.
quick_switching = _interval.held


@contextmanager
def smooth_imports() -> Iterator[None]:
    """Around imports: garbage collection waits, since it would walk the new objects again and again.

    If torch or the official client was imported here, all objects of the process are then frozen out of later
    collections: `gc.freeze()` is permanent. Without it the first collection walks them all, for 350-1,050 ms.
    """
    fresh = {name for name in _unfrozen if name not in sys.modules}
    with _gc.held():
        yield
        if arrived := {name for name in fresh & _unfrozen if name in sys.modules}:
            _unfrozen.difference_update(arrived)
            gc.freeze()


@contextmanager
def leaving_a_core() -> Iterator[None]:
    """Around imports or a build, in the thread that does it: one core is the event loop's.

    See `yaie_async.core.affinity`.

    A native library that comes with a module is loaded with all cores in sight: OpenBLAS (of numpy, of scipy) and
    OpenMP count them as they are loaded, and would have a thread too few for the rest of the process.
    """
    with _extensions.held(), cores().one_left_free():
        yield


def open_libraries(names: tuple[str, ...]) -> bool:
    """Load shared libraries of torch with the GIL released; its import then finds them loaded.

    `dlopen` is called as a foreign function: `ctypes.CDLL(path)` would hold the GIL (until Python 3.13).
    Where that doesn't work the import loads them itself.

    Args:
        names: patterns of their file names, in the order in which to load them.

    Returns:
        Whether any of them is loaded now.
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

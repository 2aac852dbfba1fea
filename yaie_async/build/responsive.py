"""Keeping the event loop awake while another thread imports and builds: what is left is the GIL.

Measured on two cores with a 2 ms heartbeat, importing torch and transformers cold: the longest stall is
218-223 ms with nothing done, 19-20 ms with what is done here (what remains is `torch._C` initialising).

gc and the switch interval are process-wide: both are counted over concurrent loads, and given back by the last
one only if they are still what was set here. torch's thread count is left alone, because `set_num_threads`
sticks to every thread that first uses torch in that window.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

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


# What `import torch` maps; a library's own dependencies come with it.
_LIBRARIES = ("libc10.so", "libtorch_cpu.so", "libtorch_cuda.so", "libtorch_python.so")

_interval = _Held(_hold_interval)
_gc = _Held(_hold_gc)

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


def open_libraries() -> None:
    """Load torch's shared libraries with the GIL released; its import then finds them loaded.

    `dlopen` is called as a foreign function: `ctypes.CDLL(path)` would hold the GIL (until Python 3.13).
    Where that doesn't work the import loads them itself.
    """
    if "torch" in sys.modules:
        return
    with suppress(ImportError, ValueError, OSError, AttributeError):
        import ctypes

        spec = importlib.util.find_spec("torch")
        dlopen = ctypes.CDLL(None).dlopen
        dlopen.restype = ctypes.c_void_p
        dlopen.argtypes = (ctypes.c_char_p, ctypes.c_int)
        for folder in (spec.submodule_search_locations if spec else None) or ():
            for name in _LIBRARIES:
                dlopen(os.fsencode(os.path.join(folder, "lib", name)), os.RTLD_NOW)

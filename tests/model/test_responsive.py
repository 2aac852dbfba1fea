"""Keeping the loop awake: what is changed process-wide is given back exactly, and its absence harms nobody."""

import ctypes
import gc
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from types import ModuleType

import pytest

from tests.support.process import in_a_new_process
from yaie_async.model.compat import OPENMP, TORCH
from yaie_async.model.responsive import (
    leaving_a_core,
    open_libraries,
    quick_switching,
    smooth_imports,
)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    interval, enabled = sys.getswitchinterval(), gc.isenabled()
    yield
    sys.setswitchinterval(interval)
    (gc.enable if enabled else gc.disable)()


def test_the_interval_is_lowered_and_restored() -> None:
    """During a load threads switch ten times as often, afterwards as before."""
    before = sys.getswitchinterval()
    with quick_switching():
        assert sys.getswitchinterval() == pytest.approx(before / 10)
    assert sys.getswitchinterval() == before


def test_the_last_of_several_loads_restores() -> None:
    """The first load to end leaves the interval to the others; an error restores it too."""
    before = sys.getswitchinterval()
    first = ExitStack()
    first.enter_context(quick_switching())
    with pytest.raises(ValueError, match="stop"), quick_switching():
        first.close()
        assert sys.getswitchinterval() < before
        raise ValueError("stop")
    assert sys.getswitchinterval() == before


def test_what_the_application_sets_meanwhile_stays() -> None:
    """An interval that somebody else set during the load is not overwritten."""
    with quick_switching():
        sys.setswitchinterval(0.002)
    assert sys.getswitchinterval() == pytest.approx(0.002)


def test_many_threads_leave_it_as_it_was() -> None:
    """Loads that come and go in many threads restore the interval in the end."""
    before = sys.getswitchinterval()

    def load() -> None:
        for _ in range(50):
            with quick_switching(), smooth_imports():
                pass

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sys.getswitchinterval() == before
    assert gc.isenabled()


@pytest.mark.parametrize("enabled", [True, False])
def test_collection_waits_and_is_restored(*, enabled: bool) -> None:
    """gc is held during the imports, and only switched on again where it was on."""
    (gc.enable if enabled else gc.disable)()
    with smooth_imports():
        assert not gc.isenabled()
    assert gc.isenabled() is enabled


def test_an_error_restores_collection() -> None:
    """An import that fails leaves gc on."""
    with pytest.raises(ImportError), smooth_imports():
        raise ImportError("broken")
    assert gc.isenabled()


def _no_dlopen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())


def _no_ctypes(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_name: object) -> None:
        raise OSError("not here")

    monkeypatch.setattr(ctypes, "CDLL", fail)


def _no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)


@pytest.mark.parametrize("lacking", [_no_dlopen, _no_ctypes, _no_torch])
def test_a_platform_that_lacks_the_trick_is_none_the_worse(monkeypatch: pytest.MonkeyPatch, lacking: object) -> None:
    """Without dlopen, without ctypes, without torch: the import simply loads its libraries itself."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert callable(lacking)
    lacking(monkeypatch)
    assert not open_libraries(TORCH)


_CORES = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is only one core")


@_CORES
def test_who_counts_cores_while_it_is_imported_sees_them_all() -> None:
    """OpenMP (torch's own, and that of the system), OpenBLAS, MKL and torch have as many threads as after a plain import, and all cores.

    The import has a core less, and so has what is built first.
    """
    code = """
import contextlib, os, time
from yaie_async.model import imports, responsive as keeping
responsive, openmp = json.loads(sys.argv[1])
imports.OPENMP = openmp
seen, number = set(), None
def audit(event, arguments):  # of each module, and once more where an extension is loaded
    if event == "import" and threading.get_native_id() == number:
        seen.add(len(os.sched_getaffinity(0)))
sys.addaudithook(audit)
def run():
    global number
    number = threading.get_native_id()
    imports.import_libraries(responsive=responsive)
thread = threading.Thread(target=run)
thread.start()
thread.join()
import torch
def build():
    with keeping.leaving_a_core() if responsive else contextlib.nullcontext():
        torch.ones(500, 500) @ torch.ones(500, 500)
while os.path.exists(f"/proc/self/task/{number}"):
    time.sleep(0.001)
others = set(os.listdir("/proc/self/task"))
builder = threading.Thread(target=build)
builder.start()
builder.join()
# OpenMP's helpers of a thread end a little later than it does. `join` of Python 3.13 returns before that, of earlier
# ones hardly ever.
deadline = time.monotonic() + 5
while set(os.listdir("/proc/self/task")) - others and time.monotonic() < deadline:
    time.sleep(0.001)
tasks = [len(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task")]
print(json.dumps([sorted(seen), [tasks, torch.get_num_interop_threads(), torch.__config__.parallel_info()]]))
"""
    cores = len(os.sched_getaffinity(0))
    seen, plain = in_a_new_process(code, json.dumps([False, OPENMP]))
    assert seen == [cores]
    assert len(plain[0]) > 1  # OpenBLAS has started some
    for openmp in (OPENMP, ["nothing.so"]):
        seen, found = in_a_new_process(code, json.dumps([True, openmp]))
        assert seen == [cores - 1, cores]
        assert found == plain


@_CORES
def test_a_python_that_loads_extension_modules_in_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """No core is kept free: what counts the cores as it is loaded would count one too few."""
    everything = os.sched_getaffinity(0)
    with leaving_a_core():
        assert len(os.sched_getaffinity(0)) == len(everything) - 1
    monkeypatch.delattr(ExtensionFileLoader, "create_module")
    with leaving_a_core():
        assert os.sched_getaffinity(0) == everything
        assert "create_module" not in vars(ExtensionFileLoader)


@_CORES
def test_extension_modules_are_loaded_as_before_in_the_end() -> None:
    """However the imports end, and not if somebody else has changed it meanwhile."""
    before = ExtensionFileLoader.create_module
    with pytest.raises(ImportError), leaving_a_core():
        assert ExtensionFileLoader.create_module is not before
        raise ImportError("broken")
    assert ExtensionFileLoader.create_module is before

    def other(self: ExtensionFileLoader, spec: ModuleSpec) -> ModuleType:
        return before(self, spec)

    try:
        with leaving_a_core():
            ExtensionFileLoader.create_module = other  # type: ignore[method-assign]
        assert ExtensionFileLoader.create_module is other
    finally:
        ExtensionFileLoader.create_module = before  # type: ignore[method-assign]


def test_the_objects_of_the_imports_are_frozen_once() -> None:
    """If torch was imported, what the imports made is kept out of later collections; the interval is back."""
    code = (
        "import gc, sys\n"
        "from yaie_async.model.responsive import quick_switching, smooth_imports\n"
        "before = sys.getswitchinterval()\n"
        "assert gc.get_freeze_count() == 0\n"
        "with quick_switching(), smooth_imports():\n"
        "    import torch\n"
        "frozen = gc.get_freeze_count()\n"
        "assert frozen > 10_000, frozen\n"
        "assert gc.isenabled() and sys.getswitchinterval() == before\n"
        "with smooth_imports():\n"
        "    pass\n"
        "assert gc.get_freeze_count() <= frozen\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

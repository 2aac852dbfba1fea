"""Tests of warm_imports: later loads import nothing heavy, and process-wide settings are restored."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.hub import HubServer
from tests.support.process import in_a_new_process

_BACKENDS = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}


@pytest.mark.parametrize("backend", _BACKENDS)
def test_a_load_after_it_imports_nothing_heavy(
    hub: HubServer, put: Callable[..., Path], tmp_path: Path, backend: str
) -> None:
    """A cold load after it imports only the module of its model; two concurrent calls share the imports."""
    put("org/name", "llama")
    code = """
from yaie_async import ModelLoader, warm_imports
async def main():
    interval = sys.getswitchinterval()
    async with anyio.create_task_group() as group:
        group.start_soon(warm_imports)
        group.start_soon(warm_imports)
    assert gc.isenabled() and sys.getswitchinterval() == interval
    before = set(sys.modules)
    model, tokenizer = await ModelLoader("org/name", endpoint=sys.argv[1], cache_dir=sys.argv[2]).load()
    print(json.dumps(sorted(set(sys.modules) - before)))
name, options = json.loads(sys.argv[3])
anyio.run(main, backend=name, backend_options=options)
"""
    imported = in_a_new_process(code, hub.url, str(tmp_path / "cache"), json.dumps(_BACKENDS[backend]))
    packaged = [name for name in imported if name.partition(".")[0] not in sys.stdlib_module_names]
    assert [name for name in packaged if not name.startswith("transformers.models.")] == []
    assert "transformers.models.llama.modeling_llama" in imported


@pytest.mark.parametrize("backend", _BACKENDS)
def test_a_cancel_gives_control_back_and_leaves_the_imports_to_a_thread(backend: str) -> None:
    """After a cancel the imports continue in their thread, and the settings are restored when they end."""
    code = """
from yaie_async import warm_imports
async def main():
    interval = sys.getswitchinterval()
    with anyio.move_on_after(100) as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(warm_imports)
            while "torch" not in sys.modules:
                await anyio.sleep(0.001)
            scope.cancel()
    assert scope.cancelled_caught and sys.getswitchinterval() == interval
    at_once = hasattr(sys.modules.get("transformers"), "AutoTokenizer")
    while any(thread.name.startswith("yaie_async") for thread in threading.enumerate()):
        await anyio.sleep(0.01)
    assert gc.isenabled()
    print(json.dumps([at_once, hasattr(sys.modules["transformers"], "AutoTokenizer")]))
name, options = json.loads(sys.argv[1])
anyio.run(main, backend=name, backend_options=options)
"""
    assert in_a_new_process(code, json.dumps(_BACKENDS[backend])) == [False, True]


def test_what_is_missing_is_an_error_of_ours(tmp_path: Path) -> None:
    """A broken library is a LoaderError that says how to repair it; the settings are restored."""
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so is damaged')")
    code = """
sys.path.insert(0, sys.argv[1])
from yaie_async import LoaderError, warm_imports
async def main():
    try:
        await warm_imports()
    except LoaderError as error:
        print(json.dumps([str(error), gc.isenabled(), sys.getswitchinterval()]))
anyio.run(main)
"""
    message, enabled, interval = in_a_new_process(code, str(tmp_path))
    assert "libtorch.so is damaged" in message
    assert "pip install" in message
    assert (enabled, interval) == (True, sys.getswitchinterval())

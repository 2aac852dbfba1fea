"""Tests of warm_imports: later loads import nothing heavy, and process-wide settings are restored."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from tests.support.hub import HubServer
from tests.support.process import in_a_new_process
from yaie_async.core.compat import version

# Runs `main` on each event loop in turn: a process imports the heavy libraries once, whatever its loop.
_ON_EACH_LOOP = """
for name, options in json.loads(sys.argv[1]):
    anyio.run(main, backend=name, backend_options=options)
"""
_LOOPS = json.dumps([("asyncio", {}), ("asyncio", {"use_uvloop": True}), ("trio", {})])


def test_a_load_after_it_imports_nothing_heavy(hub: HubServer, put: Callable[..., Path], tmp_path: Path) -> None:
    """A cold load after it imports only the module of its model; two concurrent calls share the imports."""
    kinds = ["llama", "qwen2", "gpt2"]  # one for each loop: a module is imported once
    for kind in kinds:
        put(f"org/{kind}", kind)
    code = """
from yaie_async import ModelLoader, warm_imports
kinds, imported = json.loads(sys.argv[4]), []
async def main():
    interval = sys.getswitchinterval()
    async with anyio.create_task_group() as group:
        group.start_soon(warm_imports)
        group.start_soon(warm_imports)
    assert gc.isenabled() and sys.getswitchinterval() == interval
    before = set(sys.modules)
    name = f"org/{kinds[len(imported)]}"
    model, tokenizer = await ModelLoader(name, endpoint=sys.argv[2], cache_dir=sys.argv[3]).load()
    imported.append(sorted(set(sys.modules) - before))
"""
    code += _ON_EACH_LOOP + "print(json.dumps(imported))"
    told = in_a_new_process(code, _LOOPS, hub.url, str(tmp_path / "cache"), json.dumps(kinds))
    for kind, imported in zip(kinds, told, strict=True):
        packaged = [name for name in imported if name.partition(".")[0] not in sys.stdlib_module_names]
        assert [name for name in packaged if not name.startswith("transformers.models.")] == []
        assert f"transformers.models.{kind}.modeling_{kind}" in imported


def test_a_cancel_gives_control_back_and_leaves_the_imports_to_a_thread() -> None:
    """After a cancel the imports continue in their thread, and the settings are restored when they end."""
    code = """
import trio, uvloop
from yaie_async import warm_imports
interval = sys.getswitchinterval()
def imported():
    return hasattr(sys.modules.get("transformers"), "AutoTokenizer")
said = []
async def main():
    with anyio.move_on_after(100) as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(warm_imports)
            while "torch" not in sys.modules:
                await anyio.sleep(0.001)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    said.append([sys.getswitchinterval() == interval, imported()])
"""
    code += (
        _ON_EACH_LOOP
        + """
for thread in threading.enumerate():
    if thread.name.startswith("yaie_async"):
        thread.join()
assert gc.isenabled() and sys.getswitchinterval() == interval
print(json.dumps([said, imported()]))
"""
    )
    assert in_a_new_process(code, _LOOPS) == [[[True, False]] * 3, True]


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


def test_a_warm_start_shows(hub: HubServer, put: Callable[..., Path], tmp_path: Path) -> None:
    """The files count at once, and imports and build have stages of their own with what the last time says of them."""
    size = (put("org/m") / "model.safetensors").stat().st_size
    code = """
from yaie_async import ModelLoader
from yaie_async.store.history import Took, last_time, remember
what, build, size = sys.argv[3:]
remember(what, Took(600.0, 2000))
remember(build, Took(30_000.0, int(size) // 2))
events = []
async def main():
    await ModelLoader("org/m", endpoint=sys.argv[1], cache_dir=sys.argv[2], on_progress=events.append).load()
async def prefetch():
    await ModelLoader("org/m", endpoint=sys.argv[1], cache_dir=sys.argv[2], on_progress=lambda event: None).prefetch()
anyio.run(prefetch)
anyio.run(main)
took = last_time(what)
print(json.dumps({
    "events": [[e.stage, e.bytes_done, e.bytes_total, e.files_done, e.stage_fraction, e.seconds_left] for e in events],
    "steps": events[-1].steps,
    "took": [took.seconds, took.count],
}))
"""
    what = f"import torch {version('torch')} transformers {version('transformers')}"
    build = f"build mapped auto cpu {size.bit_length()}"
    told = in_a_new_process(code, hub.url, str(tmp_path / "cache"), what, build, str(size))
    stages = list(dict.fromkeys(stage for stage, *_ in told["events"]))
    assert [stage for stage in stages if stage != "building"] == ["resolving", "importing", "ready"]
    assert [name for name, _ in told["steps"]] == ["resolving", "importing", "building"]
    for stage, done, total, files, share, left in told["events"]:
        if stage == "importing" and share is not None:  # as it is in a tick right after the imports
            assert 0 <= share <= 1
            assert left is None or 60_000 <= left <= 60_600.1  # the build's too
        if stage != "resolving":
            assert done == total > 0
            assert files == 5
    assert [left for stage, *_, left in told["events"] if stage == "importing" and left]
    assert 0 < told["took"][0] < 600
    assert told["took"][1] > 1000

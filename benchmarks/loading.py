"""A load in a cold process: `python -m benchmarks.loading MODE ENDPOINT MODEL CACHE watch|plain DIRECTORY`.

CACHE is to be filled by the load, in DIRECTORY, or the absolute path of one that holds the model already.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks.beat import Beats, heartbeat
from yaie_async import ModelLoader

Loading = Callable[[Beats | None], Awaitable[object]]


def us(endpoint: str, model: str, cache: Path, *, responsive: bool = True) -> Loading:
    async def load(seen: Beats | None) -> object:
        loader = ModelLoader(model, endpoint=endpoint, cache_dir=cache, responsive=responsive)
        if seen:
            _note_threads(seen)
        with seen.span("download") if seen else nullcontext():
            return await loader.load()

    return load


def unresponsive(endpoint: str, model: str, cache: Path) -> Loading:
    return us(endpoint, model, cache, responsive=False)


def to_thread(endpoint: str, model: str, cache: Path) -> Loading:
    """What one would write by hand, and that each step is seen by itself."""

    async def load(seen: Beats | None) -> object:
        with seen.span("download") if seen else nullcontext():
            folder = await asyncio.to_thread(download_official, endpoint, model, cache)
        with seen.span("imports") if seen else nullcontext():
            await asyncio.to_thread(import_stock)
        with seen.span("build") if seen else nullcontext():
            return await asyncio.to_thread(build_stock, folder)

    return load


def prefetch(endpoint: str, model: str, cache: Path) -> Loading:
    async def load(seen: Beats | None) -> object:  # noqa: ARG001
        return await ModelLoader(model, endpoint=endpoint, cache_dir=cache).prefetch()

    return load


def idle(endpoint: str, model: str, cache: Path) -> Loading:  # noqa: ARG001
    async def load(seen: Beats | None) -> object:  # noqa: ARG001
        return await asyncio.sleep(3, result=True)

    return load


def download_official(endpoint: str, model: str, cache: Path) -> str:
    from huggingface_hub import snapshot_download

    return str(snapshot_download(model, endpoint=endpoint, cache_dir=cache))


def import_stock() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401


def build_stock(folder: str) -> object:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16, device_map="auto"), tokenizer


def _note_threads(seen: Beats) -> None:
    """Note when the loader's threads import and build: its phases overlap, so no stage tells them apart."""
    import yaie_async.loader.model_loader as module

    run_detached = vars(module)["run_detached"]

    async def noted(fn: Callable[[], Any], *, name: str) -> Any:
        with seen.span("imports" if name == "imports" else "build"):
            return await run_detached(fn, name=name)

    vars(module)["run_detached"] = noted


MODES: dict[str, Callable[[str, str, Path], Loading]] = {
    "us": us,
    "us, responsive=False": unresponsive,
    "to_thread": to_thread,
    "prefetch": prefetch,
    "idle": idle,
}


async def _measured(load: Loading, *, watch: bool) -> dict[str, float]:
    start = time.perf_counter()
    if not watch:
        kept = await load(None)
        seconds = time.perf_counter() - start
        del kept
        return {"seconds": seconds}
    async with heartbeat() as seen:
        kept = await load(seen)
        seconds = time.perf_counter() - start
    del kept
    return {"seconds": seconds, **{name: value * 1e3 for name, value in seen.figures().items()}}


def _main(mode: str, endpoint: str, model: str, cache: str, watch: str, directory: str) -> None:
    load = MODES[mode](endpoint, model, Path(directory, cache))
    print(json.dumps(asyncio.run(_measured(load, watch=watch == "watch"))))


if __name__ == "__main__":
    _main(*sys.argv[1:])

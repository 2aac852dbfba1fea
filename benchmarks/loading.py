"""A load in a new process: `python -m benchmarks.loading MODE ENDPOINT MODEL CACHE HOW DIRECTORY`.

HOW is "plain", "watch" (measures stalls) or "timeline" (records threads and progress). CACHE is a folder in DIRECTORY
that the load fills, or the absolute path of a cache that contains the model.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks.heartbeat import Beats, heartbeat
from yaie_async import ModelLoader, Progress
from yaie_async.core.threads import run_detached
from yaie_async.loader import model_loader, streamed

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
    """A hand-written load in threads, with a span for each step."""

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


def hf_transfer(endpoint: str, model: str, cache: Path) -> Loading:
    """As `to_thread`, with the shards downloaded by hf_transfer."""

    async def load(seen: Beats | None) -> object:  # noqa: ARG001
        await asyncio.to_thread(_download_with_rust, endpoint, model, cache)
        await asyncio.to_thread(import_stock)
        return await asyncio.to_thread(build_stock, str(cache))

    return load


def _download_with_rust(endpoint: str, model: str, folder: Path) -> None:
    import httpx

    from benchmarks.clients import hf_transfer as shards

    folder.mkdir()
    download = shards(endpoint, folder)
    for file in httpx.get(f"{endpoint}/api/models/{model}").json()["siblings"]:
        name = file["rfilename"]
        if not name.endswith(".safetensors"):
            (folder / name).write_bytes(httpx.get(f"{endpoint}/{model}/resolve/main/{name}").content)
    download()


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
    """Record when the loader's threads import and build. Its phases overlap, so its stages don't separate them."""

    async def recorded(fn: Callable[[], Any], *, name: str) -> Any:
        with seen.span("imports" if name == "imports" else "build"):
            return await run_detached(fn, name=name)

    for module in (model_loader, streamed):
        vars(module)["run_detached"] = recorded


MODES: dict[str, Callable[[str, str, Path], Loading]] = {
    "us": us,
    "us, responsive=False": unresponsive,
    "to_thread": to_thread,
    "prefetch": prefetch,
    "hf_transfer": hf_transfer,
    "idle": idle,
}


async def _measured(load: Loading, *, watch: bool) -> dict[str, float]:
    start, used, idled = time.perf_counter(), time.process_time(), _idle()
    if not watch:
        kept = await load(None)
        seconds = time.perf_counter() - start
        del kept
        # Seconds of work per core, the server's work included, as if spread evenly over all cores.
        busy = seconds - (_idle() - idled)
        return {"seconds": seconds, "cpu": time.process_time() - used, "busy": busy}
    async with heartbeat() as seen:
        kept = await load(seen)
        seconds = time.perf_counter() - start
    del kept
    return {"seconds": seconds, **{name: value * 1e3 for name, value in seen.figures().items()}}


def _idle() -> float:
    """Return the idle time of the machine since boot, in seconds per core."""
    idle, wait = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[4:6]
    return (int(idle) + int(wait)) / os.sysconf("SC_CLK_TCK") / (os.cpu_count() or 1)


async def _timeline(endpoint: str, model: str, cache: Path) -> dict[str, Any]:
    """Load with our loader, and record when its threads ran and when its bytes arrived."""
    start = time.perf_counter()
    spans: list[tuple[str, float, float]] = []
    arrived: list[tuple[float, float]] = []

    async def recorded(fn: Callable[[], Any], *, name: str) -> Any:
        begun = time.perf_counter() - start
        try:
            return await run_detached(fn, name=name)
        finally:
            spans.append((name, begun, time.perf_counter() - start))

    async def streaming(fn: Callable[[], Any], *, name: str) -> Any:
        return await recorded(fn, name=f"streaming {name}")

    def note(progress: Progress) -> None:
        arrived.append((time.perf_counter() - start, progress.fraction))

    vars(model_loader)["run_detached"], vars(streamed)["run_detached"] = recorded, streaming
    await ModelLoader(model, endpoint=endpoint, cache_dir=cache, on_progress=note).load()
    return {"spans": spans, "bytes": arrived}


def _main(mode: str, endpoint: str, model: str, cache: str, how: str, directory: str) -> None:
    if how == "timeline":
        found = asyncio.run(_timeline(endpoint, model, Path(directory, cache)))
    else:
        load = MODES[mode](endpoint, model, Path(directory, cache))
        found = asyncio.run(_measured(load, watch=how == "watch"))
    print(json.dumps(found))


if __name__ == "__main__":
    _main(*sys.argv[1:])

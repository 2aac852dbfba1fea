"""How long building a large tokenizer holds the GIL, which stalls all other threads.

One case in a new process: `python -m benchmarks.tokenizer CASE DIRECTORY INTO`.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.random_llama import write_tokenizer
from benchmarks.rounds import Rounds, draw, machine, measure, ratio, spread, table

_US = "us"
_STOCK = "AutoTokenizer.from_pretrained"
_FLOOR = "BPE(vocab, merges) alone"
CASES = (_US, _STOCK, _FLOOR)
KINDS = ("PreTrainedTokenizerFast", "Qwen2Tokenizer", "GPT2Tokenizer", "LlamaTokenizerFast")
_INTERVAL = 0.001  # seconds between two looks of the measuring thread


def main(arguments: argparse.Namespace) -> dict[str, Rounds]:
    """Print the longest hold of the GIL, against that of the library's own longest call."""
    print(machine())
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        directory = Path(scratch, "tokenizer")
        directory.mkdir()
        write_tokenizer(directory, arguments.tokens, arguments.tokenizer_class)
        size = (directory / "tokenizer.json").stat().st_size / 1e6
        cases = {name: [name, str(directory)] for name in arguments.only}
        results = measure("benchmarks.tokenizer", cases, None, Path(scratch), arguments.rounds)
    rows = []
    for name, found in results.items():
        cells = [spread([one[key] for one in found]) for key in ("took", "longest")]
        value = ratio(found, results.get(_FLOOR), "longest")
        rows.append([name, *cells, f"{value:.2f}x" if value else ""])
    title = f"A {arguments.tokenizer_class} of {arguments.tokens // 1000}k tokens, tokenizer.json of {size:.0f} MB"
    table(
        f"{title}, milliseconds; medians (min-max) of {arguments.rounds} interleaved rounds",
        ["", "takes", "longest hold of the GIL", "against BPE alone"],
        rows,
    )
    draw(
        arguments.plot,
        title,
        "longest hold of the GIL, ms",
        {k: [one["longest"] for one in v] for k, v in results.items()},
    )
    return results


def _prepared(case: str, directory: Path) -> Callable[[], object]:
    from yaie_async.model.imports import import_libraries
    from yaie_async.model.tokenizer import build_tokenizer

    import_libraries(responsive=True)  # all cases start as a load does: with gc frozen
    from transformers import AutoTokenizer

    if case == _US:
        from yaie_async.core.manifest import Listing, Manifest, Need
        from yaie_async.model.request import BuildRequest

        # Not `directory_manifest`: a folder with a tokenizer alone has no config.json.
        request = BuildRequest(Manifest(str(directory), directory, Listing(None, {}), Need(weights=False), sharp=True))
        return lambda: build_tokenizer(request)
    if case == _STOCK:
        return lambda: AutoTokenizer.from_pretrained(str(directory))
    from tokenizers.models import BPE

    model: dict[str, Any] = json.loads((directory / "tokenizer.json").read_bytes())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return lambda: BPE(vocab=model["vocab"], merges=merges)


def _watched(work: Callable[[], object]) -> dict[str, float]:
    sys.setswitchinterval(0.0005)  # as during a load
    lates: list[float] = []
    done = threading.Event()

    def watch() -> None:
        last = time.perf_counter()
        while not done.is_set():
            time.sleep(_INTERVAL)
            now = time.perf_counter()
            lates.append(now - last - _INTERVAL)
            last = now

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    kept = work()
    took = time.perf_counter() - start
    done.set()
    watcher.join()
    del kept
    return {"took": took * 1e3, "longest": max(lates) * 1e3}


if __name__ == "__main__":
    print(json.dumps(_watched(_prepared(sys.argv[1], Path(sys.argv[2])))))

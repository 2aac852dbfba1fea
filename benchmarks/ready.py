"""Cold time to a ready fp16 model over a link, against hand-written code and the lower bounds."""

import argparse
import shutil
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.random_llama import make_llama
from benchmarks.rounds import Rounds, machine, measure, pyplot, ratio, spread, table
from benchmarks.site import MODEL
from benchmarks.stall import slow_site

_US = "us: load()"
_STOCK = "snapshot_download, then from_pretrained"
_RUST = "hf_transfer, then from_pretrained"
_DOWNLOAD = "our download alone"
_BUILD = "imports + build alone"
_STOCK_BUILD = "from_pretrained alone"
CASES = (_US, _STOCK, _RUST, _DOWNLOAD, _BUILD, _STOCK_BUILD)


def main(arguments: argparse.Namespace) -> dict[str, Rounds]:
    """Print seconds and ratios; with --plot also draw them, and the timeline of one more load of ours."""
    print(machine())
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        models, full = Path(scratch, "models"), Path(scratch, "full")
        make_llama(models / MODEL, arguments.size, dtype=arguments.dtype)
        with slow_site(models, arguments.link) as (site, what):

            def case(mode: str, cache: str | Path = "hub") -> list[str]:
                return [mode, site.endpoint, MODEL, str(cache), "plain"]

            # Fill a cache for the cases that only build.
            measure("benchmarks.loading", {"filled": case("prefetch", full)}, site, Path(scratch), 1)
            cases = {
                _US: case("us"),
                _STOCK: case("to_thread"),
                _RUST: case("hf_transfer"),
                _DOWNLOAD: case("prefetch"),
                _BUILD: case("us", full),
                _STOCK_BUILD: case("to_thread", full),
            }
            cases = {name: case for name, case in cases.items() if name in arguments.only}
            results = measure("benchmarks.loading", cases, site, Path(scratch), arguments.rounds)
            if arguments.plot:
                one = {"timeline": [*case("us")[:-1], "timeline"]}
                seen = measure("benchmarks.loading", one, site, Path(scratch), 1)
                _plot(arguments, what, results, seen["timeline"][0])
        shutil.rmtree(full, ignore_errors=True)
    rows = []
    for name, found in results.items():
        value = ratio(found, results.get(_STOCK), "seconds")
        cpu = f"{statistics.median(one['cpu'] for one in found):.1f}"
        rows.append([name, spread([one["seconds"] for one in found], 2), cpu, f"{value:.2f}x" if value else ""])
    table(
        f"Cold time to a ready fp16 model, {arguments.size} MB {arguments.dtype} in 8 shards over {what}; "
        f"medians (min-max) of {arguments.rounds} interleaved rounds",
        ["", "seconds", "CPU-s", "of the stock way"],
        rows,
    )
    _bounds(results)
    return results


def _bounds(results: dict[str, Rounds]) -> None:
    if not {_US, _DOWNLOAD, _BUILD} <= set(results):
        return
    rounds = list(zip(results[_US], results[_DOWNLOAD], results[_BUILD], strict=True))
    alone: Rounds = [{"seconds": max(a["seconds"], b["seconds"])} for _, a, b in rounds]
    cpu: Rounds = [{"seconds": max(one["seconds"], us["busy"])} for one, (us, _, _) in zip(alone, rounds, strict=True)]
    print(f"us against max(download, imports + build): {ratio(results[_US], alone, 'seconds'):.2f}x")
    print(
        f"us against max(download, imports + build, the machine's CPU time / its cores): "
        f"{ratio(results[_US], cpu, 'seconds'):.2f}x (that CPU time includes the server's)"
    )


def _plot(arguments: argparse.Namespace, what: str, results: dict[str, Rounds], timeline: Any) -> None:
    """Draw the times as bars, and the timeline of the threads in one load of ours."""
    plt = pyplot()
    if plt is None:
        return
    with ExitStack() as stack:
        figure, (above, below) = plt.subplots(2, figsize=(7.5, 5.5), layout="constrained", height_ratios=[3, 2])
        stack.callback(plt.close, figure)
        names = list(results)[::-1]
        times = [[one["seconds"] for one in results[name]] for name in names]
        middle = [statistics.median(one) for one in times]
        errors = [[m - min(one) for m, one in zip(middle, times, strict=True)],
                  [max(one) - m for m, one in zip(middle, times, strict=True)]]  # fmt: skip
        above.barh(names, middle, xerr=errors, capsize=3, color=["C0" if name == _US else "C7" for name in names])
        figure.suptitle(f"{arguments.size} MB {arguments.dtype} to a ready fp16 model over {what}", fontsize="medium")
        above.set(xlabel="seconds")
        lanes = list(dict.fromkeys(name for name, _, _ in timeline["spans"]))[::-1]
        for name, start, stop in timeline["spans"]:
            below.barh(name, stop - start, left=start, color=f"C{lanes.index(name)}")
        seconds, done = zip(*timeline["bytes"], strict=True)
        percent = below.twinx()
        percent.plot(seconds, [100 * one for one in done], color="black", linewidth=1)
        percent.set(ylabel="% on disk", ylim=(0, 105))
        below.set(xlabel="seconds of one load of ours, and what overlapped", xlim=0)
        figure.savefig(arguments.plot)
    print(f"plot: {arguments.plot}")

"""Cold time to a ready model over a link, beside snapshot_download + from_pretrained and the lower bounds."""

import argparse
import shutil
import tempfile
from pathlib import Path

from benchmarks.making import make_llama
from benchmarks.rounds import Rounds, machine, measure, ratio, spread, table
from benchmarks.site import MODEL
from benchmarks.stall import slow_site

_US = "us: load()"
_STOCK = "snapshot_download, then from_pretrained"
_DOWNLOAD = "our download alone"
_BUILD = "imports + build alone"
_STOCK_BUILD = "from_pretrained alone"
CASES = (_US, _STOCK, _DOWNLOAD, _BUILD, _STOCK_BUILD)


def main(arguments: argparse.Namespace) -> dict[str, Rounds]:
    """Print seconds and ratios."""
    print(machine())
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        models, full = Path(scratch, "models"), Path(scratch, "full")
        make_llama(models / MODEL, arguments.size)
        with slow_site(models, arguments.link) as (site, what):

            def case(mode: str, cache: str | Path = "hub") -> list[str]:
                return [mode, site.endpoint, MODEL, str(cache), "plain"]

            # A cache that holds the model, for those that build alone.
            measure("benchmarks.loading", {"filled": case("prefetch", full)}, site, Path(scratch), 1)
            cases = {
                _US: case("us"),
                _STOCK: case("to_thread"),
                _DOWNLOAD: case("prefetch"),
                _BUILD: case("us", full),
                _STOCK_BUILD: case("to_thread", full),
            }
            cases = {name: told for name, told in cases.items() if name in arguments.only}
            results = measure("benchmarks.loading", cases, site, Path(scratch), arguments.rounds)
        shutil.rmtree(full, ignore_errors=True)
    base = results.get(_STOCK)
    rows = []
    for name, found in results.items():
        value = ratio(found, base, "seconds")
        rows.append([name, spread([one["seconds"] for one in found], 2), f"{value:.2f}x" if value else ""])
    table(
        f"Cold time to a ready model, {arguments.size} MB fp16 in 8 shards over {what}; "
        f"medians (min-max) of {arguments.rounds} interleaved rounds",
        ["", "seconds", "of the stock way"],
        rows,
    )
    if {_US, _DOWNLOAD, _BUILD} <= set(results):
        pairs = zip(results[_DOWNLOAD], results[_BUILD], strict=True)
        bound: Rounds = [{"seconds": max(a["seconds"], b["seconds"])} for a, b in pairs]
        print(f"us against max(download, imports + build): {ratio(results[_US], bound, 'seconds'):.2f}x")
    return results

"""Stalls of the event loop during a cold load, by phase, measured by a heartbeat of 2 ms in a new process."""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks.network import NoLink, link
from benchmarks.random_llama import add_tokenizer_copy, make_llama
from benchmarks.rounds import Rounds, draw, machine, measure, ratio, spread, table
from benchmarks.site import MODEL, Site, serving

CASES = ("idle", "us", "us, responsive=False", "to_thread")
_BIG = "bench/big-tokenizer"
_PHASES = ("download", "imports", "build", "all")


@contextmanager
def slow_site(models: Path, rate: str) -> Iterator[tuple[Site, str]]:
    """Serve over a link of `rate`, or without one with eight connections capped at about 1 Gbit/s together."""
    try:
        with link(rate) as place, serving(models, place=place) as site:
            yield site, place.what
    except NoLink as error:
        print(f"note: no link: {error}; each connection is capped at 15 MiB/s instead")
        with serving(models, limit="limit_rate 15m;") as site:
            yield site, "8 connections of 15 MiB/s (nginx limit_rate)"


def main(arguments: argparse.Namespace) -> dict[str, Rounds]:
    """Print the longest stall and the 99th percentile of each phase, and those of an idle loop."""
    print(machine())
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        models = Path(scratch, "models")
        make_llama(models / MODEL, arguments.size)
        if arguments.big_tokenizer:
            add_tokenizer_copy(models / MODEL, models / _BIG, 128_000)
        with slow_site(models, arguments.link) as (site, what):
            cases = {mode: [mode, site.endpoint, MODEL, "hub", "watch"] for mode in arguments.only}
            if arguments.big_tokenizer:
                cases |= {
                    f"{mode}, 128k tokens": [mode, site.endpoint, _BIG, "hub", "watch"]
                    for mode in arguments.only
                    if mode != "idle"
                }
            results = measure("benchmarks.loading", cases, site, Path(scratch), arguments.rounds)
    base = results.get("to_thread")
    rows = []
    for name, found in results.items():
        cells = [name, spread([one["seconds"] for one in found], 1)]
        for phase in _PHASES:
            for figure in ("longest", "p99"):
                values = [one[key] for one in found if (key := f"{phase} {figure}") in one]
                cells.append("" if not values else spread(values) if figure == "longest" else f"{median(values):.1f}")
        value = ratio(found, base, "all longest")
        rows.append([*cells, f"{value:.2f}x" if value else ""])
    head = ["", "seconds", *(f"{phase} {figure}" for phase in _PHASES for figure in ("longest", "p99"))]
    table(
        f"Stalls in ms, cold process, {arguments.size} MB fp16 in 8 shards over {what}; "
        f"medians (min-max) of {arguments.rounds} interleaved rounds",
        [*head, "longest/to_thread"],
        rows,
    )
    draw(
        arguments.plot,
        f"a load of {arguments.size} MB in a cold process, over {what}",
        "longest stall of the event loop, ms",
        {name: [one["all longest"] for one in found] for name, found in results.items()},
    )
    print("a late beat counts for the imports if it overlaps them, else for the build, else for the download")
    return results

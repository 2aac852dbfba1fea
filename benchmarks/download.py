"""Download speed and cost, from a TLS server on this machine into the cache, against other clients."""

import argparse
import shutil
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.clients import ASYNC, CLIENTS
from benchmarks.network import NoLink, link
from benchmarks.rounds import Rounds, machine, measure, pyplot, ratio, spread, table
from benchmarks.site import Site, make_model, serving

CASES = ("tmpfs", "disk", "connections", "link", "small")

_BASE = "snapshot_download"
_RUST = "hf_transfer"
_PEERS = [name for name in CLIENTS if not name.endswith("connections")]
_COUNTS = [name for name in CLIENTS if name.endswith("connections")]
_CAP = "60m"


def main(arguments: argparse.Namespace) -> dict[str, dict[str, Rounds]]:
    """Run the chosen cases and print a table for each."""
    print(machine())
    print("each client in a new process, whose imports are not measured; servers on the same cores")
    results: dict[str, dict[str, Rounds]] = {}
    rounds, wanted = arguments.rounds, arguments.only
    with _memory() as memory, tempfile.TemporaryDirectory(prefix="bench-") as disk:
        models = Path(memory, "models")
        size = make_model(models, arguments.size, shards=5)
        with serving(models) as site:
            for where, folder in (("tmpfs", memory), ("disk", disk)):
                if where in wanted:
                    results[where] = _peers(site, _PEERS, Path(folder), rounds)
                    _show(f"{size / 1e6:.0f} MB in 5 shards, TLS 1.3, to {where}", results[where], size)
        if "link" in wanted or "connections" in wanted:
            shutil.rmtree(models)
            size = make_model(models, arguments.size / 2, shards=1)
        if "link" in wanted:
            try:
                with link("1gbit") as place, serving(models, place=place) as site:
                    results["link"] = _peers(site, ["us, verified", _BASE, _RUST], Path(memory), rounds)
                    _show(f"one file of {size / 1e6:.0f} MB over {place.what}", results["link"], size)
            except NoLink as error:
                print(f"note: the link of 1 Gbit/s is skipped: {error}")
        if "connections" in wanted:
            caps = (("", "no cap"), (f"limit_rate {_CAP};", f"each connection capped at {_CAP[:-1]} MiB/s"))
            for limit, title in caps:
                with serving(models, limit=limit) as site:
                    found = results[title] = _peers(site, [*_COUNTS, _BASE], Path(memory), rounds)
                    _show(f"one file of {size / 1e6:.0f} MB, {title}, to tmpfs", found, size)
                    _gain(found)
            _plot(arguments.plot, results, size)
        if "small" in wanted:
            shutil.rmtree(models)
            size = make_model(models, 200 * 0.01, shards=200)
            with serving(models, latency=0.03) as site:
                results["small"] = _peers(site, ["us, verified", _BASE], Path(memory), rounds)
                _show(
                    "200 files of 10 kB, 30 ms before each answer (by the hub, no TLS)",
                    results["small"],
                    size,
                )
    return results


def _memory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="bench-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


def _peers(site: Site, clients: list[str], folder: Path, rounds: int) -> dict[str, Rounds]:
    """Measure every client; those with an event loop twice, since the heartbeat would add to the other figures."""
    cases = {name: [name, site.endpoint, "plain"] for name in clients}
    cases |= {f"{name} (watched)": [name, site.endpoint, "watch"] for name in clients if name in ASYNC}
    found = measure("benchmarks.clients", cases, site, folder, rounds)
    for name in clients:
        watched = found.pop(f"{name} (watched)", None)
        if name in found and watched:
            for one, other in zip(found[name], watched, strict=True):
                one["stall"] = other["stall"]
    return found


def _show(title: str, results: dict[str, Rounds], size: int) -> None:
    rows = []
    for name, found in results.items():
        base, rust = results.get(_BASE), results.get(_RUST)
        loop = statistics.median(one["loop_cpu"] for one in found) / size * 1e9 if "loop_cpu" in found[0] else None
        rows.append(
            [
                name,
                spread([one["seconds"] for one in found], 2),
                spread([size / 1e6 / one["seconds"] for one in found], 0 if size > 1e7 else 2),
                spread([one["cpu"] / size * 1e9 for one in found], 2),
                f"{loop:.3f}" if loop is not None else "",
                spread([one["stall"] * 1e3 for one in found]) if "stall" in found[0] else "",
                _times(ratio(base, found, "seconds") if base else None),
                _times(ratio(found, base, "cpu")),
                _times(ratio(rust, found, "seconds") if rust else None),
            ]
        )
    count = max(map(len, results.values()), default=0)
    head = ["", "seconds", "MB/s", "CPU-s/GB", "loop CPU-s/GB", "stall ms"]
    head += ["speed/official", "CPU/official", "speed/hf_transfer"]
    table(f"{title}; medians (min-max) of {count} interleaved rounds", head, rows)


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def _gain(results: dict[str, Rounds]) -> None:
    eight, one = results.get("us, 8 connections"), results.get("us, 1 connections")
    if eight and one:
        print(f"8 connections against 1: {_times(ratio(one, eight, 'seconds'))}")


def _plot(path: Path | None, results: dict[str, dict[str, Rounds]], size: int) -> None:
    """Plot the throughput over the number of connections, one line per cap."""
    plt = pyplot() if path else None
    if plt is None:
        return
    with ExitStack() as stack:
        figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
        stack.callback(plt.close, figure)
        for title, found in results.items():
            lines = {int(name.split()[1]): rounds for name, rounds in found.items() if name in _COUNTS}
            if lines:
                speeds = [[size / 1e6 / one["seconds"] for one in rounds] for rounds in lines.values()]
                middle = [statistics.median(one) for one in speeds]
                low = [m - min(one) for m, one in zip(middle, speeds, strict=True)]
                high = [max(one) - m for m, one in zip(middle, speeds, strict=True)]
                axes.errorbar(list(lines), middle, [low, high], label=title, marker="o", capsize=3)
        axes.set(xlabel="connections", ylabel="MB/s, verified", xscale="log", xticks=[1, 2, 4, 8, 16], ylim=0)
        axes.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"], minor=False)
        axes.minorticks_off()
        axes.legend()
        figure.savefig(path)
    print(f"plot: {path}")

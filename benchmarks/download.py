"""How fast, and at what cost: from a TLS server on this machine into the cache, beside what others use."""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.clients import CLIENTS
from benchmarks.site import Site, make_model, serving

_BASE = "snapshot_download"


def main(arguments: argparse.Namespace) -> None:
    """Print a table for tmpfs and one for disk (TMPDIR), then one with each connection capped."""
    print(machine())
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory, tempfile.TemporaryDirectory() as disk:
        make_model(Path(memory, "models"), arguments.megabytes, shards=5)
        clients = [name for name in CLIENTS if name != "us, one connection"]
        with serving(Path(memory, "models")) as site:
            for where, target in (("tmpfs", memory), ("disk", disk)):
                results[where] = measure(site, clients, Path(target), arguments.rounds)
                show(f"{site.size / 1e6:.0f} MB in 5 shards, TLS 1.3, to {where}", results[where], site)
        shutil.rmtree(Path(memory, "models"))
        make_model(Path(memory, "models"), min(arguments.megabytes, 1000), shards=1)
        with serving(Path(memory, "models"), limit="limit_rate 60m;") as site:
            capped = ["us, verified", "us, one connection", _BASE]
            results["capped"] = measure(site, capped, Path(memory), arguments.rounds)
            show("one file, each connection capped at 60 MiB/s", results["capped"], site)
    if arguments.json:
        print(json.dumps(results))


def machine() -> str:
    """What it was measured on."""
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{cpu}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}, load {load}"


def measure(site: Site, clients: list[str], target: Path, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Every client in turn, `rounds` times; one that can't run here is left out."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in clients}
    environment = {
        **os.environ,
        "SSL_CERT_FILE": site.authority,
        "HF_HOME": str(target / "home"),
        **dict.fromkeys(("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_TELEMETRY"), "1"),
    }
    for _ in range(rounds):
        for name in list(found):
            into = target / "into"
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.clients", name, site.endpoint, str(into)],
                capture_output=True,
                text=True,
                env=environment,
                check=False,
            )
            shutil.rmtree(into, ignore_errors=True)
            if done.returncode:
                print(f"  {name} is left out: {done.stderr.strip().splitlines()[-1]}")
                del found[name]
            else:
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
    return found


def show(title: str, results: dict[str, list[dict[str, float]]], site: Site) -> None:
    """One line a client: medians, their spread, and ratios to the official client, round by round."""
    print(f"\n{title}; medians (min-max) of {len(results[_BASE])} interleaved rounds")
    print(f"{'':20}{'MB/s':>22}{'CPU-s/GB':>10}{'loop CPU-s/GB':>15}{'stall ms':>10}{'speed':>8}{'CPU':>7}")
    giga = site.size / 1e9
    for name, rounds in results.items():
        speeds = [site.size / 1e6 / one["seconds"] for one in rounds]
        pairs = list(zip(rounds, results[_BASE], strict=True))
        faster = statistics.median(theirs["seconds"] / ours["seconds"] for ours, theirs in pairs)
        cheaper = statistics.median(ours["cpu"] / theirs["cpu"] for ours, theirs in pairs)
        middle = f"{statistics.median(speeds):.0f} ({min(speeds):.0f}-{max(speeds):.0f})"
        cpu = statistics.median(one["cpu"] for one in rounds) / giga
        loop = f"{statistics.median(one['loop_cpu'] for one in rounds) / giga:.3f}" if "loop_cpu" in rounds[0] else ""
        stall = f"{statistics.median(one['stall'] for one in rounds) * 1e3:.0f}" if "stall" in rounds[0] else ""
        print(f"{name:20}{middle:>22}{cpu:>10.2f}{loop:>15}{stall:>10}{faster:>7.2f}x{cheaper:>6.2f}x")

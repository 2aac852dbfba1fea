"""Interleaved rounds of measurements in new processes, and tables of their medians and ranges."""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.site import Site

Rounds = list[dict[str, float]]


def machine() -> str:
    """Return a description of the machine and the versions, for the head of the output."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), platform.machine())
    versions = []
    for name in ("yaie-async", "torch", "transformers", "huggingface_hub", "httpx", "uvicorn", "hf_transfer"):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return (
        f"{cpu}, {os.cpu_count()} cores, Linux {platform.release()}, {load()}\n"
        f"Python {platform.python_version()}, {', '.join(versions)}"
    )


def load() -> str:
    """Return the load average: other work on the machine affects every figure."""
    return "load average " + " ".join(f"{value:.1f}" for value in os.getloadavg())


def environment(home: Path, site: Site | None = None) -> dict[str, str]:
    """Return the environment of a client, with the site's certificates and without the user's settings."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "TRANSFORMERS_")) and not name.lower().endswith("_proxy")
    }
    ours |= {"HF_HOME": str(home), "HF_ENDPOINT": site.endpoint if site else "http://127.0.0.1:9"}
    ours |= dict.fromkeys(("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_TELEMETRY"), "1")
    if site:
        ours["SSL_CERT_FILE"] = site.authority
    return ours


def measure(
    module: str, cases: Mapping[str, Sequence[str]], site: Site | None, folder: Path, rounds: int
) -> dict[str, Rounds]:
    """Run `python -m MODULE *ARGUMENTS DIRECTORY` for each case in turn, `rounds` times, with an empty DIRECTORY.

    A case that fails is skipped from then on, with a note.
    """
    found: dict[str, Rounds] = {name: [] for name in cases}
    for _ in range(rounds):
        for name in list(found):
            into = folder / "into"
            into.mkdir()
            done = subprocess.run(
                [sys.executable, "-m", module, *cases[name], str(into)],
                capture_output=True,
                text=True,
                env=environment(into / "home", site),
                check=False,
            )
            shutil.rmtree(into)
            if done.returncode:
                last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
                print(f"note: {name} is skipped: {last}")
                del found[name]
            else:
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
    return found


def pyplot() -> Any:
    """Return matplotlib's pyplot for drawing into files, or print a note and return None if it is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        print("note: the plot is skipped: matplotlib is not installed")
        return None
    mpl.use("agg")
    from matplotlib import pyplot as plt

    return plt


def draw(path: Path | None, title: str, unit: str, values: Mapping[str, Sequence[float]]) -> None:
    """Draw medians as bars, each with its range."""
    plt = pyplot() if path else None
    if plt is None:
        return
    figure, axes = plt.subplots(figsize=(7.5, 0.9 + 0.4 * len(values)), layout="constrained")
    for name, found in reversed([*values.items()]):
        middle = statistics.median(found)
        axes.barh(name, middle, color="C0" if name.startswith("us") else "C7")
        axes.plot([min(found), max(found)], [name, name], color="black", marker="|")
    axes.set(title=title, xlabel=unit, xscale="log" if max(map(max, values.values())) > 1000 else "linear")
    figure.savefig(path)
    plt.close(figure)
    print(f"plot: {path}")


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Return median and range, as "231 (190-260)"."""
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low}-{high})"


def ratio(ours: Rounds, theirs: Rounds | None, key: str) -> float | None:
    """Return the median of the ratios in each round, where both cases had the same noise."""
    if not theirs or key not in ours[0] or key not in theirs[0]:
        return None
    return statistics.median(a[key] / b[key] for a, b in zip(ours, theirs, strict=True))


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with the first column aligned left, the others right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    print(f"\n{title}; {load()}")
    for row in (head, *rows):
        cells = [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells]))
    sys.stdout.flush()

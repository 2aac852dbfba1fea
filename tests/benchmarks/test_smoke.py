"""Tests that the benchmarks run and print their figures, with the smallest sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.programs import require_program

_ROOT = Path(__file__).parents[2]


def finished(tmp_path: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a module to its end and check its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=_ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def run(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """Run a benchmark for one round; return the rounds of each case."""
    require_program("nginx", "nginx-light")
    require_program("openssl", "openssl")
    done = finished(tmp_path, "benchmarks", *arguments, "--rounds", "1", "--json")
    assert "load average" in done.stderr
    assert "note: us" not in done.stderr, done.stderr
    assert [path for path in tmp_path.iterdir() if path.name.startswith("bench-")] == []
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_download(tmp_path: Path) -> None:
    """`download` has seconds and CPU time, and for async clients the loop thread's CPU time and longest stall."""
    (ours,) = run(tmp_path, "download", "--size", "5", "--only", "tmpfs")["tmpfs"]["us, verified"]
    assert set(ours) == {"seconds", "cpu", "loop_cpu", "stall"}


def test_stall(tmp_path: Path) -> None:
    """`stall` has the longest stall of each phase."""
    (ours,) = run(tmp_path, "stall", "--size", "2", "--only", "us")["us"]
    assert {"seconds", "imports longest", "build longest", "all longest", "all p99"} <= set(ours)


def test_tokenizer(tmp_path: Path) -> None:
    """`tokenizer` has for each case its time and its longest hold of the GIL."""
    found = run(tmp_path, "tokenizer", "--tokens", "10000")
    assert all(set(ours) == {"took", "longest"} for (ours,) in found.values())
    assert len(found) == 3


def test_window(tmp_path: Path) -> None:
    """`window` counts one or two changes of the default dtype in a build, each restored."""
    (ours,) = run(tmp_path, "window", "--size", "2", "--only", "us")["us"]
    assert ours["times"] in (1, 2)
    assert 0 < ours["longest"] <= ours["total"]


def test_peers(tmp_path: Path) -> None:
    """`peers` prints what README claims of our client after SIGKILL, a flipped byte, two at once and Ctrl-C."""
    done = finished(tmp_path, "benchmarks.peers", "--size", "32", "--only", "us")
    parallel, again, flipped, two, interrupted = done.stdout.splitlines()[-1].split(" | ")[1:]
    assert int(parallel) == 8
    assert again.lstrip("-").isdigit()  # else the file was wrong; the amount means nothing for a file of 8 blocks
    assert (flipped, two) == ("an error", "1.0x")
    assert float(interrupted.split()[0]) < 2
    assert list(tmp_path.iterdir()) == []

"""Runs code in a new process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]


def in_a_new_process(code: str, *arguments: str) -> Any:
    """Run `code` and return the JSON that it prints. `sys.argv[1:]` are the arguments; warnings are errors."""
    done = started(code, *arguments)
    print(done.stderr, file=sys.stderr)
    done.check_returncode()
    return json.loads(done.stdout)


def started(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `code` to its end, whatever that is."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", "import json, sys, threading, gc, anyio\n" + code, *arguments],
        env=os.environ | {"PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )

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
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import json, sys, threading, gc, anyio\n" + code, *arguments],
        env=os.environ | {"PYTHONPATH": str(_ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=100,
    )
    return json.loads(done.stdout)

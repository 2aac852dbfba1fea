"""Runs the command line as a user does: in its own process, with its own environment and cache."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaie_async

_SOURCE = Path(yaie_async.__file__).parents[1]


@dataclass(frozen=True)
class Done:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The JSON object on stdout; anything else on stdout fails."""
        document = json.loads(self.out)
        assert isinstance(document, dict)
        return document


@dataclass
class Command:
    """Runs `yaie-async` in `home`, which also holds its HF cache.

    Attributes:
        endpoint: the value of HF_ENDPOINT.
        env: further environment variables.
        shadowed: a folder of modules that take precedence over all others.
    """

    home: Path
    endpoint: str = "http://127.0.0.1:9"
    env: dict[str, str] = field(default_factory=dict)
    shadowed: Path | None = None

    @property
    def cache(self) -> Path:
        return self.home / "hf" / "hub"

    @property
    def environment(self) -> Mapping[str, str]:
        path = [str(folder) for folder in (self.shadowed, _SOURCE) if folder]
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.home),
            "HF_HOME": str(self.home / "hf"),
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "*",
            "PYTHONPATH": os.pathsep.join(path),
            **self.env,
        }

    def run(self, *arguments: str) -> Done:
        """Run a command to its end."""
        with self.started(*arguments) as process:
            out, err = process.communicate(timeout=90)
            return Done(process.returncode, out, err)

    @contextlib.contextmanager
    def started(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Start a command, and kill it at the end of the block if it still runs."""
        with subprocess.Popen(
            [sys.executable, "-m", "yaie_async", *arguments],
            cwd=self.home,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def interrupted(self, *arguments: str, when: Callable[[subprocess.Popen[str]], object]) -> tuple[Done, float]:
        """Start a command, send SIGINT once `when` returns true, and return the result and the seconds until exit."""
        with self.started(*arguments) as process:
            while not when(process):
                assert process.poll() is None, process.communicate()
                time.sleep(0.01)
            start = time.perf_counter()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
            return Done(process.returncode, out, err), time.perf_counter() - start

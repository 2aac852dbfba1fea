"""Runs `yaie_async.demo.making` in a process of its own, and shows its steps."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from yaie_async.demo.display import step_bar

# What the process writes to stderr at the beginning of each step, and within a step as often as transformers updates a
# progress bar of its own: tqdm takes its defaults from the environment.
_STEP = re.compile(r"step: (.+)")
_COUNT = re.compile(r"(\d+) of (\d+)")
_TQDM_FORMAT = "{n} of {total}\n"


def make(arguments: Sequence[str], directory: Path, scratch: Path) -> None:
    """Write a checkpoint to `directory`, which is not there yet, in another process; torch is not imported in this one.

    Raises:
        LoaderError: the process failed; the error has the last line that it wrote.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "yaie_async.demo.making", *arguments, str(directory)]
    step = last = ""
    with (
        step_bar() as show,
        subprocess.Popen(  # noqa: S603 - this interpreter, this package
            command,
            env=os.environ
            | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(scratch / "hf-making"), "TQDM_BAR_FORMAT": _TQDM_FORMAT},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        ) as process,
    ):
        assert process.stderr is not None
        try:
            for line in map(str.strip, process.stderr):
                if begun := _STEP.fullmatch(line):
                    step = begun[1]
                    show(step, 0, None)
                elif count := _COUNT.fullmatch(line):
                    show(step, int(count[1]), int(count[2]))
                elif line:
                    last = line
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        from yaie_async.core.errors import LoaderError

        raise LoaderError(f"The demo's model could not be made: {last or f'exit status {process.returncode}'}")

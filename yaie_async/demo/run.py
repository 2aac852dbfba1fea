"""The demo itself: a model, a hub on this machine, a cold load from it, a line of text."""

import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from yaie_async.core.progress import Progress
from yaie_async.demo.checkpoint import Checkpoint, find_checkpoint
from yaie_async.demo.environment import own_environment, scratch_directory
from yaie_async.demo.generate import generate_line
from yaie_async.demo.heartbeat import heartbeat
from yaie_async.loader.model_loader import ModelLoader

PROMPT = "What is the capital of France?"


@dataclass(frozen=True, slots=True)
class Report:
    """What the demo saw.

    Attributes:
        checkpoint: the model that was loaded.
        model_class: name of its class.
        dtype: of its parameters.
        device: where they are.
        parameters: how many.
        files: fetched.
        bytes: fetched.
        cold: whether torch was imported during the load, and so is part of its time.
        seconds: from the first await to model and tokenizer, imports included.
        longest_stall: seconds that the event loop was away at most meanwhile.
        beats: how often it came round meanwhile.
        prompt: what the model was asked.
        text: what it said.
    """

    checkpoint: Checkpoint
    model_class: str
    dtype: str
    device: str
    parameters: int
    files: int
    bytes: int
    cold: bool
    seconds: float
    longest_stall: float
    beats: int
    prompt: str
    text: str


def run_demo(say: Callable[[str], None]) -> Report:
    """Run the demo and leave nothing behind but the converted SmolLM2. No network but this machine's own.

    Raises:
        ImportError: the extra `demo` is not installed.
        LoaderError: the model could not be made or loaded.
    """
    import yaie_async.localhub  # noqa: F401 - says what to install, before anything is made

    with scratch_directory() as scratch, own_environment(scratch):
        checkpoint = find_checkpoint(scratch, say)
        say(f"Model: {checkpoint.what}.")
        with _served(checkpoint) as endpoint:
            say(f"A hub on this machine serves it at {endpoint}; nothing of it is cached yet.")
            return anyio.run(partial(_load, checkpoint, endpoint, scratch / "cache"))


@contextmanager
def _served(checkpoint: Checkpoint) -> Iterator[str]:
    from yaie_async.localhub import LocalHub, running

    hub = LocalHub(checkpoint.root)
    # Another port is another origin: as on the Hub, large files are redirected to a CDN by a signed URL.
    with running(hub) as endpoint, running(hub) as hub.cdn:
        # The hub hashes its files when it is first asked for them: the Hub has done that long ago.
        url = f"{endpoint}/api/models/{checkpoint.repo_id}?blobs=true"
        urllib.request.urlopen(url).close()  # noqa: S310 - our own
        yield endpoint


async def _load(checkpoint: Checkpoint, endpoint: str, cache: Path) -> Report:
    from yaie_async.demo.display import live

    last: list[Progress] = []
    cold = "torch" not in sys.modules
    async with heartbeat() as pulse:
        with live(pulse) as show:

            def on_progress(event: Progress) -> None:
                last[:] = [event]
                show(event)

            loader = ModelLoader(
                checkpoint.repo_id, endpoint=endpoint, cache_dir=cache, token=False, on_progress=on_progress
            )
            start = time.perf_counter()
            model, tokenizer = await loader.load()
            seconds = time.perf_counter() - start
            pulse.beat()
            longest, beats = pulse.longest, pulse.beats
    text = await generate_line(model, tokenizer, PROMPT)
    return Report(
        checkpoint=checkpoint,
        files=last[0].files_done,
        bytes=last[0].bytes_done,
        cold=cold,
        seconds=seconds,
        longest_stall=longest,
        beats=beats,
        prompt=PROMPT,
        text=text,
        **describe_model(model),
    )


def describe_model(model: Any) -> dict[str, Any]:
    """Class, dtype, device(s) and number of parameters of a model."""
    return {
        "model_class": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": ", ".join(sorted({str(parameter.device) for parameter in model.parameters()})),
        "parameters": model.num_parameters(),
    }

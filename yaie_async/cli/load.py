"""`yaie-async load`: load a model, and print its class, the time taken and the longest stall of the event loop."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio

from yaie_async.cli.options import LoadOptions
from yaie_async.cli.result import CommandResult
from yaie_async.cli.tables import field_lines
from yaie_async.core.errors import LoaderError
from yaie_async.core.trace import recording
from yaie_async.demo.generate import generate_line
from yaie_async.demo.heartbeat import heartbeat
from yaie_async.demo.run import describe_model


def load(
    model: str, options: LoadOptions, *, dtype: str, device_map: str, prompt: str | None, trace: Path | None
) -> CommandResult:
    """Load the model, and generate a line of text if there is a prompt.

    Raises:
        LoaderError: the load failed, or the trace could not be written.
    """
    with _trace_to(trace):
        found: dict[str, Any] = anyio.run(_load, model, options, dtype, device_map, prompt)
    rows = [
        ("model", f"{model} at {found['commit']}" if found["commit"] else model),
        ("class", found["model_class"]),
        ("dtype", found["dtype"]),
        ("device", found["device"]),
        ("parameters", f"{found['parameters']:,}"),
        ("ready after", f"{found['seconds']:.2f} s"),
        ("longest loop stall", f"{found['longest_stall_ms']:.0f} ms"),
    ]
    if prompt is not None:
        rows += [("prompt", prompt), ("answer", found["text"])]
    return CommandResult(found, [*field_lines(rows)])


@contextmanager
def _trace_to(path: Path | None) -> Iterator[None]:
    """Write a trace of the block to `path`, even if the block fails or is interrupted."""
    if path is None:
        yield
        return
    try:
        with path.open("w", encoding="utf-8") as file, recording() as trace:  # opened first, to fail before a long load
            try:
                yield
            finally:
                json.dump(trace.document(), file)
    except OSError as error:
        if isinstance(error, LoaderError):
            raise
        raise LoaderError(
            f"The trace can't be written to {path}: {error.strerror or error}. Choose another file with --trace."
        ) from error


async def _load(model: str, options: LoadOptions, dtype: str, device_map: str, prompt: str | None) -> dict[str, Any]:
    async with heartbeat() as pulse:
        start = time.perf_counter()
        async with options.hub() as hub:
            loader = options.loader(model, hub, dtype=dtype, device_map=device_map)
            loaded, tokenizer = await loader.load()
        seconds = time.perf_counter() - start
        pulse.beat()
        longest = pulse.longest
    found = {
        "model": model,
        "commit": loader.commit,
        **describe_model(loaded),
        "seconds": round(seconds, 3),
        "longest_stall_ms": round(longest * 1000, 1),
    }
    if prompt is not None:
        found |= {"prompt": prompt, "text": await generate_line(loaded, tokenizer, prompt)}
    return found

"""Loads a model once for each name that may be missing, each in a child of this process, which imports once for all.

python -m tests.loader.without_names ENDPOINT MODELS DIRECTORY, with a JSON list of [name, model] on stdin. Each child
writes DIRECTORY/NUMBER.json: what it logged, and what went wrong.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import sys
import traceback
from contextlib import nullcontext
from functools import reduce
from pathlib import Path
from typing import Any

import anyio
import huggingface_hub.constants
import torch
from transformers import AutoTokenizer

from tests.loader import registered
from tests.model.test_model import assert_same_model, stock_model
from tests.support.hiding import hidden
from yaie_async import Hub, ModelLoader
from yaie_async.loader import streamed
from yaie_async.loader.hub import import_layers
from yaie_async.model import tokenizer as tokenizers

TEXT = "hello <s> world"


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def lacking(name: str | None) -> Any:
    if name is None:
        return nullcontext()
    module, _, path = name.partition(":")
    *owners, last = path.split(".")
    return hidden(reduce(getattr, owners, importlib.import_module(module)), last)


async def load(model: str, stock: Any, stock_tokenizer: Any) -> None:
    """Load cold, then warm, and compare both with stock; then fetch by patterns."""
    async with Hub() as hub:
        for _ in range(2):
            own, tokenizer = await ModelLoader(model, hub=hub, dtype="float16", trust_remote_code=True).load()
            assert_same_model(own, stock)
            assert type(tokenizer) is type(stock_tokenizer)
            assert tokenizer(TEXT)["input_ids"] == stock_tokenizer(TEXT)["input_ids"]
            assert tokenizer.name_or_path == model
        snapshot = (await hub.prefetch(model, include=["*.json", "nothing/"], exclude="tok*"))[model]
    assert (snapshot / "config.json").exists()


def build_stock(directory: Path, model: str) -> tuple[Any, Any]:
    stock = stock_model(str(directory), "float16")
    stock.name_or_path = stock.config.name_or_path = model
    return stock, AutoTokenizer.from_pretrained(directory, local_files_only=True)


def child(endpoint: str, name: str | None, model: str, stock: tuple[Any, Any], cache: Path) -> dict[str, Any]:
    lines, failed = Lines(), None
    logging.getLogger("yaie_async").addHandler(lines)
    logging.getLogger("yaie_async").setLevel(logging.INFO)
    os.environ |= {"HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(cache)}
    huggingface_hub.constants.ENDPOINT = endpoint
    huggingface_hub.constants.HF_HUB_CACHE = str(cache)
    # A build begins as soon as the small files are there, however soon the others are.
    streamed.is_due = lambda *_: True
    streamed.StreamedBuild.all_are_there = lambda self: None  # type: ignore[method-assign]
    tokenizers._LARGE = 0
    try:
        with lacking(name):
            anyio.run(load, model, *stock)
    except BaseException:
        failed = traceback.format_exc()
    return {"lines": lines.lines, "failed": failed}


def main() -> None:
    endpoint, root, directory = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    import_layers()
    registered.register()
    torch.set_num_threads(1)
    cases = json.load(sys.stdin)
    stock = {model: build_stock(root / model, model) for model in {model for _, model in cases}}
    gc.freeze()  # what children share with this process is not written to
    gc.disable()
    children = []
    for number, (name, model) in enumerate(cases):
        pid = os.fork()
        if not pid:
            result = child(endpoint, name, model, stock[model], directory / f"cache-{number}")
            (directory / f"{number}.json").write_text(json.dumps(result))
            os._exit(0)
        children.append(pid)
        if len(children) == 2:
            os.waitpid(children.pop(0), 0)
    for pid in children:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()

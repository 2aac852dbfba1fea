"""Buffers that no checkpoint holds, of models whose code is in their repository."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support import models
from tests.support.requests import request_of
from yaie_async.core.errors import IncompatibleModelError
from yaie_async.model import buffers
from yaie_async.model.model import build_model

_ROTARY = """
class Rotary(nn.Module):
    def __init__(self, width):
        super().__init__()
        inv_freq = 1.0 / (10000 ** (torch.arange(0, width, 2).float() / width))
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("mask", torch.tril(torch.ones(8, 8, dtype=torch.bool)), persistent=False)
        self.register_buffer("scale", torch.ones(4) / 3, persistent=False)
        self.weight = nn.Parameter(torch.full((3,), 7.0))
"""
_LATE = """
class Rotary(nn.Module):
    def __init__(self, width):
        super().__init__()
        for name, shape, dtype in (("inv_freq", width // 2, None), ("mask", (8, 8), torch.bool), ("scale", 4, None)):
            self.register_buffer(name, torch.empty(shape, dtype=dtype), persistent=False)
        self.weight = nn.Parameter(torch.full((3,), 7.0))
"""
_INIT_WEIGHTS = """
    def _init_weights(self, module):
        if isinstance(module, Rotary):
            module.inv_freq.copy_(1.0 / (10000 ** (torch.arange(0, 16, 2).float() / 16)))
            module.mask.copy_(torch.tril(torch.ones(8, 8, dtype=torch.bool)))
            module.scale.copy_(torch.ones(4) / 3)
"""


def _model(directory: Path, rotary: str, more: str = "", first: str = "") -> Path:
    """The tiny model with remote code, and a module with buffers in a layer of it."""
    from safetensors.torch import load_file, save_file

    models.remote_code(directory)
    path = directory / "modeling_tiny.py"
    code = path.read_text().replace("from torch import nn\n", "import torch\nfrom torch import nn\n")
    code = code.replace("class TinyForCausalLM", f"{rotary}\n\nclass TinyForCausalLM")
    code = code.replace(
        "        self.embed =", f"{first}        self.layers = nn.ModuleList([Rotary(16)])\n        self.embed ="
    )
    path.write_text(code + more)
    state = load_file(directory / "model.safetensors")
    state["layers.0.weight"] = torch.tensor([1.0, 2.0, 3.0])
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.fixture(autouse=True)
def _dirty_memory() -> Iterator[None]:
    """Memory that nobody has written to holds NaN: torch fills it where its algorithms are to be deterministic."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("rotary", "more"), [(_ROTARY, ""), (_LATE, _INIT_WEIGHTS)], ids=["constructor", "late"])
def test_they_are_computed(tmp_path: Path, rotary: str, more: str, dtype: str) -> None:
    """They are what a new model has, whether its constructor or its `_init_weights` computes them."""
    directory = _model(tmp_path / "model", rotary, more)
    built: Any = build_model(request_of(directory, dtype=dtype, trust_remote_code=True))
    (layer,) = built.layers
    inv_freq = 1.0 / (10000 ** (torch.arange(0, 16, 2).float() / 16))
    assert torch.equal(layer.inv_freq, inv_freq.to(layer.inv_freq.dtype))
    assert torch.equal(layer.mask, torch.tril(torch.ones(8, 8, dtype=torch.bool)))
    assert torch.equal(layer.scale, (torch.ones(4) / 3).to(getattr(torch, dtype)))
    assert layer.weight.tolist() == [1, 2, 3]
    assert not any(tensor.is_meta for tensor in [*built.parameters(), *built.buffers()])


def test_one_that_the_class_lets_be_missing(tmp_path: Path) -> None:
    """A persistent one that is in no file is computed too, and one that is in a file is that of the file."""
    from safetensors.torch import load_file, save_file

    kept = _ROTARY.replace("persistent=False", "persistent=True")
    ignored = "    _keys_to_ignore_on_load_missing = [r'inv_freq', r'mask', r'scale']\n"
    directory = _model(tmp_path / "model", kept, ignored)
    state = load_file(directory / "model.safetensors")
    save_file(state | {"layers.0.scale": torch.full((4,), 5.0)}, directory / "model.safetensors", {"format": "pt"})
    built: Any = build_model(request_of(directory, dtype="float32", trust_remote_code=True))
    (layer,) = built.layers
    assert torch.equal(layer.inv_freq, 1.0 / (10000 ** (torch.arange(0, 16, 2).float() / 16)))
    assert torch.equal(layer.mask, torch.tril(torch.ones(8, 8, dtype=torch.bool)))
    assert layer.scale.tolist() == [5] * 4


def test_a_constructor_that_changes_its_config(tmp_path: Path) -> None:
    """The second model begins with the config of the first, as it was."""
    first = "        config.theta = getattr(config, 'theta', 10.0) * 8\n"
    code = _ROTARY.replace("10000 **", "THETA[0] **").replace("class Rotary", "THETA = []\nclass Rotary")
    directory = _model(tmp_path / "model", code, first=first + "        THETA[:] = [config.theta]\n")
    built: Any = build_model(request_of(directory, dtype="float32", trust_remote_code=True))
    assert torch.equal(built.layers[0].inv_freq, 1.0 / (80.0 ** (torch.arange(0, 16, 2).float() / 16)))


def test_what_can_not_be_computed_is_refused_by_its_name(tmp_path: Path) -> None:
    """Code that does not run a second time gives no model with random parts."""
    code = _ROTARY.replace("class Rotary", "RUNS = []\nclass Rotary")
    once = "        RUNS.append(1)\n        assert len(RUNS) == 1\n"
    directory = _model(tmp_path / "model", code, first=once)
    with pytest.raises(IncompatibleModelError, match=r"layers\.0\.inv_freq, .*which no file holds"):
        build_model(request_of(directory, trust_remote_code=True))


def test_other_threads_are_left_alone() -> None:
    """A module that another thread makes meanwhile has its data."""
    made = []
    with buffers._parameters_without_data():
        thread = threading.Thread(target=lambda: made.append(nn.Linear(2, 2)))
        thread.start()
        thread.join()
        made.append(nn.Linear(2, 2))
    made.append(nn.Linear(2, 2))
    assert [linear.weight.is_meta for linear in made] == [False, True, False]

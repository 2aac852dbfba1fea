"""The estimate of a model's memory, from sizes and names alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.requests import request_of
from yaie_async.model.estimate import estimate_memory
from yaie_async.model.model import build_model


@pytest.mark.parametrize(
    ("total", "dtype", "stored", "expected"),
    [
        (1000, "float16", "float32", 500),
        (1000, "float16", "torch.float32", 500),
        (1000, torch.float32, "bfloat16", 2000),
        (1000, "auto", "float32", 1000),
        (1000, "float16", None, 1000),
        (1000, "float16", "int4", 1000),
        (1000, "float16", {"F32": 200, "I64": 3}, 424),
        (1000, "float32", {"BF16": 200, "F8_E4M3": 100}, 900),
        (1000, "auto", {"BF16": 200, "F32": 100}, 800),
        (1000, "float16", {"F77": 200}, 1000),
        (1000, "float16", {}, 0),
    ],
)
def test_estimate(total: int, dtype: Any, stored: Any, expected: int) -> None:
    """Floats are counted in the dtype asked for, everything else as it is stored."""
    assert estimate_memory(total, dtype, stored) == expected


def test_estimate_of_a_real_model(checkpoint: Callable[[str], Path]) -> None:
    """The estimate is within the file's header of what the built model takes."""
    directory = checkpoint("llama-fp32")
    size = (directory / "model.safetensors").stat().st_size
    model = build_model(request_of(str(directory)))
    built = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert built <= estimate_memory(size, "float16", "float32") <= built + 2000


def test_release_imports_nothing() -> None:
    """Memory is released without importing torch, and with it."""
    code = (
        "import sys\n"
        "from yaie_async.model.estimate import estimate_memory\n"
        "from yaie_async.model.memory import release_memory\n"
        "from yaie_async.model.arguments import check_model_kwargs\n"
        "check_model_kwargs({'attn_implementation': 'sdpa'})\n"
        "release_memory()\n"
        "assert not {'torch', 'transformers', 'huggingface_hub'} & sys.modules.keys()\n"
        "import torch\n"
        "release_memory()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

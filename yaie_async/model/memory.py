"""How much memory a model needs, told from sizes and names alone; and giving memory back."""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping
from typing import Any

# The names of safetensors headers and of configs. Bytes per element.
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "float64": 8, "double": 8, "float32": 4, "float": 4,
           "float16": 2, "half": 2, "bfloat16": 2}  # fmt: skip
# Whole numbers and 8-bit floats are quantised weights, ids or masks: a build does not cast them.
_KEPT = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1,
         "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F4": 0.5}  # fmt: skip


def estimate_memory(total_bytes: int, dtype: Any, stored: str | Mapping[str, int] | None) -> int:
    """Estimate the bytes of a model's parameters once it is built.

    Args:
        total_bytes: size of its weight files.
        dtype: what was asked for: a dtype name, a `torch.dtype`, or "auto".
        stored: how the weights are stored: the dtype that the config names, or elements per safetensors
            dtype (`{"F16": 7_000_000}`, as the Hub's model info has it), or None where unknown.
    """
    asked = _FLOATS.get(str(dtype).removeprefix("torch."))
    if isinstance(stored, Mapping):
        known = {**_FLOATS, **_KEPT}
        if all(name in known for name in stored):
            size = sum(n * (asked if asked and name in _FLOATS else known[name]) for name, n in stored.items())
            return int(size)
        stored = None
    has = _FLOATS.get(str(stored).removeprefix("torch.")) if stored is not None else None
    return total_bytes if asked is None or has is None else total_bytes * asked // has


def available_memory(device: str) -> int | None:
    """Bytes that are free on a device now, or None where it can't be told."""
    if device == "cpu":
        import psutil  # type: ignore[import-untyped]

        return int(psutil.virtual_memory().available)
    torch = sys.modules.get("torch")
    if torch is None or not device.startswith("cuda") or not torch.cuda.is_available():
        return None
    return int(torch.cuda.mem_get_info(device)[0])


def release_memory() -> None:
    """Give back what an unloaded model held: reference cycles, then the accelerators' caches.

    Never imports torch: where nobody has, there is nothing to free.
    """
    gc.collect()  # accelerate's hooks and the modules that they wrap refer to each other
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()

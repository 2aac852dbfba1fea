"""What a build casts, and how long it takes, told from sizes and names alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yaie_async.model.preflight import resolve_dtype

# The floats of safetensors headers, with the bytes of an element. Nothing else is cast.
_FLOATS = {"F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2)}

# Seconds, 0.5 of them for the first import of a model's own module; and bytes of a checkpoint per second. Measured
# on two shared cores, 0.6-1.2 GB: 1.3-1.9 GB/s from bfloat16, 2.5-5.9 from float32.
_FIXED, _CAST = 0.6, 1.5e9


def cast_bytes(size: int, dtype: Any, stored: str | Mapping[str, int] | None) -> int:
    """Bytes of a checkpoint that a build casts; the others are mapped as they are.

    Args:
        size: bytes of its weight files.
        dtype: what was asked for: a dtype name, a `torch.dtype`, or "auto".
        stored: how the weights are stored: the dtype that the config names, or elements per safetensors dtype, or
            None where unknown (then all of it counts as cast: a build that starts early gives way to others).
    """
    asked = resolve_dtype(dtype)
    if asked == "auto":
        return 0
    if isinstance(stored, Mapping):
        floats = [(count, *_FLOATS[name]) for name, count in stored.items() if name in _FLOATS]
        return sum(count * item for count, name, item in floats if name != asked)
    return 0 if stored is not None and str(stored).removeprefix("torch.") == asked else size


def estimate_seconds(cast: int) -> float:
    """Estimate how long a build that casts so many bytes takes once they are there and the libraries are imported."""
    return _FIXED + cast / _CAST

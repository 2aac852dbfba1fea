"""What a build casts, how long it takes and how much memory the model needs, estimated from sizes and names alone."""

from collections.abc import Mapping
from typing import Any

from yaie_async.model.dtypes import BY_CODE, float_dtype, resolve_dtype

# Seconds, 0.5 of them for the first import of a model's own module; and bytes of a checkpoint per second. Measured
# on two shared cores, 0.6-1.2 GB: 1.3-1.9 GB/s from bfloat16, 2.5-5.9 from float32.
_FIXED, _CAST = 0.6, 1.5e9


def estimate_memory(total_bytes: int, dtype: Any, stored: str | Mapping[str, int] | None) -> int:
    """Estimate the bytes of a model's parameters once it is built, by those of its weight files.

    `dtype` is what was asked for, as `BuildRequest` has it, and `stored` is `Manifest.stored`.
    """
    asked = float_dtype(dtype)
    if isinstance(stored, Mapping):
        known = [(count, BY_CODE.get(code)) for code, count in stored.items()]
        bits = [count * (asked if asked and has.is_cast else has).bits for count, has in known if has is not None]
        return sum(bits) // 8 if len(bits) == len(known) else total_bytes
    has = float_dtype(stored)
    return total_bytes if asked is None or has is None else total_bytes * asked.bits // has.bits


def cast_bytes(size: int, dtype: Any, stored: str | Mapping[str, int] | None) -> int:
    """Bytes of a checkpoint of `size` bytes that a build casts; the others are mapped as they are.

    Where `stored` is None all of it counts as cast: a build that starts early gives way to others.
    """
    asked = resolve_dtype(dtype)
    if asked == "auto":
        return 0
    if isinstance(stored, Mapping):
        known = [(count, BY_CODE[code]) for code, count in stored.items() if code in BY_CODE]
        return sum(count * has.bits // 8 for count, has in known if has.is_cast and has.name != asked)
    return 0 if stored is not None and str(stored).removeprefix("torch.") == asked else size


def estimate_seconds(cast: int) -> float:
    """Estimate how long a build that casts so many bytes takes once they are there and the libraries are imported."""
    return _FIXED + cast / _CAST

"""The dtypes of checkpoints and of arguments: one table. Imports nothing heavy."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Dtype:
    """One dtype of safetensors files."""

    code: str  # as a safetensors header writes it ("F16")
    name: str | None  # torch's name ("float16"); None where a tensor of it is not read while its file arrives
    bits: int  # of one element
    # A build casts it to the dtype that was asked for. Whole numbers and 8-bit floats stay as they are: they are
    # quantised weights, ids or masks.
    is_cast: bool = False


_TABLE = (
    Dtype("F64", "float64", 64, is_cast=True),
    Dtype("F32", "float32", 32, is_cast=True),
    Dtype("F16", "float16", 16, is_cast=True),
    Dtype("BF16", "bfloat16", 16, is_cast=True),
    Dtype("I64", "int64", 64),
    Dtype("U64", "uint64", 64),
    Dtype("I32", "int32", 32),
    Dtype("U32", "uint32", 32),
    Dtype("I16", "int16", 16),
    Dtype("U16", "uint16", 16),
    Dtype("I8", "int8", 8),
    Dtype("U8", "uint8", 8),
    Dtype("BOOL", "bool", 8),
    Dtype("F8_E4M3", "float8_e4m3fn", 8),
    Dtype("F8_E5M2", "float8_e5m2", 8),
    Dtype("F8_E4M3FNUZ", None, 8),
    Dtype("F8_E5M2FNUZ", None, 8),
    Dtype("F8_E8M0", None, 8),
    Dtype("F6_E2M3", None, 6),
    Dtype("F6_E3M2", None, 6),
    Dtype("F4", None, 4),
    Dtype("C64", None, 64),
)
BY_CODE = {dtype.code: dtype for dtype in _TABLE}
# What torch accepts as its default dtype, which transformers sets while it builds. float8 is not among it.
_BY_NAME = {dtype.name: dtype for dtype in _TABLE if dtype.is_cast}
_BY_NAME |= {"half": _BY_NAME["float16"], "float": _BY_NAME["float32"], "double": _BY_NAME["float64"]}


def float_dtype(name: object) -> Dtype | None:
    """The floating-point dtype of a config's name ("float16", "torch.half") or a `torch.dtype`; None for others."""
    return _BY_NAME.get(str(name).removeprefix("torch."))


def resolve_dtype(dtype: Any) -> str:
    """The canonical name of a dtype argument, or "auto". Takes a name or a `torch.dtype`; imports neither.

    Raises:
        InvalidArgumentError: it is unknown, or nothing that weights can be cast to.
    """
    if dtype == "auto":
        return "auto"
    is_torch_dtype = type(dtype).__module__ == "torch" and type(dtype).__name__ == "dtype"
    name = str(dtype).removeprefix("torch.") if is_torch_dtype else dtype
    found = _BY_NAME.get(name) if isinstance(name, str) else None
    if found is not None and found.name is not None:
        return found.name
    from yaie_async.core.errors import InvalidArgumentError

    names = ", ".join(sorted({"auto", *(str(known.name) for known in _BY_NAME.values())}))
    raise InvalidArgumentError(
        f"dtype={dtype!r} is not a floating-point dtype that a model can be loaded in. Use one of {names}."
    )

"""What a ready model is made of: dtype, device and memory, as people want to read it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of one model; None where unknown.

    Attributes:
        dtype: the dtype of most of its bytes, such as "float16".
        device: its device, or several with commas between.
        memory_bytes: the bytes of its parameters and buffers; those that accelerate offloads are not counted.
    """

    dtype: str | None = None
    device: str | None = None
    memory_bytes: int | None = None


def facts_of(model: PreTrainedModel) -> Facts:
    """Look through all parameters and buffers. Off the loop: a large model has tens of thousands."""
    sizes: Counter[tuple[str, str]] = Counter()
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type != "meta":
            sizes[str(tensor.dtype).removeprefix("torch."), str(tensor.device)] += tensor.nbytes
    if not sizes:
        return Facts()
    dtypes: Counter[str] = Counter()
    for (dtype, _), size in sizes.items():
        dtypes[dtype] += size
    return Facts(dtypes.most_common(1)[0][0], ", ".join(sorted({device for _, device in sizes})), sizes.total())

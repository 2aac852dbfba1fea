"""How much memory is free, and giving back what a model held."""

import gc
import sys


def available_memory(device: str) -> int | None:
    """Bytes that are free on a device now, or None where unknown."""
    if device == "cpu":
        import psutil

        return int(psutil.virtual_memory().available)
    torch = sys.modules.get("torch")
    if torch is None or not device.startswith("cuda") or not torch.cuda.is_available():
        return None
    return int(torch.cuda.mem_get_info(device)[0])


def release_memory() -> None:
    """Free what an unloaded model held: reference cycles, then the caches of accelerators.

    Never imports torch: a process that has not imported it has nothing to free.
    """
    gc.collect()  # accelerate's hooks and the modules that they wrap refer to each other
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()

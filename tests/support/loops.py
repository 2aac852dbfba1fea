"""The event loops that tests run on."""

from __future__ import annotations

import pytest

LOOPS = [
    pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
    pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    pytest.param(("trio", {}), id="trio"),
]

# For a table of answers and what they mean: that does not depend on the loop.
on_one_loop = pytest.mark.parametrize("anyio_backend", LOOPS[:1])

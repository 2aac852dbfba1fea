"""A stand-in for the interpreter, where a test is not about what `making.py` writes."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let a shell script run in place of `making.py`: it writes half a checkpoint and exits with a status."""

    def use(status: int) -> None:
        script = tmp_path / "interpreter"
        script.write_text(
            '#!/bin/sh\nfor last; do :; done\nmkdir -p "$last"\necho {} >"$last/config.json"\n'
            f'echo "step: Something" >&2\n[ {status} = 0 ] || printf "ValueError: no such thing\\n\\n" >&2\nexit {status}\n'
        )
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))

    return use

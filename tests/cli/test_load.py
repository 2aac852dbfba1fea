"""`load`: what it tells of the model, and how its failures look."""

from pathlib import Path

import pytest

from tests.support import models
from tests.support.command import Command
from tests.support.faults import Stall
from tests.support.hub import HubServer


@pytest.fixture
def hub_root(tmp_path: Path) -> Path:
    models.llama(tmp_path / "models" / "org" / "llama", dtype="float32")
    return tmp_path / "models"


def test_load_tells_what_was_loaded(command: Command) -> None:
    """Class, dtype, device, parameters, commit, seconds, the longest stall, and a line of text."""
    done = command.run("load", "org/llama", "--prompt", "hello", "--json")
    assert done.code == 0, done.err
    told = done.json
    assert (told["ok"], told["model_class"], told["dtype"]) == (True, "LlamaForCausalLM", "float16")
    assert told["device"]
    assert told["parameters"] > 1000
    assert len(told["commit"]) == 40
    assert told["seconds"] > 0
    assert told["longest_stall_ms"] >= 0
    assert isinstance(told["text"], str)
    assert "org/llama: ready" in done.err


def test_a_directory_in_words(command: Command, hub: HubServer) -> None:
    done = command.run("load", str(hub.root / "org" / "llama"), "--dtype", "auto")
    assert done.code == 0, done.err
    assert "float32" in done.out
    assert "longest loop stall" in done.out
    assert hub.requests == []


def test_ctrl_c_during_the_imports(command: Command, hub: HubServer) -> None:
    """The body stalls while torch is imported in a thread: it ends all the same, and at once."""
    hub.faults.add(Stall(after=0), path=r"^/cdn/.*model\.safetensors")
    done, seconds = command.interrupted(
        "load", "org/llama", when=lambda _: any(request.fault for request in hub.requests)
    )
    assert done.code == 130
    assert seconds < 2
    assert "kept; run the same command again" in done.err
    assert "Traceback" not in done.err


def test_a_dtype_that_there_is_not(command: Command) -> None:
    done = command.run("load", "org/llama", "--dtype", "float17")
    assert done.code == 1
    assert "float17" in done.err
    assert "Traceback" not in done.err

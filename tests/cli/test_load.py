"""Tests of `yaie-async load`: its result, its errors and its trace."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

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
    """The result has class, dtype, device, parameters, commit, seconds, the longest stall, and a line of text."""
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
    """A directory is loaded without a request, and the result is printed as text."""
    done = command.run("load", str(hub.root / "org" / "llama"), "--dtype", "auto")
    assert done.code == 0, done.err
    assert "float32" in done.out
    assert "longest loop stall" in done.out
    assert hub.requests == []


def test_ctrl_c_during_the_imports(command: Command, hub: HubServer) -> None:
    """Ctrl-C exits at once, while a body stalls and torch is being imported in a thread."""
    hub.faults.add(Stall(after=0), path=r"^/cdn/.*model\.safetensors")
    done, seconds = command.interrupted(
        "load", "org/llama", when=lambda _: any(request.fault for request in hub.requests)
    )
    assert done.code == 130
    assert seconds < 2
    assert "kept; run the same command again" in done.err
    assert "Traceback" not in done.err


def test_a_dtype_that_there_is_not(command: Command) -> None:
    """An unknown dtype is an error that names it, without a traceback."""
    done = command.run("load", "org/llama", "--dtype", "float17")
    assert done.code == 1
    assert "float17" in done.err
    assert "Traceback" not in done.err


def tracks(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the spans of a trace by the name of their track, and check the rules of Perfetto's importer.

    Perfetto reports an error for spans of one track that overlap without one containing the other.
    """
    document = json.loads(path.read_text())
    named = {}
    spans = defaultdict(list)
    open_until: defaultdict[int, list[float]] = defaultdict(list)
    begun = 0.0
    for event in document["traceEvents"]:
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int) and isinstance(event["args"], dict)
        if event["ph"] == "M":
            if event["name"] == "thread_name":
                assert event["tid"] not in named
                named[event["tid"]] = event["args"]["name"]
            continue
        assert event["ph"] == "X" and event["name"] and begun <= event["ts"] and event["dur"] >= 0
        begun, end, around = event["ts"], event["ts"] + event["dur"], open_until[event["tid"]]
        while around and around[-1] <= begun:
            around.pop()
        assert not around or end <= around[-1], event
        around.append(end)
        spans[named[event["tid"]]].append(event)
    assert len(set(named.values())) == len(named) == len(spans)
    return spans


def test_a_trace_shows_where_the_time_went(command: Command, hub: HubServer, tmp_path: Path) -> None:
    """Each body is on its connection's track, and verification, imports and build have tracks; no spans overlap."""
    trace = tmp_path / "trace.json"
    done = command.run("load", "org/llama", "--trace", str(trace), "--max-connections", "3", "--json")
    assert done.code == 0, done.err
    spans = tracks(trace)
    bodies = [span for track, of in spans.items() if "connection" in track for span in of if span["name"] == "body"]
    fetched = {span["args"]["file"]: span["args"]["stop"] - span["args"]["start"] for span in bodies}
    assert fetched == {path.name: path.stat().st_size for path in (hub.root / "org/llama").iterdir()}
    for track, of in spans.items():
        if "connection" in track:
            assert [span["name"] for span in of][0::2] == ["request"] * ((len(of) + 1) // 2)
    assert "verify model.safetensors" in spans
    assert {"imports", "import torch", "import transformers"} <= {span["name"] for span in spans["imports"]}
    assert [span["args"]["model"] for span in spans["build"]] == ["org/llama"]
    assert "build tokenizer" in {span["name"] for span in spans["tokenizer"]}
    (torch, *_) = [span for span in spans["imports"] if span["name"] == "import torch"]
    assert 0.1e6 < torch["dur"] < done.json["seconds"] * 1e6  # microseconds


def test_a_trace_that_can_t_be_written_and_one_of_a_failure(command: Command, tmp_path: Path) -> None:
    """An unwritable trace is an error before any download; the trace of a failed load is written."""
    done = command.run("load", "org/llama", "--trace", str(tmp_path / "none" / "trace.json"))
    assert done.code == 1
    assert "trace can't be written" in done.err
    assert not command.cache.exists()
    assert command.run("load", "org/none", "--trace", str(tmp_path / "trace.json")).code == 1
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"] == []

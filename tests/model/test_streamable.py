"""What decides about a streaming build: the config, the file system, the estimate, the turn."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from yaie_async.core.manifest import Listing, Manifest, Need, RepoFile
from yaie_async.model import filesystem
from yaie_async.model.estimate import cast_bytes, estimate_seconds
from yaie_async.model.filesystem import file_system, is_local
from yaie_async.model.lock import BuildLock
from yaie_async.model.request import BuildRequest
from yaie_async.model.streaming import why_not_streamable

MOUNTS = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 27 0:40 / /mnt/with\\040space rw - nfs4 server:/ rw
31 27 0:41 / /mnt rw - xfs /dev/vdb rw
32 27 0:42 / /data rw - xfs /dev/vdc rw
33 27 0:43 / /data rw - fuse.sshfs host: rw
"""


@pytest.mark.parametrize(
    ("changes", "options", "weights", "reason"),
    [
        ({}, {}, ["model.safetensors"], None),
        ({}, {"model_kwargs": {"attn_implementation": "eager", "rope_theta": 1.0}}, ["a.safetensors"], None),
        ({}, {"device_map": {"": "cpu"}}, ["a.safetensors", "b.safetensors"], None),
        ({}, {"dtype": "auto"}, ["a.safetensors"], None),
        ({"quantization_config": None}, {}, ["a.safetensors"], None),
        ({}, {}, ["pytorch_model.bin"], "no safetensors"),
        ({}, {}, ["model.safetensors", "more.bin"], "no safetensors"),
        ({"quantization_config": {"quant_method": "gptq"}}, {}, ["a.safetensors"], "quantised"),
        ({"text_config": {"quantization_config": {"bits": 4}}}, {}, ["a.safetensors"], "quantised"),
        ({"dtype": None}, {"dtype": "auto"}, ["a.safetensors"], "look into the weights"),
        ({"auto_map": {"AutoModelForCausalLM": "org/code--x.X"}}, {}, ["a.safetensors"], "in another repository"),
        ({"auto_map": {"AutoModelForCausalLM": "x.X"}}, {}, ["a.safetensors"], None),
        ({}, {"device_map": {"model": "cpu", "lm_head": "disk"}}, ["a.safetensors"], "stays on the disk"),
        ({}, {"device_map": "meta"}, ["a.safetensors"], "stays on the disk"),
        ({}, {"model_kwargs": {"tp_plan": "auto"}}, ["a.safetensors"], "tp_plan= is for stock"),
        ({}, {"model_kwargs": {"quantization_config": {}}}, ["a.safetensors"], "quantization_config="),
        ({}, {"model_kwargs": {"offload_folder": "x"}}, ["a.safetensors"], "offload_folder="),
        ({}, {"model_kwargs": {"generation_config": None}}, ["a.safetensors"], "generation_config="),
    ],
)
def test_why_not(changes: dict[str, Any], options: dict[str, Any], weights: list[str], reason: str | None) -> None:
    """What depends on more than config.json and the tensors is built from the finished snapshot."""
    config = {"model_type": "llama", "dtype": "float16", "rope_theta": 10000.0, **changes}
    files = tuple(RepoFile(path) for path in weights)
    manifest = Manifest("a/b", Path("a/b"), Listing(None, {}), Need(weights=True), weights=files, config=config)
    found = why_not_streamable(BuildRequest(manifest, **options))
    assert found == reason if reason is None else reason in str(found)


def test_an_adapter_is_for_the_stock_build() -> None:
    """What peft adds to a model is left to transformers."""
    listing = Listing(None, {"adapter_config.json": RepoFile("adapter_config.json")})
    manifest = Manifest("a/b", Path("a/b"), listing, Need(weights=True), config={"model_type": "llama"})
    assert why_not_streamable(BuildRequest(manifest)) == "it has an adapter"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/home/user/.cache", "ext4"),
        ("/", "ext4"),
        ("/mnt/with space/hub", "nfs4"),
        ("/mnt/with", "xfs"),
        ("/mntx", "ext4"),
        ("/data/hub", "fuse.sshfs"),
    ],
)
def test_file_system(path: str, expected: str) -> None:
    """The longest mount point that the path is in counts, and of two at one place the later one."""
    assert file_system(path, MOUNTS) == expected


def test_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is known to be local is; nothing is known without /proc."""
    mounts = tmp_path / "mountinfo"
    monkeypatch.setattr(filesystem, "_MOUNTS", mounts)
    assert not is_local(tmp_path)
    mounts.write_text(MOUNTS)
    assert is_local(Path("/nowhere"))
    mounts.write_text(MOUNTS.replace("ext4", "virtiofs"))
    assert not is_local(Path("/nowhere"))


@pytest.mark.parametrize(
    ("dtype", "stored", "cast"),
    [
        ("float16", "float16", 0),
        ("half", "float16", 0),
        (torch.float16, "torch.float16", 0),
        ("float16", "bfloat16", 3e9),
        ("float16", None, 3e9),
        ("auto", None, 0),
        ("float16", {"F16": 10**9, "F32": 250_000_000, "I64": 10}, 1e9),
    ],
)
def test_estimate(dtype: Any, stored: Any, cast: float) -> None:
    """A build takes as long as its casts, and a moment."""
    assert cast_bytes(3_000_000_000, dtype, stored) == cast
    assert estimate_seconds(int(cast)) == pytest.approx(estimate_seconds(0) + cast / 1.5e9)


def test_turn_is_given_to_whoever_waits() -> None:
    """A turn is wanted while somebody waits for it, is not taken past those, and is free after all of them."""
    turn = BuildLock()
    had = threading.Event()

    def have() -> None:
        with turn.acquired():
            had.set()

    with turn.acquired_if_free() as free, turn.acquired_if_free() as again:
        assert (free, again) == (True, False)
        assert not turn.is_contended()
        threads = [threading.Thread(target=have) for _ in range(3)]
        for thread in threads:
            thread.start()
        while not turn.is_contended():
            pass
        assert not had.is_set()
    for thread in threads:
        thread.join()
    assert not turn.is_contended()
    with turn.acquired_if_free() as free:
        assert free


def test_turn_is_not_taken_past_a_waiter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between one build's end and the waking of the next, the turn is not free."""
    turn = BuildLock()
    monkeypatch.setattr(turn, "_waiting", 1)
    with turn.acquired_if_free() as free:
        assert not free

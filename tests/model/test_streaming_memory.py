"""Memory of a streaming build beside the stock one, and of several processes with one checkpoint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MB = 1_000_000

# One process imports the libraries and makes the checkpoints; each build runs in a fork of it.
COMMON = """
import os, re, sys, threading, time
from pathlib import Path
import torch
from tests.model.arrivals import Arrival
from tests.support import models
from transformers import LlamaConfig, LlamaForCausalLM
import transformers.models.llama.modeling_llama
import accelerate, psutil

SIZES = dict(vocab_size=8000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=4, num_attention_heads=8)

def arrival(root, dtype):
    directory = root / dtype
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**SIZES))
    state = {name: torch.full(p.shape, 0.01, dtype=getattr(torch, dtype)) for name, p in model.named_parameters()}
    directory.mkdir()
    from safetensors.torch import save_file
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    models._write_config(model, directory, dtype)
    return Arrival(directory, root / "cache", "tests/" + dtype, dtype="float16")

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def forked(work):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, str(work()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    answer = os.read(reader, 100)
    os.close(reader)
    return answer.decode()
"""

PEAK = """
def peak(build):
    before, most, done = anonymous(), 0, False
    def watch():
        nonlocal most
        while not done:
            most = max(most, anonymous())
            time.sleep(0.001)
    watcher = threading.Thread(target=watch)
    watcher.start()
    model = build()
    most = max(most, anonymous())
    done = True
    watcher.join()
    return most - before

for dtype in ("float16", "bfloat16", "float32"):
    landing = arrival(Path(sys.argv[1]), dtype)
    landing.begin()
    landing.land_rest()
    size = sum(len(whole) for whole in landing.whole.values())
    landing.whole.clear()
    streamed = forked(lambda: peak(landing.stream))
    landing.publish()
    print(dtype, size, streamed, forked(lambda: peak(landing.stock)))
"""

SHARED = """
torch.set_num_threads(1)  # libgomp's threads do not live on in a fork, and it waits for them
landing = arrival(Path(sys.argv[1]), "float16")
landing.begin()
landing.land_rest()
size = sum(len(whole) for whole in landing.whole.values())
landing.whole.clear()
children = []
for _ in range(4):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            model = landing.stream()
            sum(float(p.sum()) for p in model.parameters())
            os.write(writer, b"1")
            time.sleep(60)
        finally:
            os._exit(1)
    os.close(writer)
    assert os.read(reader, 1) == b"1"
    os.close(reader)
    children.append(child)
print("size", size, 0)
for child in children:
    lines = Path(f"/proc/{child}/smaps").read_text().splitlines()
    starts = [i for i, line in enumerate(lines) if ".yaie-" in line]
    inside = [line for i in starts for line in lines[i : i + 25]]
    total = lambda name: sum(int(line.split()[1]) * 1024 for line in inside if line.startswith(name + ":"))
    print(child, total("Pss"), total("Anonymous"))
for child in children:
    os.kill(child, 9)
    os.waitpid(child, 0)
"""


def run(code: str, root: Path) -> list[list[str]]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", COMMON + code, str(root)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_anonymous_memory(tmp_path: Path) -> None:
    """At its peak a streaming build holds no more than stock, the largest tensor and 64 MB, for each dtype."""
    largest = 8000 * 1024 * 4
    rows = run(PEAK, tmp_path)
    assert [row[0] for row in rows] == ["float16", "bfloat16", "float32"]
    for dtype, size, streamed, stock in rows:
        print(f"{dtype}: {int(size) / MB:.0f} MB, streamed +{int(streamed) / MB:.0f}, stock +{int(stock) / MB:.0f}")
        assert int(streamed) <= int(stock) + largest + 64 * MB
        if dtype == "float16":
            assert int(streamed) < 0.3 * int(size)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_shared_pages(tmp_path: Path) -> None:
    """Four processes with one fp16 checkpoint hold its pages once between them."""
    (_, size, _), *processes = run(SHARED, tmp_path)
    assert len(processes) == 4
    shares = [int(pss) for _, pss, _ in processes]
    print("MB a process:", [round(share / MB) for share in shares], "of", round(int(size) / MB))
    assert 0.9 * int(size) < sum(shares) < 1.1 * int(size)
    assert all(int(anonymous) == 0 for _, _, anonymous in processes)

"""`python -m benchmarks.peers`: how clients behave during faults, observed by the server they download from.

Each client downloads one file of 256 MiB over plain HTTP, in a process of its own.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from yaie_async.localhub import LocalHub, running

_TIMEOUT = 20.0  # seconds after which a client that does not exit is killed
_CLIENTS = ("us", "snapshot_download", "hf_transfer", "aria2c -x8 -c", "curl -C -")
_FILE = "/org/big/resolve/main/model.safetensors"
_PYTHON = {
    "us": "import anyio; from yaie_async import Hub\n"
    "async def main():\n"
    " async with Hub(cache_dir=target) as hub: await hub.prefetch('org/big')\n"
    "anyio.run(main)",
    "snapshot_download": "from huggingface_hub import snapshot_download as s; s('org/big', cache_dir=target)",
    "to_thread(from_pretrained)": "import asyncio; from transformers import AutoModelForCausalLM as A\n"
    "asyncio.run(asyncio.to_thread(A.from_pretrained, 'org/big', cache_dir=target))",
    "hf_transfer": "import hf_transfer\n"
    "hf_transfer.download(url, target + '/model.safetensors', max_files=8, chunk_size=10_000_000)",
}


class Site:
    """A hub that counts requests and bytes, and can slow down, fall silent or flip a byte."""

    def __init__(self, root: Path) -> None:
        self._hub = LocalHub(root)
        self.reset()

    def reset(self, *, rate: float = 0, silent_after: int | None = None, flip: bool = False) -> None:
        self.sent = 0
        self.counts: list[int] = []  # open requests at the start of each request
        self._open: set[object] = set()  # a new set, which excludes the requests of a killed client
        self.rate, self.silent_after, self.flip = rate, silent_after, flip

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if not scope["path"].endswith("model.safetensors") or scope["method"] != "GET":
            await self._hub(scope, receive, send)
            return

        async def counted(message: Any) -> None:
            body = message.get("body", b"")
            if self.flip and len(body) > 1000:
                message["body"] = body = body[:500] + bytes([body[500] ^ 1]) + body[501:]
            pieces = [body[at : at + 65536] for at in range(0, len(body), 65536)] or [b""]
            for number, piece in enumerate(pieces, 1):
                if self.silent_after is not None and self.sent >= self.silent_after:
                    await asyncio.sleep(60)
                if self.rate and piece:
                    await asyncio.sleep(len(piece) / self.rate)
                self.sent += len(piece)
                more = number < len(pieces) or message.get("more_body", False)
                await send(message if len(pieces) == 1 else {**message, "body": piece, "more_body": more})

        open_requests, request = self._open, object()
        open_requests.add(request)
        self.counts.append(len(open_requests))
        try:
            await self._hub(scope, receive, counted)
        finally:
            open_requests.discard(request)


def start(client: str, endpoint: str, target: Path) -> "subprocess.Popen[bytes]":
    target.mkdir(parents=True, exist_ok=True)
    url = endpoint + _FILE
    if client in _PYTHON:
        code = f"target, url = {str(target)!r}, {url!r}\n{_PYTHON[client]}"
        command = [sys.executable, "-c", code]
    elif client == "aria2c -x8 -c":
        command = ["aria2c", "-q", "-c", "-x8", "-s8", "-k4M", "--file-allocation=none", "-d", str(target), url]
    else:
        command = ["curl", "-sSf", "-C", "-", "-o", str(target / "model.safetensors"), url]
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_until(condition: Callable[[], object], process: "subprocess.Popen[bytes]") -> None:
    while not condition() and process.poll() is None:
        time.sleep(0.005)


def time_to_end(process: "subprocess.Popen[bytes]") -> str:
    begin = time.monotonic()
    try:
        process.wait(_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return f"over {_TIMEOUT:.0f} s"
    return f"{time.monotonic() - begin:.1f} s"


def is_right(target: Path, content: bytes) -> bool:
    found = [path for path in target.rglob("model.safetensors") if path.is_file()]
    return len(found) == 1 and found[0].read_bytes() == content


def checks(site: Site, endpoint: str, client: str, top: Path, content: bytes) -> dict[str, str]:
    found = {}
    size = len(content)
    rate = size / 4  # bytes per second and connection, so that a download takes seconds
    site.reset(rate=rate)
    start(client, endpoint, top / "parallel").wait()
    found["requests of one file at once"] = str(max(site.counts, default=0))

    site.reset(rate=rate)
    process = start(client, endpoint, top / "killed")
    wait_until(lambda: site.sent >= size // 2, process)
    process.kill()
    process.wait()
    site.rate = 0
    code = start(client, endpoint, top / "killed").wait()
    right = code == 0 and is_right(top / "killed", content)
    found["MB fetched again after SIGKILL at half"] = f"{(site.sent - size) / 1e6:.0f}" if right else "wrong file"

    site.reset(flip=True)
    code = start(client, endpoint, top / "flipped").wait()
    found["a flipped byte"] = "an error" if code else "taken for right"

    site.reset(rate=rate)
    both = [start(client, endpoint, top / "both") for _ in range(2)]
    codes = [process.wait() for process in both]
    right = codes == [0, 0] and is_right(top / "both", content)
    found["two at once fetch"] = f"{site.sent / size:.1f}x" if right else f"{site.sent / size:.1f}x, and fail"

    site.reset(silent_after=size // 8)
    process = start(client, endpoint, top / "silent")
    wait_until(lambda: site.sent >= size // 8, process)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    found["Ctrl-C while the server is silent"] = time_to_end(process)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=256, metavar="MIB")
    parser.add_argument("--only", choices=_CLIENTS, help="run this client only, without from_pretrained")
    arguments = parser.parse_args()
    size = arguments.size << 20
    top = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        model = top / "models/org/big"
        model.mkdir(parents=True)
        content = os.urandom(size)
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
        (model / "config.json").write_text(json.dumps(config))
        (model / "tokenizer.json").write_text('{"model": {}}')
        (model / "tokenizer_config.json").write_text("{}")
        (model / "model.safetensors").write_bytes(content)
        site = Site(top / "models")
        rows = {}
        with running(site) as endpoint:
            for client in [arguments.only] if arguments.only else _CLIENTS:
                rows[client] = checks(site, endpoint, client, top / client.split()[0], content)
                print(client, rows[client], file=sys.stderr)
            if not arguments.only:
                # It downloads like snapshot_download; only its end on Ctrl-C differs.
                site.reset(silent_after=size // 8)
                process = start("to_thread(from_pretrained)", endpoint, top / "thread")
                wait_until(lambda: site.sent >= size // 8, process)
                process.send_signal(signal.SIGINT)
                ended = time_to_end(process)
        names = list(rows["us"])
        print("| | " + " | ".join(names) + " |\n|---" + "|---" * len(names) + "|")
        for client, found in rows.items():
            print(f"| {client} | " + " | ".join(found[name] for name in names) + " |")
        if not arguments.only:
            print(f"\nto_thread(from_pretrained) ends {ended} after Ctrl-C while the server is silent.")
    finally:
        shutil.rmtree(top)


if __name__ == "__main__":
    main()

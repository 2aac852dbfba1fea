"""A snapshot whose weights are still landing, as the fetch layer leaves it: config.json unlinked, partials sparse."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.support import models
from tests.support.requests import request_of
from yaie_async.model.model import build_model
from yaie_async.model.streaming import build_streaming
from yaie_async.store import arriving_file as arriving_file_module
from yaie_async.store.arriving_file import ArrivingFile


class Arrival:
    """One model in a cache, its weights not there yet.

    Attributes:
        request: for both builds.
        config: the parsed config.json.
        arriving: of the weight files.
        missing: (file, block) pairs that have not landed.
        whole: the bytes of each weight file.
    """

    def __init__(self, directory: Path, cache: Path, repo_id: str, **options: Any) -> None:
        self.snapshot = models.add_to_cache(directory, cache, repo_id)
        self.request = request_of(repo_id, models.COMMIT, str(cache), trust_remote_code=True, **options)
        self.config = self.request.config
        self.arriving: dict[str, ArrivingFile] = {}
        self._blobs: dict[str, Path] = {}
        self._written: dict[str, bytearray] = {}
        self.whole: dict[str, bytes] = {}
        self._config_link = os.readlink(self.snapshot / "config.json")
        (self.snapshot / "config.json").unlink()
        for link in sorted(self.snapshot.glob("*.safetensors")):
            blob = link.resolve()
            self._blobs[link.name], self.whole[link.name] = blob, blob.read_bytes()
            link.unlink()
            blob.unlink()
            self.arriving[link.name] = ArrivingFile(link.name, len(self.whole[link.name]))
            with self._partial(link.name).open("wb") as file:
                file.truncate(len(self.whole[link.name]))
        self.missing = [(name, block) for name, whole in self.whole.items() for block in range(blocks_of(len(whole)))]

    def _partial(self, name: str) -> Path:
        return self._blobs[name].with_name(f"{self._blobs[name].name}.yaie-00000000.incomplete")

    def begin(self) -> None:
        for name, arriving in self.arriving.items():
            self._written[name] = bytearray(blocks_of(arriving.size))
            arriving.begin(self._partial(name), self._written[name])

    def land(self, name: str, block: int) -> None:
        """Write one block, then tell it."""
        size = block_size()
        with self._partial(name).open("r+b") as file:
            file.seek(block * size)
            file.write(self.whole[name][block * size : (block + 1) * size])
        self.missing.remove((name, block))
        self._written[name][block] = 1

    def land_headers(self) -> None:
        """Land the first block of every file."""
        for name in self.arriving:
            self.land(name, 0)

    def land_rest(self, *, pause: float = 0.0, seed: int | None = None) -> float:
        """Land all that is missing, in random order where there is a seed; return when the last one began."""
        order = list(self.missing)
        if seed is not None:
            random.Random(seed).shuffle(order)
        last = 0.0
        for name, block in order:
            time.sleep(pause)
            last = time.monotonic()
            self.land(name, block)
        return last

    def land_in_thread(self, *, pause: float = 0.0, seed: int | None = None) -> threading.Thread:
        thread = threading.Thread(target=self.land_rest, kwargs={"pause": pause, "seed": seed})
        thread.start()
        return thread

    def publish(self) -> None:
        """Give the blobs their names and link everything, config.json last."""
        for name, blob in self._blobs.items():
            os.replace(self._partial(name), blob)
            (self.snapshot / name).symlink_to(blob)
        (self.snapshot / "config.json").symlink_to(self._config_link)

    def assert_blobs_whole(self) -> None:
        for name, blob in self._blobs.items():
            assert sha256(blob.read_bytes()).hexdigest() == blob.name, name

    def stream(self, cancelled: Callable[[], bool] = lambda: False) -> Any:
        return build_streaming(self.request, self.arriving, cancelled=cancelled)

    def stock(self) -> Any:
        return build_model(self.request)


def block_size() -> int:
    """Bytes of a block; smaller where the fixture `small_blocks` is in use."""
    return int(vars(arriving_file_module)["BLOCK"])


def blocks_of(size: int) -> int:
    return -(-size // block_size())

"""Tests of invalid checkpoints with correct digests: a LoaderError, and nothing is left of the attempt."""

import gc
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.loader.conftest import Put
from tests.loader.test_streamed import hold
from tests.support import models
from tests.support.hub import HubServer
from yaie_async import (
    IncompatibleModelError,
    InvalidArgumentError,
    ModelFileNotFoundError,
    ModelLoader,
    TokenizerError,
)
from yaie_async.model.lock import build_lock

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def edit_json(directory: Path, name: str, edit: Callable[[Any], object]) -> None:
    content = json.loads((directory / name).read_text())
    edit(content)
    (directory / name).write_text(json.dumps(content))


def edit_header(directory: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = directory / "model.safetensors"
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])


def overlap(header: dict[str, Any]) -> None:
    first, second = sorted((name for name in header if "data_offsets" in header[name]), key=lambda n: header[n]["data_offsets"])[:2]  # fmt: skip
    size = header[second]["data_offsets"][1] - header[second]["data_offsets"][0]
    start = header[first]["data_offsets"][0]
    header[second]["data_offsets"] = [start, start + size]


def out_of_range(header: dict[str, Any]) -> None:
    last = max((name for name in header if "data_offsets" in header[name]), key=lambda n: header[n]["data_offsets"])
    header[last]["data_offsets"][1] += 1 << 40


def without(directory: Path, name: str) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})


def raises_in_init(directory: Path) -> None:
    code = directory / "modeling_tiny.py"
    code.write_text(code.read_text().replace("self.post_init()", "raise LookupError('my bug')"))


@pytest.mark.parametrize(
    ("kind", "damage", "says"),
    [
        ("llama", lambda d: edit_json(d, "config.json", lambda c: c.update(intermediate_size=48)), "other shapes than its config says"),
        ("llama", lambda d: edit_json(d, "config.json", lambda c: c.update(num_hidden_layers=3)), r"lacks model\.layers\.2"),
        ("llama", lambda d: edit_header(d, overlap), r"model\.safetensors is truncated or corrupt|offset"),
        ("llama", lambda d: edit_header(d, out_of_range), r"model\.safetensors is truncated or corrupt"),
        ("llama", lambda d: without(d, "model.norm.weight"), r"lacks model\.norm\.weight"),
        ("remote_code", raises_in_init, "LookupError: my bug"),
    ],
    ids=["shapes", "layers", "overlap", "range", "missing", "init"],
)  # fmt: skip
@pytest.mark.parametrize("streamed", [True, False])
async def test_wrong_in_itself(
    hub: HubServer,
    put: Put,
    tmp_path: Path,
    load_held: Callable[..., Awaitable[Any]],
    kind: str,
    damage: Callable[[Path], None],
    says: str,
    streamed: bool,
) -> None:
    """Streamed or not, the same error is raised; memory and build lock are released, and the files are kept."""
    name = models.unique_repo_id(kind)
    directory = put(name, kind)
    damage(directory)
    loader = ModelLoader(name, endpoint=hub.url, cache_dir=tmp_path, trust_remote_code=True)
    loading = load_held(hold(hub, directory), loader) if streamed else loader.load_model()
    with pytest.raises(IncompatibleModelError, match=says) as caught:
        await loading
    assert caught.value.model == name
    assert_nothing_left(tmp_path)
    bodies = len([line for line in hub.lines if "/cdn/" in line])
    with pytest.raises(IncompatibleModelError, match=says):
        await ModelLoader(name, endpoint=hub.url, cache_dir=tmp_path, trust_remote_code=True).load_model()
    assert len([line for line in hub.lines if "/cdn/" in line]) == bodies


async def test_a_tensor_too_many(
    hub: HubServer, put: Put, tmp_path: Path, load_held: Callable[..., Awaitable[Any]]
) -> None:
    """A tensor that the model does not have is ignored, as in transformers."""
    directory = put("org/tiny")
    path = directory / "model.safetensors"
    save_file({**load_file(path), "model.layers.7.extra": torch.ones(3)}, path, metadata={"format": "pt"})
    model = await load_held(hold(hub, directory), ModelLoader("org/tiny", endpoint=hub.url, cache_dir=tmp_path))
    assert not [name for name in model.state_dict() if "extra" in name]


async def test_a_shard_that_the_repository_lacks(hub: HubServer, put: Put, tmp_path: Path) -> None:
    """A shard that the repository lacks is named as soon as the index is read, in a single error."""
    directory = models.FACTORIES["llama-sharded"](hub.root / "org" / "sharded")
    shard = max(directory.glob("*.safetensors"))
    shard.unlink()
    with pytest.raises(ModelFileNotFoundError, match=shard.name) as caught:
        await ModelLoader("org/sharded", endpoint=hub.url, cache_dir=tmp_path).load_model()
    assert caught.value.file == shard.name
    assert_nothing_left(tmp_path)


async def test_a_header_of_100_mb(tmp_path: Path, put: Put) -> None:
    """A header of 100 MB is refused without parsing it: safetensors would hold the GIL for seconds."""
    directory = put("org/tiny")
    length = 99_999_992
    with (directory / "model.safetensors").open("wb") as file:
        file.write(length.to_bytes(8, "little") + b'{"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}')
        file.truncate(8 + length + 2)
    with pytest.raises(IncompatibleModelError, match="a header of 99,999,992 bytes") as caught:
        await ModelLoader(directory).load_model()
    assert caught.value.file == "model.safetensors"
    assert_nothing_left(tmp_path)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 123456789\n".format("a" * 64)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("llama", "model.safetensors"),
        ("llama", "config.json"),
        ("dialogpt", "pytorch_model.bin"),
        ("sharded_bin", "pytorch_model.bin.index.json"),
        ("sharded_bin", "pytorch_model-00002-of-00002.bin"),
        ("remote_code", "modeling_tiny.py"),
    ],
)
@pytest.mark.parametrize("place", ["directory", "hub"])
async def test_a_git_lfs_pointer(hub: HubServer, put: Put, tmp_path: Path, kind: str, name: str, place: str) -> None:
    """A pointer in the place of a file is named, with what to do; torch's advice to run pickles is not repeated."""
    model = models.unique_repo_id(kind)
    directory = put(model, kind)
    assert (directory / name).exists()
    (directory / name).write_text(POINTER)
    options: dict[str, Any] = {"endpoint": hub.url, "cache_dir": tmp_path, "trust_remote_code": True}
    loader = ModelLoader(directory if place == "directory" else model, **options)
    with pytest.raises(IncompatibleModelError, match=f"{name} of .* is a git-lfs pointer") as caught:
        await loader.load_model()
    assert caught.value.file == name
    says = "Run `git lfs pull` in that folder" if place == "directory" else "Choose another revision"
    assert says in str(caught.value)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
async def test_a_git_lfs_pointer_for_a_tokenizer(put: Put, name: str) -> None:
    directory = put("org/tiny")
    (directory / name).write_text(POINTER)
    with pytest.raises(TokenizerError, match=f"{name} of .* is a git-lfs pointer.*git lfs pull") as caught:
        await ModelLoader(directory).load_tokenizer()
    assert caught.value.file == name


async def test_a_git_lfs_pointer_that_would_be_read_as_text(put: Put) -> None:
    """A vocabulary of plain text that is a pointer is refused, where stock takes its three lines for the tokens."""
    directory = put("org/tiny")
    (directory / "tokenizer.json").unlink()
    edit_json(
        directory, "tokenizer_config.json", lambda c: c.update(tokenizer_class="BertTokenizer", pad_token="[PAD]")
    )
    (directory / "vocab.txt").write_text(POINTER)
    with pytest.raises(TokenizerError, match="vocab.txt of .* is a git-lfs pointer"):
        await ModelLoader(directory).load_tokenizer()


async def test_a_git_lfs_pointer_that_nothing_reads(put: Put) -> None:
    """A clone without git-lfs whose pointers no load needs is loaded as by stock."""
    directory = put("org/tiny")
    for name in ("pytorch_model.bin", "tokenizer.model", "vocab.txt"):
        (directory / name).write_text(POINTER)
    model, tokenizer = await ModelLoader(directory).load()
    assert model.dtype == torch.float16
    assert tokenizer("hello").input_ids
    with pytest.raises(InvalidArgumentError, match="foo_bar= is known neither"):
        await ModelLoader(directory, foo_bar=1).load_model()


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><html>not found</html>", b"", b"PK\x03\x04 and no more"])
async def test_what_torch_advises_is_not_repeated(put: Put, content: bytes) -> None:
    """A pickle that is none is named, and nothing advises to read it with weights_only=False."""
    directory = put("org/tiny", "dialogpt")
    (directory / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(IncompatibleModelError, match="pytorch_model.bin is truncated or corrupt") as caught:
        await ModelLoader(directory).load_model()
    assert "weights_only" not in str(caught.value)
    assert "trusted source" not in str(caught.value)


NO_MEMORY = """
import asyncio, re, resource, sys, threading
from pathlib import Path
from yaie_async import ModelLoader, OutOfMemoryError, Progress

threading.stack_size(1 << 19)  # the stacks count as data too
url, cache = sys.argv[1:]
limited = []

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def limit(progress):
    # Half of what the weights need, as soon as the libraries are there and the weights are coming.
    if not limited and "transformers.models.llama.modeling_llama" in sys.modules:
        data = int(re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
        limited.append(anonymous())
        resource.setrlimit(resource.RLIMIT_DATA, (data + 40_000_000, resource.RLIM_INFINITY))

async def main():
    import torch, transformers.models.llama.modeling_llama  # noqa: F401 - before the limit
    torch.set_num_threads(1)
    loader = ModelLoader("org/big", endpoint=url, cache_dir=cache, dtype="float32", on_progress=limit)
    try:
        await loader.load_model()
    except OutOfMemoryError as error:
        assert error.model == "org/big" and error.needed and error.device == "cpu", vars(error)
        del error
    else:
        raise AssertionError("it found memory")
    kept = anonymous() - limited[0]
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    model = await loader.load_model()
    print(kept, model.dtype, sum(p.numel() for p in model.parameters()))

asyncio.run(main())
"""


async def test_no_memory(hub: HubServer, tmp_path: Path) -> None:
    """A build that runs out of memory raises, releases its memory, and the downloaded files are kept."""
    directory = models.llama(hub.root / "org" / "big", hidden=1024, dtype="float16")
    size = (directory / "model.safetensors").stat().st_size
    done = await anyio.run_process(
        [sys.executable, "-W", "ignore", "-c", NO_MEMORY, hub.url, str(tmp_path)], check=False, stderr=subprocess.PIPE
    )
    assert done.returncode == 0, done.stderr.decode()
    kept, dtype, _ = done.stdout.split()
    assert dtype == b"torch.float32"
    assert int(kept) < size
    assert sum(r.sent for r in hub.requests if "/cdn/" in r.path and r.path.endswith("model.safetensors")) == size


def assert_nothing_left(cache: Path) -> None:
    gc.collect()
    assert build_lock.is_free()
    assert torch.get_default_dtype() == torch.float32
    assert str(cache) not in Path("/proc/self/maps").read_text()

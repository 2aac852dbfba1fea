"""What a directory holds: its config and the one weight set that transformers would read from it."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yaie_async.core.errors import LoaderError
    from yaie_async.model.request import BuildRequest

_LARGEST_HEADER = 16_000_000
"""Bytes, of some 200,000 tensors. safetensors takes 100 MB, and holds the GIL for 2.7 s while it parses them."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The weight files that a build reads.

    Attributes:
        files: their names inside the directory.
        pickled: whether they are pickles (`.bin`) and not safetensors.
        size: bytes of all of them.
    """

    files: tuple[str, ...]
    pickled: bool
    size: int


def snapshot_directory(request: BuildRequest) -> Path:
    """Return the directory that holds the files: the snapshot in the cache, or the directory itself."""
    if request.commit is None:
        return Path(request.source)
    if request.cache_dir is None:
        msg = "a request with a commit needs the cache_dir that holds its snapshot"
        raise ValueError(msg)
    from yaie_async.store.cache import RepoCache

    return RepoCache(Path(request.cache_dir), request.source).snapshot(request.commit)


def read_config(directory: Path, request: BuildRequest) -> Mapping[str, Any]:
    """Return the parsed config.json.

    Raises:
        IncompatibleModelError: there is none, or it isn't a JSON object.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise no_config_error(_names(directory), request)
    return _read_json(path, request)


def no_config_error(names: Iterable[str], request: BuildRequest) -> LoaderError:
    """Return the error for a model without config.json, that says what its files look like instead."""
    from yaie_async.core.errors import IncompatibleModelError

    found = set(names)
    if "adapter_config.json" in found:
        hint = "it is a PEFT adapter: load the base model that its adapter_config.json names, then add it with peft"
    elif any(name.endswith(".gguf") for name in found):
        hint = "it holds GGUF files for llama.cpp: load the original checkpoint that they were made from"
    elif "model_index.json" in found:
        hint = "it is a diffusers pipeline, not a language model"
    elif "params.json" in found:
        hint = "it is in its author's own format: load the version converted for transformers (often named *-hf)"
    else:
        hint = "check the name, or save the model with save_pretrained"
    message = f"{request.source} has no config.json, so it can't be loaded by transformers; {hint}"
    return IncompatibleModelError(message, model=request.source, file="config.json")


def check_code(directory: Path, config: Mapping[str, Any], request: BuildRequest) -> None:
    """Refuse a model whose code is to be run and is not there.

    transformers keeps a registry of the classes it has run, and may take one of another directory instead.

    Raises:
        ModelFileNotFoundError: names the file.
    """
    from yaie_async.core.errors import ModelFileNotFoundError

    auto_map = config.get("auto_map")
    if not request.trust_remote_code or not isinstance(auto_map, dict):
        return
    for auto_class in ("AutoConfig", "AutoModelForCausalLM"):
        reference = auto_map.get(auto_class)
        if not isinstance(reference, str) or "--" in reference:  # with a repo before "--" it is in that one
            continue
        name = code_file(reference)
        if not (directory / name).is_file():
            message = f"{request.source}: config.json names {name}, which is not there; fetch the model again"
            raise ModelFileNotFoundError(message, model=request.source, file=name)


def code_file(reference: str) -> str:
    """The class `org/repo--modeling_x.Class` is in `modeling_x.py`."""
    return reference.rpartition("--")[2].rpartition(".")[0] + ".py"


def find_weights(directory: Path, config: Mapping[str, Any], request: BuildRequest) -> Weights:
    """Return the weight set that transformers would choose, in its own order of preference.

    Raises:
        UnsafeFileError: only pickles, and they were not allowed; or a name that leaves the directory.
        ModelFileNotFoundError: the index lists a shard that is not there.
        IncompatibleModelError: no weights in a format that is read here, a damaged index, or a monstrous header.
    """
    from yaie_async.core.errors import ModelFileNotFoundError, UnsafeFileError

    chosen = _choose(directory, config, request)
    if chosen is None:
        raise _no_weights_error(_names(directory), request)
    pickled = ".bin" in PurePosixPath(chosen).suffixes
    if pickled and not request.allow_pickle:
        message = (
            f"{request.source} has its weights in {chosen} only, a pickle, and allow_pickle=False was given; "
            "choose a revision with safetensors, or pass allow_pickle=True (it is read with weights_only)"
        )
        raise UnsafeFileError(message, model=request.source, file=chosen)
    files = _shards(directory / chosen, request) if chosen.endswith(".index.json") else (chosen,)
    for name in files:
        if not (directory / name).is_file():
            message = f"{request.source}: {chosen} lists {name}, which is not there; fetch the model again"
            raise ModelFileNotFoundError(message, model=request.source, file=name)
    return Weights(files, pickled, sum(_size(directory / name, request) for name in files))


def damaged_file(directory: Path, weights: Weights) -> str | None:
    """Return the first weight file whose structure is broken, or None. Reads a few bytes of each."""
    return next((name for name in weights.files if _is_damaged(directory / name)), None)


def _choose(directory: Path, config: Mapping[str, Any], request: BuildRequest) -> str | None:
    explicit = config.get("transformers_weights")
    if isinstance(explicit, str):
        _refuse_escape(explicit, "config.json", request)
        return explicit if (directory / explicit).is_file() else None
    variant = request.model_kwargs.get("variant")
    for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                 "pytorch_model.bin.index.json"):  # fmt: skip
        candidate = _with_variant(name, variant)
        if (directory / candidate).is_file():
            return candidate
    return None


def _with_variant(name: str, variant: str | None) -> str:
    """`model.safetensors.index.json` and `fp16` give `model.safetensors.index.fp16.json`, as in transformers."""
    if variant is None:
        return name
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}.{variant}{dot}{suffix}"


def _shards(index: Path, request: BuildRequest) -> tuple[str, ...]:
    from yaie_async.core.errors import IncompatibleModelError

    content = _read_json(index, request)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not isinstance(content.get("metadata"), dict) or not weight_map:
        message = f"{request.source}: {index.name} has no weight_map or no metadata; fetch or save the model again"
        raise IncompatibleModelError(message, model=request.source, file=index.name)
    for name in weight_map.values():
        _refuse_escape(name, index.name, request)
    return tuple(sorted(set(weight_map.values())))


def _refuse_escape(name: Any, listed_in: str, request: BuildRequest) -> None:
    from yaie_async.core.errors import UnsafeFileError

    path = PurePosixPath(name) if isinstance(name, str) else None
    if path is None or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        message = (
            f"{request.source}: {listed_in} names the file {name!r}, which is outside the model; "
            "nothing was read. Don't use this model, and report it to the Hub"
        )
        raise UnsafeFileError(message, model=request.source, file=listed_in)


def _no_weights_error(names: Iterable[str], request: BuildRequest) -> LoaderError:
    from yaie_async.core.errors import IncompatibleModelError

    found = set(names)
    variant = request.model_kwargs.get("variant")
    foreign = sorted(
        name for name in found
        if name.endswith((".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".pth", ".safetensors", ".bin", ".pt"))
    )  # fmt: skip
    if variant is not None:
        hint = f"there is none with variant={variant!r}"
    elif any(name.endswith(".gguf") for name in found):
        hint = "it holds GGUF files for llama.cpp: load the original checkpoint that they were made from"
    elif any(name.startswith("adapter_model.") for name in found):
        hint = "it holds a PEFT adapter only: load its base model, then add it with peft"
    else:
        hint = "convert it with save_pretrained, or choose a revision that has them"
    there = f" (there is: {', '.join(foreign[:5])})" if foreign else ""
    message = f"{request.source} has no model.safetensors and no pytorch_model.bin{there}; {hint}"
    return IncompatibleModelError(message, model=request.source)


def _read_json(path: Path, request: BuildRequest) -> Mapping[str, Any]:
    from yaie_async.core.errors import IncompatibleModelError

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        problem = None if isinstance(content, dict) else "not a JSON object"
    except (ValueError, RecursionError) as error:
        content, problem = None, str(error)
    if not isinstance(content, dict):
        message = f"{request.source}: {path.name} can't be read ({problem}); fetch or save the model again"
        raise IncompatibleModelError(message, model=request.source, file=path.name)
    return content


def _size(path: Path, request: BuildRequest) -> int:
    """Opens the file: safetensors reports one that it may not read as "No such file or directory"."""
    from yaie_async.core.errors import IncompatibleModelError

    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
    if path.suffix == ".safetensors" and _LARGEST_HEADER < length <= size - 8:
        message = (
            f"{request.source}: {path.name} has a header of {length:,} bytes, more than any checkpoint needs; "
            "nothing of it was parsed. Save the model again, in shards"
        )
        raise IncompatibleModelError(message, model=request.source, file=path.name)
    return size


def _is_damaged(path: Path) -> bool:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        if path.suffix != ".safetensors":
            return not (zipfile.is_zipfile(path) if start.startswith(b"PK") else start.startswith(b"\x80"))
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(_LARGEST_HEADER, size - 8):
            return True
        try:
            header = json.loads(file.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
            return 8 + length + max(ends, default=0) != size
        except (ValueError, RecursionError, LookupError, AttributeError, TypeError):
            return True


def _names(directory: Path) -> list[str]:
    return os.listdir(directory) if directory.is_dir() else []

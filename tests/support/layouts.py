"""Layouts of model folders, each with the outcome in transformers and in this package."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

from tests.support import models
from yaie_async import IncompatibleModelError, LoaderError, ModelFileNotFoundError, UnsafeFileError

State = dict[str, torch.Tensor]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
HALVES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@dataclass(frozen=True, slots=True)
class Layout:
    """One arrangement of a model's files.

    Attributes:
        write: writes the directory and its files.
        stock: the outcome of `from_pretrained`: a model, a partly random model, or an error.
        error: the class of error that this package raises; None if its model must equal transformers'.
        options: arguments of the load, in both; `allow_pickle` is only passed to this package.
        usual: whether the weights have their usual names, so that a plan lists them before any file is fetched.
        streams: whether config.json is valid, so that a build may start during the download.
    """

    write: Callable[[Path], object]
    stock: Literal["model", "random", "error"] = "model"
    error: type[LoaderError] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    usual: bool = True
    streams: bool = True


# -- the pieces ---------------------------------------------------------------------------------------------


@cache
def _llama() -> tempfile.TemporaryDirectory[str]:
    """A folder with a Llama, to be copied: that takes a tenth of what making it takes."""
    folder = tempfile.TemporaryDirectory(prefix="yaie-async-tests-")
    models.llama(Path(folder.name))
    return folder


def single(directory: Path, name: str = SINGLE) -> State:
    """A Llama in one safetensors file; returns its tensors."""
    shutil.copytree(_llama().name, directory, dirs_exist_ok=True)
    state = load_file(directory / SINGLE)
    (directory / SINGLE).rename(directory / name)
    return state


def sharded(
    directory: Path, *, index: str = INDEX, shards: tuple[str, ...] = HALVES, metadata: Any = None, **more: Any
) -> State:
    """A Llama in several files and an index with `metadata` ({} where not given) and `more`; returns its tensors."""
    state = single(directory)
    (directory / SINGLE).unlink()
    weight_map = spread(directory, state, shards)
    write_json(directory / index, {"metadata": {} if metadata is None else metadata, "weight_map": weight_map} | more)
    return state


def spread(directory: Path, state: State, shards: Iterable[str]) -> dict[str, str]:
    """Write tensors to the shards in turn; return the weight map."""
    shards = tuple(shards)
    weight_map = {name: shards[number % len(shards)] for number, name in enumerate(state)}
    for shard in shards:
        save(directory / shard, {name: state[name] for name in state if weight_map[name] == shard})
    return weight_map


def save(path: Path, state: State, metadata: Mapping[str, str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".bin":
        torch.save(state, path)
    else:
        save_file(state, path, metadata={"format": "pt"} if metadata is None else dict(metadata))


def others(state: State) -> State:
    """Return the tensors with other values."""
    return {name: -tensor for name, tensor in state.items()}


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def edit_json(path: Path, edit: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    write_json(path, content)


def explicit(directory: Path, name: Any) -> None:
    """Let config.json name the weights."""
    edit_json(directory / "config.json", lambda config: config.update(transformers_weights=name))


def header(directory: Path, edit: Callable[[dict[str, Any]], object], name: str = SINGLE) -> None:
    """Edit the header of a safetensors file."""
    path = directory / name
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    content = json.loads(whole[8 : 8 + length])
    edit(content)
    text = json.dumps(content).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])


# -- the layouts --------------------------------------------------------------------------------------------


def single_then(then: Callable[[Path, State], object]) -> Callable[[Path], object]:
    """A single safetensors file, and what `then` does to it."""
    return lambda directory: then(directory, single(directory))


def sharded_then(then: Callable[[Path, State], object], **options: Any) -> Callable[[Path], object]:
    """Two shards with an index, and what `then` does to them."""
    return lambda directory: then(directory, sharded(directory, **options))


def index_with(edit: Callable[[Any], object]) -> Callable[[Path], object]:
    return sharded_then(lambda directory, _: edit_json(directory / INDEX, edit))


def index_of(content: bytes) -> Callable[[Path], object]:
    return sharded_then(lambda directory, _: (directory / INDEX).write_bytes(content))


def index_encoded(encoding: str) -> Callable[[Path], object]:
    def encode(directory: Path, _: State) -> None:
        path = directory / INDEX
        path.write_bytes(path.read_text().encode(encoding))

    return sharded_then(encode)


def shards_named(*names: str) -> Callable[[Path], object]:
    return lambda directory: sharded(directory, shards=names)


def mapped_to(name: Any) -> Callable[[Path], object]:
    """An index of which the first tensor is in the file `name`."""
    return index_with(lambda index: index["weight_map"].update({next(iter(index["weight_map"])): name}))


def config_of(content: bytes) -> Callable[[Path], object]:
    return single_then(lambda directory, _: (directory / "config.json").write_bytes(content))


def config_with(**changes: Any) -> Callable[[Path], object]:
    return single_then(lambda directory, _: edit_json(directory / "config.json", lambda c: c.update(changes)))


def explicit_single(name: Any, *, beside: bool = False) -> Callable[[Path], object]:
    """Weights in the file `name`, as config.json says; `beside` a model.safetensors with other values."""

    def write(directory: Path) -> None:
        state = single(directory)
        (directory / SINGLE).unlink()
        save(directory / name, state)
        if beside:
            save(directory / SINGLE, others(state))
        explicit(directory, name)

    return write


def explicit_index(name: str, shards: tuple[str, ...] = HALVES, *, beside: bool = False) -> Callable[[Path], object]:
    """Weights in an index of another name, as config.json says; `beside` a whole set of the usual name."""

    def write(directory: Path) -> None:
        state = sharded(directory, index=name, shards=shards)
        if beside:
            usual = ("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors")
            write_json(directory / INDEX, {"metadata": {}, "weight_map": spread(directory, others(state), usual)})
        explicit(directory, name)

    return write


def variant(infix: str, *names: str) -> Callable[[Path], object]:
    """A variant beside the weights without one, which have other values; in one file, or in shards with an index."""

    def write(directory: Path) -> None:
        state = single(directory)
        save(directory / SINGLE, others(state))
        if len(names) == 1:
            save(directory / names[0], state)
        else:
            weight_map = spread(directory, state, names)
            write_json(directory / f"{infix}.fp16.json", {"metadata": {}, "weight_map": weight_map})

    return write


def headless(directory: Path) -> None:
    """Tied weights as on the Hub: one tensor for the embeddings and the head."""
    models.llama(directory, tied=True)
    assert "lm_head.weight" not in load_file(directory / SINGLE)


def dtype_unsaid(directory: Path) -> None:
    models.llama(directory, dtype="bfloat16")
    edit_json(directory / "config.json", lambda config: config.pop("dtype", None))


def without_safetensors(name: str) -> Callable[[Path], object]:
    def rename(directory: Path, _: State) -> None:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / SINGLE).rename(directory / name)

    return single_then(rename)


def truncated(name: str, write: Callable[[Path], object], keep: int) -> Callable[[Path], object]:
    """A model with a truncated file."""

    def cut(directory: Path) -> None:
        write(directory)
        path = directory / name
        path.write_bytes(path.read_bytes()[:keep])

    return cut


def bin_index(*shards: str) -> Callable[[Path], object]:
    return lambda directory: sharded(directory, index="pytorch_model.bin.index.json", shards=shards)


def twice(first: int) -> Callable[[Path], object]:
    """Two shards that both have a tensor, with different values; the index names one of the shards."""

    def write(directory: Path, state: State) -> None:
        name = "model.norm.weight"
        for number, shard in enumerate(HALVES):
            save(directory / shard, load_file(directory / shard) | {name: state[name] * (2 + number)})
        edit_json(directory / INDEX, lambda index: index["weight_map"].update({name: HALVES[first]}))

    return sharded_then(write)


def alike(directory: Path, state: State) -> None:
    """Two shards with the same bytes."""
    for shard in HALVES:
        save(directory / shard, state)


def lacking(directory: Path, state: State) -> None:
    del state["model.norm.weight"]
    save(directory / SINGLE, state)


def with_extra(directory: Path, state: State) -> None:
    save(directory / SINGLE, state | {"model.layers.7.extra": torch.ones(3)})


def nested(directory: Path, state: State) -> None:
    """Files in subfolders that look like files of the model, as in real repositories."""
    for folder in ("original", "text_encoder", "config.json.d"):
        write_json(directory / folder / "config.json", {"model_type": "gpt2"})
        save(directory / folder / SINGLE, others(state))
        write_json(directory / folder / INDEX, {})


def crowded(directory: Path, state: State) -> None:
    """Weights in one file, and in every other format with other values."""
    save(directory / "pytorch_model.bin", others(state))
    save(directory / "model.fp16.safetensors", others(state))
    save(directory / "consolidated.safetensors", others(state))
    weight_map = spread(directory, others(state), HALVES)
    write_json(directory / INDEX, {"metadata": {}, "weight_map": weight_map})


def reordered(directory: Path, _: State) -> None:
    index = json.loads((directory / INDEX).read_text())
    weight_map = dict(reversed(index["weight_map"].items()))
    metadata = {"total_size": -1, "total_parameters": "many", "x": None}
    write_json(directory / INDEX, {"z": [1], "weight_map": weight_map, "format": {"a": 1}, "metadata": metadata})


def adapter(directory: Path, state: State) -> None:
    """A LoRA adapter of every layer's query projection beside the model."""
    asked = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    write_json(directory / "adapter_config.json", {"base_model_name_or_path": "org/base", **asked})
    generator = torch.Generator().manual_seed(1)
    parts: State = {}
    for name, tensor in state.items():
        if name.endswith("q_proj.weight"):
            stem, (wide, deep) = f"base_model.model.{name.removesuffix('.weight')}", tensor.shape
            parts[f"{stem}.lora_A.weight"] = torch.randn(2, deep, generator=generator)
            parts[f"{stem}.lora_B.weight"] = torch.randn(wide, 2, generator=generator)
    assert parts
    save(directory / "adapter_model.safetensors", parts)


def pickled_adapter(directory: Path, state: State) -> None:
    adapter(directory, state)
    path = directory / "adapter_model.safetensors"
    torch.save(load_file(path), directory / "adapter_model.bin")
    path.unlink()


def damaged(error: type[LoaderError], write: Callable[[Path], object], **options: Any) -> Layout:
    """Layouts that transformers refuses too."""
    return Layout(write, "error", error, **options)


# The factories whose layouts differ in their files, not only in their weights.
_KINDS = ("llama", "llama-sharded", "gpt2-like-repo", "dialogpt", "sharded-bin", "codegen", "mixtral", "remote-code")
_FP16 = {"variant": "fp16"}
_NO_PICKLE = {"allow_pickle": False}
_FP16_SHARDS = ("model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors")
_SHARDS_FP16 = ("model-00001-of-00002.fp16.safetensors", "model-00002-of-00002.fp16.safetensors")
_ODD = ("odd-1.safetensors", "odd-2.safetensors")

LAYOUTS: dict[str, Layout] = {
    **{kind: Layout(models.FACTORIES[kind]) for kind in _KINDS},
    "classifier": Layout(models.gpt2_classifier, "model", IncompatibleModelError),
    "masked": Layout(models.masked),
    "encoder-decoder": damaged(IncompatibleModelError, models.t5),
    # which set
    "both-formats": Layout(single_then(lambda d, state: save(d / "pytorch_model.bin", others(state)))),
    "crowded": Layout(single_then(crowded)),
    "index-and-stray-single": Layout(
        sharded_then(lambda d, state: save(d / "consolidated.safetensors", others(state)))
    ),
    "index-and-bin": Layout(sharded_then(lambda d, state: save(d / "pytorch_model.bin", others(state)))),
    "folders": Layout(single_then(nested)),
    "adapter-beside": Layout(single_then(adapter)),
    "pickled-adapter-beside": damaged(IncompatibleModelError, single_then(pickled_adapter)),
    # the index
    "index-without-metadata": damaged(IncompatibleModelError, index_with(lambda index: index.pop("metadata"))),
    "index-metadata-null": damaged(IncompatibleModelError, index_with(lambda index: index.update(metadata=None))),
    "index-reordered": Layout(sharded_then(reordered)),
    "index-not-json": damaged(IncompatibleModelError, index_of(b"{")),
    "index-a-list": damaged(IncompatibleModelError, index_of(b"[]")),
    "index-too-deep": damaged(IncompatibleModelError, index_of(b"[" * 200_000)),
    "index-with-bom": damaged(IncompatibleModelError, index_encoded("utf-8-sig")),
    "index-in-utf-16": damaged(IncompatibleModelError, index_encoded("utf-16")),
    "weight-map-missing": damaged(IncompatibleModelError, index_with(lambda index: index.pop("weight_map"))),
    "weight-map-empty": damaged(IncompatibleModelError, index_with(lambda index: index.update(weight_map={}))),
    "weight-map-a-list": damaged(IncompatibleModelError, index_with(lambda index: index.update(weight_map=[*HALVES]))),
    "weight-map-of-numbers": damaged(IncompatibleModelError, mapped_to(7)),
    "shard-missing": damaged(ModelFileNotFoundError, mapped_to("model-00003-of-00003.safetensors")),
    "shard-outside": damaged(UnsafeFileError, mapped_to("../secret.safetensors")),
    "shard-dotted": Layout(mapped_to(f"./{HALVES[0]}"), "model", UnsafeFileError),
    "shard-backslash": Layout(shards_named("a\\1.safetensors", "a\\2.safetensors"), usual=False),
    "shards-in-a-folder": Layout(shards_named("shards/model-1.safetensors", "shards/model-2.safetensors"), usual=False),
    "shards-unusual": Layout(shards_named("weights-b.safetensors", "a.safetensors"), usual=False),
    "shards-unicode": Layout(shards_named("modèle 1 #?%20.safetensors", "重み.safetensors"), usual=False),
    "shards-pickled": Layout(shards_named("a.bin", "b.bin"), usual=False),
    "shards-pickled-refused": Layout(shards_named("a.bin", "b.bin"), "model", UnsafeFileError, _NO_PICKLE, usual=False),
    "shards-mixed": damaged(IncompatibleModelError, shards_named("a.safetensors", "b.bin")),
    "bin-index-of-safetensors": Layout(bin_index("a.safetensors", "b.safetensors"), usual=False),
    "shards-alike": Layout(sharded_then(alike)),
    "tensor-twice-first": Layout(twice(0)),
    "tensor-twice-second": Layout(twice(1)),
    # config.json names the weights
    "explicit-index": Layout(explicit_index("odd.safetensors.index.json"), usual=False),
    "explicit-index-odd-shards": Layout(explicit_index("odd.safetensors.index.json", _ODD), usual=False),
    "explicit-index-beside": Layout(explicit_index("odd.safetensors.index.json", _ODD, beside=True), usual=False),
    "explicit-index-in-a-folder": Layout(explicit_index("sub/odd.safetensors.index.json", _ODD), usual=False),
    "explicit-single": Layout(explicit_single("odd.safetensors"), usual=False),
    "explicit-single-beside": Layout(explicit_single("odd.safetensors", beside=True), usual=False),
    "explicit-single-in-a-folder": Layout(explicit_single("sub/odd.safetensors"), usual=False),
    "explicit-usual": Layout(explicit_single(SINGLE)),
    "explicit-over-variant": Layout(explicit_single("odd.safetensors", beside=True), options=_FP16, usual=False),
    "explicit-bin": damaged(IncompatibleModelError, explicit_single("odd.bin")),
    "explicit-bin-beside": damaged(IncompatibleModelError, explicit_single("odd.bin", beside=True)),
    "explicit-missing": damaged(ModelFileNotFoundError, config_with(transformers_weights="odd.safetensors")),
    "explicit-outside": damaged(UnsafeFileError, config_with(transformers_weights="../odd.safetensors")),
    "explicit-number": damaged(IncompatibleModelError, config_with(transformers_weights=7)),
    "explicit-empty": damaged(UnsafeFileError, config_with(transformers_weights="")),
    "explicit-null": Layout(config_with(transformers_weights=None)),
    # variants
    "variant-single": Layout(variant(INDEX, "model.fp16.safetensors"), options=_FP16),
    "variant-sharded-infix-first": Layout(variant("model.safetensors.index", *_FP16_SHARDS), options=_FP16),
    "variant-sharded-infix-last": Layout(variant("model.safetensors.index", *_SHARDS_FP16), options=_FP16),
    "variant-missing": damaged(IncompatibleModelError, single, options=_FP16),
    "variant-unasked": damaged(IncompatibleModelError, lambda d: single(d, "model.fp16.safetensors")),
    # pickles
    "pickle-refused": Layout(models.dialogpt, "model", UnsafeFileError, _NO_PICKLE),
    "pickles-refused": Layout(models.sharded_bin, "model", UnsafeFileError, _NO_PICKLE),
    "pickle-not-needed": Layout(single_then(crowded), options=_NO_PICKLE),
    "safetensors-asked": Layout(single_then(crowded), options={"use_safetensors": True}),
    "safetensors-asked-of-pickles": damaged(UnsafeFileError, models.dialogpt, options={"use_safetensors": True}),
    "pickle-asked": Layout(
        single_then(lambda d, state: save(d / "pytorch_model.bin", others(state))), options={"use_safetensors": False}
    ),
    "pickle-asked-of-safetensors": damaged(IncompatibleModelError, single, options={"use_safetensors": False}),
    "bin-truncated": damaged(IncompatibleModelError, truncated("pytorch_model.bin", models.dialogpt, 3000)),
    # what the weight file says
    "metadata-number": damaged(
        IncompatibleModelError, single_then(lambda d, _: header(d, lambda h: h.update(__metadata__={"a": 1})))
    ),
    "metadata-null": Layout(single_then(lambda d, _: header(d, lambda h: h.update(__metadata__=None)))),
    "metadata-missing": Layout(single_then(lambda d, _: header(d, lambda h: h.pop("__metadata__")))),
    "metadata-without-format": Layout(single_then(lambda d, state: save(d / SINGLE, state, {"a": "b"}))),
    "metadata-other-format": Layout(single_then(lambda d, state: save(d / SINGLE, state, {"format": "tf"}))),
    "truncated": damaged(IncompatibleModelError, truncated(SINGLE, single, 5000)),
    "truncated-header": damaged(IncompatibleModelError, truncated(SINGLE, single, 100)),
    "empty-file": damaged(IncompatibleModelError, truncated(SINGLE, single, 0)),
    "no-tensors": Layout(single_then(lambda d, _: save(d / SINGLE, {})), "random", IncompatibleModelError),
    "tied-without-head": Layout(headless),
    "tensor-too-many": Layout(single_then(with_extra)),
    "tensor-missing": Layout(single_then(lacking), "random", IncompatibleModelError),
    # dtype
    "dtype-auto": Layout(lambda d: models.llama(d, dtype="bfloat16"), options={"dtype": "auto"}),
    "dtype-auto-unsaid": Layout(dtype_unsaid, options={"dtype": "auto"}),
    # no model
    "tokenizer-only": damaged(IncompatibleModelError, models.bpe_tokenizer),
    "no-weights": damaged(IncompatibleModelError, single_then(lambda d, _: (d / SINGLE).unlink())),
    "gguf-only": damaged(IncompatibleModelError, without_safetensors("model.gguf")),
    "h5-only": damaged(IncompatibleModelError, without_safetensors("tf_model.h5")),
    "weights-in-a-folder": damaged(IncompatibleModelError, without_safetensors(f"sub/{SINGLE}")),
    "config-missing": damaged(IncompatibleModelError, single_then(lambda d, _: (d / "config.json").unlink())),
    "config-a-list": damaged(IncompatibleModelError, config_of(b"[]"), streams=False),
    "config-not-json": damaged(IncompatibleModelError, config_of(b"{"), streams=False),
}

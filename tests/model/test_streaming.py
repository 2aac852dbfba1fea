"""A streaming build gives the model that the stock build gives, as its bytes land in any order."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load, load_file, save_file
from transformers import GenerationConfig, PreTrainedModel

from tests.model.architectures import ARCHITECTURES, SIZES
from tests.model.arrivals import Arrival, block_size
from tests.model.test_model import assert_same_model, assert_same_parts, stock_model
from tests.support import models
from tests.support.requests import request_of
from tests.support.stopwatch import Stopwatch
from yaie_async import IncompatibleModelError
from yaie_async.model.build_progress import BuildProgress
from yaie_async.model.model import build_model
from yaie_async.model.preflight import check_config
from yaie_async.model.tensors import ArrivingFiles

Make = Callable[..., Arrival]

pytestmark = pytest.mark.usefixtures("small_blocks")


def assert_same(streamed: PreTrainedModel, stock: PreTrainedModel) -> None:
    assert_same_model(streamed, stock)
    assert type(streamed) is type(stock)
    assert vars(streamed.generation_config) == vars(stock.generation_config)
    assert vars(streamed.config) == vars(stock.config)
    assert getattr(streamed, "hf_device_map", None) == getattr(stock, "hf_device_map", None)
    assert [p.requires_grad for p in streamed.parameters()] == [p.requires_grad for p in stock.parameters()]
    assert [p.stride() for p in streamed.parameters()] == [p.stride() for p in stock.parameters()]


@pytest.mark.parametrize("dtype", ["float16", "float32", "auto"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_identity(arrival: Make, kind: str, dtype: str) -> None:
    """Every architecture is bit-identical to stock, its bytes landing block by block in random order."""
    arriving = arrival(kind, dtype=dtype)
    arriving.begin()
    feeder = arriving.land_in_thread(seed=len(kind))
    streamed = arriving.stream()
    feeder.join()
    assert not arriving.missing
    arriving.publish()
    assert_same(streamed, arriving.stock())


_TEXT = {**SIZES, "head_dim": 8}
_VISION = {"hidden_size": 16, "intermediate_size": 32, "depth": 1, "num_heads": 2, "out_hidden_size": 16}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
_PARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Qwen3_5": (_TEXT | _LINEAR, _VISION),
    "Qwen3_5Moe": (_TEXT | _LINEAR | _EXPERTS, _VISION),
    "Mllama": (
        _TEXT | {"cross_attention_layers": [1]},
        {"hidden_size": 16, "attention_heads": 2, "num_hidden_layers": 1, "num_global_layers": 1, "image_size": 28}
        | {"intermediate_size": 32, "vision_output_dim": 32, "intermediate_layers_indices": [0]},
    ),
}


def of_parts(name: str, directory: Path) -> Path:
    """A checkpoint of a model of images and text."""
    text, vision = _PARTS[name]
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=vision)
    return models._save(getattr(transformers, f"{name}ForConditionalGeneration"), config, directory, "bfloat16")


@pytest.mark.parametrize("name", _PARTS)
def test_the_text_model_of_a_larger_one(arrival: Make, tmp_path: Path, name: str) -> None:
    """Where `architectures` names a class of images and text, its text model is loaded as by stock, streamed or not."""
    directory = of_parts(name, tmp_path / name.lower())
    for dtype in ("float16", "auto"):
        request = request_of(str(directory), dtype=dtype)
        assert_same_parts(build_model(request), stock_model(request.source, dtype))
    arriving = arrival(directory)
    check_config(arriving.request)
    arriving.begin()
    arriving.land_rest()
    streamed = arriving.stream()
    assert type(streamed).__name__ == f"{name}ForCausalLM"
    arriving.publish()
    assert_same(streamed, arriving.stock())


def test_a_larger_model_without_its_text_model(arrival: Make, tmp_path: Path) -> None:
    """What the text model lacks stock fills with random numbers, so it is refused."""
    directory = of_parts("Qwen3_5", tmp_path / "qwen")
    state = load_file(directory / "model.safetensors")
    name = next(name for name in state if name.endswith("norm.weight") and "visual" not in name)
    save_file({key: value for key, value in state.items() if key != name}, directory / "model.safetensors")
    with pytest.raises(IncompatibleModelError, match="its checkpoint lacks .*norm.weight"):
        build_model(request_of(str(directory)))


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "Electra"])
def test_a_masked_language_model(arrival: Make, tmp_path: Path, kind: str) -> None:
    """It is loaded as a causal one, as by stock, streamed or not; where it lacks a tensor of that, it is refused."""
    directory = models.masked(tmp_path / kind.lower(), kind=kind)
    request = request_of(str(directory), dtype="float32")
    assert_same_model(build_model(request), stock_model(request.source, "float32"))
    arriving = arrival(directory, dtype="float16")
    (warning,) = check_config(arriving.request)
    assert f"({kind}ForMaskedLM) is a masked language model" in warning
    arriving.begin()
    arriving.land_rest()
    streamed = arriving.stream()
    arriving.publish()
    assert_same(streamed, arriving.stock())
    state = load_file(directory / "model.safetensors")
    save_file({name: state[name] for name in list(state)[1:]}, directory / "model.safetensors")
    with pytest.raises(IncompatibleModelError, match="its checkpoint lacks"):
        build_model(request_of(str(directory)))


def test_a_masked_language_model_that_decodes(tmp_path: Path) -> None:
    """Where config.json says that it is a decoder, nothing is warned of."""
    request = request_of(models.masked(tmp_path / "bert"))
    decoder = replace(request.manifest, config={**request.config, "is_decoder": True})
    assert check_config(replace(request, manifest=decoder)) == []


def test_composite_config(arrival: Make, saved: Callable[[str], Path], tmp_path: Path) -> None:
    """Where the config of several models names a text model, that one is built with its part of the config."""
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    sizes = json.loads((saved("llama") / "config.json").read_text())
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    text = Llama4TextConfig(
        **{name: sizes[name] for name in names},
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size_mlp=32,
        num_local_experts=2,
    )
    directory = tmp_path / "llama4"
    models._save(Llama4ForCausalLM, text, directory, "float16")
    config = json.loads((directory / "config.json").read_text())
    outer = {"model_type": "llama4", "architectures": ["Llama4ForCausalLM"], "text_config": config, "dtype": "float16"}
    (directory / "config.json").write_text(json.dumps(outer))
    arriving = arrival(directory)
    arriving.begin()
    arriving.land_rest()
    streamed = arriving.stream()
    arriving.publish()
    assert_same(streamed, arriving.stock())


@pytest.mark.parametrize(
    "options",
    [
        {"device_map": None},
        {"device_map": "cpu"},
        {"device_map": {"": "cpu"}},
        {"model_kwargs": {"attn_implementation": "eager", "rms_norm_eps": 0.5, "max_memory": {"cpu": "1GB"}}},
        {"dtype": torch.bfloat16},
        {"dtype": "double"},
    ],
)
def test_options(arrival: Make, options: dict[str, Any]) -> None:
    """Devices, dtypes and keywords have the effect that they have in stock."""
    arriving = arrival("llama", **options)
    arriving.begin()
    arriving.land_rest()
    streamed = arriving.stream()
    arriving.publish()
    assert_same(streamed, arriving.stock())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("device_map", ["auto", "cuda", 0, {"model": 0, "lm_head": "cpu"}])
def test_cuda(arrival: Make, dtype: str, device_map: Any) -> None:
    """On a GPU too, whole or in part, the model is that of stock."""
    arriving = arrival("llama", dtype=dtype, device_map=device_map)
    arriving.begin()
    arriving.land_rest()
    streamed = arriving.stream()
    arriving.publish()
    stock = arriving.stock()
    assert streamed.hf_device_map == stock.hf_device_map
    for (name, tensor), other in zip(streamed.state_dict().items(), stock.state_dict().values(), strict=True):
        assert (tensor.device, tensor.dtype) == (other.device, other.dtype), name
        assert torch.equal(tensor, other), name


def test_generation_files(arrival: Make, saved: Callable[[str], Path], tmp_path: Path) -> None:
    """The generation config and the generate function of the repo are the model's."""
    directory = Path(shutil.copytree(saved("llama"), tmp_path / "llama"))
    GenerationConfig(temperature=0.3, do_sample=True, max_new_tokens=7).save_pretrained(directory)
    (directory / "custom_generate").mkdir()
    (directory / "custom_generate" / "generate.py").write_text("def generate(model, **kwargs):\n    return 'mine'\n")
    arriving = arrival(directory)
    arriving.begin()
    arriving.land_rest()
    streamed = arriving.stream()
    arriving.publish()
    stock = arriving.stock()
    assert_same(streamed, stock)
    assert streamed.generation_config.temperature == 0.3
    assert streamed.generate() == stock.generate() == "mine"


def test_duplicate_names(arrival: Make, saved: Callable[[str], Path], tmp_path: Path) -> None:
    """Where two shards hold a tensor of one name, the later file wins, as in stock."""
    directory = Path(shutil.copytree(saved("llama-sharded"), tmp_path / "llama"))
    shards = sorted(directory.glob("*.safetensors"))
    name, tensor = next(iter(load_file(shards[0]).items()))
    save_file({**load_file(shards[2]), name: tensor + 1}, shards[2], metadata={"format": "pt"})
    arriving = arrival(directory)
    arriving.begin()
    arriving.land_rest()
    streamed = arriving.stream()
    arriving.publish()
    assert_same(streamed, arriving.stock())
    assert torch.equal(streamed.state_dict()[name], tensor + 1)


def test_tensors_off_their_alignment(arrival: Make, saved: Callable[[str], Path], tmp_path: Path) -> None:
    """Tensors at odd offsets, which an old writer may leave, are read and not mapped."""
    directory = Path(shutil.copytree(saved("llama"), tmp_path / "llama"))
    path = directory / "model.safetensors"
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    path.write_bytes((length + 1).to_bytes(8, "little") + whole[8 : 8 + length] + b" " + whole[8 + length :])
    arriving = arrival(directory)
    arriving.begin()
    arriving.land_rest()
    streamed = arriving.stream()
    arriving.publish()
    assert_same(streamed, arriving.stock())
    assert all(p.data_ptr() % p.element_size() == 0 for p in streamed.parameters())


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_real_blocks(arrival: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """Tensors of several real blocks, too, land in random order and are stock's."""
    monkeypatch.undo()
    arriving = arrival(models.llama(tmp_path / "llama", dtype="float32", hidden=1024), dtype=dtype)
    assert len(arriving.missing) > 10
    arriving.begin()
    feeder = arriving.land_in_thread(seed=5)
    streamed = arriving.stream()
    feeder.join()
    arriving.publish()
    assert_same(streamed, arriving.stock())


def test_ready_with_the_last_byte(arrival: Make, pool: ThreadPoolExecutor) -> None:
    """The model is finished after the last block has landed, never before, and soon after."""
    arriving = arrival("llama-fp32")
    arriving.begin()
    job = pool.submit(arriving.stream)
    while len(arriving.missing) > 1:
        arriving.land(*random.Random(3).choice(arriving.missing))
        time.sleep(0.005)
    assert not job.done()
    watch = Stopwatch()
    arriving.land_rest()
    job.result()
    assert watch.seconds < 0.5


def test_writes_stay_private(arrival: Make) -> None:
    """Adding to every parameter changes neither the blobs nor another model of the same files."""
    arriving = arrival("llama")
    arriving.begin()
    arriving.land_rest()
    streamed, other = arriving.stream(), arriving.stream()
    arriving.publish()
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with torch.no_grad():
        for parameter in streamed.parameters():
            parameter.add_(1)
    arriving.assert_blobs_whole()
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(streamed.state_dict()[name], before[name] + 1)


def test_writes_before_the_neighbours_land(arrival: Make) -> None:
    """A tensor that is written to before the next one has landed takes nothing from it: they may share a page."""
    arriving = arrival("llama")
    arriving.begin()
    arriving.land_headers()
    files = ArrivingFiles(arriving.arriving, lambda: False, lambda: False, BuildProgress())
    found = files.tensors()
    first = min(found, key=lambda name: found[name]._stored.start)
    for name, block in list(arriving.missing):
        if block * block_size() < found[first]._stored.stop:
            arriving.land(name, block)
    assert arriving.missing
    written = found[first].to(device="cpu", dtype=torch.float16).add_(1)
    arriving.land_rest()
    stored = load(arriving.whole["model.safetensors"])
    for name, value in found.items():
        tensor = value.to(device="cpu", dtype=torch.float16)
        assert torch.equal(tensor, stored[name] + 1 if name == first else stored[name])
    assert written.data_ptr() == found[first].to(device="cpu", dtype=torch.float16).data_ptr()
    files.close()

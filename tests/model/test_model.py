"""build_model gives the model that AutoModelForCausalLM.from_pretrained gives."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.support import models
from tests.support.requests import request_of
from yaie_async.core import errors
from yaie_async.model.lock import BuildCancelled
from yaie_async.model.model import build_model

KINDS = [
    *((name, "float16") for name in models.FACTORIES),
    ("llama", "auto"),
    ("llama-bf16", "auto"),
    ("llama-fp32", torch.float32),
    ("dialogpt", "auto"),
    ("dialogpt", "bfloat16"),
    ("gpt2-hub-keys", "float32"),
    ("mixtral", "auto"),
    ("remote-code", "auto"),
]


def assert_same_model(built: PreTrainedModel, stock: PreTrainedModel) -> None:
    assert_same_parts(built, stock)
    ids = torch.arange(6).view(1, 6)
    with torch.inference_mode():
        assert_same_tensors({"logits": built(input_ids=ids).logits}, {"logits": stock(input_ids=ids).logits})


def assert_same_parts(built: PreTrainedModel, stock: PreTrainedModel) -> None:
    """All of `assert_same_model` but what the model computes, which follows from it and takes longer."""
    assert type(built).__name__ == type(stock).__name__
    assert_same_tensors(dict(built.state_dict()), dict(stock.state_dict()))
    assert_same_tensors(dict(built.named_buffers()), dict(stock.named_buffers()))
    assert built.config.to_dict() == stock.config.to_dict()
    assert built.config.name_or_path == stock.config.name_or_path
    assert built.name_or_path == stock.name_or_path
    assert built.dtype == stock.dtype
    assert built.training is stock.training is False
    assert built.generation_config.to_dict() == stock.generation_config.to_dict()
    assert ties(built) == ties(stock)


def assert_same_tensors(built: dict[str, torch.Tensor], stock: dict[str, torch.Tensor]) -> None:
    assert built.keys() == stock.keys()
    for name, tensor in built.items():
        assert (tensor.dtype, tensor.device) == (stock[name].dtype, stock[name].device), name
        assert torch.equal(bits(tensor), bits(stock[name])), name


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def ties(model: PreTrainedModel) -> set[frozenset[str]]:
    """The groups of parameter names that share one storage."""
    groups: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(parameter.data_ptr(), set()).add(name)
    return {frozenset(names) for names in groups.values() if len(names) > 1}


def stock_model(source: str, dtype: Any, **arguments: Any) -> PreTrainedModel:
    options = {"device_map": "auto", "trust_remote_code": True, "local_files_only": True, **arguments}
    # Where peft is installed, transformers asks the Hub for an adapter unless this is said once more.
    return AutoModelForCausalLM.from_pretrained(
        source, dtype=dtype, adapter_kwargs={"local_files_only": True}, **options
    )


@pytest.mark.parametrize("place", ["directory", "snapshot"])
@pytest.mark.parametrize(("kind", "dtype"), KINDS)
def test_bit_identity(checkpoint: Callable[[str], Path], tmp_path: Path, kind: str, dtype: Any, place: str) -> None:
    """Every kind is bit-identical to stock: tensors, buffers, ties, configs, name and logits."""
    directory = checkpoint(kind)
    location: dict[str, Any] = {}
    source = str(directory)
    if place == "snapshot":
        source = models.unique_repo_id(kind)
        models.add_to_cache(directory, tmp_path, source)
        location = {"commit": models.COMMIT, "cache_dir": str(tmp_path)}
    built = build_model(request_of(source, dtype=dtype, trust_remote_code=True, **location))
    if location:
        location = {"revision": models.COMMIT, "cache_dir": str(tmp_path)}
    assert_same_model(built, stock_model(source, dtype, **location))


def test_keywords_are_passed_on(checkpoint: Callable[[str], Path]) -> None:
    """Keywords that from_pretrained and the config know have the effect that they have in stock."""
    request = request_of(str(checkpoint("llama")), model_kwargs={"attn_implementation": "eager", "rms_norm_eps": 0.5})
    built = build_model(request)
    stock = stock_model(request.source, "float16", attn_implementation="eager", rms_norm_eps=0.5)
    assert_same_model(built, stock)
    assert built.config.rms_norm_eps == 0.5


def test_offload_on_purpose(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """A device_map that names the disk is obeyed: parameters on meta are then no error."""
    request = request_of(
        str(checkpoint("llama")),
        dtype="float32",
        device_map={"model": "cpu", "lm_head": "disk"},
        model_kwargs={"offload_folder": str(tmp_path)},
    )
    built = build_model(request)
    assert built.lm_head.weight.is_meta
    assert not built.model.embed_tokens.weight.is_meta


def test_repo_named_like_a_file_here(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file or directory in the working directory that has the repo's name is not read instead of the snapshot."""
    models.add_to_cache(checkpoint("llama"), tmp_path / "cache", "gpt2")
    (tmp_path / "gpt2").write_text("not a model")
    monkeypatch.chdir(tmp_path)
    built = build_model(request_of("gpt2", commit=models.COMMIT, cache_dir=str(tmp_path / "cache")))
    assert type(built).__name__ == "LlamaForCausalLM"
    assert built.config.name_or_path == built.name_or_path == "gpt2"


def test_many_threads_at_once(checkpoint: Callable[[str], Path]) -> None:
    """Builds of float16 and float32 models in many threads all come out right, and no global stays changed."""
    before = torch.get_default_dtype(), torch.nn.init.normal_, torch.linspace
    sources = [str(checkpoint(kind)) for kind in ("llama", "llama-tied", "gpt2")]
    requests = [request_of(source, dtype=dtype) for source in sources for dtype in ("float16", "float32")] * 4
    random.Random(1).shuffle(requests)
    with ThreadPoolExecutor(8) as pool:
        built = list(pool.map(build_model, requests))
    assert (torch.get_default_dtype(), torch.nn.init.normal_, torch.linspace) == before
    for model, request in zip(built, requests, strict=True):
        assert_same_model(model, stock_model(request.source, request.dtype))


def test_cancelled_while_waiting(checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A build whose turn comes after it was cancelled is not begun, and the next one is not held up."""
    request = request_of(str(checkpoint("llama")))
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(BuildCancelled):
        build_model(request, cancelled=lambda: True)
    monkeypatch.undo()
    assert build_model(request).dtype == torch.float16


def test_one_build_at_a_time(checkpoint: Callable[[str], Path]) -> None:
    """While one build is inside from_pretrained, another one waits."""
    source = str(checkpoint("llama-tied"))
    inside = 0
    most = 0
    guard = threading.Lock()

    def entered() -> bool:
        nonlocal inside, most
        with guard:
            inside += 1
            most = max(most, inside)
        return False

    def build(_: int) -> None:
        nonlocal inside
        build_model(request_of(source), cancelled=entered)
        with guard:
            inside -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(build, range(8)))
    # The lock is given back a moment before `inside` is lowered: two may be counted, never four.
    assert most <= 2


def test_default_dtype_that_model_code_changes(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Remote code that changes torch's default dtype is an error that says so, and the default is restored."""
    directory = models.remote_code(tmp_path / "model")
    code = directory / "modeling_tiny.py"
    code.write_text(code.read_text().replace(
        "        self.post_init()",
        "        self.post_init()\n\n    def eval(self):\n        import torch\n"
        "        torch.set_default_dtype(torch.float64)\n        return super().eval()",
    ))  # fmt: skip
    with pytest.raises(errors.IncompatibleModelError, match="default dtype was torch.float64 after") as caught:
        build_model(request_of(str(directory), trust_remote_code=True))
    assert torch.get_default_dtype() == torch.float32
    assert caught.value.model == str(directory)


def test_remote_code_of_two_directories_with_one_name(tmp_path: Path) -> None:
    """Two directories that share their last name and their configuration file each run their own model code."""
    built = {}
    for parent in ("a", "b"):
        directory = models.remote_code(tmp_path / parent / "model")
        code = directory / "modeling_tiny.py"
        code.write_text(code.read_text() + f"\n    parent = {parent!r}\n")
        built[parent] = build_model(request_of(str(directory), trust_remote_code=True)).parent
    assert built == {"a": "a", "b": "b"}


def test_failed_build_restores_everything(own_copy: Callable[[str], Path]) -> None:
    """After a failed build the default dtype is what it was and the next build works."""
    directory = own_copy("llama")
    whole = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(whole[:-50])
    with pytest.raises(errors.IncompatibleModelError):
        build_model(request_of(str(directory)))
    assert torch.get_default_dtype() == torch.float32
    (directory / "model.safetensors").write_bytes(whole)
    assert build_model(request_of(str(directory))).dtype == torch.float16


def test_no_output(checkpoint: Callable[[str], Path], capfd: pytest.CaptureFixture[str]) -> None:
    """A build draws no progress bar, and bars of other threads are left as they were."""
    from transformers.utils import logging

    build_model(request_of(str(checkpoint("llama-sharded"))))
    assert capfd.readouterr() == ("", "")
    hook = logging.set_tqdm_hook(None)
    assert hook is None


def test_first_builds_of_a_process_in_many_threads(checkpoint: Callable[[str], Path]) -> None:
    """Model and tokenizer builds may be the very first use of transformers, in several threads at once."""
    code = (
        "import sys\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from yaie_async.model.model import build_model\n"
        "from yaie_async.model.request import BuildRequest\n"
        "from yaie_async.model.tokenizer import build_tokenizer\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()\n"
        "from tests.support.requests import request_of\n"
        "requests = [request_of(name) for name in sys.argv[1:]]\n"
        "with ThreadPoolExecutor(8) as pool:\n"
        "    jobs = [pool.submit(f, r) for r in requests for f in (build_tokenizer, build_model)]\n"
        "    print([type(job.result()).__name__ for job in jobs])\n"
    )
    paths = [str(checkpoint(kind)) for kind in ("llama", "qwen2", "gpt2", "codegen")]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "CodeGenForCausalLM" in done.stdout

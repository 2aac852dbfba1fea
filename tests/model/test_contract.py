"""What the streaming build relies on in transformers, of which its documentation promises nothing.

Where one of these fails, a release of transformers has changed what it does with a state dict. Users are safe: the
build gives up and builds from the finished snapshot. `yaie_async/model/skeleton.py` and `tensors.py` have to follow.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, ItemsView
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, core_model_loading

from tests.support import models
from tests.support.requests import request_of
from yaie_async.model.pretrained import pretrained_arguments
from yaie_async.model.skeleton import model_class

CHANGED = "transformers no longer does what the streaming build relies on (see this module's docstring): "


class Value:
    """Takes what a streamed tensor takes, and nothing else."""

    def __init__(self, name: str, tensor: torch.Tensor, calls: list[tuple[str, Any]]) -> None:
        self._name, self._tensor, self._calls = name, tensor, calls

    def __getitem__(self, index: object) -> Value:
        assert index is ..., f"{CHANGED}it reads a part of a tensor"
        return self

    def to(self, *, device: Any, dtype: torch.dtype) -> torch.Tensor:
        self._calls.append((self._name, dtype))
        return self._tensor.to(device=device, dtype=dtype)

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{CHANGED}it asks a tensor of a state dict for {name}")


class Items:
    """A state dict that has items and nothing else."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def items(self) -> ItemsView[str, Any]:
        return self._values.items()


@pytest.fixture
def route(checkpoint: Callable[[str], Path]) -> Callable[..., Any]:
    """Load a checkpoint by way of a state dict whose values are made by `value(name, tensor)`."""
    from safetensors.torch import load_file

    def load(kind: str | Path, value: Callable[[str, torch.Tensor], Any], **options: Any) -> Any:
        directory = checkpoint(kind) if isinstance(kind, str) else kind
        request = request_of(str(directory), trust_remote_code=True, **options)
        found, config, rest = model_class(pretrained_arguments(request, directory, pickled=False))
        stored: dict[str, torch.Tensor] = {}
        for file in sorted(directory.glob("*.safetensors")):
            stored |= load_file(file)
        values = Items({name: value(name, tensor) for name, tensor in stored.items()})
        model, _ = found.from_pretrained(None, config=config, state_dict=values, **rest)
        return model

    return load


@pytest.mark.parametrize("kind", ["llama", "gpt2-hub-keys", "mixtral", "remote-code"])
def test_what_is_asked_of_a_value(route: Callable[..., Any], kind: str) -> None:
    """A mapping is asked for its items, a value for `[...]` and then `to(device=..., dtype=...)`, once."""
    calls: list[tuple[str, Any]] = []
    model = route(kind, lambda name, tensor: Value(name, tensor, calls))
    assert {dtype for _, dtype in calls} == {torch.float16}, f"{CHANGED}it casts later or elsewhere"
    assert len(calls) == len(dict(calls)), f"{CHANGED}it reads a tensor twice"
    assert model.dtype == torch.float16


def test_dtype_asked_for_is_the_final_one(route: Callable[..., Any], tmp_path: Path) -> None:
    """A parameter that a model keeps in float32 is asked for in float32: nothing is rounded on the way there."""
    directory = models.remote_code(tmp_path / "float32-head")
    code = directory / "modeling_tiny.py"
    code.write_text(
        code.read_text().replace(
            "    config_class = TinyConfig\n",
            '    config_class = TinyConfig\n    _keep_in_fp32_modules_strict = ["head"]\n',
        )
    )
    calls: list[tuple[str, Any]] = []
    model = route(directory, lambda name, tensor: Value(name, tensor, calls))
    assert dict(calls) == {"embed.weight": torch.float16, "head.weight": torch.float32}, f"{CHANGED}dtypes by module"
    assert model.head.weight.dtype == torch.float32


def test_order(route: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are read in the natural order of their names: the download follows it."""
    monkeypatch.setattr(core_model_loading, "GLOBAL_WORKERS", 1)
    calls: list[tuple[str, Any]] = []
    route("llama-sharded", lambda name, tensor: Value(name, tensor, calls))
    names = [name for name, _ in calls]
    assert names == sorted(names, key=core_model_loading.dot_natural_key), f"{CHANGED}the order of reading"


def test_error_of_a_value(route: Callable[..., Any]) -> None:
    """An error of a value comes out as it is, while others still wait; no thread is left when those have ended."""

    class FailedError(Exception):
        pass

    ended = threading.Event()
    before = set(threading.enumerate())

    class Fails(Value):
        def to(self, *, device: Any, dtype: torch.dtype) -> torch.Tensor:
            if self._name == "model.norm.weight":
                raise FailedError
            ended.wait(60)
            return super().to(device=device, dtype=dtype)

    timer = threading.Timer(0.2, ended.set)
    timer.start()
    with pytest.raises(FailedError):
        route("llama", lambda name, tensor: Fails(name, tensor, []))
    timer.join()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive(), f"{CHANGED}a thread of it lives on"
    assert torch.get_default_dtype() == torch.float32, f"{CHANGED}it leaves the default dtype changed"


def test_tensor_that_keeps_its_dtype_is_taken_as_it_is(route: Callable[..., Any]) -> None:
    """What a value returns becomes the parameter, and is not copied: a mapping stays one."""
    places: dict[str, int] = {}

    def value(name: str, tensor: torch.Tensor) -> Value:
        places[name] = tensor.data_ptr()
        return Value(name, tensor, [])

    model = route("llama", value)
    found = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    assert found == places, f"{CHANGED}it copies what needs no cast"


def test_generation(checkpoint: Callable[[str], Path]) -> None:
    """What gives a model its generation files takes the keywords that it is called with."""
    needed = {
        "generation_config", "from_auto_class", "from_pipeline", "pretrained_model_name_or_path", "cache_dir",
        "force_download", "proxies", "local_files_only", "token", "revision", "subfolder", "trust_remote_code",
    }  # fmt: skip
    found = set(inspect.signature(GenerationMixin.adjust_generation_fn).parameters)
    assert found == needed | {"self", "kwargs"}, f"{CHANGED}adjust_generation_fn has other arguments"


def test_directory_and_state_dict(checkpoint: Callable[[str], Path]) -> None:
    """A directory together with a state dict is refused: else `skeleton.py` would not be needed."""
    with pytest.raises(ValueError, match="cannot be passed together"):
        AutoModelForCausalLM.from_pretrained(checkpoint("llama"), state_dict={})


def test_unused_keywords(checkpoint: Callable[[str], Path]) -> None:
    """AutoConfig takes what is the config's and where its file is, and gives everything else back."""
    request = request_of(str(checkpoint("llama")), model_kwargs={"rms_norm_eps": 0.5, "max_memory": {"cpu": 1}})
    arguments = pretrained_arguments(request, Path(request.source), pickled=False)
    config, rest = AutoConfig.from_pretrained(**arguments, return_unused_kwargs=True)
    assert config.rms_norm_eps == 0.5
    assert rest.keys() == {
        "device_map", "use_safetensors", "weights_only", "ignore_mismatched_sizes", "output_loading_info", "max_memory",
    }, f"{CHANGED}what AutoConfig gives back"  # fmt: skip

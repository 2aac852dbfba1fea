"""Names and texts that decide whether a model is right: without one it is refused, never wrong.

That a model loads without each name is tested in tests/loader/test_compat.py.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers.models.auto import modeling_auto

from tests.model.test_model import stock_model
from tests.support import models
from tests.support.hiding import hidden
from tests.support.layouts import LAYOUTS
from tests.support.requests import request_of
from yaie_async.core import compat as core_compat
from yaie_async.core import errors
from yaie_async.core.compat import Names, version
from yaie_async.model import compat
from yaie_async.model.failures import translate
from yaie_async.model.model import build_model
from yaie_async.model.preflight import check_config
from yaie_async.model.pretrained import load_checked
from yaie_async.model.request import BuildRequest


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    monkeypatch.setattr(core_compat, "_logged", set())
    return Names({"math:tau": "circles are whole", "math:no.such": "all is lost", "no_such_module:x": "no more is"})


def test_a_name_that_is_there(names: Names, caplog: pytest.LogCaptureFixture) -> None:
    """It is returned, and nothing is logged; so is an attribute of an object."""
    assert names.find("math:tau") == pytest.approx(6.283185307)
    assert names.find("math:no.such", owner=type("Owner", (), {"such": 3})) == 3
    assert caplog.messages == []


def test_a_name_that_is_missing(names: Names, caplog: pytest.LogCaptureFixture) -> None:
    """It is None; one line says which library lacks it and what is lost, however often it is looked for."""
    for _ in range(3):
        assert names.find("math:no.such") is None
        assert names.find("math:no.such", owner=object()) is None
        assert names.find("no_such_module:x") is None
    assert caplog.messages == [
        "math (None) has no math.no.such: all is lost.",
        "no_such_module (None) has no no_such_module.x: no more is.",
    ]
    assert version("transformers") == transformers.__version__


def test_a_name_that_is_not_listed(names: Names) -> None:
    """Each name that is used is one that the tests take away."""
    with pytest.raises(KeyError):
        names.find("math:pi")


def test_code_of_two_models_with_one_name(tmp_path: Path) -> None:
    """Where transformers would run the first one's code for the second, the second is refused."""
    directories = []
    for parent in ("a", "b"):
        directory = models.remote_code(tmp_path / parent / "named-alike")
        code = directory / "modeling_tiny.py"
        code.write_text(code.read_text() + f"\n    parent = {parent!r}\n")
        directories.append(directory)
    with hidden(transformers.AutoModelForCausalLM._model_mapping, "_extra_content"):
        first = build_model(request_of(directories[0], trust_remote_code=True))
        assert first.parent == "a"
        with pytest.raises(errors.IncompatibleModelError, match="the code of another model") as caught:
            build_model(request_of(directories[1], trust_remote_code=True))
    assert caught.value.model == str(directories[1])
    assert build_model(request_of(directories[1], trust_remote_code=True)).parent == "b"


@pytest.mark.parametrize(
    "info",
    [{}, {"missing_keys": set()}, {"missing_keys": set(), "mismatched_keys": {"a.name"}}, {"mismatched_keys": set()}],
)
def test_a_report_of_another_form(checkpoint: Callable[[str], Path], info: dict[str, Any]) -> None:
    """A model of which transformers does not say what is random is refused."""
    directory = checkpoint("llama")
    model = stock_model(str(directory), "float16")
    with pytest.raises(errors.IncompatibleModelError, match="does not report random weights"):
        load_checked(lambda: (model, info), request_of(directory))
    whole: dict[str, Any] = {"missing_keys": set(), "mismatched_keys": set()}
    assert load_checked(lambda: (model, whole), request_of(directory)) is model


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("The device ran out of room (tried to reserve 20 GB)."),
        AssertionError("This build has no support for that accelerator."),
        ValueError("This repo has code of its own; consent to it first."),
        ValueError("There is no such kind of attention: nonsense."),
        TypeError("from_pretrained() does not take foo_bar"),
    ],
    ids=["memory", "device", "consent", "attention", "keyword"],
)
def test_a_text_that_another_release_has(error: Exception, checkpoint: Callable[[str], Path]) -> None:
    """An error whose text is not recognised is a general one that repeats it, and not one of another meaning."""
    directory = checkpoint("llama")
    translated = translate(error, request_of(directory, model_kwargs={"foo_bar": 1}))
    assert type(translated) is errors.IncompatibleModelError
    assert str(error).rstrip(".") in str(translated)
    assert translated.model == str(directory)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CUDA out of memory. GPU 1 has a total capacity of 80 GiB of which 1.50 GiB is free.", ("cuda:1", 3 << 29)),
        ("CUDA out of memory.", ("cuda", None)),
        ("of which 3 furlongs is free", ("cpu", None)),
        ("no room", ("cpu", None)),
    ],
)
def test_the_device_that_is_full(text: str, expected: tuple[str, int | None]) -> None:
    """It is the CPU, and its free memory unknown, where torch's text says nothing of either."""
    assert compat.full_device(text) == expected


def with_config(directory: Path, config: dict[str, Any]) -> BuildRequest:
    request = request_of(directory)
    return replace(request, manifest=replace(request.manifest, config=config))


_ENCODER = {"architectures": ["BertForMaskedLM"], "model_type": "bert"}
_ENCODER_DECODER = {"architectures": ["BartForConditionalGeneration"], "model_type": "bart"}


@pytest.mark.parametrize("config", [_ENCODER, _ENCODER_DECODER], ids=["encoder", "encoder-decoder"])
@pytest.mark.parametrize(
    "table",
    [
        "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
        "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
        "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    ],
)
def test_what_is_no_causal_model_is_known_without_a_table(
    table: str, config: dict[str, Any], checkpoint: Callable[[str], Path]
) -> None:
    """Its tensors are those of a causal language model, so nothing but the name of its class shows what it is."""
    with hidden(modeling_auto, table):
        if config is _ENCODER:
            (warning,) = check_config(with_config(checkpoint("llama"), config))
            assert "is a masked language model" in warning
            return
        with pytest.raises(errors.IncompatibleModelError, match="not a causal language"):
            check_config(with_config(checkpoint("llama"), config))


@pytest.mark.parametrize(
    "changes",
    [
        {"quantization_config": {"quant_method": ["x"]}},
        {"model_type": ["x"], "auto_map": {"AutoConfig": "a.B"}},
        {"model_type": {"x": 1}},
    ],
)
def test_a_config_with_lists_for_names(changes: dict[str, Any], checkpoint: Callable[[str], Path]) -> None:
    """What can't be a name is in no table, and is refused."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"} | changes
    with pytest.raises(errors.LoaderError):
        check_config(with_config(checkpoint("llama"), config))


def test_an_adapter_without_peft_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without peft transformers loads the base model alone, and says nothing."""
    LAYOUTS["adapter-beside"].write(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "peft", None)
    (warning,) = check_config(request_of(tmp_path / "model"))
    assert re.search(r"adapter_config\.json.* not applied.*pip install peft", warning)

"""Every way in which a build fails, provoked for real: the error's type, its text, its attributes."""

from __future__ import annotations

import copy
import errno
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma3Config, LlamaConfig

from tests.support import models
from tests.support.requests import request_of
from yaie_async.core import errors
from yaie_async.model.failures import translate
from yaie_async.model.model import build_model

Copy = Callable[[str], Path]


def fail(error: type[errors.LoaderError], match: str, directory: Path, **arguments: Any) -> Any:
    """Build, expect the error, and check what every error of this package has."""
    with pytest.raises(error, match=match) as caught:
        build_model(request_of(str(directory), **arguments))
    raised = caught.value
    assert type(raised) is error
    assert str(directory) in str(raised)
    assert raised.model == str(directory)
    assert str(pickle.loads(pickle.dumps(raised))) == str(copy.copy(raised)) == str(raised)
    assert torch.get_default_dtype() == torch.float32
    return raised


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def test_encoder_decoder(checkpoint: Copy) -> None:
    """T5 is refused by its config, with the class that loads it."""
    raised = fail(errors.IncompatibleModelError, "use AutoModelForSeq2SeqLM", checkpoint("t5"))
    assert raised.architecture == "T5ForConditionalGeneration"


def test_sequence_classifier(checkpoint: Copy) -> None:
    """A classifier, which stock loads with no more than a log line, is refused."""
    raised = fail(errors.IncompatibleModelError, "use AutoModelForSequenceClassification", checkpoint("classifier"))
    assert raised.architecture == "GPT2ForSequenceClassification"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_type": "hal9000", "architectures": None}, "does not know the model type 'hal9000'"),
        ({"model_type": None}, "no model_type"),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, "not a causal language model"),
        ({"model_type": "bart", "architectures": ["BartForConditionalGeneration"]}, "AutoModelForSeq2SeqLM"),
        ({"architectures": ["LlamaForTokenClassification"]}, "use AutoModelForTokenClassification"),
        ({"architectures": ["LlamaForQuestionAnswering"]}, "use AutoModelForQuestionAnswering"),
        ({"quantization_config": {"quant_method": "wow"}}, "does not know its quantisation 'wow'"),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            "needs a package that is not installed",
        ),
        ({"hidden_size": "wide"}, "expected int, got str"),
        ({"num_attention_heads": 0}, "ZeroDivisionError"),
        ({"num_hidden_layers": 3}, r"lacks model\.layers\.2\.input_layernorm\.weight, .* and 6 more"),
        ({"intermediate_size": 40}, r"other shapes .*down_proj\.weight: \(16, 32\) for \(16, 40\)"),
    ],
)
def test_config_that_does_not_fit(own_copy: Copy, changes: dict[str, Any], match: str) -> None:
    """A config that names something else, or does not fit its weights, is an IncompatibleModelError that says how."""
    directory = own_copy("llama")
    edit_config(directory, **changes)
    fail(errors.IncompatibleModelError, match, directory)


@pytest.mark.parametrize("content", ["{", "[]", "", '{"model_type": "llama"'])
def test_broken_config(own_copy: Copy, content: str) -> None:
    """A config.json that is no JSON object is named."""
    directory = own_copy("llama")
    (directory / "config.json").write_text(content)
    assert fail(errors.IncompatibleModelError, r"config\.json can't be read", directory).file == "config.json"


@pytest.mark.parametrize(
    ("file", "match"),
    [
        ("adapter_config.json", "PEFT adapter: load the base model"),
        ("model.Q4_K_M.gguf", "GGUF"),
        ("model_index.json", "diffusers"),
        ("params.json", r"\*-hf"),
        ("anything.txt", "save_pretrained"),
    ],
)
def test_no_config(tmp_path: Path, file: str, match: str) -> None:
    """A directory without config.json says what it seems to be instead."""
    (tmp_path / file).write_text("{}")
    fail(errors.IncompatibleModelError, f"has no config.json.*{match}", tmp_path)


@pytest.mark.parametrize(
    ("file", "match"),
    [
        ("model.gguf", "GGUF"),
        ("adapter_model.safetensors", "PEFT adapter"),
        ("tf_model.h5", r"It has tf_model\.h5"),
    ],
)
def test_no_weights(own_copy: Copy, file: str, match: str) -> None:
    """A model without weights in a format that is read says which others it has."""
    directory = own_copy("llama")
    (directory / "model.safetensors").rename(directory / file)
    fail(errors.IncompatibleModelError, f"has no model.safetensors.*{match}", directory)


@pytest.mark.parametrize("dtype", ["int8", "nope", "float8_e4m3fn", torch.int64, torch.complex64, None, 3])
def test_bad_dtype(checkpoint: Copy, dtype: Any) -> None:
    """A dtype that is unknown or not a floating-point one is an InvalidArgumentError that lists the good ones."""
    with pytest.raises(errors.InvalidArgumentError, match="auto, bfloat16, float16, float32, float64"):
        build_model(request_of(str(checkpoint("llama")), dtype=dtype))


def test_bad_stored_dtype(own_copy: Copy) -> None:
    """A config whose own dtype is no such thing is refused for "auto"."""
    directory = own_copy("llama")
    edit_config(directory, dtype="int4")
    fail(errors.IncompatibleModelError, "names the dtype 'int4'", directory, dtype="auto")


@pytest.mark.parametrize("device_map", ["cuda", "cuda:7", 0, "nonsense", -1])
def test_bad_device_map(checkpoint: Copy, device_map: Any) -> None:
    """A device that is not here is an InvalidArgumentError."""
    if torch.cuda.is_available() and device_map in ("cuda", 0):
        pytest.skip("this machine has that device")
    fail(errors.InvalidArgumentError, "device_map=.* can't be used", checkpoint("llama"), device_map=device_map)


def test_unknown_keyword(checkpoint: Copy) -> None:
    """A keyword that neither from_pretrained nor the model knows is named."""
    fail(
        errors.InvalidArgumentError,
        "foo_bar= is known neither",
        checkpoint("llama"),
        model_kwargs={"foo_bar": 1},
    )


@pytest.mark.parametrize("value", ["nonsense", "flash_attention_2"])
def test_attention_that_is_not_there(checkpoint: Copy, value: str) -> None:
    """An attention implementation that is unknown or not installed is an InvalidArgumentError."""
    fail(errors.InvalidArgumentError, "(?i)attn_impl|flash", checkpoint("llama"),
         model_kwargs={"attn_implementation": value})  # fmt: skip


@pytest.mark.parametrize("damage", ["truncated", "zeros", "empty", "header"])
def test_corrupt_safetensors(own_copy: Copy, damage: str) -> None:
    """A truncated or corrupt safetensors file is named."""
    directory = own_copy("llama-sharded")
    path = directory / "model-00002-of-00004.safetensors"
    whole = path.read_bytes()
    broken = {
        "truncated": whole[:-100],
        "zeros": bytes(100),
        "empty": b"",
        "header": whole[:8] + b"x" + whole[9:],
    }
    path.write_bytes(broken[damage])
    raised = fail(errors.IncompatibleModelError, f"{path.name} is truncated or corrupt", directory)
    assert raised.file == path.name
    assert type(raised.__cause__).__name__ == "SafetensorError"


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_corrupt_bin(own_copy: Copy, damage: str) -> None:
    """A truncated or corrupt pytorch_model.bin is named."""
    path = own_copy("dialogpt") / "pytorch_model.bin"
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[:-2000], "garbage": b"garbage" * 9, "empty": b""}[damage])
    raised = fail(errors.IncompatibleModelError, "truncated or corrupt", path.parent)
    assert raised.file == path.name


@pytest.mark.parametrize("device_map", ["mps", {"": "mps"}, "hpu", "xla"])
def test_a_device_that_this_torch_has_not(checkpoint: Copy, device_map: Any) -> None:
    """A device that this build of torch does not support is the argument's fault, and not the checkpoint's."""
    raised = fail(
        errors.InvalidArgumentError, "device_map=.* can't be used", checkpoint("llama"), device_map=device_map
    )
    assert 'Use "auto" or "cpu"' in str(raised)
    assert "may not fit together" not in str(raised)


@pytest.mark.parametrize(
    "device_map", ["meta", torch.device("meta"), {"": "meta"}, {"model": "cpu", "lm_head": "meta"}]
)
def test_the_meta_device(checkpoint: Copy, device_map: Any) -> None:
    """Weights on the meta device have no data: it is refused as an argument, with what makes an empty model."""
    fail(errors.InvalidArgumentError, "meta.* no data.*from_config", checkpoint("llama"), device_map=device_map)


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_implementation": "org/kernel"},
        {"_attn_implementation": "org/kernel@v1:attend"},
        {"_attn_implementation": {"": "org/kernel"}},
        {"attn_implementation": "paged|org/kernel"},
        {"attn_implementation": {"": "sdpa", "text_config": "org/kernel"}},
        {"text_config": {"inner_config": {"_attn_implementation": "org/kernel"}}},
        {"text_config": [{"_attn_implementation": "org/kernel"}]},
        {"attn_implementation": {"text_config": {"": "org/kernel"}}},
        {"experts_implementation": {"": {"": {"": "org/kernel"}}}},
        {"attribute_map": {"foo": "_attn_implementation"}, "foo": "org/kernel"},
        {"attribute_map": {"foo": "_experts_implementation_internal"}, "foo": "org/kernel"},
        {"attribute_map": {"_attn_implementation_internal": "foo"}, "foo": "org/kernel"},
        {"attribute_map": {"foo": "attribute_map"}, "foo": {"bar": "_attn_implementation"}, "bar": "org/kernel"},
    ],
)
def test_a_kernel_that_the_config_names(own_copy: Copy, changes: dict[str, Any]) -> None:
    """Compiled code of another repository is not fetched because config.json names it."""
    directory = own_copy("llama")
    edit_config(directory, **changes)
    raised = fail(errors.UnsafeFileError, "names the kernel '.*org/kernel", directory)
    assert raised.file == "config.json"


def test_a_kernel_that_another_config_file_names(own_copy: Copy) -> None:
    """transformers reads the file that config.json names for its release."""
    directory = own_copy("llama")
    shutil.copy(directory / "config.json", directory / "config.4.0.0.json")
    edit_config(directory, configuration_files=["config.4.0.0.json"])
    other = json.loads((directory / "config.4.0.0.json").read_text()) | {"attn_implementation": "org/kernel"}
    (directory / "config.4.0.0.json").write_text(json.dumps(other))
    fail(errors.UnsafeFileError, "names the kernel 'org/kernel'", directory)


def test_a_kernel_under_another_name_in_a_part(own_copy: Copy) -> None:
    """It is found in the text model too, where the caller can consent to it."""
    directory = own_copy("llama")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config={**sizes, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 300},
        vision_config={**sizes, "image_size": 28, "patch_size": 14},
    )
    hidden = {"attribute_map": {"foo": "_attn_implementation"}, "foo": {"text_config": {"": "org/kernel"}}}
    (directory / "config.json").write_text(json.dumps(config.to_dict() | hidden))
    fail(errors.UnsafeFileError, "names the kernel 'org/kernel'", directory)
    consent = {"attn_implementation": {"text_config": {"": "org/kernel"}}}
    fail(errors.IncompatibleModelError, "`kernels` is either not installed", directory, model_kwargs=consent)


@pytest.mark.parametrize("key", ["attn_implementation", "_experts_implementation"])
@pytest.mark.parametrize("value", [5, True, ["sdpa"], {"": [1]}], ids=str)
def test_an_implementation_that_is_no_name(own_copy: Copy, key: str, value: Any) -> None:
    """What is wrong is said, and what to pass instead."""
    directory = own_copy("llama")
    edit_config(directory, **{key: value})
    fail(errors.IncompatibleModelError, rf"its {key.strip('_')} is .*no name; pass {key.strip('_')}='", directory)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_another_attention_than_that_of_the_config(own_copy: Copy, key: str) -> None:
    """What the caller passes is used, where transformers lets it take the place of what config.json names."""
    directory = own_copy("llama")
    edit_config(directory, **{key: "org/kernel"})
    consent = {"attn_implementation": "org/kernel"}
    fail(errors.IncompatibleModelError, "`kernels` is either not installed", directory, model_kwargs=consent)
    if key == "attn_implementation":
        other: dict[str, Any] = {"attn_implementation": "sdpa"}
    else:
        fail(errors.UnsafeFileError, "'org/kernel'", directory, model_kwargs={"attn_implementation": "sdpa"})
        other = {"config": LlamaConfig.from_pretrained(directory)}
        other["config"]._attn_implementation = "sdpa"
    model = build_model(request_of(str(directory), model_kwargs=other))
    assert model.config._attn_implementation == "sdpa"


def test_a_kernel_that_is_not_trusted(checkpoint: Copy) -> None:
    """The error for a kernel of an unknown publisher names the argument that consents, which is not the code's."""
    text = "Kernel repository 'org/kernel' could not verify publisher trust status. Set trust_remote_code=True or add."
    raised = translate(ValueError(text), request_of(checkpoint("llama")))
    assert type(raised) is errors.InvalidArgumentError
    assert "pass allow_all_kernels=True" in str(raised)
    assert "trust_remote_code" not in str(raised)


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`kernels` and flash attention are installed, as far as can be seen without importing them."""
    for name in ("kernels", "flash_attn"):
        (tmp_path / "packages" / name).mkdir(parents=True)
        (tmp_path / "packages" / name / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "packages")


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("changes", "kernel"),
    [
        ({"attn_implementation": "flash_attention_2"}, "flash_attention_2"),
        ({"attn_implementation": "paged|flash_attention_3"}, "paged|flash_attention_3"),
        ({"experts_implementation": "sonicmoe"}, "sonicmoe"),
        ({"_experts_implementation": {"": "deepgemm"}}, "deepgemm"),
        ({"text_config": {"experts_implementation": "deepgemm_megamoe"}}, "deepgemm_megamoe"),
    ],
)
def test_a_name_that_stands_for_a_kernel(own_copy: Copy, changes: dict[str, Any], kernel: str) -> None:
    """Where `kernels` is installed, transformers fetches some implementations of attention and of experts."""
    directory = own_copy("mixtral")
    edit_config(directory, **changes)
    raised = fail(errors.UnsafeFileError, re.escape(f"names the kernel {kernel!r}"), directory)
    assert re.search(rf"pass (attn|experts)_implementation={re.escape(repr(kernel))}; else", str(raised))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("key", "built_in"),
    [
        ("attn_implementation", "sdpa"),
        ("attn_implementation", "eager"),
        ("experts_implementation", "eager"),
        ("experts_implementation", "batched_mm"),
        ("experts_implementation", "grouped_mm"),
    ],
)
def test_what_torch_brings_is_no_kernel(own_copy: Copy, key: str, built_in: str) -> None:
    """It is used as config.json says."""
    directory = own_copy("mixtral")
    edit_config(directory, **{key: built_in})
    assert getattr(build_model(request_of(str(directory))).config, f"_{key}") == built_in


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("asked", ["sonicmoe", "eager"])
def test_other_experts_than_those_of_the_config(own_copy: Copy, asked: str) -> None:
    """What the caller names is used."""
    directory = own_copy("mixtral")
    edit_config(directory, experts_implementation="sonicmoe")
    model = build_model(request_of(str(directory), model_kwargs={"experts_implementation": asked}))
    assert model.config._experts_implementation == asked


def test_kernels_that_only_arguments_choose(own_copy: Copy) -> None:
    """transformers takes these names as arguments only, so that config.json fetches nothing by them."""
    directory = own_copy("mixtral")
    internal = {f"_{key}_implementation_internal": "org/kernel" for key in ("attn", "experts")}
    edit_config(directory, use_kernels=True, kernel_config={"kernel_mapping": {"RMSNorm": "org/x:RMSNorm"}}, **internal)
    model = build_model(request_of(str(directory)))
    assert (model.use_kernels, model.kernel_config) == (False, None)
    assert (model.config._attn_implementation, model.config._experts_implementation) == ("sdpa", "grouped_mm")


def test_own_causal_code_of_a_known_type(own_copy: Copy) -> None:
    """Where only the repo's own code makes a causal model of a known type, its consent is asked for."""
    directory = own_copy("remote-code")
    edit_config(directory, model_type="qwen2_vl")
    raised = fail(errors.UnsafeFileError, "pass trust_remote_code=True", directory)
    assert raised.file == "modeling_tiny.py"
    edit_config(directory, auto_map={"AutoModel": "modeling_tiny.TinyForCausalLM"})
    fail(errors.IncompatibleModelError, "use AutoModelForImageTextToText", directory)


def test_missing_shard(own_copy: Copy) -> None:
    """A shard that the index lists and that is not there is named."""
    directory = own_copy("llama-sharded")
    (directory / "model-00003-of-00004.safetensors").unlink()
    raised = fail(errors.ModelFileNotFoundError, "names model-00003-of-00004", directory)
    assert raised.file == "model-00003-of-00004.safetensors"


@pytest.mark.parametrize("content", ["{", "{}", '{"weight_map": {}, "metadata": {}}', '{"weight_map": {"a": "b"}}'])
def test_broken_index(own_copy: Copy, content: str) -> None:
    """An index that can't be read, or lists nothing, is named."""
    directory = own_copy("llama-sharded")
    (directory / "model.safetensors.index.json").write_text(content)
    raised = fail(errors.IncompatibleModelError, r"model\.safetensors\.index\.json", directory)
    assert raised.file == "model.safetensors.index.json"


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/secret.safetensors", "a/../../b", "..\\b"])
def test_index_that_leaves_the_directory(own_copy: Copy, name: Any) -> None:
    """A shard name that leaves the directory is refused before anything is read, even where the file exists."""
    directory = own_copy("llama-sharded")
    (directory / "model-00001-of-00004.safetensors").rename(directory.parent / "secret.safetensors")
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], name)
    path.write_text(json.dumps(index))
    fail(errors.UnsafeFileError, "outside the model; nothing was read", directory)


def test_config_that_leaves_the_directory(own_copy: Copy) -> None:
    """`transformers_weights` in config.json is refused in the same way."""
    directory = own_copy("llama")
    edit_config(directory, transformers_weights="../secret.safetensors")
    fail(errors.UnsafeFileError, "outside the model", directory)


class Code:
    """Pickles as code that writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.path)!r}, 'w')",)


def test_pickle_with_code(own_copy: Copy, tmp_path: Path) -> None:
    """Code in a pytorch_model.bin is not run."""
    directory = own_copy("dialogpt")
    torch.save({"a": Code(tmp_path / "ran")}, directory / "pytorch_model.bin")
    raised = fail(errors.UnsafeFileError, "more than tensors, and nothing of it was run", directory)
    assert isinstance(raised.__cause__, pickle.UnpicklingError)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("kind", "file"), [("dialogpt", "pytorch_model.bin"), ("sharded-bin", "pytorch_model-00001-of-00002.bin")]
)
def test_pickles_refused(checkpoint: Copy, kind: str, file: str) -> None:
    """With allow_pickle=False a model that has only pickles is refused, and the file is named."""
    raised = fail(errors.UnsafeFileError, "allow_pickle=False was given", checkpoint(kind), allow_pickle=False)
    assert raised.file == file


def test_pickles_refused_beside_safetensors(checkpoint: Copy) -> None:
    """With allow_pickle=False a model that has safetensors too is built from these."""
    assert build_model(request_of(str(checkpoint("gpt2-like-repo")), allow_pickle=False)).dtype == torch.float16


def test_remote_code_without_consent(own_copy: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code of the repo is not run, not even imported, and the error says what to pass."""
    monkeypatch.setenv("TINY_MARK", str(tmp_path))
    raised = fail(errors.UnsafeFileError, "pass trust_remote_code=True", own_copy("remote-code"))
    assert raised.file == "modeling_tiny.py"
    assert not (tmp_path / "executed").exists()


def test_never_prompts(checkpoint: Copy) -> None:
    """Remote code without consent reads nothing from stdin, for the model and for the tokenizer."""
    code = (
        "import sys\n"
        "from yaie_async.model.model import build_model\n"
        "from yaie_async.model.tokenizer import build_tokenizer\n"
        "from tests.support.requests import request_of\n"
        "from yaie_async.core.errors import UnsafeFileError\n"
        "try: build_model(request_of(sys.argv[1], trust_remote_code=None))\n"
        "except UnsafeFileError: print('refused')\n"
        "build_tokenizer(request_of(sys.argv[1], trust_remote_code=None))\n"
        "print(sys.stdin.read())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(checkpoint("remote-code"))],
        input="y\ny\nuntouched", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["refused", "y", "y", "untouched"]


def test_broken_remote_code(own_copy: Copy) -> None:
    """Any exception of the model's own class becomes an IncompatibleModelError that chains it."""
    directory = own_copy("remote-code")
    code = (directory / "modeling_tiny.py").read_text()
    (directory / "modeling_tiny.py").write_text(code.replace("self.post_init()", "raise LookupError('my bug')"))
    raised = fail(errors.IncompatibleModelError, "LookupError: my bug", directory, trust_remote_code=True)
    assert isinstance(raised.__cause__, LookupError)


def test_remote_code_without_a_causal_lm(own_copy: Copy) -> None:
    """A repo whose code has other classes only says which."""
    directory = own_copy("remote-code")
    edit_config(directory, auto_map={"AutoConfig": "configuration_tiny.TinyConfig"})
    fail(errors.IncompatibleModelError, "has no AutoModelForCausalLM", directory, trust_remote_code=True)


def test_missing_code_file(own_copy: Copy) -> None:
    """A .py file that the config names and that is not there is named."""
    directory = own_copy("remote-code")
    (directory / "modeling_tiny.py").unlink()
    raised = fail(errors.ModelFileNotFoundError, "fetch the model again", directory, trust_remote_code=True)
    assert raised.file == "modeling_tiny.py"


def test_unreadable_file(checkpoint: Copy) -> None:
    """A file without read permission is a CacheAccessError with its path."""
    build_model(request_of(str(checkpoint("llama"))))  # whatever it imports is imported by now
    with tempfile.TemporaryDirectory() as parent:  # tmp_path is closed to other users
        directory = Path(shutil.copytree(checkpoint("llama"), Path(parent, "llama")))
        (directory / "model.safetensors").chmod(0)
        Path(parent).chmod(0o755)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)  # root may read everything
        try:
            raised = fail(errors.CacheAccessError, "Check its permissions", directory)
        finally:
            if root:
                os.seteuid(0)
        assert raised.path.endswith("model.safetensors")
        assert raised.errno == errno.EACCES


def test_no_memory(tmp_path: Path) -> None:
    """A model larger than the memory that the process may have is an OutOfMemoryError with figures."""
    directory = models.llama(tmp_path / "model", dtype="bfloat16", hidden=1024)
    code = (
        "import resource, sys\n"
        "from yaie_async.model.imports import import_libraries\n"
        "from yaie_async.model.model import build_model\n"
        "from tests.support.requests import request_of\n"
        "from yaie_async.core.errors import OutOfMemoryError\n"
        "import_libraries()\n"
        "import transformers.models.llama.modeling_llama\n"
        "import torch\n"
        "build_model(request_of(sys.argv[2]))\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 50_000_000,) * 2)\n"
        "try: build_model(request_of(sys.argv[1], dtype='float32'))\n"
        "except OutOfMemoryError as error:\n"
        "    print(error.device, error.needed, error.free > 0, isinstance(error, MemoryError), error)\n"
        "    print(torch.get_default_dtype())\n"
    )
    small = models.llama(tmp_path / "small")
    done = subprocess.run(
        [sys.executable, "-c", code, str(directory), str(small)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    size = (directory / "model.safetensors").stat().st_size
    assert done.stdout.startswith(f"cpu {2 * size} True True {directory} does not fit into the memory of cpu")
    assert done.stdout.endswith("torch.float32\n")


def test_auto_does_not_spill_to_disk(checkpoint: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where device_map="auto" finds too little memory it is an OutOfMemoryError, not a model read from disk."""
    import psutil

    real = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: real._replace(available=20_000))
    raised = fail(errors.OutOfMemoryError, "does not fit", checkpoint("llama"))
    assert raised.free == 20_000
    assert raised.needed > 20_000


def test_missing_library(checkpoint: Copy) -> None:
    """A torch that can't be imported is a LoaderError that says which package to install."""
    code = (
        "import sys\n"
        "sys.modules['accelerate'] = None\n"
        "from yaie_async.model.model import build_model\n"
        "from tests.support.requests import request_of\n"
        "build_model(request_of(sys.argv[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(checkpoint("llama"))], capture_output=True, text=True, check=False
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("yaie_async.core.errors.LoaderError: A library that builds models can't be imported")


def test_failure_while_another_is_handled(checkpoint: Copy) -> None:
    """What the caller was handling when it built is not taken for the reason of the failure."""
    try:
        raise errors.OutOfMemoryError("an earlier one", needed=1, free=1, device="cpu")
    except errors.OutOfMemoryError:
        fail(
            errors.InvalidArgumentError,
            "foo_bar= is known neither",
            checkpoint("llama"),
            model_kwargs={"foo_bar": 1},
        )


def test_memory_of_a_failed_build_is_free(own_copy: Copy) -> None:
    """While the error is kept, the half-built model behind it is not."""
    directory = own_copy("llama")
    edit_config(directory, num_hidden_layers=3)
    raised = fail(errors.IncompatibleModelError, "lacks", directory)
    import gc

    gc.collect()
    assert not [
        o for o in gc.get_objects() if type(o).__name__ == "LlamaForCausalLM" and o.name_or_path == str(directory)
    ]
    assert raised is not None

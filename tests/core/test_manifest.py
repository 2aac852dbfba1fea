"""Which files a load takes, decided on listings alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yaie_async.core.errors import (
    IncompatibleModelError,
    LoaderError,
    ModelFileNotFoundError,
    UnsafeFileError,
)
from yaie_async.core.manifest import Listing, Manifest, Need, RepoFile, WeightRules, check_small, draft

BASE = ("config.json", "tokenizer.json", "tokenizer_config.json")


def listing(*paths: str) -> dict[str, RepoFile]:
    return {path: RepoFile(path, 1, "0" * 40) for path in paths}


def chosen(
    *paths: str,
    weights: bool = True,
    code: bool = False,
    rules: WeightRules | None = None,
    contents: Mapping[str, Any] | None = None,
) -> Manifest:
    """The manifest of a repository with these files, of which config.json and `contents` can be read."""
    readable = {"config.json": {}, **(contents or {})}
    need = Need(weights, code, rules or WeightRules())
    made = draft(Listing("0" * 40, listing(*paths)), need, model="org/name", folder=Path("folder"))
    return made.sharpened(lambda file: json.dumps(readable[file.path]).encode() if file.path in readable else None)


def names(manifest: Manifest) -> list[str]:
    return [file.path for file in manifest.files]


# -- small files --------------------------------------------------------------------------------------------


def test_a_repo_in_seven_formats_costs_one_weight_set() -> None:
    """A repository like gpt2's gives only its safetensors and tokenizer files, with config.json last."""
    wanted = chosen(
        *BASE,
        "merges.txt",
        "vocab.json",
        "generation_config.json",
        "model.safetensors",
        "pytorch_model.bin",
        "tf_model.h5",
        "flax_model.msgpack",
        "rust_model.ot",
        "64.tflite",
        "onnx/decoder_model.onnx",
        "onnx/config.json",
        "onnx/tokenizer.json",
        "README.md",
        ".gitattributes",
    )
    assert names(wanted) == [
        "generation_config.json",
        "merges.txt",
        "tokenizer.json",
        "vocab.json",
        "tokenizer_config.json",
        "model.safetensors",
        "config.json",
    ]


@pytest.mark.parametrize(
    "path",
    [
        "tokenizer.model",
        "spiece.model",
        "sentencepiece.bpe.model",
        "qwen.tiktoken",
        "vocab.txt",
        "vocab.bpe",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "additional_chat_templates/tool_use.jinja",
        "preprocessor_config.json",
        "adapter_config.json",
    ],
)
def test_a_file_that_a_tokenizer_reads_is_taken(path: str) -> None:
    """Every file that some tokenizer reads is taken, with and without weights."""
    assert path in names(chosen(*BASE, path, weights=False))
    assert path in names(chosen(*BASE, path, "model.safetensors"))


@pytest.mark.parametrize(
    "path",
    [
        "tokenizer.pkl",
        "vocab.bin",
        "tokenizer.pt",
        "original/params.json",
        "original/tokenizer.model",
        "modeling_x.py",
        "adapter_model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin.index.json",
        "pytorch_model.bin.index.fp16.json",
        "nested/additional_chat_templates/x.jinja",
        "training_args.bin",
        "optimizer.pt",
        "model.fp16.safetensors",
        "README.md",
    ],
)
def test_a_file_that_no_load_needs_is_left_out(path: str) -> None:
    """Pickles, other formats, folders, code, and the index of a weight set that is not taken are left out."""
    assert path not in names(chosen(*BASE, path, "model.safetensors"))


def test_code_is_taken_with_consent_only() -> None:
    """`.py` files, in folders too, are taken only if code is wanted, and linked before tokenizer_config.json."""
    files = (*BASE, "modeling_x.py", "lib/util.py", "model.safetensors")
    assert not [name for name in names(chosen(*files)) if name.endswith(".py")]
    with_code = names(chosen(*files, code=True))
    assert with_code[:2] == ["lib/util.py", "modeling_x.py"]
    assert with_code[-3:] == ["tokenizer_config.json", "model.safetensors", "config.json"]


@pytest.mark.parametrize(
    ("count", "size", "suffix"),
    [(1001, 1, ".py"), (1001, 1, ".txt"), (1001, 1, ".json"), (20, 16_000_000, ".py"), (20, 16_000_000, ".txt")],
)
def test_small_files_have_a_limit(count: int, size: int, suffix: str) -> None:
    """More of them than a model can need, or more bytes of code and beside code, are refused where they are fetched."""
    rest = (*BASE, "x.py")
    files = {path: RepoFile(path, 0) for path in (*rest, "model.safetensors")}
    files |= {path: RepoFile(path, size) for path in (f"x{number}{suffix}" for number in range(count - len(rest)))}
    files["x0" + suffix] = RepoFile("x0" + suffix, size + 1)

    def small(commit: str | None) -> int:
        need = Need(weights=False, code=True)
        return len(draft(Listing(commit, files), need, model="org/name", folder=Path("folder")).small)

    with pytest.raises(
        UnsafeFileError, match=rf"org/name has {count:,} small files.* None was .*`hf download org/name`"
    ):
        small("0" * 40)
    assert small(None) == count
    del files["x0" + suffix]
    assert small("0" * 40) == count - 1


def test_weights_among_the_small_files_are_no_code() -> None:
    """Those of an adapter may be of any size."""
    check_small([RepoFile("adapter_model.safetensors", 10**9)], model="org/name")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (("adapter_config.json", "adapter_model.safetensors"), "adapter"),
        (("model-Q4_K_M.gguf", "README.md"), "GGUF"),
        (("README.md",), "not a transformers model"),
        ((), "not a transformers model"),
    ],
)
def test_without_config_the_error_says_what_the_repository_has(files: tuple[str, ...], says: str) -> None:
    """A repository without config.json is refused with an error that says what it seems to be."""
    with pytest.raises(IncompatibleModelError, match=rf"org/name.*{says}") as caught:
        chosen(*files)
    assert caught.value.model == "org/name"


# -- weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "rules", "expected"),
    [
        (("model.safetensors", "pytorch_model.bin"), WeightRules(), ["model.safetensors"]),
        (("pytorch_model.bin",), WeightRules(), ["pytorch_model.bin"]),
        (
            ("model.safetensors", "model.fp16.safetensors"),
            WeightRules(variant="fp16"),
            ["model.fp16.safetensors"],
        ),
        (("pytorch_model.fp16.bin",), WeightRules(variant="fp16"), ["pytorch_model.fp16.bin"]),
        (
            ("model.safetensors", "pytorch_model.bin"),
            WeightRules(safetensors=False),
            ["pytorch_model.bin"],
        ),
        (
            ("model.safetensors", "model.safetensors.index.json", "model-00001-of-00001.safetensors"),
            WeightRules(),
            ["model.safetensors"],
        ),
        (
            (
                "model.safetensors.index.json",
                "model-00002-of-00002.safetensors",
                "model-00001-of-00002.safetensors",
                "consolidated.safetensors",
            ),
            WeightRules(),
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ),
        (
            ("model.safetensors.index.fp16.json", "model.fp16-00001-of-00001.safetensors"),
            WeightRules(variant="fp16"),
            ["model.fp16-00001-of-00001.safetensors"],
        ),
        (
            ("model.safetensors.index.fp16.json", "model-00001-of-00001.fp16.safetensors"),
            WeightRules(variant="fp16"),
            ["model-00001-of-00001.fp16.safetensors"],
        ),
    ],
)
def test_the_weight_set_is_the_one_that_from_pretrained_takes(
    files: tuple[str, ...], rules: WeightRules, expected: list[str]
) -> None:
    """safetensors come before pickles, and one file before a sharded set; only the requested variant counts."""
    assert [file.path for file in chosen(*BASE, *files, rules=rules).weights] == expected


def test_the_index_decides_once_it_can_be_read() -> None:
    """An index names the shards, each once and sorted, whatever the files are called."""
    files = (*BASE, "model.safetensors.index.json", "b.safetensors", "a.safetensors", "model-1-of-1.safetensors")
    weight_map = {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}
    index = {"metadata": {}, "weight_map": weight_map}
    wanted = chosen(*files, contents={"model.safetensors.index.json": index})
    assert [file.path for file in wanted.weights] == ["a.safetensors", "b.safetensors"]
    assert wanted.index == "model.safetensors.index.json"
    assert names(wanted)[0] == wanted.index


def test_the_config_may_name_the_weights() -> None:
    """`transformers_weights` in config.json has priority over the usual names, as in from_pretrained."""
    wanted = chosen(
        *BASE,
        "model.safetensors",
        "special.safetensors",
        contents={"config.json": {"transformers_weights": "special.safetensors"}},
    )
    assert [file.path for file in wanted.weights] == ["special.safetensors"]


@pytest.mark.parametrize(
    "index", [{}, {"weight_map": []}, {"metadata": {}, "weight_map": {"x": 1}}, {"metadata": {}, "weight_map": {}}]
)
def test_an_index_without_a_weight_map_is_refused(index: Any) -> None:
    """An index that maps no tensors to file names is an IncompatibleModelError."""
    files = (*BASE, "model.safetensors.index.json", "model-00001-of-00001.safetensors")
    with pytest.raises(IncompatibleModelError, match="org/name has no weight_map"):
        chosen(*files, contents={"model.safetensors.index.json": index})


@pytest.mark.parametrize("content", [[], "text", 3])
@pytest.mark.parametrize("path", ["config.json", "model.safetensors.index.json"])
def test_json_that_is_no_object_is_refused(path: str, content: Any) -> None:
    """A config.json or index that is not a JSON object is an IncompatibleModelError that names the file."""
    files = (*BASE, "model.safetensors.index.json", "model-00001-of-00001.safetensors")
    with pytest.raises(
        IncompatibleModelError, match=rf"org/name: {path} can't be read \(it is not a JSON object\)"
    ) as caught:
        chosen(*files, contents={path: content})
    assert caught.value.file == path


def test_an_index_without_metadata_is_refused_as_stock_refuses_it() -> None:
    """transformers fails with a KeyError on an index without "metadata", so it is refused before the weights are fetched."""
    index = {"weight_map": {"x": "model-00001-of-00001.safetensors"}}
    files = (*BASE, "model.safetensors.index.json", "model-00001-of-00001.safetensors")
    with pytest.raises(IncompatibleModelError, match="no metadata"):
        chosen(*files, contents={"model.safetensors.index.json": index})


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "C:\\x", "..\\x", "", "a//b"])
def test_a_weight_map_that_leaves_the_folder_is_unsafe(name: str) -> None:
    """A hostile path in `weight_map`, or in the config, is an UnsafeFileError that names it."""
    index = {"metadata": {}, "weight_map": {"x": name}}
    for contents in ({"model.safetensors.index.json": index}, {"config.json": {"transformers_weights": name}}):
        with pytest.raises(UnsafeFileError) as caught:
            chosen(*BASE, "model.safetensors.index.json", contents=contents)
        assert caught.value.file == name
        assert repr(name) in str(caught.value)


def test_a_missing_shard_is_named() -> None:
    """A shard that is in the index but not in the repository is a ModelFileNotFoundError."""
    index = {"metadata": {}, "weight_map": {"x": "gone.safetensors"}}
    files = (*BASE, "model.safetensors.index.json")
    with pytest.raises(ModelFileNotFoundError, match=r"org/name names gone\.safetensors") as caught:
        chosen(*files, contents={"model.safetensors.index.json": index})
    assert caught.value.file == "gone.safetensors"


def test_refused_pickles_say_how_to_accept_them() -> None:
    """If only pickles exist and they are refused, the error says how to accept them, for a sharded set too."""
    for files in (
        ("pytorch_model.bin",),
        ("pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"),
    ):
        with pytest.raises(UnsafeFileError, match=r"org/name.*allow_pickle=True") as caught:
            chosen(*BASE, *files, rules=WeightRules(pickle=False))
        assert caught.value.file == files[-1]


@pytest.mark.parametrize(
    ("files", "rules", "says"),
    [
        ((), WeightRules(), "no weight files at all"),
        (("tf_model.h5", "model.gguf"), WeightRules(), r"It has model\.gguf, tf_model\.h5"),
        (("model.safetensors",), WeightRules(variant="fp16"), r"variant 'fp16'.*It has model\.safetensors"),
        (("sub/model.safetensors",), WeightRules(), "no weight files at all"),
    ],
)
def test_without_weights_the_error_names_the_files(files: tuple[str, ...], rules: WeightRules, says: str) -> None:
    """A repository without readable weights is refused with the names of its weight files."""
    with pytest.raises(IncompatibleModelError, match=f"org/name.*{says}"):
        chosen(*BASE, *files, rules=rules)


def test_a_tokenizer_needs_no_weights() -> None:
    """A repository without weights gives its tokenizer."""
    wanted = chosen(*BASE, weights=False)
    assert names(wanted) == ["tokenizer.json", "tokenizer_config.json", "config.json"]


_LISTABLE = st.sampled_from(
    [
        "tokenizer.json",
        "vocab.json",
        "x.json",
        "x.py",
        "tokenizer_config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "pytorch_model-00001-of-00001.bin",
        "onnx/model.onnx",
        "README.md",
    ]
)


@given(st.sets(_LISTABLE), st.booleans(), st.booleans(), st.booleans())
def test_chosen_files_are_listed_once_and_config_is_last(
    paths: set[str], weights: bool, code: bool, pickle: bool
) -> None:
    """For any listing, the chosen files are listed ones, each once, with one kind of weights and config.json last."""
    try:
        wanted = chosen("config.json", *paths, weights=weights, code=code, rules=WeightRules(pickle=pickle))
    except LoaderError:
        assert weights
        return
    taken = names(wanted)
    assert set(taken) <= {"config.json", *paths}
    assert len(taken) == len(set(taken))
    assert taken[-1] == "config.json"
    kinds = {PurePosixPath(file.path).suffix for file in wanted.weights}
    assert len(kinds) <= 1
    assert pickle or ".bin" not in kinds

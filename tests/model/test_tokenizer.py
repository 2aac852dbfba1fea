"""build_tokenizer gives the tokenizer that AutoTokenizer.from_pretrained gives, with a pad token."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.support import models
from tests.support.requests import request_of
from yaie_async.core import errors
from yaie_async.model.tokenizer import build_tokenizer

TEXT = "hello, wörld 123\n\t hell"


@pytest.mark.parametrize("place", ["directory", "snapshot"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "codegen", "remote-code"])
def test_same_as_stock(checkpoint: Callable[[str], Path], tmp_path: Path, kind: str, place: str) -> None:
    """Class, vocabulary, ids, settings, templates and name are stock's; only the pad token may differ."""
    directory = Path(shutil.copytree(checkpoint(kind), tmp_path / kind))
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tools.jinja").write_text("tools")
    source = str(directory)
    mine: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    if place == "snapshot":
        source = models.unique_repo_id(kind)
        models.add_to_cache(directory, tmp_path, source)
        mine = {"commit": models.COMMIT, "cache_dir": str(tmp_path)}
        theirs = {"revision": models.COMMIT, "cache_dir": str(tmp_path)}
    built = build_tokenizer(request_of(source, trust_remote_code=True, **mine))
    stock: Any = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=True, **theirs)
    assert type(built) is type(stock)
    assert built.name_or_path == stock.name_or_path == source
    assert built.init_kwargs["name_or_path"] == source
    assert built.get_vocab() == stock.get_vocab()
    assert built(TEXT).input_ids == stock(TEXT).input_ids
    assert built.decode(built(TEXT).input_ids) == stock.decode(stock(TEXT).input_ids)
    assert built.chat_template == stock.chat_template
    assert set(built.chat_template) == {"default", "tools"}
    for setting in (
        "padding_side",
        "truncation_side",
        "model_max_length",
        "eos_token",
        "bos_token",
        "unk_token",
    ):
        assert getattr(built, setting) == getattr(stock, setting)
    assert built.pad_token == (stock.pad_token or stock.eos_token)
    assert built.pad_token_id is not None


def test_pad_token_of_its_own(checkpoint: Callable[[str], Path]) -> None:
    """A pad token that the tokenizer has is kept."""
    assert build_tokenizer(request_of(str(checkpoint("qwen2")))).pad_token == "<pad>"


def test_neither_pad_nor_eos(own_copy: Callable[[str], Path]) -> None:
    """A tokenizer with neither is a TokenizerError that says what to do."""
    directory = own_copy("llama")
    models.bpe_tokenizer(directory, eos=False)
    with pytest.raises(errors.TokenizerError, match="neither a pad token nor an eos token") as caught:
        build_tokenizer(request_of(str(directory)))
    assert caught.value.model == str(directory)


@pytest.mark.parametrize("damage", ["broken", "absent", "config"])
def test_damaged_files(own_copy: Callable[[str], Path], damage: str) -> None:
    """Files that are damaged or missing are a TokenizerError that chains its cause."""
    directory = own_copy("llama")
    if damage == "absent":
        (directory / "tokenizer.json").unlink()
    else:
        (directory / ("tokenizer.json" if damage == "broken" else "tokenizer_config.json")).write_text("{")
    with pytest.raises(errors.TokenizerError, match="can't be built") as caught:
        build_tokenizer(request_of(str(directory)))
    assert caught.value.__cause__ is not None


def test_remote_code_without_consent(own_copy: Callable[[str], Path]) -> None:
    """A tokenizer whose class is in the repo is refused, and the error says what to pass."""
    directory = own_copy("remote-code")
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {
        "tokenizer_class": "TinyTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_tiny.TinyTokenizer", None]},
    }
    path.write_text(json.dumps(config))
    with pytest.raises(errors.UnsafeFileError, match="pass trust_remote_code=True"):
        build_tokenizer(request_of(str(directory)))


def test_class_chosen_by_repo_id(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """For the repo ids that transformers has exceptions for, a snapshot gets the same class as from stock."""
    repo = "deepseek-ai/deepseek-coder-tiny"
    directory = Path(shutil.copytree(checkpoint("llama"), tmp_path / "copy"))
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "GPT2Tokenizer"}))
    models.add_to_cache(directory, tmp_path, repo)
    built = build_tokenizer(request_of(repo, commit=models.COMMIT, cache_dir=str(tmp_path)))
    stock = AutoTokenizer.from_pretrained(repo, revision=models.COMMIT, cache_dir=str(tmp_path), local_files_only=True)
    assert type(built) is type(stock)
    assert type(built).__name__ == "TokenizersBackend"

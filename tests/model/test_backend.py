"""build_backend gives the tokenizer that Tokenizer.from_file gives, or refuses; so do classes that build their own."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from tests.support.requests import tokenizer_request_of
from yaie_async.model import backend, tokenizer
from yaie_async.model.backend import build_backend, read_parts

ALPHABET = "etaoin shrdlu ETAOIN 0123456789 .,;:!?'\"\\/(){}[]<>|_-\n\t\r äöüßéñçø σπ ждий 日本語 한국 العربية 🙂👍🏽‍ \u200b\u0301\ufeff"
RARE = [*range(0xD800), *range(0xE000, 0x110000, 97)]


def text_of(rng: random.Random, length: int) -> str:
    """Random text of common letters, rare ones, and any code point now and then."""
    return "".join(rng.choice(ALPHABET) if rng.random() < 0.98 else chr(rng.choice(RARE)) for _ in range(length))


def corpus() -> list[str]:
    rng = random.Random(1)
    return [text_of(rng, 200) for _ in range(150)]


def byte_level() -> Tokenizer:
    """As GPT-2 and Llama 3: bytes, with special tokens inside and behind the vocabulary."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=3000, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(corpus(), trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made.add_special_tokens([AddedToken("<|left|>", lstrip=True), AddedToken("<|word|>", single_word=True)])
    made.add_tokens([AddedToken("ta", normalized=True), AddedToken(" plain ", rstrip=True, normalized=False)])
    made.add_special_tokens(["<|last|>"])
    return made


def sentencepiece() -> Tokenizer:
    """As Llama 2 and Mistral: pieces with a mark for the space, and bytes for what is unknown."""
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=2500, special_tokens=names, limit_alphabet=60, show_progress=False)
    made.train_from_iterator([text[:60] for text in corpus()], trainer)
    return made


def affixes() -> Tokenizer:
    """As CLIP: the last piece of a word is marked; lower case only."""
    made = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=["<unk>"], limit_alphabet=80, end_of_word_suffix="</w>", show_progress=False
    )
    made.train_from_iterator(corpus(), trainer)
    made.enable_truncation(40, stride=2)
    made.enable_padding(length=45, pad_id=0, pad_token="<unk>")
    return made


def plain(document: dict[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False)


def escaped(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2)


def old_merges(document: dict[str, Any]) -> str:
    """Merges as strings, as the library wrote them until 2024."""
    model = document["model"]
    return plain({**document, "model": {**model, "merges": [" ".join(merge) for merge in model["merges"]]}})


def ignoring_merges(document: dict[str, Any]) -> str:
    return plain({**document, "model": {**document["model"], "ignore_merges": True}})


def without_merges(document: dict[str, Any]) -> str:
    return plain({**document, "model": {**document["model"], "merges": []}})


_MADE: dict[str, dict[str, Any]] = {}


def document_of(kind: Callable[[], Tokenizer]) -> dict[str, Any]:
    if kind.__name__ not in _MADE:
        _MADE[kind.__name__] = json.loads(kind().to_str())
    return copy.deepcopy(_MADE[kind.__name__])


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        (byte_level, plain),
        (byte_level, escaped),
        (byte_level, old_merges),
        (byte_level, ignoring_merges),
        (byte_level, without_merges),
        (sentencepiece, plain),
        (affixes, plain),
    ],
    ids=lambda function: function.__name__,
)
def test_it_is_what_the_library_builds(kind: Any, form: Any) -> None:
    text = form(document_of(kind))
    assert_equal(build_backend(text), Tokenizer.from_str(text))


@cache
def random_strings() -> list[str]:
    rng = random.Random(2)
    return [text_of(rng, rng.randrange(60)) for _ in range(10_000)]


@cache
def tried(state: str) -> list[str]:
    """The random strings, and strings with each added token of the tokenizer whose state is given."""
    rng = random.Random(3)
    added = [token["content"] for token in json.loads(state)["added_tokens"]]
    return random_strings() + [text_of(rng, 5) + token + text_of(rng, 5) for token in added] + added


@cache
def answers(state: str) -> tuple[list[Any], list[list[str]]]:
    """What the library's tokenizer of this state makes of these strings: ids, offsets and masks, and texts again."""
    stock = Tokenizer.from_str(state)
    encoded = stock.encode_batch(tried(state))
    ids = [one.ids for one in encoded]
    texts = [stock.decode_batch(ids, skip_special_tokens=skip) for skip in (True, False)]
    return [(one.ids, one.offsets, one.special_tokens_mask) for one in encoded], texts


def assert_equal(built: Tokenizer, stock: Tokenizer) -> None:
    """All of its state is the same, and so are ids, offsets and text of 10,000 random strings, and every added token."""
    state = stock.to_str()
    assert json.loads(built.to_str()) == json.loads(state)
    encoded, texts = answers(state)
    mine = built.encode_batch(tried(state))
    assert [(one.ids, one.offsets, one.special_tokens_mask) for one in mine] == encoded
    ids = [one.ids for one in mine]
    assert [built.decode_batch(ids, skip_special_tokens=skip) for skip in (True, False)] == texts
    for one in ids[-100:]:
        for skip in (True, False):
            assert built.decode(one, skip_special_tokens=skip) == stock.decode(one, skip_special_tokens=skip)


def _model(**changed: Any) -> Callable[[dict[str, Any]], str]:
    return lambda document: plain({**document, "model": {**document["model"], **changed}})


def _added(document: dict[str, Any]) -> str:
    document["added_tokens"][-1]["id"] += 5
    return plain(document)


DOUBTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "another kind of model": _model(type="WordLevel"),
    "no kind, as the oldest files": lambda d: plain(
        {**d, "model": {k: v for k, v in d["model"].items() if k != "type"}}
    ),
    "an option of later versions": _model(new_option=True),
    "dropout": _model(dropout=0.1),
    "an added token with a gap before its number": _added,
    "a merge of three": _model(merges=["a b c"]),
    "a line of merges.txt": _model(merges=["#version: 0.2"]),
    "a merge of unknown tokens": _model(merges=[["nobody", "knows"]]),
    "a number that is none": _model(vocab={"a": 1.5}),
    "a number too large": _model(vocab={"a": 2**40}),
    "a lone surrogate": lambda d: json.dumps({**d, "model": {**d["model"], "vocab": {"\ud800": 0}, "merges": []}}),
    "no vocabulary": lambda d: plain({**d, "model": {k: v for k, v in d["model"].items() if k != "vocab"}}),
    "vocabulary twice": lambda d: plain(d).replace('"merges":', '"vocab": {}, "merges":'),
    "cut off": lambda d: plain(d)[:-1],
    "more behind it": lambda d: plain(d) + "{}",
    "not an object": lambda d: f"[{plain(d)}]",
    "empty": lambda d: "",
}


@pytest.mark.parametrize("doubt", DOUBTS)
def test_it_refuses_what_it_does_not_know(doubt: str) -> None:
    """Where it could be other than the library's, there is none."""
    text = DOUBTS[doubt](document_of(byte_level))
    with pytest.raises(Exception):  # noqa: B017, PT011 - of any kind
        build_backend(text)


# -- as a tokenizer of transformers -------------------------------------------------------------------------


def write(directory: Path, document: str, **config: Any) -> Path:
    directory.mkdir()
    (directory / "tokenizer.json").write_text(document, encoding="utf-8")
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": 77,
        "added_tokens_decoder": {
            str(token["id"]): {name: value for name, value in token.items() if name != "id"}
            for token in json.loads(document)["added_tokens"]
        },
    }
    (directory / "tokenizer_config.json").write_text(json.dumps({**described, **config}))
    return directory


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was read out of files here; those of any size count as large."""
    made: list[object] = []

    def noted(really: Callable[[str], object]) -> Callable[[str], object]:
        def read_and_note(text: str) -> object:
            made.append(really(text))
            return made[-1]

        return read_and_note

    for function in (build_backend, read_parts):
        monkeypatch.setattr(backend, function.__name__, noted(function))
    monkeypatch.setattr(tokenizer, "_LARGE", 0)
    return made


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *itertools.product(["PreTrainedTokenizerFast", "TokenizersBackend"], [byte_level, sentencepiece, affixes]),
        *itertools.product(
            ["GPT2Tokenizer", "GPTNeoXTokenizerFast", "Qwen2Tokenizer", "Qwen2TokenizerFast"], [byte_level, affixes]
        ),
        ("LlamaTokenizerFast", byte_level),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_it_makes_the_same_tokenizer(
    tmp_path: Path, read: list[object], caplog: pytest.LogCaptureFixture, kind: Any, name: str
) -> None:
    """Class, state, settings, what it does and saves, and how it copies: as stock transformers, and not built by it."""
    directory = write(tmp_path / "it", plain(document_of(kind)), tokenizer_class=name, extra_special_tokens=["<new>"])
    with caplog.at_level("DEBUG", logger="yaie_async"):
        mine: Any = tokenizer.build_tokenizer(tokenizer_request_of(directory))
    assert "by transformers alone" not in caplog.text
    stock: Any = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    stock.pad_token = mine.pad_token
    (was_read,) = read
    if isinstance(was_read, Tokenizer):
        assert mine.backend_tokenizer is was_read
    assert type(mine) is type(stock)
    assert {**vars(mine), "_tokenizer": None} == {**vars(stock), "_tokenizer": None}
    assert_equal(mine.backend_tokenizer, stock.backend_tokenizer)
    for one, there in ((mine, "mine"), (stock, "stock")):
        one.save_pretrained(str(tmp_path / there))
    for saved in (tmp_path / "stock").iterdir():
        assert saved.read_text() == (tmp_path / "mine" / saved.name).read_text()
    for other in (copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))):
        assert other.backend_tokenizer is not mine.backend_tokenizer
        assert other("hello <s> <new>").input_ids == stock("hello <s> <new>").input_ids


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (sentencepiece, {"tokenizer_class": "GemmaTokenizer"}),
        (byte_level, {"tokenizer_class": None}),
        (byte_level, {"fast_tokenizer_files": ["tokenizer.json"]}),
        (sentencepiece, {"tokenizer_class": "LlamaTokenizerFast"}),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_others_are_left_to_transformers(tmp_path: Path, read: list[object], kind: Any, config: dict[str, Any]) -> None:
    """A class that is not known to give the same gets nothing from here."""
    directory = write(tmp_path / "it", plain(document_of(kind)), **config)
    mine: Any = tokenizer.build_tokenizer(tokenizer_request_of(directory))
    stock: Any = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    assert not read
    assert type(mine) is type(stock)
    assert mine("hello <s>").input_ids == stock("hello <s>").input_ids


@pytest.mark.parametrize(
    ("name", "model_type", "found"),
    [
        ("Qwen2Tokenizer", "phi3", "TokenizersBackend"),
        ("GPT2Tokenizer", "qwen2", "Qwen2Tokenizer"),
        ("PreTrainedTokenizerFast", "qwen2", "Qwen2Tokenizer"),
    ],
)
def test_a_class_that_transformers_takes_instead_of_the_declared_one(
    tmp_path: Path, read: list[object], name: str, model_type: str, found: str
) -> None:
    """It knows some that are declared wrongly, by the model's type; the tokenizer is the same."""
    directory = write(tmp_path / "it", plain(document_of(byte_level)), tokenizer_class=name)
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    mine: Any = tokenizer.build_tokenizer(tokenizer_request_of(directory))
    stock: Any = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    stock.pad_token = mine.pad_token
    assert read
    assert type(mine).__name__ == type(stock).__name__ == found
    assert {**vars(mine), "_tokenizer": None} == {**vars(stock), "_tokenizer": None}
    assert mine.backend_tokenizer.to_str() == stock.backend_tokenizer.to_str()


def test_a_doubt_is_left_to_transformers(tmp_path: Path, read: list[object], caplog: pytest.LogCaptureFixture) -> None:
    """What is refused here is built by transformers, and the log says so."""
    directory = write(tmp_path / "it", DOUBTS["dropout"](document_of(byte_level)))
    with caplog.at_level("DEBUG", logger="yaie_async"):
        mine: Any = tokenizer.build_tokenizer(tokenizer_request_of(directory))
    assert mine.backend_tokenizer.model.dropout == pytest.approx(0.1)
    assert not read
    assert "is built by transformers alone" in caplog.text
    assert caplog.records[-1].exc_info is not None


def test_a_small_file_is_left_to_transformers(tmp_path: Path, read: list[object], monkeypatch: Any) -> None:
    """Where nothing is to be gained, nothing is risked."""
    monkeypatch.setattr(tokenizer, "_LARGE", 10**6)
    tokenizer.build_tokenizer(tokenizer_request_of(write(tmp_path / "it", plain(document_of(byte_level)))))
    assert not read

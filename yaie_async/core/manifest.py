"""Which files of a repository a load needs, decided once: a frozen manifest that every later step reads.

It is drafted from the listing, by the usual names of files, and sharpened once config.json and the shard index can be
read. Pure: nothing here opens a file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from yaie_async.core.errors import IncompatibleModelError, ModelFileNotFoundError, UnsafeFileError
from yaie_async.core.names import check_path

# Small files that transformers may open: at the top of the repository, and the folder of chat templates.
_SMALL = re.compile(
    r"[^/]+\.json|tokenizer[^/]*|vocab[^/]*|merges\.txt|[^/]+\.model|[^/]+\.tiktoken"
    r"|special_tokens[^/]*|added_tokens[^/]*|[^/]+\.jinja|additional_chat_templates/[^/]+\.jinja"
)
# Any one of them may be a whole tokenizer.
_TOKENIZER = re.compile(r"tokenizer(_config)?\.json|vocab[^/]*|[^/]+\.model|[^/]+\.tiktoken")
_CODE = re.compile(r".+\.py")
_INDEX = re.compile(r".+\.index(\..+)?\.json")
# Weights and pickles of any kind. They never count as small files, whatever their name (`tokenizer.pkl`).
_HEAVY = re.compile(r".+\.(safetensors|bin|pt|pth|pkl|pickle|ckpt|h5|msgpack|onnx|onnx_data|tflite|gguf|ot|mlmodel)")
# What runs as code when it is opened: Python's own, and pickles.
_CODE_OR_PICKLE = re.compile(r".+\.(py|bin|pt|pth|pkl|pickle|ckpt)")
# What `transformers_weights` in config.json may name.
_EXPLICIT = (".safetensors", ".safetensors.index.json")
_BESIDE_CODE = 16 << 20  # bytes
# Small files in all, and the bytes of code and of what lies beside it.
_MOST_FILES, _MOST_BYTES = 1000, 256_000_000
# What is for people. Also hidden files.
_PROSE = re.compile(r"\..*|(readme|license|notice).*|.+\.(md|rst|pdf|png|jpe?g|gif|svg|webp|mp4|ipynb)", re.IGNORECASE)
_AGAIN = "Fetch or save the model again; another revision may be whole."

# The first bytes of what git-lfs leaves in the place of a file that it has not fetched.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"

CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class RepoFile:
    """One file of a repository at one commit."""

    path: str  # relative, with slashes
    size: int | None = None  # bytes; None where a mirror leaves it out and no HEAD has been made yet
    etag: str | None = None  # the name of its blob: sha256 for LFS files, else git's blob sha1; None as for `size`
    # The etag is a mirror's own, which may be a digest, and may be anything else that looks like one.
    candidate: bool = field(default=False, compare=False)
    xet_hash: str | None = field(default=None, compare=False)  # its name in the official client's shared store


_Files = Mapping[str, RepoFile]
_WeightSet = tuple[str | None, tuple[str, ...]]  # the index, or None, and the names of the shards


@dataclass(frozen=True, slots=True)
class Listing:
    """All files of a repository at one commit."""

    commit: str | None  # 40 hex digits; None for a directory
    files: Mapping[str, RepoFile]  # by path
    # The Hub's count of parameters by safetensors dtype ("F16"), empty where it gives none.
    parameters: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WeightRules:
    """The caller's arguments about weights."""

    variant: str | None = None  # the `variant=` of `from_pretrained`, used only on request
    safetensors: bool = True  # False where `use_safetensors=False` asks for pickles
    pickle: bool = True  # False where pickles are refused


@dataclass(frozen=True, slots=True)
class Need:
    """Which part of a model is wanted."""

    weights: bool  # with its weights, or only what the tokenizer needs
    code: bool = False  # with its `.py` files
    rules: WeightRules = WeightRules()  # which weights are acceptable


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files that a load needs of a repository at one commit, and their folder."""

    model: str  # repo id, or the path of a directory
    folder: Path  # the snapshot's folder, or the directory
    listing: Listing  # what the files were chosen from
    need: Need | None  # what they were chosen for; None for a choice by patterns, which asks for no load
    small: tuple[RepoFile, ...] = ()  # configuration, tokenizer, index and code files
    weights: tuple[RepoFile, ...] = ()  # in the order in which a build reads them; all files of a choice by patterns
    index: str | None = None  # path of the shard index among `small`; None where one file holds all weights
    config: Mapping[str, Any] | None = None  # None until it can be read, and for a tokenizer, which needs none
    sharp: bool = False  # the choice is final; a draft guesses the weights, until config.json and the index decide
    complete: bool = False  # the folder has all of the files

    @property
    def commit(self) -> str | None:
        return self.listing.commit

    @property
    def files(self) -> tuple[RepoFile, ...]:
        """All files in the order of linking; see `last`."""
        return tuple(sorted((*self.small, *self.weights), key=lambda file: file.path == self.last))

    @property
    def last(self) -> str:
        """The file that is linked after all others, so that an incomplete snapshot never looks complete after a kill.

        See `yaie_async.store.completeness`: for a load it is config.json; for a choice by patterns, which must never
        look like a finished load, tokenizer_config.json.
        """
        return CONFIG if self.need else TOKENIZER_CONFIG

    @property
    def size(self) -> int:
        """Bytes of all weight files."""
        return sum(file.size or 0 for file in self.weights)

    def runs_code(self, file: RepoFile) -> bool:
        """Whether a file of it may run code when it is opened."""
        # A load unpickles every weight file of another suffix.
        weights = self.need is not None and file in self.weights
        return _CODE_OR_PICKLE.fullmatch(file.path) is not None or (weights and not file.path.endswith(".safetensors"))

    @property
    def pickled(self) -> bool:
        """Whether the weights are pickles (`.bin`) and not safetensors."""
        named = self.index or (self.weights[0].path if self.weights else "")
        return named.endswith(".bin") or ".bin.index." in named

    @property
    def stored(self) -> Mapping[str, int] | str | None:
        """How the weights are stored: elements by safetensors dtype, else the dtype of the config, else None."""
        config = self.config or {}
        named = config.get("dtype") or config.get("torch_dtype")
        return self.listing.parameters or (named if isinstance(named, str) else None)

    def with_sizes(self, known: Mapping[str, RepoFile]) -> Manifest:
        """The same manifest with files replaced by those of `known`, by path."""
        return replace(
            self,
            listing=replace(self.listing, files={**self.listing.files, **known}),
            small=tuple(known.get(file.path, file) for file in self.small),
            weights=tuple(known.get(file.path, file) for file in self.weights),
        )

    def sharpened(self, read: Callable[[RepoFile], bytes | None]) -> Manifest:
        """The manifest as config.json and the shard index decide it.

        It stays a draft, with a better guess, while `read` returns None for one of the two: it has not arrived yet.

        Raises:
            IncompatibleModelError: config.json or the index is damaged, or no weights of a readable kind exist.
            UnsafeFileError: only pickles exist and they are refused, or a path leaves the folder.
            ModelFileNotFoundError: a weight file that is named does not exist.
        """
        if self.sharp or self.need is None:
            return self
        files = self.listing.files
        raw = self._whole(CONFIG, read)
        if raw is None:
            return self
        config = _parse_object(raw, CONFIG, self.model)
        index, names = _weight_set(files, config, self.need.rules, self.model)
        small = tuple(file for file in self.small if file.path != self.index)
        draft = replace(self, config=config, index=index)
        if index is None:
            return replace(draft, small=small, weights=_existing(files, names, CONFIG, self.model), sharp=True)
        draft = replace(draft, small=(files[index], *small))
        raw = self._whole(index, read)
        if raw is None:
            # Nothing that has been started is stopped before the index has decided.
            return replace(draft, weights=tuple(files[name] for name in names) or self.weights)
        weights = _existing(files, _shards(raw, index, self.model), index, self.model)
        if not self.need.rules.pickle:  # transformers unpickles every shard of another suffix
            _refuse_pickles([file.path for file in weights if not file.path.endswith(".safetensors")], self.model)
        return replace(draft, weights=weights, sharp=True)

    def _whole(self, path: str, read: Callable[[RepoFile], bytes | None]) -> bytes | None:
        raw = read(self.listing.files[path])
        if raw is not None and raw.startswith(LFS_POINTER):
            raise IncompatibleModelError(self.pointer_text(path), model=self.model, file=path)
        return raw

    def pointer_text(self, path: str) -> str:
        """The text of an error for a file that is a git-lfs pointer."""
        advice = (
            "Run `git lfs pull` in that folder."
            if self.commit is None
            else "Choose another revision, or ask its authors to upload the file."
        )
        return f"{path} of {self.model} is a git-lfs pointer: the file itself was not fetched by git. {advice}"


def draft(listing: Listing, need: Need, *, model: str, folder: Path) -> Manifest:
    """The manifest of a load as far as the file names decide it.

    Raises:
        IncompatibleModelError: no config.json exists (where only the tokenizer is needed, and no tokenizer either), or
            no file that could be a weight file of a readable kind.
        UnsafeFileError: only pickles exist and they are refused, or `check_small` refuses.
    """
    files = listing.files
    # A tokenizer needs no config.json: repositories of tokenizers and of adapters have none.
    if CONFIG not in files and (need.weights or not any(_TOKENIZER.fullmatch(path) for path in files)):
        raise _no_config_error(listing, model)
    small = _small(files, code=need.code)
    if listing.commit is not None:  # of a directory nothing is fetched
        check_small(small, model=model)
    made = Manifest(model, folder, listing, need, small=small, sharp=not need.weights)
    if not need.weights:
        return made
    if ADAPTER_CONFIG in files and ADAPTER_WEIGHTS in files:  # where peft is installed, they are a part of the model
        made = replace(made, small=(files[ADAPTER_WEIGHTS], *made.small))
    try:
        index, names = _usual_weights(files, need.rules, model)
    except (IncompatibleModelError, UnsafeFileError):
        # config.json may name one of these; never the weights of an adapter.
        if not any(path.endswith(_EXPLICIT) and not path.startswith("adapter_model.") for path in files):
            raise
        return made
    small = (files[index], *made.small) if index else made.small
    return replace(made, small=small, weights=tuple(files[name] for name in names), index=index)


def _small(files: _Files, *, code: bool) -> tuple[RepoFile, ...]:
    """The files beside the weights that a model or its tokenizer may read, in the order of linking.

    tokenizer_config.json and config.json are the last: see `yaie_async.store.completeness`.
    """
    last = (TOKENIZER_CONFIG, CONFIG)
    folders = {_folder(path) for path in files if _CODE.fullmatch(path)} if code else set()
    chosen = [
        path
        for path, file in files.items()
        if path not in last
        and not _HEAVY.fullmatch(path)
        and not _INDEX.fullmatch(path)
        and (_SMALL.fullmatch(path) or (_folder(path) in folders and _may_be_read(file)))
    ]
    return tuple(files[path] for path in (*sorted(chosen), *(path for path in last if path in files)))


def check_small(files: Sequence[RepoFile], *, model: str) -> None:
    """Refuse, by an UnsafeFileError, to fetch more small files, or more bytes of code, than a model can need."""
    code = sum(file.size or 0 for file in files if not (_SMALL.fullmatch(file.path) or _HEAVY.fullmatch(file.path)))
    if len(files) > _MOST_FILES or code > _MOST_BYTES:
        raise UnsafeFileError(
            f"{model} has {len(files):,} small files, with {code / 1e6:,.0f} MB of code and what lies beside it. None "
            f"was fetched: a load fetches up to {_MOST_FILES:,} of them, with {_MOST_BYTES / 1e6:,.0f} MB. If you need "
            f"them all, run `hf download {model}`; if that is the model itself, load the folder that it prints.",
            model=model,
        )


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _may_be_read(file: RepoFile) -> bool:
    """Whether code in the same folder may read it: code itself, and any small file, such as a vocabulary of its own."""
    small = file.size is not None and file.size <= _BESIDE_CODE and not _PROSE.fullmatch(file.path.rpartition("/")[2])
    return small or _CODE.fullmatch(file.path) is not None


def _weight_set(files: _Files, config: Mapping[str, Any], rules: WeightRules, model: str) -> _WeightSet:
    """The one weight set that `from_pretrained` takes; its shards are a guess where it has an index."""
    explicit = config.get("transformers_weights")
    if explicit is None:
        return _usual_weights(files, rules, model)
    if isinstance(explicit, str):
        check_path(explicit, model=model, listed_in=CONFIG)
    if not isinstance(explicit, str) or not explicit.endswith(_EXPLICIT):
        raise IncompatibleModelError(
            f"config.json of {model} names the weights {explicit!r} (transformers_weights), which is neither a "
            "safetensors file nor a safetensors index. Report this to its authors; another revision may be whole.",
            model=model,
            file=CONFIG,
        )
    if not explicit.endswith(".index.json"):
        return None, (explicit,)
    _existing(files, (explicit,), CONFIG, model)
    return explicit, ()


def _usual_weights(files: _Files, rules: WeightRules, model: str) -> _WeightSet:
    infix = f".{rules.variant}" if rules.variant else ""
    for stem, suffix, allowed in (
        ("model", "safetensors", rules.safetensors),
        ("pytorch_model", "bin", rules.pickle),
    ):
        if not allowed:
            continue
        single = f"{stem}{infix}.{suffix}"
        if single in files:
            return None, (single,)
        index = f"{stem}.{suffix}.index{infix}.json"
        if index in files:
            variant = re.escape(infix)
            usual = re.compile(rf"{stem}(?:{variant}-\d+-of-\d+|-\d+-of-\d+{variant})\.{suffix}")
            return index, tuple(sorted(path for path in files if usual.fullmatch(path)))
    if rules.safetensors and not rules.pickle:
        _refuse_pickles(sorted(path for path in files if re.fullmatch(r"pytorch_model.*\.bin", path)), model)
    raise _no_weights_error(files, rules, model)


def _refuse_pickles(pickles: list[str], model: str) -> None:
    if pickles:
        raise UnsafeFileError(
            f"The weights of {model} exist only as a pickle ({pickles[0]}), and allow_pickle=False was given "
            "(or use_safetensors=True). Choose a revision with safetensors, or pass allow_pickle=True to read it with "
            "torch's weights_only unpickler.",
            model=model,
            file=pickles[0],
        )


def _shards(raw: bytes, index: str, model: str) -> tuple[str, ...]:
    """The shards that an index names, each once, sorted: the order in which a build reads them."""
    parsed = _parse_object(raw, index, model)
    weight_map = parsed.get("weight_map")
    # transformers reads both, and fails without "metadata".
    if not isinstance(parsed.get("metadata"), dict) or not isinstance(weight_map, dict) or not weight_map:
        problem = "has no weight_map or no metadata"
    elif not all(isinstance(name, str) for name in weight_map.values()):
        problem = "has no weight_map of file names"
    else:
        for name in weight_map.values():
            check_path(name, model=model, listed_in=index)
        return tuple(sorted(set(weight_map.values())))
    message = f"The shard index {index} of {model} {problem}, so its weights can't be found. {_AGAIN}"
    raise IncompatibleModelError(message, model=model, file=index)


def _existing(files: _Files, names: tuple[str, ...], listed_in: str, model: str) -> tuple[RepoFile, ...]:
    for name in names:
        if name not in files:
            message = f"{listed_in} of {model} names {name}, which does not exist. {_AGAIN}"
            raise ModelFileNotFoundError(message, model=model, file=name)
    return tuple(files[name] for name in names)


def _parse_object(raw: bytes, path: str, model: str) -> Mapping[str, Any]:
    try:
        parsed = json.loads(raw.decode())  # UTF-8 without a BOM, as transformers reads it
        problem = "it is not a JSON object"
    except (ValueError, RecursionError) as error:
        parsed, problem = None, str(error)
    if isinstance(parsed, dict):
        return parsed
    raise IncompatibleModelError(f"{model}: {path} can't be read ({problem}). {_AGAIN}", model=model, file=path)


def _no_config_error(listing: Listing, model: str) -> IncompatibleModelError:
    files = listing.files
    if ADAPTER_CONFIG in files:
        hint = (
            "It is a PEFT adapter: load the base model that adapter_config.json names, then add the adapter with peft."
        )
    elif any(path.endswith(".gguf") for path in files):
        hint = "It has GGUF files, for llama.cpp: load the original checkpoint that they were made from."
    elif "model_index.json" in files:
        hint = "It is a diffusers pipeline, not a language model."
    elif "params.json" in files:
        hint = "It is in its author's own format: load the version for transformers (often named *-hf)."
    else:
        hint = "It is not a transformers model: check the name, or save the model with save_pretrained."
        hint += " A directory of that name exists, so the Hub was not asked." if listing.commit is None else ""
    return IncompatibleModelError(
        f"{model} has no config.json, so it can't be loaded. {hint}", model=model, file=CONFIG
    )


def _no_weights_error(files: _Files, rules: WeightRules, model: str) -> IncompatibleModelError:
    wanted = "no model.safetensors and no pytorch_model.bin" if rules.safetensors else "no pytorch_model.bin"
    variant = f" of the variant {rules.variant!r}" if rules.variant else ""
    found = sorted(path for path in files if "/" not in path and _HEAVY.fullmatch(path))
    has = f"It has {', '.join(found[:5])}." if found else "It has no weight files at all."
    if rules.variant:
        hint = "Leave variant out, or choose a revision that has it."
    elif any(path.endswith(".safetensors") for path in found) and not rules.safetensors:
        hint = "Leave use_safetensors=False out."
    elif any(path.endswith(".gguf") for path in found):
        hint = "GGUF files are for llama.cpp: load the original checkpoint that they were made from."
    elif any(path.startswith("adapter_model.") for path in found):
        hint = "That is a PEFT adapter: load its base model, then add the adapter with peft."
    else:
        hint = "Convert it with save_pretrained, or choose a revision that has them."
    return IncompatibleModelError(
        f"{model} has {wanted}{variant} at its top, so it can't be loaded. {has} {hint}", model=model
    )

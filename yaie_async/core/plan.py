"""Which files of a repository a causal language model and its tokenizer need: pure decisions on listings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from yaie_async.core.errors import IncompatibleModelError, ModelFileNotFoundError, UnsafeFileError

# Small files that transformers may open, at the top of the repository, beside the chat templates' folder.
_SMALL = re.compile(
    r"[^/]+\.json|tokenizer[^/]*|vocab[^/]*|merges\.txt|[^/]+\.model|[^/]+\.tiktoken"
    r"|special_tokens[^/]*|added_tokens[^/]*|[^/]+\.jinja|additional_chat_templates/[^/]+\.jinja"
)
_CODE = re.compile(r".+\.py")
_INDEX = re.compile(r".+\.index(\..+)?\.json")
# Weights and pickles of any kind, so that `tokenizer.pkl` or `vocab.bin` never rides along as a small file.
_HEAVY = re.compile(r".+\.(safetensors|bin|pt|pth|pkl|pickle|ckpt|h5|msgpack|onnx|onnx_data|tflite|gguf|ot|mlmodel)")
_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class RepoFile:
    """One file of a repository at one commit.

    Attributes:
        path: relative, with slashes.
        size: bytes; None where a mirror leaves it out and no HEAD has told yet.
        etag: the name of its blob: sha256 for LFS files, git's blob sha1 otherwise; None as for `size`.
    """

    path: str
    size: int | None = None
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """All files of a repository at one commit.

    Attributes:
        commit: 40 hex digits.
        files: by path.
        parameters: the Hub's count of parameters by safetensors dtype ("F16"), empty where it doesn't say.
    """

    commit: str
    files: Mapping[str, RepoFile]
    parameters: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Wanted:
    """The files that a load needs.

    Attributes:
        small: configuration, tokenizer, index and code files; config.json is the last.
        weights: the shards, in the order the build reads them.
        index: path of the index among `small`, or None when one file holds all weights.
    """

    small: tuple[RepoFile, ...]
    weights: tuple[RepoFile, ...]
    index: str | None

    @property
    def files(self) -> tuple[RepoFile, ...]:
        """All of them in the order of linking: config.json last, so that a kill can't look complete."""
        return (*self.small[:-1], *self.weights, self.small[-1])


@dataclass(frozen=True, slots=True)
class WeightRules:
    """What the caller's arguments say about weights.

    Attributes:
        variant: the `variant=` of `from_pretrained`, never picked unasked.
        safetensors: False where `use_safetensors=False` asks for pickles.
        pickle: False where pickles are refused.
    """

    variant: str | None = None
    safetensors: bool = True
    pickle: bool = True


def check_path(path: str, *, model: str) -> None:
    """Refuse a path that could leave its folder, by the rules of POSIX and of Windows.

    Raises:
        UnsafeFileError: for `..`, absolute paths, drives, NUL, lone surrogates and empty segments.
    """
    parts = path.replace("\\", "/").split("/")
    windows = PureWindowsPath(path)
    if (
        any(part in ("", ".", "..") for part in parts)
        or "\0" in path
        or not _encodes(path)
        or windows.drive
        or windows.root
        or PurePosixPath(path).is_absolute()
    ):
        raise UnsafeFileError(
            f"{model} lists the file {path!r}, whose path leaves the snapshot's folder. Nothing was written. "
            "Do not use this repository.",
            model=model,
            file=path,
        )


def check_etag(etag: str, *, model: str, file: str) -> None:
    """Refuse an etag that is not a plain file name: it becomes one.

    Raises:
        UnsafeFileError: for anything but a non-empty name without separators.
    """
    plain = etag not in ("", ".", "..") and not any(c in etag for c in "/\\\0") and len(etag) <= 200
    if not plain or not _encodes(etag):
        raise UnsafeFileError(
            f"The server names {file} of {model} by the etag {etag!r}, which is not a plain name. "
            "Nothing was written. Check HF_ENDPOINT: this is not how a Hub answers.",
            model=model,
            file=file,
        )


def _encodes(name: str) -> bool:
    """Whether a name out of JSON can be one on disk: a lone surrogate is valid there, and no text."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_commit(revision: str) -> bool:
    """Whether a revision is a full commit hash, as the official client tells (lower-case hex only)."""
    return len(revision) == 40 and _HEX.fullmatch(revision) is not None


def digest_kind(etag: str) -> str | None:
    """Which digest an etag is: "sha256" or "git-sha1"; None for one that promises nothing."""
    if _HEX.fullmatch(etag) is None:
        return None
    return {64: "sha256", 40: "git-sha1"}.get(len(etag))


def choose_small(files: Mapping[str, RepoFile], *, code: bool, model: str) -> tuple[RepoFile, ...]:
    """The files beside the weights that a model or its tokenizer may read, in the order of linking.

    tokenizer_config.json and config.json are the last: see `yaie_async.store.completeness.holding`.

    Raises:
        IncompatibleModelError: when there is no config.json, saying what is there instead.
    """
    if "config.json" not in files:
        raise IncompatibleModelError(f"{model} can't be loaded. {_no_config(files)}", model=model)
    chosen = [
        file
        for path, file in sorted(files.items(), key=lambda item: (item[0] == "tokenizer_config.json", item[0]))
        if path not in ("config.json", "adapter_config.json")  # adapters are not loaded
        and not _HEAVY.fullmatch(path)
        and not _INDEX.fullmatch(path)
        and (_SMALL.fullmatch(path) or (code and _CODE.fullmatch(path)))
    ]
    return (*chosen, files["config.json"])


def choose_weights(
    files: Mapping[str, RepoFile], rules: WeightRules, *, model: str
) -> tuple[str | None, tuple[str, ...]]:
    """The index (or None) and the names of the one weight set that `from_pretrained` would take.

    Of a sharded set the names are a guess by the usual pattern, until `confirm_weights` has read the index.

    Raises:
        UnsafeFileError: when only pickles are there and they are refused.
        IncompatibleModelError: when there are no weights of a kind that can be loaded.
    """
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
            return index, _guess_shards(files, stem, infix, suffix)
    if rules.safetensors and not rules.pickle:
        pickles = [path for path in files if re.fullmatch(r"pytorch_model.*\.bin", path)]
        if pickles:
            raise UnsafeFileError(
                f"The weights of {model} are only there as a pickle ({pickles[0]}), and allow_pickle=False "
                "refuses those. Pass allow_pickle=True to read it with torch's weights_only unpickler.",
                model=model,
                file=pickles[0],
            )
    raise IncompatibleModelError(f"{model} can't be loaded. {_no_weights(files, rules)}", model=model)


def _guess_shards(files: Mapping[str, RepoFile], stem: str, infix: str, suffix: str) -> tuple[str, ...]:
    variant = re.escape(infix)
    usual = re.compile(rf"{stem}(?:{variant}-\d+-of-\d+|-\d+-of-\d+{variant})\.{suffix}")
    return tuple(sorted(path for path in files if usual.fullmatch(path)))


def confirm_weights(
    files: Mapping[str, RepoFile], *, names: Iterable[str], config: Mapping[str, Any], index: Any, model: str
) -> tuple[RepoFile, ...]:
    """The weight files as config.json and the index say, in sorted (reading) order.

    `names` is what `choose_weights` guessed; `index` the parsed index, or None.

    Raises:
        UnsafeFileError: for a path in `weight_map` that leaves the folder.
        ModelFileNotFoundError: for a shard that the repository does not have.
        IncompatibleModelError: for an index that is none.
    """
    explicit = config.get("transformers_weights")
    if isinstance(explicit, str) and not explicit.endswith(".index.json"):
        names = [explicit]  # looked at first by from_pretrained, before any of the usual names
    elif index is not None:
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise IncompatibleModelError(
                f"The shard index of {model} has no weight_map of file names, so its weights can't be found. "
                "Tell the model's authors; another revision may be whole.",
                model=model,
            )
        names = sorted(set(weight_map.values()))
    for name in names:
        check_path(name, model=model)
        if name not in files:
            raise ModelFileNotFoundError(
                f"The shard index of {model} names {name}, and the repository does not have it. "
                "Tell the model's authors; another revision may be whole.",
                model=model,
                file=name,
            )
    return tuple(files[name] for name in names)


def choose(
    files: Mapping[str, RepoFile],
    *,
    weights: bool,
    code: bool,
    rules: WeightRules,
    model: str,
    read_json: Callable[[RepoFile], Any],
) -> Wanted:
    """The files of a load; `read_json` gives a parsed file, or None where it is not there yet.

    Raises:
        IncompatibleModelError, UnsafeFileError, ModelFileNotFoundError: as the functions above.
    """
    small = choose_small(files, code=code, model=model)
    if not weights:
        return Wanted(small, (), None)
    index, names = choose_weights(files, rules, model=model)
    config = read_json(files["config.json"])
    shards = confirm_weights(
        files,
        names=names,
        config=config if isinstance(config, dict) else {},
        index=read_json(files[index]) if index else None,
        model=model,
    )
    return Wanted((files[index], *small) if index else small, shards, index)


def _no_config(files: Mapping[str, RepoFile]) -> str:
    if "adapter_config.json" in files:
        return (
            "This is an adapter, not a model: it has adapter_config.json and no config.json. "
            "Load the base model that adapter_config.json names, then apply the adapter with peft."
        )
    if any(path.endswith(".gguf") for path in files):
        return (
            "There are only GGUF files here and no config.json. "
            "Load the original repository, or read the file with transformers' gguf_file= yourself."
        )
    return "There is no config.json, so this is not a transformers model. Check the repo id."


def _no_weights(files: Mapping[str, RepoFile], rules: WeightRules) -> str:
    wanted = "safetensors or pytorch_model.bin" if rules.safetensors else "pytorch_model.bin"
    variant = f" of the variant {rules.variant!r}" if rules.variant else ""
    there = sorted(path for path in files if "/" not in path and _HEAVY.fullmatch(path))
    found = f"It has {', '.join(there[:5])}." if there else "It has no weight files at all."
    return f"There are no {wanted} weights{variant} at the top of the repository. {found}"


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file of a `Plan`: its path, its size in bytes, and whether the cache has it."""

    path: str
    size: int
    cached: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What a load would do, told without doing it.

    Attributes:
        model: repo id or directory.
        revision: what was asked for ("main" where nothing was); None for a directory.
        commit: 40 hex digits it stands for, None for a directory.
        files: what the load needs.
        free_disk: bytes free where the cache is.
        memory: estimated bytes of the built model, in the dtype asked for.
    """

    model: str
    revision: str | None
    commit: str | None
    files: tuple[PlannedFile, ...]
    free_disk: int
    memory: int

    @property
    def bytes_cached(self) -> int:
        return sum(file.size for file in self.files if file.cached)

    @property
    def bytes_to_fetch(self) -> int:
        return sum(file.size for file in self.files if not file.cached)

    @property
    def fits(self) -> bool:
        """Whether the disk has room for what is to be fetched."""
        return self.bytes_to_fetch <= self.free_disk

"""Builds a tokenizer from files that are already on this machine, and sees to its pad token."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from yaie_async.core.errors import LoaderError, OutOfMemoryError, TokenizerError, UnsafeFileError
from yaie_async.core.log import logger
from yaie_async.core.manifest import TOKENIZER_CONFIG
from yaie_async.core.trace import span
from yaie_async.model.checkpoint import lfs_pointers, repo_of
from yaie_async.model.compat import asks_for_consent, name_tokenizer, replace_parts
from yaie_async.model.imports import import_libraries
from yaie_async.store.directory import read_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from yaie_async.model.request import BuildRequest

# The classes that take the tokenizer of tokenizer.json as it is, and those that make one of their own from its
# vocabulary and merges. The names of all may end in "Fast".
_PLAIN = ("PreTrainedTokenizer", "TokenizersBackend")
_OF_PARTS = ("GPT2Tokenizer", "GPTNeoXTokenizer", "Qwen2Tokenizer")
# Declared by many whose bytes need a plain one: transformers sees that by this word, and takes a plain one.
_OFTEN_PLAIN, _SIGN = "LlamaTokenizer", '"ByteLevel"'

# Bytes of a tokenizer.json that transformers reads in about 15 ms.
_LARGE = 500_000


def build_tokenizer(request: BuildRequest) -> PreTrainedTokenizerBase:
    """Build the tokenizer as `AutoTokenizer.from_pretrained` would, without any request.

    Where it has no pad token it gets its eos token for one; nothing else is changed.

    Raises:
        TokenizerError: it can't be built, or has neither a pad nor an eos token.
        UnsafeFileError: its code is in the repo and was not consented to.
        LoaderError: transformers can't be imported.
    """
    import_libraries()
    pointers = lfs_pointers(request)
    whole = (request.folder / "tokenizer.json").exists() and "tokenizer.json" not in pointers
    if text := next((path for path in pointers if path.endswith(".txt") and not whole), None):
        raise _is_pointer(text, request)  # its lines would be taken for tokens
    try:
        with span("tokenizer", "build tokenizer", model=request.source):
            tokenizer = _build(request)
    except LoaderError:
        raise
    except Exception as error:
        raise (_is_pointer(pointers[0], request) if pointers else _translate(error, request)) from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            message = (
                f"the tokenizer of {request.source} has neither a pad token nor an eos token, so batches can't be "
                "padded; load it with AutoTokenizer and set tokenizer.pad_token yourself"
            )
            raise TokenizerError(message, model=request.source, file="tokenizer_config.json")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _build(request: BuildRequest) -> PreTrainedTokenizerBase:
    directory = os.fspath(request.folder)
    config = _named_config(directory, request)
    tokenizer = _build_quickly(directory, request, config) or _from_pretrained(directory, request, config)
    if request.commit is not None:
        name_tokenizer(tokenizer, request.source)
    return tokenizer


def _from_pretrained(directory: str, request: BuildRequest, more: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    # Given a repo id, transformers lists chat templates through the Hub client, whose first use in a process
    # may ask {endpoint}/api/agent-harnesses even with local_files_only: so it is given the directory.
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        directory,
        local_files_only=True,
        trust_remote_code=bool(request.trust_remote_code),  # None would ask on stdin
        **more,
    )
    return tokenizer


def _build_quickly(directory: str, request: BuildRequest, config: Mapping[str, Any]) -> PreTrainedTokenizerBase | None:
    """The same tokenizer with its large tokenizer.json read in pieces; None to leave it to transformers."""
    try:
        with open(os.path.join(directory, "tokenizer_config.json"), encoding="utf-8") as file:
            declared = json.load(file)
        path = os.path.join(directory, "tokenizer.json")
        # Without "added_tokens_decoder" transformers parses all of tokenizer.json itself, in one go.
        if "added_tokens_decoder" not in declared or "fast_tokenizer_files" in declared:
            return None
        name = str(declared.get("tokenizer_class")).removesuffix("Fast")
        if name not in (*_PLAIN, *_OF_PARTS, _OFTEN_PLAIN) or os.path.getsize(path) < _LARGE:
            return None
        with open(path, encoding="utf-8") as file:
            text = file.read()
        if name == _OFTEN_PLAIN and _SIGN not in text:
            return None
        make = _of_parts if name in _OF_PARTS else _with_backend
        tokenizer = make(text, lambda **more: _from_pretrained(directory, request, {**config, **more}))
        if tokenizer is not None:
            return tokenizer
        logger.debug("%s has another tokenizer: built by transformers alone", request.source)
    except Exception:  # if there is something wrong with the files, transformers will say so
        logger.debug("the tokenizer of %s is built by transformers alone", request.source, exc_info=True)
    return None


def _with_backend(text: str, make: Callable[..., Any]) -> PreTrainedTokenizerBase | None:
    """A tokenizer that takes what it is given; None where it has not."""
    from transformers import TokenizersBackend

    from yaie_async.model.backend import build_backend

    backend: Any = build_backend(text)
    backend.__deepcopy__ = lambda _memo: backend  # transformers would copy it, in 160-400 ms
    tokenizer: Any = make(tokenizer_object=backend)
    del backend.__deepcopy__
    return tokenizer if type(tokenizer) is TokenizersBackend and tokenizer.backend_tokenizer is backend else None


def _of_parts(text: str, make: Callable[..., Any]) -> PreTrainedTokenizerBase | None:
    """A tokenizer that makes its backend of vocabulary and merges; None where it has not taken these."""
    import transformers

    from yaie_async.model.backend import read_parts

    parts = read_parts(text)
    # The name of no file: transformers looks for none of its own then, and finds none to read.
    tokenizer: Any = make(tokenizer_file="", vocab=parts.vocab, merges=parts.merges, **parts.keywords)
    known = any(type(tokenizer) is getattr(transformers, name) for name in _OF_PARTS)
    return tokenizer if known and replace_parts(tokenizer, parts.merges, parts.plain) else None


def _named_config(directory: str, request: BuildRequest) -> Mapping[str, Any]:
    """The model's config under its repo id: for some ids transformers picks another tokenizer class."""
    from transformers import AutoConfig, PreTrainedConfig

    if request.commit is None:
        return {}
    trust = bool(request.trust_remote_code)
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=trust)
    except (ValueError, OSError):  # as AutoTokenizer itself does: a tokenizer can do without the model's class
        config = PreTrainedConfig.from_pretrained(directory, local_files_only=True)
    config.name_or_path = request.source
    return {"config": config}


def _is_pointer(path: str, request: BuildRequest) -> TokenizerError:
    return TokenizerError(request.manifest.pointer_text(path), model=request.source, file=path)


def _code_of(request: BuildRequest) -> str:
    """Where the tokenizer's own code is, in words."""
    auto_map = read_object(request.folder / TOKENIZER_CONFIG).get("auto_map")
    named = auto_map.get("AutoTokenizer") if isinstance(auto_map, dict) else None
    classes = [each for each in (named if isinstance(named, list) else [named]) if isinstance(each, str)]
    return repo_of(classes[0]) if classes else "its repo"


def _translate(error: Exception, request: BuildRequest) -> Exception:
    if isinstance(error, MemoryError):
        message = f"no memory left for the tokenizer of {request.source}"
        return OutOfMemoryError(message, needed=None, free=None, device="cpu", model=request.source)
    if asks_for_consent(error):
        message = (
            f"the tokenizer of {request.source} can only be built by running code from {_code_of(request)}, and "
            "nothing was run. Read that code; if you trust it, pass trust_remote_code=True"
        )
        return UnsafeFileError(message, model=request.source)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    message = (
        f"the tokenizer of {request.source} can't be built ({type(error).__name__}: {reason}); "
        "check that its tokenizer files are complete and that sentencepiece or tiktoken is installed if it needs one"
    )
    return TokenizerError(message, model=request.source)

"""The names of transformers, torch and tokenizers that those libraries do not promise, and the texts of their errors.

No other module of this package uses one. `NAMES` says what is lost without each; tests/loader/test_compat.py takes
every one away and loads a model. A name that only draws, preloads or words something is done without. Where one
decides whether a model is right, the safe way is taken: no build during the download, no check before the download
(transformers itself decides then, and its error is translated), or a refusal.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yaie_async.core.compat import Names

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_AUTO = "transformers.models.auto.modeling_auto:"
_CAUSAL = f"{_AUTO}MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
_CONFIGS = "transformers.models.auto.configuration_auto:CONFIG_MAPPING"
_MODELS = "transformers:AutoModelForCausalLM._model_mapping"
_REGISTERED = f"{_MODELS}._extra_content"
_QUANTISATIONS = "transformers.quantizers.auto:AUTO_QUANTIZATION_CONFIG_MAPPING"
_LAYERS = "transformers.modeling_layers:GradientCheckpointingLayer"
_SET_HOOK = "transformers.utils.logging:set_tqdm_hook"
_NO_BAR = "transformers.utils.logging:EmptyTqdm"
_DEEPSPEED = "transformers.integrations.deepspeed:is_deepspeed_zero3_enabled"
_FSDP = "transformers.integrations.fsdp:is_fsdp_enabled"
_EXTRA_FILES = "transformers:PreTrainedConfig.extra_files"
_SUB_CONFIGS = "transformers:PreTrainedConfig.sub_configs"
_GENERATION = "transformers:GenerationMixin.adjust_generation_fn"
_VOCAB = "transformers:GPT2Tokenizer._vocab"
_MERGES = "transformers:GPT2Tokenizer._merges"
_INIT_KWARGS = "transformers:PreTrainedTokenizerBase.init_kwargs"

MASKED = "AutoModelForMaskedLM"
_TASKS = {
    f"{_AUTO}MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES": "AutoModelForSeq2SeqLM",
    f"{_AUTO}MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": "AutoModelForSequenceClassification",
    f"{_AUTO}MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES": "AutoModelForTokenClassification",
    f"{_AUTO}MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES": "AutoModelForQuestionAnswering",
    f"{_AUTO}MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES": "AutoModelForMultipleChoice",
    f"{_AUTO}MODEL_FOR_MASKED_LM_MAPPING_NAMES": MASKED,
    f"{_AUTO}MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES": "AutoModelForSpeechSeq2Seq",
    f"{_AUTO}MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES": "AutoModelForImageClassification",
    f"{_AUTO}MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES": "AutoModelForImageTextToText",
    f"{_AUTO}MODEL_MAPPING_NAMES": "AutoModel",
}
"""The tables of model types and classes that are not for causal language models, by preference."""

# Classes of these tables have a causal language model as a part, where their model type has one.
OF_PARTS = ("AutoModelForImageTextToText", "AutoModelForSpeechSeq2Seq")
# Some classes of these tables are causal language models too.
_MAY_BE_CAUSAL = ("AutoModelForImageTextToText", "AutoModel")

_STREAMING = (_DEEPSPEED, _FSDP, _EXTRA_FILES, _SUB_CONFIGS, _GENERATION)

_UNCHECKED = "whether a model can be loaded is found out only after its download"
_STOCK = "models are built after their download, not during it"

NAMES = Names(
    {
        _CAUSAL: _UNCHECKED,
        _CONFIGS: _UNCHECKED,
        _MODELS: _UNCHECKED,
        _REGISTERED: "a second model with its own code may be refused if the first one had the same name",
        _QUANTISATIONS: "a model of an unknown quantisation is not refused, and its numbers are read as plain weights",
        _LAYERS: "it is imported during the first build",
        _SET_HOOK: "transformers draws its progress bars",
        _NO_BAR: "transformers draws its progress bars",
        **dict.fromkeys(_STREAMING, _STOCK),
        _VOCAB: "large tokenizers are built by transformers alone, which may hold up the event loop",
        _MERGES: "large tokenizers are built by transformers alone, which may hold up the event loop",
        _INIT_KWARGS: "tokenizers keep the path of their snapshot as their name",
        **{
            name: f"models for {auto_class} are recognised by the endings of their class names"
            for name, auto_class in _TASKS.items()
        },
    }
)

# What `import torch` maps, in the order in which it is loaded; a library's own dependencies come with it. Where one
# has another name the import loads it.
TORCH = ("libc10.so", "libtorch_cpu.so", "libtorch_cuda.so", "libtorch_python.so")
# The library that counts the cores as it is loaded, where torch's package has it (a wheel has).
OPENMP = ("libgomp*", "libiomp*", "libomp*")
# The module whose initialisation takes longest. Under another name it is treated as all are.
TORCH_MODULE = "torch._C"

# How transformers names the progress bar over all weights. Where it has another name, how far a build is is not known.
WEIGHTS_BAR = "Loading weights"

_REMOTE = "transformers_modules."


def preload() -> None:
    """Import what a build needs of transformers beside its documented names; without one, the build imports it."""
    for name in (_LAYERS, _CAUSAL, _QUANTISATIONS):
        NAMES.find(name)


def is_causal(model_type: Any) -> bool:
    """Return whether AutoModelForCausalLM loads a model type; the application may have registered it.

    Without one of the tables: True, and transformers itself refuses the model.
    """
    causal = NAMES.find(_CAUSAL)
    if causal is None or (isinstance(model_type, str) and model_type in causal):
        return True
    configs, models = NAMES.find(_CONFIGS), NAMES.find(_MODELS)
    if configs is None or models is None:
        return True
    return isinstance(model_type, str) and model_type in configs and configs[model_type] in models


def is_known(model_type: Any) -> bool:
    """Return whether transformers has classes for a model type; True without the table."""
    configs = NAMES.find(_CONFIGS)
    return configs is None or (isinstance(model_type, str) and model_type in configs)


def auto_class_of(architecture: str | None, model_type: Any = None) -> str | None:
    """Return the auto class for what is no causal language model, by its architecture or else its model type.

    None where it is one, and where no table names it. Without a table the ending of the class's name decides: a
    masked language model has the tensors of a causal one, and would load as one without a word.
    """
    causal = NAMES.find(_CAUSAL)
    if causal is not None and architecture in causal.values() and model_type is None:
        return None
    tables = [(NAMES.find(name), auto_class) for name, auto_class in _TASKS.items()]
    for table, auto_class in tables:
        if causal is None and auto_class in _MAY_BE_CAUSAL:
            continue
        entries = [entry if isinstance(entry, tuple | list) else (entry,) for entry in (table or {}).values()]
        if any(architecture in entry for entry in entries) or (table is None and _ends_as(architecture, auto_class)):
            return auto_class
    return next((auto_class for table, auto_class in tables if model_type in (table or {})), None)


def _ends_as(architecture: str | None, auto_class: str) -> bool:
    task = "ForConditionalGeneration" if auto_class == "AutoModelForSeq2SeqLM" else auto_class.removeprefix("AutoModel")
    return bool(task) and architecture is not None and architecture.endswith(task)


def knows_quantisation(method: Any) -> bool:
    """Return whether transformers knows a quantisation method; True without the table, as for stock."""
    methods = NAMES.find(_QUANTISATIONS)
    return methods is None or (isinstance(method, str) and method in methods)


def implementations(config: object, keywords: Iterable[str]) -> dict[str, list[Any]]:
    """Return what a config object has for each of these keywords of `from_pretrained`, in all parts of its model."""
    from transformers import PreTrainedConfig

    parts = [config]
    for part in parts:
        parts += [each for each in vars(part).values() if isinstance(each, PreTrainedConfig)]
    return {keyword: [getattr(part, f"_{keyword}", None) for part in parts] for keyword in keywords}


def forget_remote_classes() -> None:
    """Make transformers run the code of the next directory, and not a class that it ran before.

    It registers the model class of remote code under its config class, which it shares between directories that
    have the same last name and the same configuration file: the second one then got the first one's model code.
    Without the registry nothing is forgotten; `runs_other_code` finds out.
    """
    models = NAMES.find(_MODELS)
    registered: Any = (NAMES.find(_REGISTERED, models) if models is not None else None) or {}
    for config_class, model in list(registered.items()):
        if model.__module__.startswith(_REMOTE):
            del registered[config_class]


def runs_other_code(model: object, directory: Path) -> bool:
    """Return whether the class of a model is remote code of another directory than this one."""
    name = type(model).__module__
    path = Path(getattr(sys.modules.get(name), "__file__", None) or os.devnull)
    own = directory / path.name
    return name.startswith(_REMOTE) and own.is_file() and own.read_bytes() != path.read_bytes()


def progress_bar_hook() -> tuple[Callable[[Any], Any], Callable[..., Any]] | None:
    """Return the function that sets the hook for transformers' progress bars, and a bar that draws nothing."""
    set_hook, no_bar = NAMES.find(_SET_HOOK), NAMES.find(_NO_BAR)
    return (set_hook, no_bar) if set_hook is not None and no_bar is not None else None


def can_stream() -> bool:
    """Return whether transformers has what a build during the download needs."""
    return all(NAMES.find(name) is not None for name in _STREAMING)


def is_distributed() -> bool:
    """Return whether a model's parameters are to be distributed over several processes; only if `can_stream`."""
    return bool(NAMES.find(_DEEPSPEED)() or NAMES.find(_FSDP)())


def has_extra_files(config: Any) -> bool:
    """Return whether a config's class wants weight files beside those of the index; only if `can_stream`."""
    return bool(NAMES.find(_EXTRA_FILES, type(config)))


def text_config_class(config: Any) -> Any:
    """Return the class of a composite config's text part, or None; only if `can_stream`."""
    return NAMES.find(_SUB_CONFIGS, config).get("text_config")


def add_generation(model: Any, directory: Path, *, trust_remote_code: bool) -> None:
    """Give a model the generation config and the `custom_generate` of a directory; only if `can_stream`."""
    if model.can_generate():
        NAMES.find(_GENERATION, model)(
            generation_config=None,
            from_auto_class=True,
            from_pipeline=None,
            pretrained_model_name_or_path=os.fspath(directory),
            cache_dir=None,
            force_download=False,
            proxies=None,
            local_files_only=True,
            token=None,
            revision=None,
            subfolder="",
            trust_remote_code=trust_remote_code,
        )


def random_weights(info: Mapping[str, Any]) -> tuple[list[str], list[str]] | None:
    """Return the weights that the checkpoint lacks, and those of another shape, by a model's loading info.

    None where transformers does not report them: the model is refused then.
    """
    try:
        mismatched = [f"{name}: {tuple(has)} for {tuple(wants)}" for name, has, wants in info["mismatched_keys"]]
        return sorted(info["missing_keys"]), sorted(mismatched)
    except (LookupError, TypeError, ValueError):
        return None


def parts_keywords(empty: Tokenizer) -> Mapping[str, Any]:
    """Return what transformers gives a class that builds its own backend, beside the vocabulary and the merges."""
    keywords = {
        "post_processor": empty.post_processor,
        "tokenizer_padding": empty.padding,
        "tokenizer_truncation": empty.truncation,
        "_json_padding": empty.padding,
        "_json_truncation": empty.truncation,
    }
    return {name: value for name, value in keywords.items() if value is not None}


def replace_parts(tokenizer: Any, merges: object, plain: Callable[[], tuple[Any, Any]]) -> bool:
    """Put plain types in the place of the vocabulary and merges that a tokenizer was made of.

    False where it was not made of these `merges`, or they are not found: drop it.
    """
    if NAMES.find(_MERGES, tokenizer) is not merges or NAMES.find(_VOCAB, tokenizer) is None:
        return False
    tokenizer._vocab, tokenizer._merges = plain()  # noqa: SLF001 - there is no public way
    return True


def name_tokenizer(tokenizer: Any, name: str) -> None:
    """Name a tokenizer after its model. Without `init_kwargs` only its attribute says so."""
    tokenizer.name_or_path = name
    keywords = NAMES.find(_INIT_KWARGS, tokenizer)
    if keywords is not None:
        keywords["name_or_path"] = name


# The texts of errors. Where a text is another one, none of these matches, and the error is translated as a general one.

NO_MEMORY = re.compile(r"can't allocate memory|cannot allocate memory|out of memory|os error 12\b", re.IGNORECASE)
NO_DEVICE = re.compile(
    r"not compiled with \w+ enabled|cannot access accelerator|no (nvidia|hip|cuda) |invalid device|device ordinal"
    r"|passing device_map|negative int|not linked with support|no module named 'torch\.\w+'|from the '\w+' backend",
    re.IGNORECASE,
)
UNTRUSTED_KERNEL = re.compile(r"Kernel repository '([^']+)' .*trust")
NO_ATTENTION = re.compile("attn_implementation|FlashAttention")
_FILE = re.compile(r"(?:directory: |file named )(\S+)")
_BYTES = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def asks_for_consent(error: BaseException) -> bool:
    """Return whether transformers refused to run code of a repo."""
    return isinstance(error, ValueError) and "trust_remote_code" in str(error)


def missing_file(text: str) -> str | None:
    """Return the path of the file that an error misses, or None."""
    match = _FILE.search(text)
    return match[1].rstrip(".,'") if match else None


def full_device(text: str) -> tuple[str, int | None]:
    """Return the device that has no memory left, "cpu" where the text names none, and its free bytes."""
    gpu, free = re.search(r"GPU (\d+)", text), re.search(r"of which ([\d.]+) (\w+) is free", text)
    device = f"cuda:{gpu[1]}" if gpu else "cuda" if "CUDA" in text else "cpu"
    return device, int(float(free[1]) * _BYTES[free[2]]) if free and free[2] in _BYTES else None

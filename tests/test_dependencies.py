"""What of other libraries is used, and where: declared ones alone, and undocumented names in one module each."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from yaie_async.model.compat import NAMES as MODEL_NAMES
from yaie_async.store.compat import NAMES as HUB_NAMES

_ROOT = Path(__file__).parents[1]
_PROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_FILES = sorted((_ROOT / "yaie_async").rglob("*.py"))
_TREES = {path.relative_to(_ROOT / "yaie_async").as_posix(): ast.parse(path.read_text("utf-8")) for path in _FILES}

# What their documentation names. All else of these libraries goes through `model/compat.py` or `store/compat.py`.
_DOCUMENTED = {
    "transformers": {
        "AutoConfig", "AutoModelForCausalLM", "AutoTokenizer", "GenerationMixin", "GgufConfig", "LlamaConfig",
        "LlamaForCausalLM", "PreTrainedConfig", "PreTrainedModel", "PreTrainedTokenizerBase", "PreTrainedTokenizerFast",
        "TokenizersBackend",
    },
    "torch": {
        "Tensor", "cuda", "cuda.empty_cache", "cuda.is_available", "cuda.is_initialized", "cuda.mem_get_info", "device",
        "dtype", "empty", "float16", "frombuffer", "get_default_dtype", "manual_seed", "nn", "nn.Module",
        "nn.Parameter", "nn.modules.module.register_module_parameter_registration_hook", "no_grad", "set_default_dtype",
    },
    "tokenizers": {"AddedToken", "Tokenizer", "decoders", "models", "pre_tokenizers"},
    "accelerate": set[str](),
    "safetensors": set[str](),
    # `errors` is where the documentation takes them from. One of its classes that we inherit from is not on its pages
    # (LocalTokenNotFoundError), and has a docstring.
    "huggingface_hub": {"__version__", "errors", "errors.HFValidationError", "get_token", "is_offline_mode",
                        "utils.are_progress_bars_disabled", "utils.validate_repo_id"},
}  # fmt: skip
_DOORS = {"model/compat.py", "store/compat.py"}

# Private names of Python, anyio and uvicorn, each with the one module that may use it.
_PRIVATE_MODULES = {"anyio._backends._asyncio": "loader/hub.py"}
_PRIVATE_ATTRIBUTES = {"model/compat.py", "core/workers.py"}
_OTHERS = {
    "_started": "core/workers.py",
    "create_module": "model/responsive.py",
    "http_protocol_class": "localhub/server.py",
    "main_loop": "localhub/server.py",
    "server_state": "localhub/server.py",
}


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Each module that is imported, with the name that is taken from it, or none."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            yield from ((node.module, alias.name) for alias in node.names)


def _chains(tree: ast.AST) -> Iterator[str]:
    """Each `name.attribute.attribute`, and all that it begins with."""
    for node in ast.walk(tree):
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name) and parts:
            yield ".".join([node.id, *reversed(parts)])


def test_only_documented_names_are_used_outside_the_doors() -> None:
    """Of each library, by import and as attribute of its module."""
    wrong = []
    for path, tree in _TREES.items():
        used = [f"{module}.{name}" if name else module for module, name in _imported(tree)] + list(_chains(tree))
        for name in used:
            library, _, rest = name.partition(".")
            if rest and library in _DOCUMENTED and rest not in _DOCUMENTED[library]:
                wrong.append(f"{path}: {name}")
    assert wrong == []


def test_what_a_door_has_is_used_nowhere_else() -> None:
    """No attribute of another module has the name of one that is looked up in a door."""
    names = {name.rpartition(":")[2].rpartition(".")[2] for door in (MODEL_NAMES, HUB_NAMES) for name in door.losses}
    wrong = [
        f"{path}: {node.attr}"
        for path, tree in _TREES.items()
        if path not in _DOORS
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in names
    ]
    assert wrong == []


def test_private_names_are_used_in_one_place_each() -> None:
    """Modules and attributes with an underscore, and the names of Python, anyio and uvicorn that have a fallback."""
    wrong = []
    for path, tree in _TREES.items():
        for module, name in _imported(tree):
            private = any(part.startswith("_") for part in f"{module}.{name}".split(".")) and name != "__version__"
            if private and not module.startswith(("yaie_async", "__future__")):
                wrong += [f"{path}: {module}"] if _PRIVATE_MODULES.get(module) != path else []
        for node in ast.walk(tree):
            text = node.attr if isinstance(node, ast.Attribute) else node.value if isinstance(node, ast.Constant) else 0
            if isinstance(text, str) and text in _OTHERS and _OTHERS[text] != path:
                wrong.append(f"{path}: {text}")
    wrong += [
        f"{path}: SLF001"
        for path in _TREES
        if path not in _PRIVATE_ATTRIBUTES and "SLF001" in (_ROOT / "yaie_async" / path).read_text("utf-8")
    ]
    assert wrong == []


def _distributions(requirements: list[str]) -> set[str]:
    names = {re.split(r"[^\w.-]", requirement, maxsplit=1)[0] for requirement in requirements}
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names} - {"yaie-async"}


def _needed(trees: Iterator[ast.AST]) -> set[str]:
    own = {"yaie_async", "tests", "benchmarks"}
    modules = {module.partition(".")[0] for tree in trees for module, _ in _imported(tree)}
    owners = importlib.metadata.packages_distributions()
    return {
        re.sub(r"[-_.]+", "-", owners.get(module, [module])[0]).lower()
        for module in modules - own - set(sys.stdlib_module_names)
    }


def test_what_is_imported_is_declared() -> None:
    """And the other way round, but for gguf, which transformers reads the demo's model with."""
    extras = _PROJECT["optional-dependencies"]
    declared = _distributions(_PROJECT["dependencies"]) | _distributions(
        extras["serve"] + extras["demo"] + extras["metrics"]
    )
    assert _needed(iter(_TREES.values())) == declared - {"gguf"}
    serve = [tree for path, tree in _TREES.items() if not path.startswith(("localhub/", "asgi/"))]
    assert _needed(iter(serve)) <= _distributions(_PROJECT["dependencies"])


def test_what_the_tests_import_is_declared() -> None:
    tests = (ast.parse(path.read_text("utf-8")) for path in (_ROOT / "tests").rglob("*.py"))
    extras = _PROJECT["optional-dependencies"]
    assert _needed(tests) <= _distributions(
        _PROJECT["dependencies"] + extras["serve"] + extras["demo"] + extras["metrics"] + extras["test"]
    )


@pytest.mark.parametrize("requirement", _PROJECT["dependencies"] + _PROJECT["optional-dependencies"]["serve"])
def test_every_requirement_has_a_floor(requirement: str) -> None:
    """Without one a resolver may take a release with a known hole, or one that lacks what is used."""
    assert re.fullmatch(r"[\w-]+>=[\d.]+(,<\d+)?", requirement)

"""The package from outside: what it costs to import, and which names it has."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaie_async

_ROOT = Path(__file__).parents[1]
_HEAVY = ("torch", "transformers", "accelerate", "huggingface_hub", "tokenizers", "safetensors", "rich", "typer")


def in_a_new_process(code: str) -> Any:
    """What `code` prints as JSON, in a process that has imported nothing."""
    done = subprocess.run(
        [sys.executable, "-c", "import json, sys, time\n" + code],
        env=os.environ | {"PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_importing_and_constructing_import_nothing_heavy() -> None:
    """Neither the import, a Hub, a ModelLoader, nor the names that need no official error class."""
    code = f"""
import yaie_async
from yaie_async import Hub, ModelLoader, Progress
ModelLoader("org/name", hub=Hub(max_connections=4))
ModelLoader("./not/there", torch_dtype="auto", trust_remote_code=True)
print(json.dumps([name for name in {_HEAVY!r} if name in sys.modules]))
"""
    assert in_a_new_process(code) == []


def test_warming_up_needs_no_framework() -> None:
    """`yaie_async.asgi` imports none, nor a server; in this process they are as if not installed."""
    code = f"""
for name in ("starlette", "fastapi", "uvicorn"):
    sys.modules[name] = None
from yaie_async import ModelLoader
from yaie_async.asgi import Warmup
Warmup(chat=ModelLoader("org/name"))
print(json.dumps([name for name in {_HEAVY!r} if name in sys.modules]))
"""
    assert in_a_new_process(code) == []


def test_what_the_import_costs() -> None:
    """Beside `import anyio, httpx`, which an async app has anyway. Printed; only an import of torch would fail it."""
    code = """
import anyio, httpx
start = time.perf_counter()
import yaie_async
from yaie_async import Hub, ModelLoader
print(json.dumps(time.perf_counter() - start))
"""
    seconds = in_a_new_process(code)
    print(f"import yaie_async, beyond anyio and httpx: {seconds * 1000:.0f} ms")
    assert seconds < 2


def test_every_public_coroutine_says_what_cancelling_leaves_and_what_it_raises() -> None:
    """In the format of trio's docstrings: a paragraph for each, in every module of the package."""
    silent = []

    def look(node: ast.AST, path: Path) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.AsyncFunctionDef) and (child.name[0] != "_" or child.name == "__call__"):
                text = ast.get_docstring(child) or ""
                if not all(f"**{word}:**" in text for word in ("Cancellation", "Raises")):
                    silent.append(f"{path}: {child.name}")
            elif isinstance(child, ast.ClassDef) and child.name[0] != "_":
                look(child, path)

    for path in sorted((_ROOT / "yaie_async").rglob("*.py")):
        look(ast.parse(path.read_text()), path.relative_to(_ROOT))
    assert silent == []


def test_every_public_name_is_there() -> None:
    """`__all__` is sorted as a reader would, each name of it is importable, and `dir` shows it."""
    names = in_a_new_process("""
import yaie_async
from yaie_async import *
print(json.dumps(sorted(name for name in yaie_async.__all__ if name in globals())))
""")
    assert names == sorted(yaie_async.__all__)
    assert set(yaie_async.__all__) <= set(dir(yaie_async))
    assert not hasattr(yaie_async, "no_such_name")


def test_the_public_names_are_these() -> None:
    """A name that comes, goes or changes its spelling is seen here; `dir` shows no other, but for what is imported."""
    names = in_a_new_process("""
import yaie_async
shown = [name for name in dir(yaie_async) if not name.startswith("_")]
import yaie_async.asgi, yaie_async.localhub
print(json.dumps([yaie_async.__all__, shown, yaie_async.asgi.__all__, yaie_async.localhub.__all__]))
""")
    public = [
        "CacheAccessError",
        "ClosedHubError",
        "DiskFullError",
        "GatedModelError",
        "Hub",
        "HubUnavailableError",
        "IncompatibleModelError",
        "IntegrityError",
        "InvalidArgumentError",
        "LoaderError",
        "ModelFileNotFoundError",
        "ModelLoader",
        "ModelNotFoundError",
        "OfflineError",
        "OutOfMemoryError",
        "Plan",
        "PlannedFile",
        "PrefetchError",
        "Progress",
        "RevisionNotFoundError",
        "StalledError",
        "TokenMissingError",
        "TokenizerError",
        "UnsafeFileError",
        "WarmupError",
        "warm_imports",
    ]
    assert names == [
        public,
        sorted([*public, "TYPE_CHECKING", "annotations", "importlib"]),
        ["ModelStatus", "Status", "Warmup"],
        ["LocalHub", "running"],
    ]


def test_every_error_is_public() -> None:
    """An error that can be raised can be caught by its name."""
    from yaie_async.core import errors

    tree = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.LoaderError) and not name.startswith("_")
    }
    assert tree <= set(yaie_async.__all__)


def test_what_type_checkers_see_is_what_there_is() -> None:
    """The imports under TYPE_CHECKING name all of `__all__`, each from the module it is found in."""
    import ast
    import importlib

    tree = ast.parse((_ROOT / "yaie_async" / "__init__.py").read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    declared = {
        alias.name: node.module for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert sorted(declared) == sorted(yaie_async.__all__)
    for name, module in declared.items():
        assert module is not None
        assert getattr(importlib.import_module(module), name) is getattr(yaie_async, name)


def test_the_version_is_that_of_the_metadata() -> None:
    import tomllib

    project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == yaie_async.__version__
    assert (_ROOT / "yaie_async" / "py.typed").exists()


def test_ci_checks_the_layers_and_the_types() -> None:
    script = (_ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for tool in (
        "ruff check",
        "ruff format --check",
        "mypy",
        "bin/pyright\n",
        "pyright --verifytypes yaie_async --ignoreexternal",
        "lint-imports",
    ):
        assert tool in script

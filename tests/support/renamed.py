"""A module of Python or of a library as another release might have it: with other names inside."""

from __future__ import annotations

import importlib.util
from types import ModuleType


def renamed(name: str, names: dict[str, str]) -> ModuleType:
    """The module `name`, its source changed by these replacements, each of which it must have; not in sys.modules."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    with open(spec.origin, encoding="utf-8") as file:
        source = file.read()
    for old, new in names.items():
        assert old in source
        source = source.replace(old, new)
    module = importlib.util.module_from_spec(spec)
    exec(compile(source, spec.origin, "exec"), module.__dict__)
    return module

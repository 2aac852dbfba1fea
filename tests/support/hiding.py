"""Another release of a library, in the eyes of this package alone: it lacks a name. The library itself still finds it,
as it would find a name that its next release has changed everywhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import Any

import pytest


@contextmanager
def hidden(owner: Any, name: str) -> Iterator[None]:
    """Hide an attribute of a module, of a class and its instances, or of an object from the code of `yaie_async`."""
    with pytest.MonkeyPatch.context() as patch:
        if isinstance(owner, ModuleType):
            kind = type(owner)
            hiding = type("Hiding", (kind,), {"__getattribute__": _without(kind.__getattribute__, name)})
            patch.setattr(owner, "__class__", hiding)
        elif isinstance(owner, type) and name in vars(owner):
            patch.setattr(owner, name, _Hidden(name, vars(owner)[name]))
        else:
            kind = owner if isinstance(owner, type) else type(owner)
            for finder in ("__getattribute__", "__getattr__"):  # the second is asked after the first has raised
                if hasattr(kind, finder):
                    patch.setattr(kind, finder, _without(getattr(kind, finder), name))
        yield


class _Hidden:
    """Stands for an attribute of a class."""

    def __init__(self, name: str, value: Any) -> None:
        self._name, self._value = name, value

    def __get__(self, instance: object, owner: type) -> Any:
        if _is_ours(sys._getframe(1)):
            raise AttributeError(self._name)
        found = getattr(self._value, "__get__", None)
        return self._value if found is None else found(instance, owner)


def _without(find: Any, name: str) -> Any:
    def find_others(self: object, attribute: str) -> Any:
        if attribute == name and _is_ours(sys._getframe(1)):
            raise AttributeError(name)
        return find(self, attribute)

    return find_others


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).startswith("yaie_async.")

"""Finds names that another library does not promise to keep, and logs what is lost without one."""

import importlib
from collections.abc import Mapping
from functools import reduce
from typing import Any

from yaie_async.core.log import logger

_logged: set[str] = set()


class Names:
    """The undocumented names of other libraries that one module of this package uses."""

    def __init__(self, losses: Mapping[str, str]) -> None:
        # What is lost without each name ("module:attribute.attribute"), as the end of a sentence.
        self.losses = losses

    def find(self, name: str, owner: object = None) -> Any:
        """Return what one of `losses` stands for, or None where the library lacks it. That is logged once in a process.

        With `owner` the last attribute of `name` is taken from that object, and the module is not imported.
        """
        loss = self.losses[name]
        module, _, path = name.partition(":")
        try:
            if owner is not None:
                return getattr(owner, path.rpartition(".")[2])
            return reduce(getattr, path.split("."), importlib.import_module(module))
        except (ImportError, AttributeError):
            if name not in _logged:
                _logged.add(name)
                library = module.partition(".")[0]
                logger.warning("%s (%s) has no %s: %s.", library, version(library), name.replace(":", "."), loss)
            return None


def version(library: str) -> str | None:
    """Return the version of a library, or None where it is not installed."""
    from importlib import metadata

    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None

"""Files chosen by patterns, as `hf download --include --exclude` chooses them."""

from collections.abc import Mapping
from dataclasses import dataclass

from yaie_async.core.errors import InvalidArgumentError
from yaie_async.core.manifest import RepoFile
from yaie_async.store.compat import matching


@dataclass(frozen=True, slots=True)
class Patterns:
    """Which files of a repository.

    Attributes:
        include: a file matches one of these; empty for all files.
        exclude: and none of these.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def choose(self, files: Mapping[str, RepoFile], *, model: str) -> tuple[RepoFile, ...]:
        """Those that match, by the official client's own rules.

        Raises:
            InvalidArgumentError: when none does.
        """
        include = list(self.include) or None
        paths = matching(files, include, list(self.exclude))
        if not paths:
            wanted = f"include {', '.join(self.include) or '*'}; exclude {', '.join(self.exclude) or 'nothing'}"
            there = ", ".join(sorted(files)[:5]) + (", ..." if len(files) > 5 else "")
            raise InvalidArgumentError(f"No file of {model} matches ({wanted}). It has {there}.", model=model)
        return tuple(files[path] for path in paths)

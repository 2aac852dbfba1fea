"""Files chosen by patterns, as `hf download --include --exclude` chooses them."""

from collections.abc import Mapping
from dataclasses import dataclass

from yaie_async.core.errors import InvalidArgumentError
from yaie_async.core.manifest import RepoFile
from yaie_async.store.compat import matching


@dataclass(frozen=True, slots=True)
class Patterns:
    """Which files of a repository."""

    include: tuple[str, ...] = ()  # a file matches one of these; empty for all files
    exclude: tuple[str, ...] = ()  # and none of these

    def choose(self, files: Mapping[str, RepoFile], *, model: str) -> tuple[RepoFile, ...]:
        """Those that match, by the official client's own rules; InvalidArgumentError when none does."""
        paths = matching(files, list(self.include) or None, list(self.exclude))
        if not paths:
            wanted = f"include {', '.join(self.include) or '*'}; exclude {', '.join(self.exclude) or 'nothing'}"
            there = ", ".join(sorted(files)[:5]) + (", ..." if len(files) > 5 else "")
            raise InvalidArgumentError(f"No file of {model} matches ({wanted}). It has {there}.", model=model)
        return tuple(files[path] for path in paths)

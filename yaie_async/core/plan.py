"""What a load would do, as users see it before it does anything."""

from __future__ import annotations

from dataclasses import dataclass


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

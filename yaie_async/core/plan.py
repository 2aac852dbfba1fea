"""The plan of a load, shown to users before the load begins."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file of a `Plan`.

    Attributes:
        path: in the repository or directory.
        size: in bytes.
        cached: whether the cache has it.
        digest: "sha256" or "git-sha1" where its bytes are checked by that before they are linked; None where the
            server names none, and for a directory.
    """

    path: str
    size: int
    cached: bool
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The files and bytes of a load that has not begun.

    Attributes:
        model: repo id or directory.
        revision: as given by the caller, "main" by default; None for a directory.
        commit: the commit (40 hex digits) of the revision; None for a directory.
        files: the files that the load needs.
        free_disk: free bytes on the disk of the cache; None where its file system does not say.
        memory: estimated bytes of the built model in the requested dtype.
    """

    model: str
    revision: str | None
    commit: str | None
    files: tuple[PlannedFile, ...]
    free_disk: int | None
    memory: int

    @property
    def bytes_cached(self) -> int:
        return sum(file.size for file in self.files if file.cached)

    @property
    def bytes_to_fetch(self) -> int:
        return sum(file.size for file in self.files if not file.cached)

    @property
    def fits(self) -> bool:
        """Whether the disk has room for the bytes to fetch; true where that is not known."""
        return self.free_disk is None or self.bytes_to_fetch <= self.free_disk

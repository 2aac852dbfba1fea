"""`yaie-async verify --repair`: removes damaged files of the cache and fetches them again."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from yaie_async.cli.options import LoadOptions
from yaie_async.cli.result import error_line
from yaie_async.core.errors import LoaderError
from yaie_async.core.names import is_commit
from yaie_async.store.shared_blobs import is_inside, shared_file, users_of


@dataclass(frozen=True, slots=True)
class Damage:
    """A damaged or missing file of the cache."""

    model: str  # repo id
    path: Path  # of the blob, or of the file in a snapshot
    files: tuple[str, ...]  # its paths in snapshots, as commit/path


@dataclass(slots=True)
class Repair:
    """What was done."""

    fetched: list[str] = field(default_factory=list)  # paths in snapshots, as model/commit/path
    left: list[str] = field(default_factory=list)  # a sentence for each thing that is still wrong


def repair(
    damages: Iterable[Damage],
    root: Path,
    options: LoadOptions,
    *,
    users: Callable[[Path], Iterable[Damage]],
    agrees: Callable[[str], bool],
) -> Repair:
    """Remove what is damaged, and fetch it again for the snapshots that have it.

    A file that is shared with other repositories is removed only where `agrees` says so to a question that names them;
    else only this repository's link to it is replaced, by a copy of its own.

    Args:
        damages: files of the cache at `root`.
        root: the root of the cache.
        options: how to reach the Hub.
        users: what a blob is in the snapshots of its repository.
        agrees: asks the user.
    """
    done = Repair()
    wanted: dict[tuple[str, str], set[str]] = {}
    for damage in damages:
        for each in _removed(damage, root, done, users, agrees):
            for name in each.files:
                commit, _, path = name.partition("/")
                wanted.setdefault((each.model, commit), set()).add(path)
    if wanted:
        anyio.run(_fetch, wanted, options, done)
    return done


def _removed(
    damage: Damage,
    root: Path,
    done: Repair,
    users: Callable[[Path], Iterable[Damage]],
    agrees: Callable[[str], bool],
) -> list[Damage]:
    """Remove a damaged file; return what is to be fetched again."""
    if not is_inside(root, damage.path):
        done.left.append(f"{damage.path} is outside of the cache, by a link in it, and was not touched.")
        return []
    shared = shared_file(damage.path)
    links = [damage.path]
    if shared is not None and shared.exists() and not is_inside(root, shared):
        done.left.append(f"{shared} is outside of the cache; only the link of {damage.model} to it was replaced.")
    elif shared is not None and shared.exists():
        others = [path for path in users_of(root, shared) if path != damage.path]
        names = [path.parents[1].name.partition("--") for path in others]
        repos = sorted(
            {f"{'' if kind == 'models' else f'{kind}/'}{name.replace('--', '/')}" for kind, _, name in names}
        )
        used = f"other repositories use it too: {', '.join(repos)}" if repos else "no other repository uses it"
        if agrees(f"{shared} is damaged, and outside of {damage.model}; {used}. Remove it and all links to it?"):
            links = [damage.path, *others, shared]
            done.left += [
                f"{kind}/{name.replace('--', '/')} has lost the file: fetch it again with its own client."
                for kind, _, name in names
                if kind != "models"
            ]
        else:
            done.left.append(f"{shared} is still damaged ({used}); only the link of {damage.model} was replaced.")
    found = [damage, *(each for path in links[1:] if path != shared for each in users(path))]
    for path in links:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            done.left.append(f"{path} can't be removed: {error.strerror}.")
            return []
    return found


async def _fetch(wanted: dict[tuple[str, str], set[str]], options: LoadOptions, done: Repair) -> None:
    async with options.hub() as hub:
        for (model, commit), paths in wanted.items():
            if not is_commit(commit):
                done.left.append(f"{model}: the snapshot {commit} is no commit, so it can't be fetched again.")
                continue
            try:
                await hub.prefetch(model, revision=commit, include=[glob.escape(path) for path in sorted(paths)])
            except LoaderError as error:
                done.left.append(f"{model} at {commit[:12]}: {error_line(error)}")
            else:
                done.fetched += [f"{model}/{commit}/{path}" for path in sorted(paths)]

"""`yaie-async verify --repair`: removes damaged files of the cache and fetches them again."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import anyio

from yaie_async.cli.options import LoadOptions
from yaie_async.cli.result import error_line
from yaie_async.core.errors import LoaderError
from yaie_async.core.names import digest_kind, is_commit
from yaie_async.core.threads import run_owned
from yaie_async.fetch.digest import digest_of
from yaie_async.fetch.stop import Stop
from yaie_async.store.cache import lock_path
from yaie_async.store.locks import blob_lock
from yaie_async.store.shared_blobs import is_inside, is_stored, shared_file, store_lock, users_of

# Seconds for each lock. Who fetches a blob holds its lock for as long as that takes.
_PATIENCE = 10.0


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
    """Remove a damaged file; return what is to be fetched again.

    A shared file goes first, and the links to it one by one: after a kill in between they dangle, and a repair of each
    model fetches its file again.
    """
    if not is_inside(root, damage.path):
        done.left.append(f"{damage.path} is outside of the cache, by a link in it, and was not touched.")
        return []
    shared = shared_file(damage.path)
    others: list[Path] = []
    if shared is None or not shared.exists():
        shared = None
    elif not is_inside(root, shared):
        done.left.append(f"{shared} is outside of the cache; only the link of {damage.model} to it was replaced.")
        shared = None
    else:
        others = [path for path in users_of(root, shared) if path != damage.path]
        repos = sorted({f"{'' if kind == 'models' else f'{kind}/'}{name}" for kind, name in map(_repository, others)})
        used = f"other repositories use it too: {', '.join(repos)}" if repos else "no other repository uses it"
        if not agrees(f"{shared} is damaged, and outside of {damage.model}; {used}. Remove it and all links to it?"):
            done.left.append(f"{shared} is still damaged ({used}); only the link of {damage.model} was replaced.")
            shared, others = None, []

    if problem := _remove(root, damage.path, shared):
        done.left.append(problem)
        return []
    found = [damage]
    for path in others:
        kind, name = _repository(path)
        if problem := _remove(root, path):
            done.left.append(problem)
        elif kind == "models":
            found += users(path)
        else:
            done.left.append(f"{kind}/{name} has lost the file: fetch it again with its own client.")
    return found


def _repository(blob: Path) -> tuple[str, str]:
    kind, _, name = blob.parents[1].name.partition("--")
    return kind, name.replace("--", "/")


def _remove(root: Path, path: Path, shared: Path | None = None) -> str | None:
    """Remove a file of the cache, and first the shared one that it is a link to, with their locks held.

    Return why it can't be removed, if so. What another process has repaired meanwhile is kept.
    """
    locks = [lock_path(root, path)] if path.parents[2] == root else []  # without symlinks it is in a snapshot
    locks += [store_lock(shared)] if shared is not None and is_stored(root, shared) else []
    try:
        anyio.run(_remove_locked, locks, path, shared)
    except TimeoutError:
        return f"{path} was left as it is: another process is at work on it. Repair it again when that has ended."
    except LoaderError as error:
        return f"{path} was left as it is: {error_line(error)}"
    except OSError as error:
        return f"{error.filename or path} can't be removed: {error.strerror}."
    return None


async def _remove_locked(locks: list[Path], path: Path, shared: Path | None) -> None:
    """**Cancellation:** the locks are released, and nothing is removed afterwards."""
    stop = Stop()

    def remove() -> None:
        for each in (shared, path):
            if each is not None and not _is_right(each, path.name, stop) and not stop.is_set():
                each.unlink(missing_ok=True)

    async with AsyncExitStack() as held:
        for lock in locks:
            await held.enter_async_context(blob_lock(lock, partial(anyio.fail_after, _PATIENCE)))
        await run_owned(remove, interrupt=stop.set, name="remove")


def _is_right(path: Path, etag: str, stop: Stop) -> bool:
    with suppress(OSError):
        return digest_kind(etag) is not None and digest_of(path, etag, stop.is_set) == etag
    return False


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

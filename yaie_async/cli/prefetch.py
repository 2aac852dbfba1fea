"""`yaie-async prefetch`: download models into the cache, sharing one set of connections."""

from pathlib import Path
from typing import Any

import anyio

from yaie_async.cli.batch import batch_document
from yaie_async.cli.models_file import read_models
from yaie_async.cli.options import LoadOptions
from yaie_async.cli.result import CommandResult, error_line
from yaie_async.cli.tables import table
from yaie_async.core.errors import InvalidArgumentError, LoaderError, PrefetchError
from yaie_async.loader.text import size


def prefetch(
    models: list[str], from_file: Path | None, options: LoadOptions, *, include: list[str], exclude: list[str]
) -> CommandResult:
    """Download all models, and return the folders of their snapshots.

    Raises:
        LoaderError: the file of models is not valid, or the only model failed.
    """
    names = list(dict.fromkeys([*models, *(read_models(from_file) if from_file else [])]))
    if not names:
        raise InvalidArgumentError(
            f"{from_file} names no model. Write one model per line: org/name or org/name@revision."
        )
    snapshots, failures = anyio.run(_fetch, names, options, include, exclude)
    done = {name: _measure(snapshot) for name, snapshot in snapshots.items()}
    rows = [
        (name, str(found["files"]), size(found["bytes"]), found["snapshot"])
        if (found := done.get(name))
        else (name, "", "", error_line(failures[name]))
        for name in names
    ]
    document = batch_document(done, failures, "fetched")
    return CommandResult(document, [table("model", "files", "size", "snapshot", rows=rows)], failed=bool(failures))


async def _fetch(
    names: list[str], options: LoadOptions, include: list[str], exclude: list[str]
) -> tuple[dict[str, Path], dict[str, LoaderError]]:
    async with options.hub() as hub:
        try:
            snapshots = await hub.prefetch(
                *names,
                revision=options.revision,
                include=include,
                exclude=exclude,
                trust_remote_code=options.trust_remote_code,
                allow_pickle=not options.no_pickle,
            )
        except PrefetchError as error:
            return error.snapshots, error.failures
        return snapshots, {}


def _measure(snapshot: Path) -> dict[str, Any]:
    sizes = [path.stat().st_size for path in snapshot.rglob("*") if path.is_file()]
    return {"snapshot": str(snapshot), "commit": snapshot.name, "files": len(sizes), "bytes": sum(sizes)}

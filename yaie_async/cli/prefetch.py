"""`yaie-async prefetch`: fetch models into the cache, within one budget of connections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yaie_async.cli.options import Wishes
from yaie_async.cli.outcome import Outcome, describe_error
from yaie_async.cli.several import describe_failures, for_each
from yaie_async.cli.tables import columns
from yaie_async.core.threads import run_owned
from yaie_async.loader.display import size
from yaie_async.loader.model_loader import ModelLoader


def prefetch(models: list[str], wishes: Wishes) -> Outcome:
    """Fetch all of them, and say where they are."""
    done, failures = for_each(models, wishes, _fetch)
    rows = [
        (model, str(found["files"]), size(found["bytes"]), found["snapshot"])
        if (found := done.get(model))
        else (model, "", "", f"{type(failures[model]).__name__}: {failures[model]}")
        for model in dict.fromkeys(models)
    ]
    document: dict[str, Any] = {
        "models": done | {model: {"error": describe_error(error)} for model, error in failures.items()},  # type: ignore[arg-type]
        **describe_failures(failures, "fetched"),
    }
    return Outcome(document, [columns("model", "files", "size", "snapshot", rows=rows)], failed=bool(failures))


async def _fetch(loader: ModelLoader) -> dict[str, Any]:
    snapshot = await loader.prefetch()

    def measure() -> dict[str, Any]:
        sizes = [path.stat().st_size for path in Path(snapshot).rglob("*") if path.is_file()]
        return {"snapshot": str(snapshot), "commit": loader.commit, "files": len(sizes), "bytes": sum(sizes)}

    return await run_owned(measure, name="measure")

"""`yaie-async plan`: what a load would download and need, without downloading a file."""

from dataclasses import asdict
from typing import Any

from yaie_async.cli.batch import batch_document, run_for_each
from yaie_async.cli.options import LoadOptions
from yaie_async.cli.result import CommandResult, error_line
from yaie_async.cli.tables import table
from yaie_async.core.plan import Plan
from yaie_async.loader.model_loader import ModelLoader
from yaie_async.loader.text import size
from yaie_async.model.memory import available_memory


def plan(models: list[str], options: LoadOptions, *, dtype: str) -> CommandResult:
    """Plan all models, and compare their needs with the free disk and memory."""
    plans, failures = run_for_each(models, options, ModelLoader.plan, dtype=dtype)
    free_memory = available_memory("cpu")
    rows = [
        (model, *_row(plans[model], free_memory)) if model in plans else (model, "", "", "", "", "failed")
        for model in dict.fromkeys(models)
    ]
    to_fetch = sum(plan.bytes_to_fetch for plan in plans.values())
    free_disk = min((plan.free_disk for plan in plans.values() if plan.free_disk is not None), default=None)
    fits = free_disk is None or to_fetch <= free_disk
    documents = {model: _document(plan) for model, plan in plans.items()}
    totals = {"bytes_to_fetch": to_fetch, "free_disk": free_disk, "free_memory": free_memory, "fits": fits}
    document = batch_document(documents, failures, "planned", **totals)
    verdict = f"Disk: {size(to_fetch)} to fetch, "
    if free_disk is None:
        verdict += "and its file system does not say how much is free."
    else:
        verdict += f"{size(free_disk)} free: {'fits' if fits else f'does not fit, {size(to_fetch - free_disk)} short'}."
    headers = ("model", "files", "to fetch", "cached", "memory", "fits")
    lines: list[Any] = [table(*headers, rows=rows)]
    for model, of_model in plans.items():
        unchecked = [file.path for file in of_model.files if not file.cached and file.digest is None]
        if unchecked:
            more = f" and {len(unchecked) - 5} more" if len(unchecked) > 5 else ""
            lines.append(f"{model}: no digest to check {', '.join(unchecked[:5])}{more} by.")
    lines += [f"{model}: {error_line(error)}" for model, error in failures.items()]
    if plans:
        lines.append(verdict)
        lines.append(f"Memory: {size(free_memory)} free now, without the memory of GPUs." if free_memory else "")
    return CommandResult(document, lines, failed=bool(failures))


def _row(plan: Plan, free_memory: int | None) -> tuple[str, ...]:
    short = free_memory is not None and plan.memory > free_memory
    fits = ("no memory" if short else "yes") if plan.fits else "neither" if short else "no disk"
    return (
        str(len(plan.files)),
        size(plan.bytes_to_fetch),
        size(plan.bytes_cached),
        size(plan.memory),
        fits,
    )


def _document(plan: Plan) -> dict[str, Any]:
    return {
        "revision": plan.revision,
        "commit": plan.commit,
        "files": [asdict(file) for file in plan.files],
        "bytes_to_fetch": plan.bytes_to_fetch,
        "bytes_cached": plan.bytes_cached,
        "free_disk": plan.free_disk,
        "memory": plan.memory,
        "fits": plan.fits,
    }

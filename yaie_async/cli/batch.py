"""One thing done to several models within one Hub: one that fails does not stop the others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import anyio

from yaie_async.cli.options import LoadOptions
from yaie_async.cli.result import error_document
from yaie_async.core.tasks import task_group
from yaie_async.loader.model_loader import ModelLoader

T = TypeVar("T")


def run_for_each(
    models: Sequence[str], options: LoadOptions, do: Callable[[ModelLoader], Awaitable[T]], **arguments: Any
) -> tuple[dict[str, T], dict[str, Exception]]:
    """Do it to all models at once; return what came of it and the errors, by model.

    Raises:
        LoaderError: the Hub could not be opened, or the only model failed.
    """

    async def run() -> tuple[dict[str, T], dict[str, Exception]]:
        done: dict[str, T] = {}
        failures: dict[str, Exception] = {}
        async with options.hub() as hub:
            from yaie_async.core.errors import LoaderError

            async def one(model: str) -> None:
                try:
                    done[model] = await do(options.loader(model, hub, **arguments))
                except LoaderError as error:
                    if len(set(models)) == 1:
                        raise
                    failures[model] = error

            async with task_group() as group:
                for model in dict.fromkeys(models):
                    group.start_soon(one, model)
        return done, failures

    return anyio.run(run)


def failures_document(failures: dict[str, Any], what: str) -> dict[str, Any]:
    """The "error" of a command of which a part failed; nothing where nothing did."""
    if not failures:
        return {}
    return {
        "error": {
            "type": "PrefetchError",
            "message": f"{len(failures)} could not be {what}: {', '.join(failures)}",
            "failures": {model: error_document(error) for model, error in failures.items()},
        }
    }

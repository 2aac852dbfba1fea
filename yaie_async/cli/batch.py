"""A batch: one command for several models within one Hub, where one failure does not stop the others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from yaie_async.cli.options import LoadOptions
from yaie_async.cli.result import error_document
from yaie_async.core.tasks import task_group
from yaie_async.loader.model_loader import ModelLoader

if TYPE_CHECKING:
    from yaie_async.core.errors import LoaderError

T = TypeVar("T")


def run_for_each(
    models: Sequence[str], options: LoadOptions, do: Callable[[ModelLoader], Awaitable[T]], **arguments: Any
) -> tuple[dict[str, T], dict[str, LoaderError]]:
    """Call `do` for all models at once; return the results and the errors, each by model.

    `arguments` are passed to `ModelLoader`.

    Raises:
        LoaderError: the Hub could not be opened, or the only model failed.
    """

    async def run() -> tuple[dict[str, T], dict[str, LoaderError]]:
        done: dict[str, T] = {}
        failures: dict[str, LoaderError] = {}
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


def batch_document(
    done: dict[str, dict[str, Any]], failures: Mapping[str, LoaderError], verb: str, **totals: Any
) -> dict[str, Any]:
    """The JSON of a batch: a result or an error for each model, the totals, and one "error" if any model failed.

    `verb` is the participle for the message of that error, such as "fetched".
    """
    errors = {model: error_document(error) for model, error in failures.items()}
    document: dict[str, Any] = {"models": done | {model: {"error": error} for model, error in errors.items()}, **totals}
    if errors:
        count = f"{len(errors)} of {len(errors) + len(done)} models"
        message = f"{count} could not be {verb}: {', '.join(errors)}."
        document["error"] = {"type": "PrefetchError", "message": message, "failures": errors}
    return document

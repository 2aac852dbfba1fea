"""One thing done to several models within one Hub: one that fails does not stop the others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import anyio

from yaie_async.cli.options import Wishes
from yaie_async.cli.outcome import describe_error
from yaie_async.core.tasks import task_group
from yaie_async.loader.model_loader import ModelLoader

T = TypeVar("T")


def for_each(
    models: Sequence[str], wishes: Wishes, do: Callable[[ModelLoader], Awaitable[T]], **options: Any
) -> tuple[dict[str, T], dict[str, Exception]]:
    """Do it to all models at once; return what came of it and the errors, by model.

    Raises:
        LoaderError: the Hub could not be opened, or the only model failed.
    """

    async def run() -> tuple[dict[str, T], dict[str, Exception]]:
        done: dict[str, T] = {}
        failures: dict[str, Exception] = {}
        async with wishes.hub() as hub:
            from yaie_async.core.errors import LoaderError

            async def one(model: str) -> None:
                try:
                    done[model] = await do(wishes.loader(model, hub, **options))
                except LoaderError as error:
                    if len(set(models)) == 1:
                        raise
                    failures[model] = error

            async with task_group() as group:
                for model in dict.fromkeys(models):
                    group.start_soon(one, model)
        return done, failures

    return anyio.run(run)


def describe_failures(failures: dict[str, Any], what: str) -> dict[str, Any]:
    """The "error" of a command of which a part failed; nothing where nothing did."""
    if not failures:
        return {}
    return {
        "error": {
            "type": "PrefetchError",
            "message": f"{len(failures)} could not be {what}: {', '.join(failures)}",
            "failures": {model: describe_error(error) for model, error in failures.items()},
        }
    }

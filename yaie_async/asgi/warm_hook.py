"""The hook that runs after a load and before its model is ready, such as a first short generation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

import anyio

from yaie_async.core.loops import spawn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    WarmHook: TypeAlias = Callable[[PreTrainedModel, PreTrainedTokenizerBase | None], Awaitable[object]]


async def run_hook(hook: WarmHook, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Run `hook` and wait for its end.

    **Cancellation:** the hook is cancelled too, and control returns at once, even if it waits for a thread that never
    ends: a deadline has to be met.

    **Raises:** what the hook raises; RuntimeError if it ends by the cancellation of a task of its own.
    """
    failures: list[BaseException] = []
    scope, ended = anyio.CancelScope(), anyio.Event()

    async def work() -> None:
        try:
            with scope:
                await hook(model, tokenizer)
        except BaseException as error:
            failures.append(error)
            if not isinstance(error, Exception):
                raise
        finally:
            ended.set()

    spawn(work, "yaie_async warm hook")
    try:
        await ended.wait()
    finally:
        scope.cancel()
    for failure in failures:
        if isinstance(failure, Exception):
            raise failure
        raise RuntimeError(f"it ended by {type(failure).__name__}") from failure

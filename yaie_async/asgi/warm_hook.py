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

    **Raises:** what the hook raises.
    """
    failures: list[Exception] = []
    scope, ended = anyio.CancelScope(), anyio.Event()

    async def work() -> None:
        try:
            with scope:
                await hook(model, tokenizer)
        except Exception as error:  # noqa: BLE001 - raised below
            failures.append(error)
        finally:
            ended.set()

    spawn(work, "yaie_async warm hook")
    try:
        await ended.wait()
    finally:
        scope.cancel()
    for failure in failures:
        raise failure

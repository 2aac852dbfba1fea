"""One model's warm-up: loaded, tried again while the Hub is away, and told of."""

from __future__ import annotations

import copy
import logging
import random
import time
from typing import TYPE_CHECKING, Any

import anyio

from yaie_async.asgi.status import ModelStatus, State
from yaie_async.core.progress import Progress
from yaie_async.core.threads import run_detached
from yaie_async.loader.model_loader import ModelLoader

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from yaie_async.core.errors import LoaderError

logger = logging.getLogger("yaie_async")


class Load:
    """One model on one event loop. `run` loads it once; `wait` is for all who need it.

    Attributes:
        name: what the app calls the model.
        settled: set once it is ready, has failed or was stopped.
        error: why it failed; None else.
    """

    def __init__(self, name: str, loader: ModelLoader) -> None:
        self.name = name
        self.settled = anyio.Event()
        self.error: LoaderError | None = None
        self._loader = loader
        self._ready = False
        self._retries = 0
        self._outage: LoaderError | None = None  # how the last attempt failed
        self._next_attempt: float | None = None  # when, while it is waited for

    async def run(self, deadline: float | None) -> None:
        """Load the model. Never raises: a failure is kept in `error`.

        `deadline` is in seconds from now, over all attempts.

        **Cancellation:** what is downloaded is kept; whoever waits is told that the server stops.
        """
        start = time.monotonic()
        try:
            await run_detached(_import, name="warm-up")
            with anyio.move_on_after(deadline) as scope:
                await self._attempts()
            if scope.cancelled_caught:
                self.error = self._late(deadline)
        except Exception as error:  # noqa: BLE001 - one model that fails stops neither the others nor the server
            self.error = _ours(error, self)
        finally:
            self.settled.set()
        facts = self.facts | {"seconds": time.monotonic() - start, "retries": self._retries}
        if self.error is None:
            logger.info("warm-up: %s is ready after %.1f s", self, facts["seconds"], extra=facts)
        else:
            logger.error("warm-up: %s failed. %s", self, self.error, extra=facts)

    async def wait(self) -> PreTrainedModel:
        """The model, once it is there.

        **Cancellation:** at once; the warm-up goes on.

        **Raises:** the error it failed with, an instance for each call; WarmupError when it was stopped.
        """
        if not self.settled.is_set():
            await self.settled.wait()
        if self.error is not None:
            raise copy.copy(self.error) from self.error.__cause__
        if not self._ready:
            from yaie_async.core.errors import WarmupError

            raise WarmupError(f"{self} was not ready when the server was told to stop.", model=self._loader.model)
        # Not kept here: after `unload` it is loaded again.
        return await self._loader.load_model()

    async def _attempts(self) -> None:
        from yaie_async.asgi.backoff import wait_before_retry

        while not self._ready:
            try:
                await self._load()
            except Exception as error:
                wait = wait_before_retry(error, self._retries + 1, random.random())  # noqa: S311 - jitter
                if wait is None:
                    raise
                self._retries += 1
                self._outage, self._next_attempt = _ours(error, self), time.monotonic() + wait
                facts = self.facts | {"retries": self._retries}
                logger.warning("warm-up: %s is tried again in %.0f s. %s", self, wait, error, extra=facts)
                await anyio.sleep(wait)
                self._next_attempt = None
            else:
                self._ready, self._outage = True, None

    async def _load(self) -> None:
        from yaie_async.core.errors import TokenizerError

        try:
            await self._loader.load()
        except TokenizerError as error:
            # An app may well bring a tokenizer of its own; the model is what was asked for.
            logger.warning(
                "warm-up: %s has no usable tokenizer, and is loaded without. %s", self, error, extra=self.facts
            )
            await self._loader.load_model()

    def _late(self, deadline: float | None) -> LoaderError:
        from yaie_async.core.errors import WarmupError

        status = self.status()
        last = f" The last attempt: {self._outage}" if self._outage else ""
        error = WarmupError(
            f"{self} was not ready within {deadline:g} s ({status.stage}, {status.fraction:.0%}).{last} "
            "What is downloaded is kept for the next start.",
            model=self._loader.model,
        )
        error.__cause__ = self._outage
        return error

    def status(self) -> ModelStatus:
        """How far it is at this moment."""
        progress = self._loader.progress or Progress(self._loader.model, "resolving")
        state: State = "loading"
        stage: str = progress.stage
        error, retry_in = self.error, None
        if self._ready:
            state = stage = "ready"
        elif error is not None:
            state = stage = "failed"
        elif self.settled.is_set():
            stage = "stopped"
        elif self._next_attempt is not None:
            stage, error = "retrying", self._outage
            retry_in = max(0.0, self._next_attempt - time.monotonic())
        elif stage == "ready":
            stage = "building"  # the tokenizer, which is not told of, may come after the model
        downloading = stage == "downloading"
        return ModelStatus(
            name=self.name,
            model=self._loader.model,
            state=state,
            stage=stage,
            share=progress.fraction,
            bytes_done=progress.bytes_done,
            bytes_total=progress.bytes_total,
            bytes_per_second=progress.bytes_per_second if downloading else 0.0,
            seconds_left=progress.seconds_left if downloading else None,
            error=str(error) if error is not None else None,
            retry_in=retry_in,
        )

    @property
    def facts(self) -> dict[str, Any]:
        """What log records say about it."""
        return {"model": self._loader.model, "stage": self.status().stage}

    def __str__(self) -> str:
        return f"{self.name} ({self._loader.model})"


def _import() -> None:
    """What this module needs of the layers below, imported off the loop."""
    import yaie_async.asgi.backoff
    import yaie_async.core.errors  # noqa: F401


def _ours(error: Exception, load: Load) -> LoaderError:
    from yaie_async.core.errors import LoaderError, WarmupError

    if isinstance(error, LoaderError):
        return error
    found = WarmupError(f"{load} can't be loaded: {type(error).__name__}: {error}")
    found.__cause__ = error
    return found

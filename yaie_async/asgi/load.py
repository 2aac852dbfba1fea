"""The load of one model in a warm-up: retries during an outage of the Hub, status, and waiters."""

from __future__ import annotations

import copy
import random
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from yaie_async.asgi.facts import Facts, facts_of
from yaie_async.asgi.status import ModelStatus, State
from yaie_async.asgi.warm_hook import run_hook
from yaie_async.core.log import logger
from yaie_async.core.progress import Progress
from yaie_async.core.threads import run_detached, run_owned
from yaie_async.loader.model_loader import ModelLoader

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from yaie_async.asgi.warm_hook import WarmHook
    from yaie_async.core.errors import LoaderError


class Load:
    """The load of one model on one event loop. `run` loads it once; any number of tasks may `wait` for it.

    Attributes:
        name: the name of the model in the app.
        settled: set once the model is ready, has failed or was stopped.
        error: why the load failed; None if it has not.
    """

    def __init__(
        self,
        name: str,
        loader: ModelLoader,
        *,
        retry: bool = False,
        optional: bool = False,
        warm: WarmHook | None = None,
    ) -> None:
        self.name = name
        self.settled: anyio.Event = anyio.Event()
        self.error: LoaderError | None = None
        self._loader = loader
        self._retry = retry
        self._optional = optional
        self._warm = warm
        self._ready = False
        self._retries = 0
        self._last_failure: LoaderError | None = None  # of an attempt that is followed by another
        self._next_attempt: float | None = None  # time of the next attempt, while waiting for it
        self._facts = Facts()
        self._ready_since: float | None = None
        self._seconds: float | None = None

    async def run(self, deadline: float | None) -> None:
        """Load the model, with retries, within `deadline` seconds for all attempts together.

        **Cancellation:** downloaded bytes are kept; `wait` raises WarmupError in all waiting tasks.

        **Raises:** nothing; a failure is stored in `error`.
        """
        start = time.monotonic()
        try:
            await run_detached(_import, name="warm-up")
            with anyio.move_on_after(deadline) as scope:
                await self._attempts()
            if scope.cancelled_caught:
                self.error = self._deadline_error(deadline)
        except Exception as error:  # noqa: BLE001 - one failure stops neither the other models nor the server
            self.error = self._as_loader_error(error)
        finally:
            self._seconds = time.monotonic() - start
            self.settled.set()
        fields = self.log_fields | {"seconds": self._seconds, "retries": self._retries}
        if self.error is None:
            logger.info("warm-up: %s is ready after %.1f s.", self, self._seconds, extra=fields)
        else:
            logger.error("warm-up: %s failed. %s", self, self.error, extra=fields)

    def again(self) -> Load:
        """The same load, not yet run."""
        return Load(self.name, self._loader, retry=self._retry, optional=self._optional, warm=self._warm)

    async def wait(self) -> PreTrainedModel:
        """Wait until the load has ended, and return the model.

        **Cancellation:** at once; the load continues.

        **Raises:** a copy of the LoaderError with which the load failed; WarmupError if it was stopped.
        """
        if not self.settled.is_set():
            await self.settled.wait()
        if self.error is not None:
            raise copy.copy(self.error) from self.error.__cause__
        if not self._ready:
            from yaie_async.core.errors import WarmupError

            raise WarmupError(
                f"{self} was not ready when the server stopped. Downloaded files are kept for the next start.",
                model=self._loader.model,
            )
        # Not stored here: after `unload` the loader loads it again.
        return await self._loader.load_model()

    async def _attempts(self) -> None:
        from yaie_async.asgi.backoff import wait_before_retry

        while not self._ready:
            try:
                model, tokenizer = await self._load()
                await self._run_hook(model, tokenizer)
            except Exception as error:
                wait = wait_before_retry(error, self._retries + 1, random.random())  # noqa: S311 - jitter
                if wait is None:
                    raise
                self._retries += 1
                self._last_failure, self._next_attempt = self._as_loader_error(error), time.monotonic() + wait
                fields = self.log_fields | {"retries": self._retries}
                logger.warning("warm-up: loading %s again in %.0f s. %s", self, wait, error, extra=fields)
                await anyio.sleep(wait)
                self._next_attempt = None
            else:
                with suppress(Exception):  # a tensor of a kind that does not say how large it is
                    self._facts = await run_owned(partial(facts_of, model), name="facts")
                self._ready, self._last_failure, self._ready_since = True, None, time.time()

    async def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
        from yaie_async.core.errors import TokenizerError

        try:
            return await self._loader.load()
        except TokenizerError as error:
            # The app may bring its own tokenizer.
            logger.warning(
                "warm-up: %s has no usable tokenizer; loading the model without one. %s",
                self,
                error,
                extra=self.log_fields,
            )
            return await self._loader.load_model(), None

    async def _run_hook(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
        if self._warm is not None:
            try:
                await run_hook(self._warm, model, tokenizer)
            except Exception as error:
                from yaie_async.core.errors import WarmupError

                text = f"{self} was loaded, but the hook warm= failed: {type(error).__name__}: {error}"
                raise WarmupError(text, model=self._loader.model) from error

    def _deadline_error(self, deadline: float | None) -> LoaderError:
        from yaie_async.core.errors import WarmupError

        status = self.status()
        last = f" The last attempt failed: {self._last_failure}" if self._last_failure else ""
        error = WarmupError(
            f"{self} was not ready within {deadline:g} s ({status.stage}, {status.fraction:.0%}).{last} "
            "Downloaded files are kept for the next start; raise deadline= to wait longer.",
            model=self._loader.model,
        )
        error.__cause__ = self._last_failure
        return error

    def _as_loader_error(self, error: Exception) -> LoaderError:
        from yaie_async.core.errors import LoaderError, WarmupError

        if isinstance(error, LoaderError):
            return error
        wrapped = WarmupError(f"{self} could not be loaded: {type(error).__name__}: {error}", model=self._loader.model)
        wrapped.__cause__ = error
        return wrapped

    def status(self) -> ModelStatus:
        """The current status of the load."""
        progress = self._loader.progress or Progress(self._loader.model, "resolving")
        state: State = "loading"
        stage: str = progress.stage
        error, attempt, retry_in = self.error, progress.attempt or None, progress.retry_in
        if self._ready:
            state = stage = "ready"
        elif error is not None:
            state = stage = "failed"
        elif self.settled.is_set():
            stage = "stopped"
        elif self._next_attempt is not None:
            stage, error, attempt = "retrying", self._last_failure, self._retries + 1
            retry_in = max(0.0, self._next_attempt - time.monotonic())
        elif stage == "ready":
            stage = "building"  # the tokenizer may follow the model, and has no progress of its own
        now = progress if stage == progress.stage else None
        return ModelStatus(
            name=self.name,
            model=self._loader.model,
            state=state,
            stage=stage,
            bytes_fraction=progress.fraction,
            bytes_done=progress.bytes_done if progress.bytes_total else None,
            bytes_total=progress.bytes_total or None,
            bytes_per_second=now.bytes_per_second if now and stage in ("downloading", "stalled") else None,
            seconds_left=now.seconds_left if now and state == "loading" else None,
            error=str(error) if error is not None else None,
            retry_in=retry_in if stage in ("retrying", "stalled") else None,
            stage_fraction=now.stage_fraction if now else None,
            reason=(now.reason or None) if now else None,
            attempt=attempt if stage in ("retrying", "stalled") else None,
            steps=self._steps(progress),
            ready_since=self._ready_since,
            seconds=self._seconds if state != "loading" else None,
            dtype=self._facts.dtype,
            device=self._facts.device,
            memory_bytes=self._facts.memory_bytes,
            commit=self._loader.commit,
            can_retry=self._retry and state == "failed",
            optional=self._optional,
            retries=self._retries,
        )

    def _steps(self, progress: Progress) -> tuple[tuple[str, float], ...]:
        """The stages that are over. The present one would change every status, and so wake every reader."""
        steps = tuple(step for step in progress.steps if self._seconds is not None or step[0] != progress.stage)
        if self._seconds is None or not self._retries:
            return steps
        # A progress begins with its attempt: the rest is the earlier ones, with the waits between.
        return (("retrying", max(0.0, self._seconds - sum(seconds for _, seconds in steps))), *steps)

    @property
    def log_fields(self) -> dict[str, Any]:
        """The attributes of this load's log records."""
        return {"model": self._loader.model, "stage": self.status().stage}

    def __str__(self) -> str:
        return f"{self.name} ({self._loader.model})"


def _import() -> None:
    """Import what this module needs from the lower layers. Blocks, so it runs off the loop."""
    import yaie_async.asgi.backoff
    import yaie_async.core.errors  # noqa: F401

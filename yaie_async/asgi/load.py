"""The load of one model in a warm-up: retries during an outage of the Hub, status, and waiters."""

from __future__ import annotations

import copy
import random
import time
from typing import TYPE_CHECKING, Any

import anyio

from yaie_async.asgi.status import ModelStatus, State
from yaie_async.core.log import logger
from yaie_async.core.progress import Progress
from yaie_async.core.threads import run_detached
from yaie_async.loader.model_loader import ModelLoader

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from yaie_async.core.errors import LoaderError


class Load:
    """The load of one model on one event loop. `run` loads it once; any number of tasks may `wait` for it.

    Attributes:
        name: the name of the model in the app.
        settled: set once the model is ready, has failed or was stopped.
        error: why the load failed; None if it has not.
    """

    def __init__(self, name: str, loader: ModelLoader) -> None:
        self.name = name
        self.settled: anyio.Event = anyio.Event()
        self.error: LoaderError | None = None
        self._loader = loader
        self._ready = False
        self._retries = 0
        self._last_failure: LoaderError | None = None  # of an attempt that is followed by another
        self._next_attempt: float | None = None  # time of the next attempt, while waiting for it

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
            self.settled.set()
        fields = self.log_fields | {"seconds": time.monotonic() - start, "retries": self._retries}
        if self.error is None:
            logger.info("warm-up: %s is ready after %.1f s.", self, fields["seconds"], extra=fields)
        else:
            logger.error("warm-up: %s failed. %s", self, self.error, extra=fields)

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
                await self._load()
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
                self._ready, self._last_failure = True, None

    async def _load(self) -> None:
        from yaie_async.core.errors import TokenizerError

        try:
            await self._loader.load()
        except TokenizerError as error:
            # The app may bring its own tokenizer.
            logger.warning(
                "warm-up: %s has no usable tokenizer; loading the model without one. %s",
                self,
                error,
                extra=self.log_fields,
            )
            await self._loader.load_model()

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
        error, retry_in = self.error, None
        if self._ready:
            state = stage = "ready"
        elif error is not None:
            state = stage = "failed"
        elif self.settled.is_set():
            stage = "stopped"
        elif self._next_attempt is not None:
            stage, error = "retrying", self._last_failure
            retry_in = max(0.0, self._next_attempt - time.monotonic())
        elif stage == "ready":
            stage = "building"  # the tokenizer may follow the model, and has no progress of its own
        running = stage == progress.stage
        return ModelStatus(
            name=self.name,
            model=self._loader.model,
            state=state,
            stage=stage,
            bytes_fraction=progress.fraction,
            bytes_done=progress.bytes_done,
            bytes_total=progress.bytes_total,
            bytes_per_second=progress.bytes_per_second if running else 0.0,
            seconds_left=progress.seconds_left if running else None,
            error=str(error) if error is not None else None,
            retry_in=retry_in,
        )

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

"""Warmup: loads models in the background of an async web server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, get_args

import anyio
import anyio.lowlevel

from yaie_async.asgi.app import App
from yaie_async.asgi.run import OnFailure, Options, Run
from yaie_async.asgi.status import Status
from yaie_async.loader.hub import invalid_argument
from yaie_async.loader.model_loader import ModelLoader

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from yaie_async.asgi.warm_hook import WarmHook


class Warmup:
    """Loads models and their tokenizers in the background of an async web server, and serves their status.

        warmup = Warmup(chat=ModelLoader("org/name"))
        app = FastAPI(lifespan=warmup.lifespan)        # or `async with warmup:` inside your own lifespan
        app.mount("/warmup", warmup.app)

    Args:
        loaders: loaders by name, for names that are not Python keywords. It may be combined with `named`.
        deadline: seconds until a model that is not ready counts as failed; None for no limit.
        on_failure: "keep-serving" keeps the server running, with the error in its status; "exit" shuts the
            server down as SIGTERM does, and ends this process with exit code 3, at which supervisors stop.
        retry: True lets the page start a failed load again, by a button and `POST /retry/<name>` from the same origin.
        group: marks the workers of one server, which share their states, where they can't be known by their listening
            socket. Any text that no other server of this user has.
        optional: names of models without which the app is ready too, and whose failure ends no process.
        warm: `async def warm(model, tokenizer)`, which runs after each load and before the model is ready, for example
            a first short generation. It counts for the deadline, and a model for which it fails has failed. The
            tokenizer is None where the model has none. Like all async code it must not block the event loop.
        named: loaders by name.

    During an outage of the Hub, loads are retried with growing waits until the deadline. Permanent failures (a missing
    or gated model, a full disk) fail at once. Nothing is read or sent before the server starts; without a lifespan
    (`--lifespan off`) the first use starts the warm-up. Each event loop, and so each worker process, has its own
    warm-up; lock files in the cache keep them from downloading the same bytes.

    Raises:
        InvalidArgumentError: no model is given, two have the same name, or a value is not a ModelLoader.
    """

    def __init__(
        self,
        loaders: Mapping[str, ModelLoader] | None = None,
        /,
        *,
        deadline: float | None = None,
        on_failure: OnFailure = "keep-serving",
        retry: bool = False,
        group: str | None = None,
        optional: Collection[str] = (),
        warm: WarmHook | None = None,
        **named: ModelLoader,
    ) -> None:
        loaders = dict(loaders or {})
        twice = loaders.keys() & named.keys()
        if twice:
            raise invalid_argument(f"Two models are named {min(twice)!r}. Give each model its own name.")
        self._loaders: dict[str, ModelLoader] = {**loaders, **named}
        if not self._loaders:
            raise invalid_argument('Warmup needs at least one model: Warmup(chat=ModelLoader("org/name")).')
        for name, loader in self._loaders.items():
            if not isinstance(loader, ModelLoader):
                raise invalid_argument(f"{name} is not a ModelLoader but {loader!r}. Pass ModelLoader({loader!r}).")
        if deadline is not None and not deadline > 0:
            raise invalid_argument(f"deadline must be greater than 0 seconds, not {deadline}.")
        if on_failure not in get_args(OnFailure):
            raise invalid_argument(f'on_failure must be "keep-serving" or "exit", not {on_failure!r}.')
        if group is not None and not isinstance(group, str):
            raise invalid_argument(f"group is the name of a group of workers, as text, not {group!r}.")
        of_optional = frozenset(optional)  # which may be a generator
        if isinstance(optional, str) or not of_optional <= self._loaders.keys():
            names = ", ".join(self._loaders)
            raise invalid_argument(f"optional is a tuple of models' names, of these: {names}; not {optional!r}.")
        if warm is not None and not callable(warm):
            raise invalid_argument(f"warm is an async function of a model and its tokenizer, not {warm!r}.")
        self._options = Options(deadline, on_failure, retry, group, of_optional, warm)
        self._run: anyio.lowlevel.RunVar[Run | None] = anyio.lowlevel.RunVar("yaie_async_warmup", None)
        self.app: App = App(self._current_run, lambda: self)

    async def __aenter__(self) -> Self:
        """Start loading in the background.

        **Cancellation:** does not wait.

        **Raises:** nothing; the failure of a load is in its status.
        """
        self._current_run().users += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the loads. Downloaded bytes are kept, and the next start continues from them.

        **Cancellation:** the loads end all the same.

        **Raises:** nothing.
        """
        run = self._run.get()
        assert run is not None  # started by __aenter__
        run.users -= 1
        if run.users == 0:
            self._run.set(None)
            await run.stop()

    @asynccontextmanager
    async def lifespan(self, _app: object) -> AsyncIterator[None]:
        """The lifespan for `FastAPI(lifespan=warmup.lifespan)` and `Starlette(lifespan=warmup.lifespan)`.

        **Cancellation:** as `async with warmup`.

        **Raises:** what the block raises.
        """
        async with self:
            yield

    def __getitem__(self, name: str) -> Coroutine[Any, Any, PreTrainedModel]:
        """Wait for a model and return it: `await warmup["chat"]`. Its tokenizer is then ready too.

        **Cancellation:** at once; the warm-up continues.

        **Raises:** a copy of the LoaderError with which the load failed; WarmupError if the server stops first.

        Raises:
            KeyError: no model has this name.
        """
        self.loader(name)
        return self._wait(name)

    def loader(self, name: str) -> ModelLoader:
        """Return the loader of a model. `await warmup.loader("chat").load()` returns the model and its tokenizer.

        Raises:
            KeyError: no model has this name.
        """
        if name not in self._loaders:
            raise KeyError(f"No model is named {name!r}; there are: {', '.join(self._loaders)}")
        return self._loaders[name]

    def status(self) -> Status:
        """Return the status of all models, which `/status` answers as JSON (`Status.as_json`).

        Like any first use, it starts the warm-up where no lifespan has. It is called on the event loop.
        """
        return self._current_run().status()

    def dependency(self, name: str, *, wait: float = 5.0) -> Callable[[], Awaitable[Any]]:
        """Return a FastAPI dependency, for `Depends(warmup.dependency("chat"))`.

        It returns the model, or raises an HTTPException with status 503 and `Retry-After`.

        Args:
            name: the name of the model.
            wait: seconds for which a request waits until the model is ready.

        Raises:
            KeyError: no model has this name.
        """
        self.loader(name)

        async def model() -> Any:
            from yaie_async.core.errors import LoaderError

            with anyio.move_on_after(wait):
                try:
                    return await self._wait(name)
                except LoaderError:
                    pass  # /readyz shows the error; a client of the app only gets the 503
            from starlette.exceptions import HTTPException

            status = self._current_run().loads[name].status()
            raise HTTPException(
                503,
                f"The model {name!r} is not ready ({status.stage}, {status.fraction:.0%}).",
                {"Retry-After": str(status.retry_after)},
            )

        return model

    async def _wait(self, name: str) -> PreTrainedModel:
        return await self._current_run().loads[name].wait()

    def _current_run(self) -> Run:
        """The run of this event loop; starts one if there is none."""
        run = self._run.get()
        if run is None:
            run = Run(self._loaders, self._options)
            self._run.set(run)
            run.start()
        return run

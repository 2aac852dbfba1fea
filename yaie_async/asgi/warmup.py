"""Warmup: models that load while the server is already answering."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, get_args

import anyio
import anyio.lowlevel

from yaie_async.asgi.app import App
from yaie_async.asgi.run import OnFailure, Run
from yaie_async.loader.hub import invalid_argument
from yaie_async.loader.model_loader import ModelLoader

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Warmup:
    """Loads models (with their tokenizers) in the background of an async web server, and tells how far it is.

        warmup = Warmup(chat=ModelLoader("org/name"))
        app = FastAPI(lifespan=warmup.lifespan)        # or `async with warmup:` inside a lifespan of one's own
        app.mount("/warmup", warmup.app)

    Args:
        loaders: name -> loader, for names that are no keywords; both may be given, with different names.
        deadline: seconds after which a model that is not ready has failed; None for none.
        on_failure: "keep-serving" answers on, with the error; "exit" sends this process SIGTERM, so that the server
            shuts down and whoever supervises it sees that.
        named: name -> loader.

    An outage of the Hub is waited for, with growing pauses, until the deadline; what waiting can't cure (a model that
    does not exist, a gated one, a full disk) fails at once. Nothing is read or sent before the server starts; without
    a lifespan (`--lifespan off`) the first use begins it. Each event loop, so each worker process, warms up by
    itself; downloads meet at the cache's lock files.

    Raises:
        InvalidArgumentError: no model, one name for two, or something else than a ModelLoader.
    """

    def __init__(
        self,
        loaders: Mapping[str, ModelLoader] | None = None,
        /,
        *,
        deadline: float | None = None,
        on_failure: OnFailure = "keep-serving",
        **named: ModelLoader,
    ) -> None:
        loaders = dict(loaders or {})
        twice = loaders.keys() & named.keys()
        if twice:
            raise invalid_argument(f"two models are named {min(twice)!r}: give each a name of its own.")
        self._loaders: dict[str, ModelLoader] = {**loaders, **named}
        if not self._loaders:
            raise invalid_argument('Warmup needs at least one model: Warmup(chat=ModelLoader("org/name")).')
        for name, loader in self._loaders.items():
            if not isinstance(loader, ModelLoader):
                raise invalid_argument(f"{name} is no ModelLoader, but {loader!r}: pass ModelLoader({loader!r}).")
        if deadline is not None and not deadline > 0:
            raise invalid_argument(f"deadline must be above 0 seconds, not {deadline}.")
        if on_failure not in get_args(OnFailure):
            raise invalid_argument(f'on_failure must be "keep-serving" or "exit", not {on_failure!r}.')
        self._deadline = deadline
        self._on_failure: OnFailure = on_failure
        self._run: anyio.lowlevel.RunVar[Run | None] = anyio.lowlevel.RunVar("yaie_async_warmup", None)
        self.app = App(self._begun, lambda: self)

    async def __aenter__(self) -> Self:
        """Begin to load, in the background; the server goes on starting."""
        self._begun().users += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop; what is downloaded is kept, and the next start goes on from there.

        **Cancellation:** loads end all the same.
        """
        run = self._run.get()
        assert run is not None  # begun on entering
        run.users -= 1
        if run.users == 0:
            self._run.set(None)
            await run.stop()

    @asynccontextmanager
    async def lifespan(self, _app: object) -> AsyncIterator[None]:
        """For `FastAPI(lifespan=warmup.lifespan)` and `Starlette(lifespan=warmup.lifespan)`."""
        async with self:
            yield

    def __getitem__(self, name: str) -> Coroutine[Any, Any, PreTrainedModel]:
        """`await warmup["chat"]`: the model, once it is ready. Its tokenizer is then ready too.

        **Cancellation:** at once; the warm-up goes on.

        **Raises:** LoaderError, as the warm-up failed; WarmupError when the server stops before it is ready.

        Raises:
            KeyError: there is no model of that name.
        """
        self.loader(name)
        return self._wait(name)

    def loader(self, name: str) -> ModelLoader:
        """The loader of a model: once that is ready, `await warmup.loader("chat").load()` gives it and its tokenizer.

        Raises:
            KeyError: there is no model of that name.
        """
        if name not in self._loaders:
            raise KeyError(f"no model is named {name!r}; there are: {', '.join(self._loaders)}")
        return self._loaders[name]

    def dependency(self, name: str, *, wait: float = 5.0) -> Callable[[], Awaitable[Any]]:
        """For `Depends(warmup.dependency("chat"))` of FastAPI: the model, or the answer 503 with `Retry-After`.

        Args:
            name: of the model.
            wait: seconds for which a request waits for it.

        Raises:
            KeyError: there is no model of that name.
        """
        self.loader(name)

        async def model() -> Any:
            from yaie_async.core.errors import LoaderError

            with anyio.move_on_after(wait):
                try:
                    return await self._wait(name)
                except LoaderError:
                    pass  # /readyz tells it; a client of the app learns that it is not served
            from starlette.exceptions import HTTPException

            status = self._begun().loads[name].status()
            raise HTTPException(
                503,
                f"The model {name!r} is not ready ({status.stage}, {status.fraction:.0%}).",
                {"Retry-After": str(status.retry_after)},
            )

        return model

    async def _wait(self, name: str) -> PreTrainedModel:
        return await self._begun().loads[name].wait()

    def _begun(self) -> Run:
        """This event loop's run; begun now if it was not."""
        run = self._run.get()
        if run is None:
            run = Run(self._loaders, deadline=self._deadline, on_failure=self._on_failure)
            self._run.set(run)
            run.start()
        return run

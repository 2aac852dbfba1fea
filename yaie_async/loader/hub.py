"""Hub: one budget of connections, one cache and one token for many models.

This module and `model_loader` import nothing heavy. The layers below are imported in a thread when a Hub opens.
"""

from __future__ import annotations

import importlib
import inspect
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import anyio
import anyio.lowlevel

from yaie_async.core.progress import OnProgress
from yaie_async.core.tasks import SharedCall, task_group
from yaie_async.core.threads import reserve_threads, run_detached

with suppress(ImportError):
    # The first await would import it, for 20 ms on the loop's thread. The application's `import trio` brings trio's.
    import anyio._backends._asyncio

if TYPE_CHECKING:
    import httpx

    from yaie_async.fetch.session import Session


_LAYERS = (
    "loader.display",
    "loader.files",
    "loader.prefetch",
    "loader.streamed",
    "model.backend",
    "model.model",
    "model.progress_bars",
    "model.skeleton",
    "model.tokenizer",
)


class Hub:
    """A Hub that many loaders share: `async with Hub(max_connections=16) as hub: ...`.

    Args:
        cache_dir: root of the HF cache; the environment's (HF_HUB_CACHE, HF_HOME) when None.
        token: a token, True for the stored one or an error, False for none, None for the stored one if any.
        endpoint: base URL; HF_ENDPOINT or https://huggingface.co when None.
        local_files_only: True never makes a request; None leaves it to HF_HUB_OFFLINE.
        max_connections: file bodies transferred at once, over all models.
        max_bytes_per_second: limit on all bodies together; None for no limit.
        verify: check digests before a file is linked. "require" refuses files that the server names no digest of; with
            True a log line (WARNING) names such weights, and code and pickles without one are refused.
        allow_private_redirects: follow redirects from a public host to addresses of this machine or a private network.
        client: the caller's own `httpx.AsyncClient`, for all requests; the Hub never closes it.
        on_progress: called for each model of `prefetch`.

    It opens when it is first entered (or first used by a loader) and closes when its last user leaves. It belongs to
    the event loop and the process that opened it.
    """

    def __init__(
        self,
        *,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        endpoint: str | None = None,
        local_files_only: bool | None = None,
        max_connections: int = 8,
        max_bytes_per_second: float | None = None,
        verify: bool | Literal["require"] = True,
        allow_private_redirects: bool = False,
        client: httpx.AsyncClient | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        if max_connections < 1:
            raise invalid_argument(f"max_connections must be 1 or more, not {max_connections}.")
        if max_bytes_per_second is not None and not max_bytes_per_second > 0:
            raise invalid_argument(f"max_bytes_per_second must be above 0, not {max_bytes_per_second}.")
        if verify not in (True, False, "require"):
            raise invalid_argument(f'verify must be True, False or "require", not {verify!r}.')
        check_on_progress(on_progress)
        self.on_progress = on_progress
        self._environment: dict[str, Any] = {  # what `read_settings` takes
            "cache_dir": cache_dir,
            "token": token,
            "endpoint": endpoint,
            "local_files_only": local_files_only,
        }
        self._options: dict[str, Any] = {  # what `Session` takes
            "max_connections": max_connections,
            "max_bytes_per_second": max_bytes_per_second,
            "verify": verify,
            "allow_private_redirects": allow_private_redirects,
            "client": client,
        }
        self._users = 0
        self._home: tuple[int, object] | None = None
        self._opening: SharedCall[Session] = SharedCall()

    async def __aenter__(self) -> Self:
        """Open the Hub, or join its other users.

        **Cancellation:** the Hub is as it was.

        **Raises:** ClosedHubError in another loop or process than the one that opened it; InvalidArgumentError,
        TokenMissingError, HubUnavailableError when it can't be opened.
        """
        here = (os.getpid(), anyio.lowlevel.current_token())
        if self._users and self._home != here:
            from yaie_async.core.errors import ClosedHubError

            forked = self._home is not None and self._home[0] != here[0]
            raise ClosedHubError(
                "This Hub was opened before a fork, by the parent process. Make a new Hub in the child."
                if forked
                else "This Hub is open on another event loop. Make one Hub for each loop."
            )
        self._home = here
        self._users += 1
        try:
            await self._opening(self._open)
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the Hub; the last user closes its connections.

        **Cancellation:** the connections are closed first.
        """
        await self._leave()

    async def _leave(self) -> None:
        self._users -= 1
        session = self._opening.result
        if self._users == 0 and session is not None:
            self._opening.forget()
            # In a task of its own: a native cancel (asyncio.timeout, Ctrl-C) would go through the shield here.
            async with task_group() as group:
                group.start_soon(_close, session)

    async def _open(self) -> Session:
        def work() -> Session:
            # In a thread: imports huggingface_hub, reads the token, loads certificates.
            import_layers()
            reserve_threads(2 * self._options["max_connections"] + 4)  # for the bodies, for their digests and locks
            from yaie_async.fetch.retry import RetryPolicy
            from yaie_async.fetch.session import Session
            from yaie_async.fetch.settings import read_settings

            return Session(read_settings(**self._environment), policy=RetryPolicy(), **self._options)

        return await run_detached(work, name="open")

    @property
    def in_use(self) -> bool:
        """Whether the Hub has users."""
        return self._users > 0

    @property
    def session(self) -> Session:
        """The open session, or a ClosedHubError."""
        session = self._opening.result
        if session is None:
            from yaie_async.core.errors import ClosedHubError

            raise ClosedHubError("This Hub is not open. Use it inside `async with Hub() as hub:`.")
        return session

    async def prefetch(
        self,
        *models: str,
        revision: str | None = None,
        include: str | Sequence[str] = (),
        exclude: str | Sequence[str] = (),
        trust_remote_code: bool = False,
        allow_pickle: bool = True,
    ) -> dict[str, Path]:
        """Fetch the snapshots of all `models` at once, within one budget; return model -> snapshot folder.

        No body is requested before all models are planned and the disk has room for all of them. A model that is named
        twice is fetched once. A failure of one model does not stop the others.

        Args:
            models: repo ids or directories; `org/name@revision` has a revision of its own.
            revision: of the models without one of their own.
            include, exclude: patterns as in `hf download` (fnmatch, over all files of the repository). With a pattern
                exactly the files that match are fetched, enough for a load or not. Without one a snapshot is
                complete: it loads offline.
            trust_remote_code, allow_pickle: as for `ModelLoader`: fetch `.py` files, and pickles.

        **Cancellation:** finished files are kept, and all bytes of unfinished ones. The log (INFO) says how much of
        each model is kept.

        **Raises:** PrefetchError at the end, with the failures and the snapshots; for a single model, its own error.
        DiskFullError for each model where the disk has no room for all; then nothing is fetched.
        """
        async with self:
            from yaie_async.core.manifest import Need, WeightRules
            from yaie_async.fetch.patterns import Patterns
            from yaie_async.loader.prefetch import Prefetch

            patterns = Patterns(*(((p,) if isinstance(p, str) else tuple(p)) for p in (include, exclude)))
            prefetch = Prefetch(
                self.session,
                models,
                revision=revision,
                need=Need(weights=True, code=trust_remote_code, rules=WeightRules(pickle=allow_pickle)),
                patterns=patterns if include or exclude else None,
                on_progress=self.on_progress,
            )
            return await prefetch.run()


def import_layers() -> None:
    """Import what loaders would import on the loop's thread later, and the official client with it. Blocks."""
    # The official client's tqdm says so in notebooks, whose progress is shown without ipywidgets here.
    warnings.filterwarnings("ignore", "IProgress not found")
    for name in _LAYERS:
        importlib.import_module(f"yaie_async.{name}")
    from yaie_async.fetch.session import import_transports

    import_transports()


def invalid_argument(message: str) -> Exception:
    """An InvalidArgumentError. Its module, which is heavy, is imported only for it."""
    from yaie_async.core.errors import InvalidArgumentError

    return InvalidArgumentError(message)


def check_on_progress(on_progress: OnProgress | None) -> None:
    """Raise an InvalidArgumentError for a callback that can't be called, or that would return a coroutine."""
    if on_progress is not None and not callable(on_progress):
        raise invalid_argument(f"on_progress must be a function that takes a Progress, not {on_progress!r}.")
    if any(map(inspect.iscoroutinefunction, (on_progress, getattr(on_progress, "__call__", None)))):  # noqa: B004
        raise invalid_argument(
            "on_progress must be a plain function: it is called, not awaited. Write def, not async def."
        )


async def _close(session: Session) -> None:
    with anyio.CancelScope(shield=True):
        await session.aclose()

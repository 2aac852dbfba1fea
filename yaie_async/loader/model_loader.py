"""ModelLoader: plan, fetch, build, each once for all who await it."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.lowlevel

from yaie_async.core import tasks
from yaie_async.core.log import logger
from yaie_async.core.progress import INTERVAL, Meter, OnProgress, Progress, following
from yaie_async.core.stall import current_watch
from yaie_async.core.tasks import SharedCall, owner, task_group
from yaie_async.core.threads import run_detached
from yaie_async.loader.background import Background
from yaie_async.loader.hub import Hub, check_on_progress, invalid_argument
from yaie_async.model.arguments import check_model_kwargs
from yaie_async.model.responsive import quick_switching, smooth_imports

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from yaie_async.core.manifest import Manifest, Need
    from yaie_async.core.plan import Plan
    from yaie_async.fetch.session import Session
    from yaie_async.loader.files import ModelFiles
    from yaie_async.model.request import BuildRequest

T = TypeVar("T")

# The Hubs of loaders without a Hub of their own: shared within an event loop.
_shared_hubs: anyio.lowlevel.RunVar[dict[object, Hub]] = anyio.lowlevel.RunVar("yaie_async_hubs")


class _Followed:
    """The progress of the running load of a loader, which may be on another loop."""

    def __init__(self, loader: ModelLoader) -> None:
        self.model: str = loader.model
        self._loader = loader

    def snapshot(self) -> Progress:
        return self._loader.progress or Progress(self.model, "resolving")


class ModelLoader:
    """Loads one causal language model and its tokenizer, from the Hub or a directory.

    Args:
        model: a repo id ("org/name"), the URL of its page, or a directory. `./x`, `~/x` and absolute paths are always
            directories; a bare name is a directory if one with files exists, else a repo id.
        revision: branch, tag or commit; the default branch when None. A directory has no revisions.
        dtype: a name ("float16"), a `torch.dtype`, or "auto" for what the checkpoint says.
        device_map: as for `from_pretrained`; "auto" places it on the GPU(s), else the CPU.
        hub: a `Hub` to share; without one, the loaders of an event loop share one.
        cache_dir, token, endpoint, local_files_only: see `Hub`; only without `hub`.
        trust_remote_code: consent to run the repository's own Python code.
        allow_pickle: False refuses `pytorch_model.bin`; True reads it with torch's weights_only unpickler.
        responsive: keep the event loop responsive during imports; README says which process-wide settings that uses.
        on_progress: called with `Progress` events on the loop's thread; None shows a bar on a terminal.
        model_kwargs: passed to `from_pretrained`. `torch_dtype` is accepted for `dtype`; `use_safetensors=True` is
            `allow_pickle=False`, and False asks for `pytorch_model.bin` where both formats exist.

    Nothing is read, imported or sent before the first await. One loader resolves its revision once and loads once:
    concurrent and later awaits share the result, in all threads with loops of their own. A failure is not remembered:
    the next await tries again.

    Raises:
        InvalidArgumentError: arguments contradict each other.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        revision: str | None = None,
        dtype: str | torch.dtype = "float16",
        device_map: Any = "auto",
        hub: Hub | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        endpoint: str | None = None,
        local_files_only: bool | None = None,
        trust_remote_code: bool = False,
        allow_pickle: bool = True,
        responsive: bool = True,
        on_progress: OnProgress | None = None,
        **model_kwargs: Any,
    ) -> None:
        alias = model_kwargs.pop("torch_dtype", dtype)
        if dtype not in ("float16", alias):
            raise invalid_argument("dtype and torch_dtype are two names of one argument: pass dtype.")
        own = {"cache_dir": cache_dir, "token": token, "endpoint": endpoint, "local_files_only": local_files_only}
        given = [name for name, value in own.items() if value is not None]
        if hub is not None and given:
            raise invalid_argument(f"{', '.join(given)} belong to the Hub: pass them to Hub(...) instead of with hub=.")
        check_on_progress(on_progress)
        check_model_kwargs(model_kwargs)
        safetensors = model_kwargs.pop("use_safetensors", None)
        if safetensors is False and not allow_pickle:
            raise invalid_argument(
                "use_safetensors=False asks for pickles, which allow_pickle=False refuses: pass one."
            )
        self.model: str = os.fspath(model)
        self._model_argument = model
        self._revision = revision
        self._dtype = alias
        self._device_map = device_map
        self._given_hub = hub
        self._hub_options: dict[str, Any] = own
        self._trust_remote_code = trust_remote_code
        self._formats: dict[str, bool] = {
            "safetensors": safetensors is not False,
            "pickle": allow_pickle and not safetensors,
        }
        self._responsive = responsive
        self._on_progress = on_progress
        self._model_kwargs = model_kwargs
        self._meter: Meter | None = None
        self._files: SharedCall[ModelFiles] = SharedCall()
        self._built_model: SharedCall[PreTrainedModel] = SharedCall()
        self._built_tokenizer: SharedCall[PreTrainedTokenizerBase] = SharedCall()
        self._background: Background | None = None
        self._loading: Meter | None = None  # of the last load of the model

    def __repr__(self) -> str:
        revision = f", revision={self._revision!r}" if self._revision else ""
        return f"ModelLoader({self.model!r}{revision})"

    @property
    def commit(self) -> str | None:
        """The commit (40 hex digits) of all files; None before it is resolved, and for a directory."""
        files = self._files.result
        return files.commit if files else None

    @property
    def progress(self) -> Progress | None:
        """The progress of the running load, or of the last one; None before the first. Works beside `on_progress`."""
        return self._meter.snapshot() if self._meter else None

    async def load_model(self) -> PreTrainedModel:
        """The model, in evaluation mode, of the dtype asked for, on the devices of its device map.

        **Cancellation:** control returns at once. What is downloaded is kept; a build that has begun finishes in its
        thread, and its result is dropped. If other tasks await this load, the next one takes over.

        **Raises:** a LoaderError; `yaie_async.core.errors` has the tree.
        """
        return await self._once(self._built_model, self._load_model)

    async def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with a pad token: its eos token where it has none of its own. Fetches no weights.

        **Cancellation:** as `load_model`.

        **Raises:** TokenizerError when it can't be built or has neither token; else as `load_model`.
        """
        return await self._once(self._built_tokenizer, self._load_tokenizer)

    async def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Model and tokenizer, loaded at the same time, from one commit.

        **Cancellation:** as `load_model`.

        **Raises:** as `load_model` and `load_tokenizer`.
        """
        built: list[PreTrainedTokenizerBase] = []

        async def tokenizer() -> None:
            built.append(await self._once(self._built_tokenizer, self._load_quietly))

        async with task_group() as group:
            group.start_soon(tokenizer)
            model = await self.load_model()
        return model, built[0]

    def start(self) -> None:
        """Begin to load model and tokenizer in a task of the event loop's own, and return at once.

        Later callers of `load`, `load_model` or `load_tokenizer`, on any loop, wait for it. To cancel them does not
        cancel it; `stop` and the end of the loop do. Nothing happens if it is under way. A failure without a waiter is
        logged once, and the next await tries again. The model is loaded also where the tokenizer can't be.

        The loop has to go on: a callback that waits for a thread which awaits the load waits for ever.

        Raises:
            InvalidArgumentError: no event loop is running.
        """
        try:
            with tasks.lock:  # two threads may begin at once
                if self._background is None or not self._background.is_running:
                    self._background = Background(self._load_in_background, f"yaie_async load of {self.model}")
        except RuntimeError as error:
            raise invalid_argument("start() needs a running event loop: call it in an async function.") from error

    async def stop(self) -> None:
        """End what `start` began, on whichever loop, and return when it has ended. A model that is ready stays.

        Those who await it get a WarmupError. What is downloaded is kept. On a loop that stands still it ends as soon as
        that goes on.

        **Cancellation:** the load ends all the same.

        **Raises:** nothing.
        """
        background, self._background = self._background, None
        if background is None or background.ended:
            return
        from yaie_async.core.errors import WarmupError

        text = f"The load of {self.model} was ended by stop(). Downloaded files are kept for the next load."
        error = WarmupError(text, model=self.model)
        self._built_model.fail(background, error)
        self._built_tokenizer.fail(background, error)
        await background.stop(error)

    async def events(self) -> AsyncGenerator[Progress, None]:
        """Begin a load as `start` does, and follow it: `async for event in loader.events()`.

        A slow reader gets the newest event, not all of them. The last one has the stage "ready". A reader that leaves
        the loop early does not end the load.

        **Cancellation:** at once; the load goes on.

        **Raises:** what `load` raises; WarmupError once it was stopped.
        """
        last, me = None, object()
        while True:
            self.start()
            background = self._background
            assert background is not None
            while background.is_running:
                event = self._loading.snapshot() if self._loading else None
                if event is not None and event != last and event.stage != "ready":
                    last = event
                    yield event
                background.readers.add(me)
                try:
                    await anyio.sleep(INTERVAL)
                finally:
                    background.readers.discard(me)
            if (error := background.stopped or background.error) is not None:
                raise copy.copy(error) from error.__cause__
            if background.finished:
                break
            # Its loop has ended before it: this one takes over.
        if self._loading is not None:
            yield self._loading.snapshot()

    async def _load_in_background(self, background: Background) -> None:
        failed: dict[str, Exception] = {}
        unheard: set[str] = set()

        async def attempt(what: str, shared: SharedCall[Any], work: Callable[[], Awaitable[Any]]) -> None:
            try:
                await self._once(shared, work)
            except Exception as error:  # noqa: BLE001 - one failure does not end the other
                failed[what] = error
                if shared.told <= 1 and not background.readers and not background.stopped:
                    unheard.add(what)
            finally:
                background.tried.add(id(shared))

        async with task_group() as group:
            group.start_soon(attempt, "tokenizer", self._built_tokenizer, self._load_quietly)
            await attempt("model", self._built_model, self._load_model)
        for what in ("model", "tokenizer"):
            if what in failed:
                if what in unheard:
                    text = "The %s of %s could not be loaded, and no caller awaits it. The next load tries again. %s"
                    logger.error(text, what, self.model, failed[what], extra={"model": self.model})
                raise failed[what]

    async def _once(self, shared: SharedCall[T], work: Callable[[], Awaitable[T]]) -> T:
        before = self._background

        def may_lead() -> bool:
            """Whether no load that was started has to: the end of this caller would end it."""
            background = before or self._background
            if background is None or owner.get() is background or id(shared) in background.tried:
                return True
            if background.stopped is not None:
                raise copy.copy(background.stopped)
            return not background.is_running

        return await shared(work, may_lead=may_lead, elsewhere=self._reporting_elsewhere)

    @asynccontextmanager
    async def _reporting_elsewhere(self) -> AsyncIterator[None]:
        """Report the progress of another loop's load on this one."""
        if self._on_progress is None:
            yield
        else:
            async with following(_Followed(self), self._on_progress):
                yield

    async def prefetch(self) -> Path:
        """Fetch everything that `load` needs into the cache; return the snapshot's folder. Never imports torch.

        **Cancellation:** finished files are kept, and all bytes of unfinished ones.

        **Raises:** as `load_model`, except for errors of the build.
        """
        async with self._working() as (session, files, meter):
            manifest = await files.manifest(session, self._need(weights=True))
            manifest = await files.fetch(session, manifest, meter)
            meter.stage("ready")
            return manifest.folder

    async def plan(self) -> Plan:
        """What `load` would fetch and need, without fetching a file.

        **Cancellation:** nothing is left behind.

        **Raises:** as `prefetch`.
        """
        async with self._hub() as hub:
            files = await self._find(hub.session)
            return await files.plan(await files.manifest(hub.session, self._need(weights=True)), self._dtype)

    async def unload(self) -> None:
        """Drop the loader's references to model and tokenizer, and free their memory. The next await loads again.

        A reference of the caller's keeps the model alive.

        **Cancellation:** the references are dropped; the thread that collects garbage finishes.

        **Raises:** nothing.
        """
        from yaie_async.model.memory import release_memory

        self._built_model.forget()
        self._built_tokenizer.forget()
        await run_detached(release_memory, name="unload")

    async def _load_model(self) -> PreTrainedModel:
        begin = time.monotonic()
        async with self._working() as (session, files, meter):
            self._loading = meter
            from yaie_async.loader.streamed import StreamedBuild

            streamed = StreamedBuild(meter, responsive=self._responsive)
            async with task_group() as group:
                group.start_soon(streamed.run, partial(self._request, session))
                manifest = await files.manifest(session, self._need(weights=True))
                manifest = await files.fetch(session, manifest, meter, streamed.small_are_there)
                streamed.all_are_there()
            model = await streamed.finish(self._request(session, manifest))
            meter.stage("ready")
            self._log_ready(meter, "the model", begin)
            return model

    async def _load_tokenizer(self, *, quiet: bool = False) -> PreTrainedTokenizerBase:
        begin = time.monotonic()
        async with self._working(quiet=quiet) as (session, files, meter):
            manifest = await files.manifest(session, self._need(weights=False))
            manifest = await files.fetch(session, manifest, meter)
            from yaie_async.model.imports import import_libraries, import_progress
            from yaie_async.model.tokenizer import build_tokenizer

            meter.stage("importing", import_progress)
            await run_detached(partial(import_libraries, responsive=self._responsive), name="imports")
            meter.stage("building")
            build = partial(build_tokenizer, self._request(session, manifest))
            tokenizer = await run_detached(build, name="tokenizer")
            meter.stage("ready")
            self._log_ready(meter, "the tokenizer", begin)
            return tokenizer

    async def _load_quietly(self) -> PreTrainedTokenizerBase:
        return await self._load_tokenizer(quiet=True)

    def _log_ready(self, meter: Meter, what: str, begin: float) -> None:
        seconds = time.monotonic() - begin
        facts = {"model": self.model, "stage": "ready", "bytes": meter.snapshot().bytes_done, "seconds": seconds}
        logger.debug("%s: %s is ready after %.1f s", self.model, what, seconds, extra=facts)

    def _need(self, *, weights: bool) -> Need:
        from yaie_async.core.manifest import Need, WeightRules

        rules = WeightRules(variant=self._model_kwargs.get("variant"), **self._formats)
        return Need(weights=weights, code=self._trust_remote_code, rules=rules)

    def _request(self, session: Session, manifest: Manifest) -> BuildRequest:
        from yaie_async.model.request import BuildRequest

        return BuildRequest(
            manifest,
            cache_dir=str(session.settings.cache_dir),
            dtype=self._dtype,
            device_map=self._device_map,
            trust_remote_code=self._trust_remote_code,
            model_kwargs=self._model_kwargs,
        )

    @asynccontextmanager
    async def _working(self, *, quiet: bool = False) -> AsyncIterator[tuple[Session, ModelFiles, Meter]]:
        """An open Hub's session, the files of this loader, and a meter whose progress is reported."""
        # Either of model and tokenizer may wait for a request of the other.
        meter = Meter(self.model, stall=self._meter.stall if quiet and self._meter else None)
        if not quiet:
            self._meter = meter
        else:
            current_watch.set(meter.stall)
        async with AsyncExitStack() as stack:
            if self._responsive:
                stack.enter_context(quick_switching())
            with smooth_imports() if self._responsive else nullcontext():
                hub = await stack.enter_async_context(self._hub())
            if not quiet:
                from yaie_async.loader.display import watching  # already imported, by the opening of the Hub

                await stack.enter_async_context(watching(meter, self._on_progress or hub.on_progress))
            files = await self._find(hub.session)
            try:
                yield hub.session, files, meter
            except Exception:
                if files.resolution and files.resolution.unconfirmed:
                    self._files.forget()  # the next await asks the Hub again
                raise

    @asynccontextmanager
    async def _hub(self) -> AsyncIterator[Hub]:
        if self._given_hub is not None:
            async with self._given_hub as hub:
                yield hub
            return
        hubs = _shared_hubs.get(None)
        if hubs is None:
            hubs = {}
            _shared_hubs.set(hubs)
        key = tuple(self._hub_options.values())
        hub = hubs.setdefault(key, Hub(**self._hub_options))
        try:
            async with hub:
                yield hub
        finally:
            if not hub.in_use and hubs.get(key) is hub:
                del hubs[key]  # else a process with ever new options would keep a Hub for each

    async def _find(self, session: Session) -> ModelFiles:
        from yaie_async.loader.files import find_files

        need = self._need(weights=True)
        return await self._files(lambda: find_files(session, self._model_argument, self._revision, need))

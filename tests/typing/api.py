"""What type checkers make of the public names. mypy and pyright check this file in CI; it is never run."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal, assert_type

import httpx
import torch
from fastapi import FastAPI
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from starlette.applications import Starlette
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from yaie_async import (
    DiskFullError,
    GatedModelError,
    Hub,
    HubUnavailableError,
    IncompatibleModelError,
    IntegrityError,
    LoaderError,
    ModelLoader,
    ModelNotFoundError,
    OutOfMemoryError,
    Plan,
    PlannedFile,
    PrefetchError,
    Progress,
    RevisionNotFoundError,
    warm_imports,
)
from yaie_async.asgi import Warmup
from yaie_async.localhub import LocalHub, running

Stage = Literal["resolving", "downloading", "stalled", "waiting", "verifying", "importing", "building", "ready"]


# -- one model --------------------------------------------------------------------------------------------------------


async def load_one_model() -> None:
    loader = ModelLoader("microsoft/DialoGPT-medium")
    assert_type(await loader.load_model(), PreTrainedModel)
    assert_type(await loader.load_tokenizer(), PreTrainedTokenizerBase)
    assert_type(await loader.load(), tuple[PreTrainedModel, PreTrainedTokenizerBase])
    assert_type(await loader.prefetch(), Path)
    assert_type(await loader.plan(), Plan)
    assert_type(loader.model, str)
    assert_type(loader.commit, str | None)
    assert_type(loader.progress, Progress | None)
    await loader.unload()
    await warm_imports()


def construct_loaders(progress: Callable[[Progress], None]) -> list[ModelLoader]:
    return [
        ModelLoader(Path("models/gpt2"), device_map={"": 0}, trust_remote_code=True, allow_pickle=False),
        ModelLoader("gpt2", dtype=torch.bfloat16, on_progress=progress, responsive=False),
        ModelLoader("gpt2", torch_dtype="auto", attn_implementation="eager"),
        ModelLoader("gpt2", revision="main", cache_dir=Path("cache"), token=True, endpoint="http://127.0.0.1"),
        ModelLoader("gpt2", local_files_only=True, on_progress=print),
        ModelLoader("gpt2", hub="gpt2"),  # type: ignore[arg-type]
        ModelLoader("gpt2", "main"),  # type: ignore[call-arg]
    ]


# -- several models ---------------------------------------------------------------------------------------------------


async def share_one_hub(client: httpx.AsyncClient) -> None:
    async with Hub(max_connections=16, max_bytes_per_second=5e6, verify=False, client=client) as hub:
        assert_type(hub, Hub)
        assert_type(await hub.prefetch("gpt2", "gpt2-medium@main"), dict[str, Path])
        await hub.prefetch("gpt2", revision="main", include="*.json", exclude=["*.bin", "*.h5"])
        ModelLoader("gpt2", hub=hub)
    Hub(max_conections=16)  # type: ignore[call-arg]


# -- plain data -------------------------------------------------------------------------------------------------------


def read_plan(plan: Plan) -> None:
    assert_type(plan.model, str)
    assert_type(plan.revision, str | None)
    assert_type(plan.commit, str | None)
    assert_type(plan.files, tuple[PlannedFile, ...])
    assert_type(plan.files[0].path, str)
    assert_type(plan.files[0].size, int)
    assert_type(plan.files[0].cached, bool)
    assert_type(plan.free_disk, int | None)
    assert_type(plan.memory, int)
    assert_type(plan.bytes_cached, int)
    assert_type(plan.bytes_to_fetch, int)
    assert_type(plan.fits, bool)
    plan.memory = 0  # type: ignore[misc]


def read_progress(progress: Progress) -> None:
    assert_type(progress.model, str)
    assert_type(progress.stage, Stage)
    assert_type(progress.bytes_done, int)
    assert_type(progress.bytes_total, int)
    assert_type(progress.bytes_per_second, float)
    assert_type(progress.seconds_left, float | None)
    assert_type(progress.files_done, int)
    assert_type(progress.files_total, int)
    assert_type(progress.fraction, float)
    assert_type(progress.stage_fraction, float | None)
    assert_type(progress.reason, str)
    assert_type(progress.attempt, int)
    assert_type(progress.retry_in, float | None)
    assert_type(progress.steps, tuple[tuple[str, float], ...])
    progress.files_done = 0  # type: ignore[misc]


# -- errors -----------------------------------------------------------------------------------------------------------


async def handle_errors(loader: ModelLoader, hub: Hub) -> None:
    try:
        await loader.load()
    except HubUnavailableError as error:
        assert_type(error.attempts, int)
        assert_type(error.status, int | None)
        assert_type(error.request_id, str | None)
    except RevisionNotFoundError as error:
        assert_type(error.revision, str)
    except IntegrityError as error:
        assert_type(error.expected, str | int)
        assert_type(error.found, str | int)
    except DiskFullError as error:
        assert_type((error.needed, error.free, error.path, error.errno), tuple[int, int, str, int])
    except OutOfMemoryError as error:
        assert_type((error.needed, error.free, error.device), tuple[int | None, int | None, str])
    except IncompatibleModelError as error:
        assert_type(error.architecture, str | None)
    except LoaderError as error:
        assert_type(error.model, str | None)
        assert_type(error.file, str | None)
    try:
        await hub.prefetch("gpt2", "gpt2-medium")
    except PrefetchError as group:
        assert_type(group.failures, dict[str, LoaderError])
        assert_type(group.snapshots, dict[str, Path])
        assert_type(group.exceptions, tuple[LoaderError | ExceptionGroup[LoaderError], ...])


def inherit_from_official_errors(not_found: ModelNotFoundError, gated: GatedModelError) -> None:
    _: tuple[RepositoryNotFoundError, GatedRepoError] = (not_found, gated)


# -- in a web server --------------------------------------------------------------------------------------------------


async def warm_up(loader: ModelLoader) -> None:
    warmup = Warmup({"small-one": loader}, chat=loader, deadline=600, on_failure="exit")
    app = FastAPI(lifespan=warmup.lifespan)
    app.mount("/warmup", warmup.app)
    Starlette(lifespan=warmup.lifespan).mount("/warmup", warmup.app)
    async with warmup as entered:
        assert_type(entered, Warmup)
    assert_type(await warmup["chat"], PreTrainedModel)
    assert_type(warmup.loader("chat"), ModelLoader)
    assert_type(warmup.dependency("chat", wait=1.0), Callable[[], Awaitable[Any]])
    Warmup(chat="gpt2")  # type: ignore[arg-type]


# -- a Hub on this machine --------------------------------------------------------------------------------------------


def serve_models() -> None:
    app = LocalHub("models", tokens=["hf_x"], gated={"gpt2": ["hf_x"]}, cdn=None)
    assert_type(app.names(), list[str])
    with running(app, port=0) as url:
        assert_type(url, str)

"""Fixtures for warm-ups of tiny models from a local hub."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.support import models
from tests.support.hub import HubServer
from tests.support.programs import require_program
from yaie_async import ModelLoader
from yaie_async.asgi import Warmup

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

MakeLoader = Callable[..., ModelLoader]
Put = Callable[[str], Path]
Visit = Callable[..., "Page"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny Llama with its tokenizer."""
    directory = tmp_path_factory.mktemp("tiny")
    models.llama(directory)
    return directory


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a Llama of 34 MB, whose download takes long enough to be observed."""
    directory = tmp_path_factory.mktemp("large")
    models.llama(directory, hidden=1024)
    return directory


@pytest.fixture
def put(hub_root: Path, tiny: Path) -> Put:
    """Copies the tiny model to the hub: `put("org/name")`."""
    return lambda name: Path(shutil.copytree(tiny, hub_root / name))


@pytest.fixture
def put_large(hub_root: Path, large: Path) -> Put:
    return lambda name: Path(shutil.copytree(large, hub_root / name))


@pytest.fixture
def loader(hub: HubServer, tmp_path: Path) -> MakeLoader:
    """Makes a loader for a model of the hub, with a cache in the test's folder."""

    def make(name: str = "org/name", **options: Any) -> ModelLoader:
        return ModelLoader(name, endpoint=hub.url, cache_dir=tmp_path / "cache", **options)

    return make


@asynccontextmanager
async def asked(warmup: Warmup) -> AsyncIterator[httpx.AsyncClient]:
    """A client that calls the warm-up's app on this event loop, without a server."""
    transport = httpx.ASGITransport(warmup.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium. Until the module's end playwright keeps an event loop running on this thread."""
    program = require_program("chromium", "chromium")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=60_000)  # milliseconds; the machine may be busy
    with sync_playwright() as playwright:
        # CI runs as root, for which Chromium has no sandbox.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """Opens a page. At the end its console must be empty, and all its requests must be to its own origin."""
    said: list[str] = []
    asked: list[str] = []
    contexts = []
    origin = ""

    def visit(url: str, **options: Any) -> Page:
        nonlocal origin
        origin = url
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url + "/")
        return page

    yield visit
    for context in contexts:
        context.close()
    # The browser itself logs a lost connection.
    assert [line for line in said if "ERR_" not in line and "502" not in line] == []
    assert [url for url in asked if not url.startswith((origin, "data:"))] == []


def accessible(page: Page) -> None:
    """Check that axe-core finds no accessibility violations."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The runtime folder of the workers, which is made by the first of them."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "yaie-async"

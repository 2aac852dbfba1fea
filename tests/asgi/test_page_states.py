"""The page in every state, on a phone, a desktop and in the dark: pictures to look at, and what can be checked of them.

The pictures are in the folder of the test; YAIE_ASYNC_SCREENSHOTS=folder keeps them there.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.asgi.conftest import accessible
from yaie_async.asgi import events
from yaie_async.asgi.app import App
from yaie_async.asgi.run import Run
from yaie_async.asgi.status import ModelStatus, Status
from yaie_async.localhub import running

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

GB = 10**9

NEW = ModelStatus("chat", "Qwen/Qwen2.5-7B-Instruct", "loading", "resolving")
FAST = replace(
    NEW,
    stage="downloading",
    bytes_fraction=0.42,
    bytes_done=int(6.4 * GB),
    bytes_total=int(15.2 * GB),
    bytes_per_second=311.4e6,
    seconds_left=28.2,
    commit="a09a35458c702b33eeacc393d103063234e8bc28",
    steps=(("resolving", 0.42),),
)
SILENT = replace(FAST, bytes_per_second=0.0, seconds_left=None)
STALLED = replace(
    SILENT, stage="stalled", reason="The Hub does not answer: connection refused", attempt=3, retry_in=4.0
)
WAITING = replace(SILENT, stage="waiting", bytes_per_second=None)
HERE = replace(WAITING, bytes_fraction=1.0, bytes_done=FAST.bytes_total)
VERIFYING = replace(HERE, stage="verifying")
IMPORTING = replace(HERE, stage="importing", stage_fraction=0.31, seconds_left=2.4)
BUILDING = replace(HERE, stage="building", stage_fraction=0.72, seconds_left=1.1)
READY = replace(
    HERE,
    state="ready",
    stage="ready",
    steps=(("resolving", 0.42), ("downloading", 48.9), ("verifying", 1.2), ("importing", 3.3), ("building", 2.04)),
    ready_since=time.time() - 3600,
    seconds=56.2,
    dtype="bfloat16",
    device="cuda:0",
    memory_bytes=int(15.23 * GB),
)
RETRYING = replace(
    SILENT,
    stage="retrying",
    bytes_per_second=None,
    error="Gave up after 5 attempts: Qwen/Qwen2.5-7B-Instruct: HTTP 503 from huggingface.co. The Hub or its CDN has "
    "trouble: try again later. What is downloaded is kept.",
    attempt=2,
    retry_in=12.0,
)
FAILED = replace(
    NEW,
    name="typo",
    model="Qwen/Qwen2.5-7B-Instrukt",
    state="failed",
    stage="failed",
    error="The Hub has no public model 'Qwen/Qwen2.5-7B-Instrukt'. Check the spelling (org/name); if it is private, "
    "run `hf auth login` or set `HF_TOKEN`.",
    can_retry=True,
)
LONG = replace(FAILED, name="a_name_" * 150, model="org/" + "x" * 900, error="`" + "code" * 400 + "` <b>&amp; " * 9)


def named(name: str, of: ModelStatus, **values: Any) -> ModelStatus:
    return replace(of, name=name, model=f"org/{name}", **values)


def in_worker(pid: int, state: str, **stages: str) -> dict[str, Any]:
    models = {name: {"state": state, "stage": stage, "fraction": 0.5} for name, stage in stages.items()}
    return {"pid": pid, "state": state, "models": models}


MIXED = (named("chat", READY), named("code", FAST, optional=True), named("embed", STALLED), FAILED)
TWELVE = (
    *(named(f"ready-{number}", READY) for number in range(4)),
    *(named(f"loading-{number}", replace(FAST, bytes_done=number * GB)) for number in range(4)),
    *(named(f"next-{number}", stage) for number, stage in enumerate((WAITING, IMPORTING, STALLED))),
    FAILED,
)


@dataclass(frozen=True)
class Scene:
    """What a server says, and what the page makes of it.

    Attributes:
        bars: the names of the bars that are seen; nowhere else is there anything to measure.
        updates: further states of the same models, in which no card may change its height.
        more: what the document has beside the models.
    """

    name: str
    models: tuple[ModelStatus, ...]
    heading: str
    bars: tuple[str, ...] = ()
    updates: tuple[tuple[ModelStatus, ...], ...] = ()
    more: dict[str, Any] = field(default_factory=dict)


SCENES = [
    Scene("looking-up", (NEW,), "Loading the model"),
    Scene("importing", (IMPORTING,), "Loading the model", ("chat",), ((replace(IMPORTING, seconds_left=None),),)),
    Scene("importing-unknown", (replace(IMPORTING, stage_fraction=None),), "Loading the model", (), ((IMPORTING,),)),
    Scene(
        "downloading",
        (FAST,),
        "Loading the model",
        ("chat",),
        ((SILENT,), (replace(FAST, seconds_left=4e5),), (NEW,), (WAITING,), (VERIFYING,), (IMPORTING,), (BUILDING,)),
    ),
    Scene("stalled", (STALLED,), "The model is stalled", ("chat",), ((replace(STALLED, retry_in=None, attempt=14),),)),
    Scene("waiting", (WAITING,), "Loading the model"),
    Scene("verifying", (VERIFYING,), "Loading the model"),
    Scene("building", (BUILDING,), "Loading the model", ("chat",), ((replace(BUILDING, seconds_left=None),),)),
    Scene("ready", (READY,), "The model is ready"),
    Scene(
        "warm", (replace(READY, steps=(("resolving", 0.06), ("building", 0.2)), seconds=0.27),), "The model is ready"
    ),
    Scene("failed", (FAILED,), "The model failed"),
    Scene(
        "retrying", (RETRYING,), "The model is stalled", ("chat",), ((replace(RETRYING, retry_in=1e4, attempt=99),),)
    ),
    Scene("stopped", (replace(SILENT, stage="stopped"),), "The model was stopped"),
    Scene("three", MIXED[:3], "1 of 3 is stalled, 1 goes on, 1 is ready", ("All models", "code", "embed")),
    Scene("mixed", MIXED, "1 of 4 failed, 1 is stalled, 1 goes on, 1 is ready", ("All models", "code", "embed")),
    Scene("two-of-three", (READY, named("code", READY), named("a", NEW)), "2 of 3 are ready"),
    Scene("all-ready", (READY, named("code", READY), named("embed", READY)), "All 3 models are ready"),
    Scene("one-failed", (FAILED, named("a", FAST), named("b", NEW)), "1 of 3 failed, 2 go on", ("a",)),
    Scene(
        "twelve",
        TWELVE,
        "1 of 12 failed, 1 is stalled, 6 go on, 4 are ready",
        ("All models", *(f"loading-{number}" for number in range(4)), "next-1", "next-2"),
    ),
    Scene(
        "long",
        (LONG, named("chat" * 99, FAST), named("code" * 99, READY)),
        "1 of 3 failed, 1 goes on, 1 is ready",
        ("All models", "chat" * 99),
    ),
    Scene(
        "workers",
        (named("chat", READY), named("code", READY)),
        "Both models are ready",
        more={
            "workers": [
                in_worker(4711, "ready", chat="ready", code="ready"),
                in_worker(4712, "loading", chat="downloading", code="importing"),
                in_worker(4713, "failed", chat="failed"),
            ]
        },
    ),
]

# What is wrong with the layout: text that runs out of the window or out of its card. What is clipped does not count.
_MISPLACED = """() => {
    const found = document.documentElement.scrollWidth > innerWidth ? ['the window scrolls sideways'] : [];
    for (const card of document.querySelectorAll('.card')) {
        const outer = card.getBoundingClientRect();
        for (const element of card.querySelectorAll('*')) {
            if (element.matches('.fill, .note *') || !element.checkVisibility()) continue;
            if (element.matches('.times') && element.lastChild.getBoundingClientRect().right < element.getBoundingClientRect().right - 1)
                found.push('the times of the steps do not fill their line');
            if (element.matches('h2, .model') && element.scrollWidth > element.clientWidth)
                found.push(`${element.tagName} is cut at its side`);
            const inner = element.getBoundingClientRect();
            if (inner.left < outer.left || inner.right > outer.right || inner.top < outer.top || inner.bottom > outer.bottom)
                found.push(element.className || element.tagName);
        }
    }
    return found;
}"""
_HEIGHTS = "[...document.querySelectorAll('.card')].map(card => card.getBoundingClientRect().height)"
_BARS = """[...document.querySelectorAll('[role=progressbar]')]
    .filter(bar => bar.checkVisibility({visibilityProperty: true}))
    .map(bar => bar.ariaLabel || document.getElementById(bar.getAttribute('aria-labelledby')).textContent)"""


class Stage:
    """The run of a server that says what it is told to say."""

    def __init__(self) -> None:
        self.stopping = False
        self.said = 0
        self._document = b"{}"

    def say(self, models: tuple[ModelStatus, ...], more: dict[str, Any]) -> str:
        """Say this from now on; return the text by which the page shows that it has heard it."""
        import json

        self.said += 1
        pid = 4710 + self.said
        self._document = json.dumps(Status(models).as_json() | {"pid": pid} | more).encode()
        return f"Worker {pid}"

    async def look(self) -> None:
        """The other workers are in what it is told to say."""

    def encoded_status(self) -> bytes:
        return self._document


@pytest.fixture(autouse=True)
def no_blocking() -> None:
    """Disables the check, as in the other tests of the page."""


@pytest.fixture(scope="module")
def stage() -> Stage:
    return Stage()


@pytest.fixture(scope="module")
def pages(browser: Browser, stage: Stage) -> Iterator[dict[str, Page]]:
    """The same server's page in three windows that stay open for all scenes."""
    stage.say((NEW,), {})
    interval, events.INTERVAL = events.INTERVAL, 0.02
    phone = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
    desktop = {"viewport": {"width": 1280, "height": 800}}
    views: dict[str, Any] = {
        "phone": phone,
        "desktop": desktop,
        "dark": phone | {"color_scheme": "dark", "device_scale_factor": 1},
    }
    try:
        with running(App(lambda: cast("Run", stage), nullcontext)) as url:
            pages, said = {}, list[str]()
            for view, options in views.items():
                context = browser.new_context(locale="en-GB", reduced_motion="reduce", **options)
                pages[view] = context.new_page()
                pages[view].on("console", lambda message: said.append(message.text))
                pages[view].on("pageerror", lambda error: said.append(str(error)))
                pages[view].goto(f"{url}/")
            yield pages
            for page in pages.values():
                page.context.close()
            assert [line for line in said if "ERR_" not in line] == []
    finally:
        events.INTERVAL = interval


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kept = os.environ.get("YAIE_ASYNC_SCREENSHOTS")
    return Path(kept) if kept else tmp_path_factory.mktemp("screenshots")


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_a_state(scene: Scene, pages: dict[str, Page], stage: Stage, folder: Path) -> None:
    """The heading is true, bars are where something is measured, nothing leaves its card, and no card jumps."""
    from playwright.sync_api import expect

    heard = stage.say(scene.models, scene.more)
    heights = {}
    for view, page in pages.items():
        expect(page.locator("#pid")).to_have_text(heard)
        page.screenshot(path=folder / f"{scene.name}-{view}.png", full_page=True, animations="disabled")
        expect(page.locator("h1")).to_have_text(scene.heading)
        assert sorted(page.evaluate(_BARS)) == sorted(scene.bars)
        assert page.evaluate(_MISPLACED) == []
        heights[view] = page.evaluate(_HEIGHTS)
    for models in scene.updates:
        heard = stage.say(models, scene.more)
        for view, page in pages.items():
            expect(page.locator("#pid")).to_have_text(heard)
            assert page.evaluate(_HEIGHTS) == heights[view]
            assert page.evaluate(_MISPLACED) == []
    narrow = pages["dark"]
    narrow.set_viewport_size({"width": 320, "height": 640})
    assert narrow.evaluate(_MISPLACED) == []
    narrow.set_viewport_size({"width": 390, "height": 844})


@pytest.mark.parametrize("view", ["desktop", "dark"])
def test_it_is_accessible(view: str, pages: dict[str, Page], stage: Stage) -> None:
    """Every kind of card, with its colours and roles, in both schemes."""
    from playwright.sync_api import expect

    heard = stage.say((*MIXED, LONG, named("retrying", RETRYING)), SCENES[-1].more)
    expect(pages[view].locator("#pid")).to_have_text(heard)
    accessible(pages[view])


def test_failed_cards_are_first_and_text_is_text(pages: dict[str, Page], stage: Stage) -> None:
    """Failed cards come first, then the models in their order; backticks are code, and HTML stays text."""
    from playwright.sync_api import expect

    page = pages["desktop"]
    error = "Run `pip install x` & <img src=x onerror=alert(1)>, then `<b>`. A lone ` stays."
    heard = stage.say((named("a", NEW), named("b", READY), replace(FAILED, error=error)), {})
    expect(page.locator("#pid")).to_have_text(heard)
    assert page.locator("#models h2").all_text_contents() == ["typo", "a", "b"]
    note = page.locator(".note").first
    assert note.locator("code").all_text_contents() == ["pip install x", "<b>"]
    assert note.text_content() == error.replace("`pip install x`", "pip install x").replace("`<b>`", "<b>")
    assert page.locator("img").count() == 0
    heard = stage.say((named("a", NEW), named("b", READY), named("typo", FAST)), {})
    expect(page.locator("#pid")).to_have_text(heard)
    assert page.locator("#models h2").all_text_contents() == ["a", "b", "typo"]
    expect(page.get_by_role("status")).to_have_text("1 of 3 is ready. typo: Downloading, 25 percent")  # only the news


def test_a_lost_connection(pages: dict[str, Page], stage: Stage, folder: Path) -> None:
    """The heading says how long ago the server was seen; what may be old is not shown as if it were new."""
    from playwright.sync_api import expect

    heard = stage.say((READY, named("code", FAST), FAILED), {})
    for page in pages.values():
        expect(page.locator("#pid")).to_have_text(heard)
    stage.stopping = True
    for view, page in pages.items():
        expect(page.locator("h1")).to_have_text(re.compile(r"Connection lost, last seen \d+ s ago"))
        expect(page.locator("#models .left").filter(has_text="left")).to_be_hidden()
        page.screenshot(path=folder / f"lost-{view}.png", full_page=True, animations="disabled")
        assert page.evaluate(_MISPLACED) == []
    stage.stopping = False
    for page in pages.values():
        expect(page.locator("h1")).to_have_text("1 of 3 failed, 1 goes on, 1 is ready")


def test_a_connection_that_is_open_and_silent(
    browser: Browser, stage: Stage, pages: dict[str, Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After half a minute without a word the page asks again; a stream lasts twenty seconds."""
    from playwright.sync_api import expect

    monkeypatch.setattr(events, "LIFETIME", 1000.0)
    page = browser.new_page()
    page.clock.install()
    page.goto(pages["desktop"].url)
    expect(page.locator("#pid")).to_have_text(stage.say((NEW,), {}))
    with page.expect_request("**/events"):
        page.clock.run_for(31_000)
    expect(page.locator("#pid")).to_have_text(stage.say((FAST,), {}))
    expect(page.locator("#lost")).to_be_hidden()
    page.context.close()


def test_without_javascript(browser: Browser, pages: dict[str, Page]) -> None:
    """The page says that it stands still, and where the state is."""
    from playwright.sync_api import expect

    page = browser.new_page(java_script_enabled=False)
    page.goto(pages["desktop"].url)
    expect(page.get_by_text("Without JavaScript this page is not updated")).to_be_visible()
    expect(page.get_by_role("link", name="The same as JSON")).to_be_visible()
    page.context.close()

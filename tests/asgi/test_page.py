"""Tests of the page in headless Chromium, against a real server."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.asgi.conftest import MakeLoader, Put
from tests.support.faults import Drip, Stall, Status
from tests.support.hub import HubServer
from tests.support.programs import require_program
from yaie_async.asgi import Warmup, events
from yaie_async.asgi.types import Receive, Scope, Send
from yaie_async.localhub import running

Open = Callable[..., Page]

expect.set_options(timeout=60_000)  # milliseconds; the machine may be busy

# Records each change of the bars' accessible value, and of the numbers below them.
_RECORD = """() => {
    window.seen = [];
    window.read = [];
    const note = () => {
        for (const bar of document.querySelectorAll('[role=progressbar]')) {
            const now = Number(bar.getAttribute('aria-valuenow'));
            if (now !== window.seen.at(-1)) window.seen.push(now);
        }
        for (const line of document.querySelectorAll('.numbers')) window.read.push(line.textContent);
    };
    note();
    new MutationObserver(note).observe(document.getElementById('models'), {subtree: true, childList: true, attributes: true});
}"""


@pytest.fixture(autouse=True)
def no_blocking() -> None:
    """Disables the check: playwright keeps its own event loop running on this thread, and these tests may block it."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = require_program("chromium", "chromium")
    with sync_playwright() as playwright:
        # CI runs as root, for which Chromium has no sandbox.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Open]:
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
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_it_follows_a_load_to_its_end(hub: HubServer, put_large: Put, loader: MakeLoader, visit: Open) -> None:
    """The bar follows the download to 100 %, with bytes, rate and time left next to it."""
    put_large("org/name")
    stall = Stall(-1)
    hub.faults.add(stall)
    hub.faults.add(Drip(4 << 20), path="^/cdn/", times=None)
    with running(Warmup(chat=loader()).app) as url:
        page = visit(url)
        bar = page.get_by_role("progressbar", name="chat")
        expect(bar).to_have_attribute("aria-valuenow", "0")
        expect(page.get_by_role("heading", level=1)).to_have_text("Warming up")
        expect(page.get_by_text("Looking it up", exact=True)).to_be_visible()
        accessible(page)
        page.evaluate(_RECORD)
        stall.gate.open()
        expect(page.get_by_text("Downloading", exact=True)).to_be_visible()
        expect(page).to_have_title(re.compile(r"\d+ % · Warming up"))
        accessible(page)
        expect(bar).to_have_attribute("aria-valuenow", "100")
        expect(bar).to_have_attribute("aria-valuetext", "100 percent, Ready")
        expect(page.get_by_role("heading", level=1)).to_have_text("Ready")
        expect(page.get_by_text("1 of 1 model ready")).to_be_visible()
        expect(page.get_by_role("status")).to_have_text("chat: Ready")
        accessible(page)
        seen, read = page.evaluate("[window.seen, window.read]")
        assert seen == sorted(set(seen))
        assert len(seen) > 3
        assert any(re.fullmatch(r"[\d.]+ [kM]B of [\d.]+ MB · [\d.]+ [kM]B/s · \d+ s left", line) for line in read)


def test_it_shows_an_error(hub: HubServer, put: Put, loader: MakeLoader, visit: Open) -> None:
    """An error is shown and announced with what to do; the other model is still shown."""
    put("org/name")
    with running(Warmup(chat=loader(), typo=loader("org/no-such-model")).app) as url:
        page = visit(url)
        expect(page.get_by_role("progressbar", name="chat")).to_have_attribute("aria-valuenow", "100")
        expect(page.get_by_role("heading", level=1)).to_have_text("Failed")
        expect(page.get_by_text("1 of 2 models ready, 1 failed")).to_be_visible()
        card = page.get_by_role("listitem").filter(has_text="typo")
        expect(card.get_by_text("The Hub has no public model 'org/no-such-model'.")).to_be_visible()
        expect(page.get_by_role("status")).to_contain_text("typo: Failed. The Hub has no public model")
        accessible(page)


def test_it_shows_an_outage(hub: HubServer, loader: MakeLoader, visit: Open) -> None:
    """During an outage of the Hub the page shows when the next attempt starts."""
    hub.faults.add(Status(429, {"Retry-After": "1000"}), times=None)
    with running(Warmup(chat=loader()).app) as url:
        page = visit(url)
        expect(page.get_by_text("Hub unavailable", exact=True)).to_be_visible()
        expect(page.get_by_text(re.compile("Next attempt in 16 min"))).to_be_visible()
        expect(page.get_by_role("listitem")).to_contain_text("The Hub limits your rate: wait")
        accessible(page)


def test_it_survives_a_lost_connection(hub: HubServer, put: Put, loader: MakeLoader, visit: Open) -> None:
    """The page shows that the connection is lost, keeps the last state, and follows the restarted server."""
    put("org/name")
    with running(Warmup(chat=loader(), old=loader()).app) as url:
        page = visit(url)
        expect(page.get_by_role("heading", level=1)).to_have_text("Ready")
        expect(page.locator("#lost")).to_be_hidden()
    expect(page.locator("#lost")).to_be_visible()
    expect(page.get_by_role("status")).to_have_text("The connection is lost. Trying again…")
    expect(page.get_by_role("progressbar", name="chat")).to_have_attribute("aria-valuenow", "100")
    accessible(page)
    port = int(url.rsplit(":", 1)[1])
    refused = threading.Event()

    async def proxy(_scope: Scope, _receive: Receive, send: Send) -> None:
        """A proxy in front of a server that is not back yet: after its 502 a browser does not reconnect by itself."""
        await send({"type": "http.response.start", "status": 502, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        refused.set()

    with running(proxy, port=port):
        assert refused.wait(60)
    with running(Warmup(chat=loader(), new=loader()).app, port=port):
        expect(page.locator("#lost")).to_be_hidden()
        expect(page.get_by_role("progressbar", name="new")).to_have_attribute("aria-valuenow", "100")
        expect(page.get_by_role("progressbar")).to_have_count(2)
        expect(page.get_by_role("status")).to_have_text("chat: Ready. new: Ready")


def test_it_asks_again_when_a_stream_ends(
    hub: HubServer, loader: MakeLoader, visit: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that ends after its lifetime is opened again, and the page does not show a lost connection."""
    monkeypatch.setattr(events, "LIFETIME", 0.3)
    hub.faults.add(Stall(-1), times=None)
    with running(Warmup(chat=loader()).app) as url:
        page = visit(url)
        expect(page.get_by_text("Looking it up", exact=True)).to_be_visible()
        page.evaluate("""() => new MutationObserver(() => { window.told = true; })
            .observe(document.getElementById('lost'), {attributes: true})""")
        for _ in range(2):
            with page.expect_request("**/events"):
                pass
        assert page.evaluate("window.told") is None
        hub.clear()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_the_dark(scheme: str, loader: MakeLoader, visit: Open) -> None:
    """On the smallest phone nothing scrolls sideways, whatever the names are, and the colours have enough contrast."""
    name = "a_name_" * 12
    with running(Warmup({name: loader("org/no-such-model"), "<b>&": loader("org/" + "x" * 80)}).app) as url:
        page = visit(url, viewport={"width": 320, "height": 640}, color_scheme=scheme, is_mobile=True, has_touch=True)
        expect(page.get_by_text("0 of 2 models ready, 2 failed")).to_be_visible()
        expect(page.get_by_role("heading", name="<b>&")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == 320
        accessible(page)


def test_it_needs_no_mouse_and_no_motion(loader: MakeLoader, visit: Open) -> None:
    """The link is reached by Tab and shows its focus; with reduced motion nothing is animated."""
    with running(Warmup(chat=loader("org/no-such-model")).app) as url:
        page = visit(url, reduced_motion="reduce")
        expect(page.get_by_role("heading", level=1)).to_have_text("Failed")
        page.keyboard.press("Tab")
        link = page.get_by_role("link", name="The same as JSON")
        expect(link).to_be_focused()
        assert link.evaluate("link => getComputedStyle(link).outlineStyle") == "solid"
        assert page.locator(".fill").evaluate("fill => getComputedStyle(fill).transitionDuration") == "0s"
        expect(link).to_have_attribute("href", "status")

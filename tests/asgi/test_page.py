"""Tests of the page in headless Chromium, against a real server."""

from __future__ import annotations

import re
import threading

import pytest
from playwright.sync_api import expect

from tests.asgi.conftest import MakeLoader, Put, Visit, accessible
from tests.support.faults import Drip, Stall, Status
from tests.support.hub import HubServer
from yaie_async.asgi import Warmup, events
from yaie_async.asgi.types import Receive, Scope, Send
from yaie_async.localhub import running

# Before the Hub has answered. A machine that is busy for some seconds sees it stall.
_BEGINS, _LOOKING = re.compile("^(Loading the model|The model is stalled)$"), re.compile("^(Looking it up|Stalled)$")

# Records each change of the bars' accessible value, and of the numbers below them.
_RECORD = """() => {
    window.seen = [];
    window.read = [];
    const note = () => {
        for (const bar of document.querySelectorAll('[role=progressbar]')) {
            const now = [bar.closest('[data-stage]')?.dataset.stage, Number(bar.getAttribute('aria-valuenow'))];
            if (bar.checkVisibility({visibilityProperty: true})) window.seen.push(now);
        }
        for (const line of document.querySelectorAll('.numbers')) window.read.push(line.textContent);
    };
    note();
    new MutationObserver(note).observe(document.getElementById('models'), {subtree: true, childList: true, attributes: true});
}"""


@pytest.fixture(autouse=True)
def no_blocking() -> None:
    """Disables the check: playwright keeps its own event loop running on this thread, and these tests may block it."""


def test_it_follows_a_load_to_its_end(hub: HubServer, put_large: Put, loader: MakeLoader, visit: Visit) -> None:
    """The bar follows the download, with bytes, rate and time left next to it; the ready card says what it has become."""
    put_large("org/name")
    stall = Stall(-1)
    hub.faults.add(stall)
    hub.faults.add(Drip(4 << 20), path="^/cdn/", times=None)
    with running(Warmup(chat=loader()).app) as url:
        page = visit(url)
        bar = page.get_by_role("progressbar", name="chat")
        heading = page.get_by_role("heading", level=1)
        expect(heading).to_have_text(_BEGINS)
        expect(page.locator(".card .stage")).to_have_text(_LOOKING)
        expect(bar).to_have_count(0)  # there is nothing to measure
        accessible(page)
        page.evaluate(_RECORD)
        stall.gate.open()
        expect(page.get_by_text("Downloading", exact=True)).to_be_visible()
        expect(page).to_have_title(re.compile(r"\d+ % · Loading the model"))
        accessible(page)
        expect(heading).to_have_text("The model is ready")
        expect(page).to_have_title("The model is ready")
        expect(page.get_by_role("status")).to_contain_text("chat: Ready")
        expect(bar).to_have_count(0)
        card = page.get_by_role("listitem").filter(has_text="chat")
        for term, value in (
            ("Took", r"[\d.]+ s"),
            ("Dtype", "float16"),
            ("In memory", r"[\d.]+ MB"),
            ("Worker", r"\d+"),
        ):
            found = card.get_by_role("term").filter(has_text=term).locator("+ dd")
            expect(found).to_have_text(re.compile(rf"^{value}$"))
        accessible(page)
        seen, read = page.evaluate("[window.seen, window.read]")
        downloaded = [now for stage, now in seen if stage == "downloading"]
        assert downloaded == sorted(downloaded)
        assert len(set(downloaded)) > 3
        assert any(re.fullmatch(r"[\d.]+ of [\d.]+ MB [\d.]+ [kM]B/s \d+ s left", line) for line in read)


def test_it_shows_an_error(hub: HubServer, put: Put, loader: MakeLoader, visit: Visit) -> None:
    """An error is shown and announced with what to do; the other model is still shown."""
    put("org/name")
    with running(Warmup(chat=loader(), typo=loader("org/no-such-model")).app) as url:
        page = visit(url)
        expect(page.get_by_role("heading", level=1)).to_have_text("1 of 2 failed, 1 is ready")
        expect(page.get_by_role("listitem").first).to_contain_text("typo")
        expect(page.get_by_role("button", name="Try again")).to_be_hidden()
        card = page.get_by_role("listitem").filter(has_text="typo")
        expect(card.get_by_text("The Hub has no public model 'org/no-such-model'.")).to_be_visible()
        page.reload()  # what is there already is announced at once
        expect(page.get_by_role("status")).to_contain_text("typo: Failed. The Hub has no public model")
        accessible(page)


def test_it_shows_an_outage(hub: HubServer, loader: MakeLoader, visit: Visit) -> None:
    """During an outage of the Hub the page shows when the next attempt starts."""
    hub.faults.add(Status(429, {"Retry-After": "1000"}), times=None)
    with running(Warmup(chat=loader()).app) as url:
        page = visit(url)
        expect(page.get_by_text("Hub unavailable", exact=True)).to_be_visible()
        expect(page.get_by_text(re.compile("Attempt 2 in 16 min"))).to_be_visible()
        expect(page.get_by_role("listitem")).to_contain_text("The Hub limits your rate: wait")
        accessible(page)


def test_it_survives_a_lost_connection(hub: HubServer, put: Put, loader: MakeLoader, visit: Visit) -> None:
    """The page shows that the connection is lost, keeps the last state, and follows the restarted server."""
    put("org/name")
    with running(Warmup(chat=loader(), old=loader()).app) as url:
        page = visit(url)
        expect(page.get_by_role("heading", level=1)).to_have_text("Both models are ready")
        expect(page.locator("#lost")).to_be_hidden()
    expect(page.locator("#lost")).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile(r"Connection lost, last seen \d+ s ago"))
    expect(page.get_by_role("status")).to_have_text("Connection lost. Trying again")
    expect(page.get_by_role("listitem").filter(has_text="chat")).to_contain_text("Ready since")
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
        expect(page.get_by_role("heading", level=2)).to_have_text(["chat", "new"])
        expect(page.get_by_role("heading", level=1)).to_have_text("Both models are ready")


def test_it_asks_again_when_a_stream_ends(
    hub: HubServer, loader: MakeLoader, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that ends after its lifetime is opened again, and the page does not show a lost connection."""
    monkeypatch.setattr(events, "LIFETIME", 0.3)
    hub.faults.add(Stall(-1), times=None)
    with running(Warmup(chat=loader()).app) as url:
        page = visit(url)
        expect(page.locator(".card .stage")).to_have_text(_LOOKING)
        page.evaluate("""() => new MutationObserver(() => { window.told = true; })
            .observe(document.getElementById('lost'), {attributes: true})""")
        for _ in range(2):
            with page.expect_request("**/events"):
                pass
        assert page.evaluate("window.told") is None
        hub.clear()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_the_dark(scheme: str, loader: MakeLoader, visit: Visit) -> None:
    """On the smallest phone nothing scrolls sideways, whatever the names are, and the colours have enough contrast."""
    name = "a_name_" * 12
    with running(Warmup({name: loader("org/no-such-model"), "<b>&": loader("org/" + "x" * 80)}).app) as url:
        page = visit(url, viewport={"width": 320, "height": 640}, color_scheme=scheme, is_mobile=True, has_touch=True)
        expect(page.get_by_role("heading", level=1)).to_have_text("Both models failed")
        expect(page.get_by_role("heading", name="<b>&")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == 320
        accessible(page)


def test_it_needs_no_mouse_and_no_motion(loader: MakeLoader, visit: Visit) -> None:
    """The link is reached by Tab and shows its focus; with reduced motion nothing is animated."""
    with running(Warmup(chat=loader("org/no-such-model")).app) as url:
        page = visit(url, reduced_motion="reduce")
        expect(page.get_by_role("heading", level=1)).to_have_text("The model failed")
        page.keyboard.press("Tab")
        link = page.get_by_role("link", name="The same as JSON")
        expect(link).to_be_focused()
        assert link.evaluate("link => getComputedStyle(link).outlineStyle") == "solid"
        assert page.locator("#models .fill").evaluate("fill => getComputedStyle(fill).transitionDuration") == "0s"
        expect(link).to_have_attribute("href", "status")


def test_it_starts_a_failed_load_again(put: Put, loader: MakeLoader, visit: Visit) -> None:
    """Where it is allowed, a failed card has a button that starts its load again, by the keyboard too."""
    with running(Warmup({"a/b": loader()}, retry=True).app) as url:
        page = visit(url)
        button = page.get_by_role("button", name="Try again")
        expect(page.get_by_role("heading", level=1)).to_have_text("The model failed")
        accessible(page)
        put("org/name")
        button.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("The model is ready")
        expect(button).to_be_hidden()

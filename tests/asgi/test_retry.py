"""Tests of starting a failed load again by a request."""

from __future__ import annotations

import anyio
import pytest

from tests.asgi.conftest import MakeLoader, Put, asked
from tests.support.faults import Stall
from tests.support.hub import HubServer
from tests.support.loops import on_one_loop
from tests.support.waiting import until
from yaie_async import ModelNotFoundError
from yaie_async.asgi import Warmup

pytestmark = pytest.mark.anyio

SAME = {"sec-fetch-site": "same-origin"}


async def fail(warmup: Warmup, name: str = "chat") -> None:
    with pytest.raises(ModelNotFoundError):
        await warmup[name]


async def test_a_failed_load_is_started_again(loader: MakeLoader, put: Put, hub: HubServer) -> None:
    """After POST the load begins again, with a new deadline; who waits now gets its model, and the probe turns 200."""
    stall = Stall(-1)
    warmup = Warmup(chat=loader(), retry=True, deadline=30)
    async with warmup, asked(warmup) as client:
        await fail(warmup)
        assert (await client.get("/readyz")).json()["models"]["chat"]["can_retry"] is True
        put("org/name")
        hub.faults.add(stall)
        answer = await client.post("/retry/chat", headers=SAME)
        assert (answer.status_code, answer.text) == (202, "The load has begun again.\n")
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["models"]["chat"]["can_retry"]) == (503, False)
        assert (await client.post("/retry/chat", headers=SAME)).status_code == 409  # it has not failed yet
        stall.gate.open()
        assert type(await warmup["chat"]).__name__ == "LlamaForCausalLM"
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["models"]["chat"]["error"]) == (200, None)
        assert (await client.post("/retry/chat", headers=SAME)).status_code == 409


async def test_it_can_fail_again_and_the_server_stops(loader: MakeLoader, hub: HubServer) -> None:
    """A load that fails again has its new deadline and error; one that is under way ends with the server."""
    warmup = Warmup(chat=loader(), retry=True)
    async with warmup, asked(warmup) as client:
        await fail(warmup)
        await client.post("/retry/chat", headers=SAME)
        await fail(warmup)
        hub.faults.add(Stall(-1), times=None)
        await client.post("/retry/chat", headers=SAME)
        count = len(hub.requests)
        await until(lambda: len(hub.requests) > count)
        with anyio.fail_after(30):
            await warmup.__aexit__(None, None, None)
            await warmup.__aenter__()
    hub.clear()


@on_one_loop
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"sec-fetch-site": "same-origin"}, 202),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "none"}, 403),
        ({"sec-fetch-site": "cross-site", "origin": "http://app"}, 403),
        ({"origin": "http://app"}, 202),
        ({"origin": "http://app:81"}, 403),
        ({"origin": "http://app:81", "host": "app:81"}, 202),
        ({"origin": "http://app.evil"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "null", "host": ""}, 403),
        ({"origin": "http://[app"}, 403),
    ],
)
async def test_only_from_the_same_origin(headers: dict[str, str], status: int, loader: MakeLoader) -> None:
    """A page of another site can't start a load again, however its browser words that."""
    warmup = Warmup(chat=loader(), retry=True)
    async with warmup, asked(warmup) as client:
        await fail(warmup)
        assert (await client.post("/retry/chat", headers=headers)).status_code == status


@on_one_loop
async def test_what_is_refused(loader: MakeLoader, hub: HubServer) -> None:
    """Names that no model has are 404, other methods 405; without retry=True nothing is started again."""
    off, on = Warmup(chat=loader()), Warmup({"a/b ü": loader()}, retry=True)
    async with off, on, asked(off) as client:
        await fail(off)
        assert (await client.post("/retry/chat", headers=SAME)).status_code == 403
        assert (await client.get("/status")).json()["models"]["chat"]["can_retry"] is False
        async with asked(on) as client:
            await fail(on, "a/b ü")
            assert (await client.post("/retry/unknown", headers=SAME)).status_code == 404
            assert (await client.post("/retry/", headers=SAME)).status_code == 404
            answer = await client.get("/retry/chat")
            assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
            assert (await client.post("/retry/a%2Fb%20%C3%BC", headers=SAME)).status_code == 202

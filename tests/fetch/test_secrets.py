"""A token, and a user's name and password in the endpoint: who gets them, and that nothing else shows them."""

import dataclasses
import json
import logging
import traceback
from base64 import b64encode
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fetch.fetching import bodies, opened, put
from tests.support.faults import Both, Fault, Headers, Html, Redirect, Reset, Stall, Status
from tests.support.hub import HubServer
from tests.support.loops import on_one_loop
from yaie_async import InvalidArgumentError, LoaderError
from yaie_async.core.trace import recording
from yaie_async.fetch.settings import read_settings

pytestmark = pytest.mark.anyio

BASIC = "Basic " + b64encode("user:p@ß/word".encode()).decode()
TOKEN = "hf_geheim"
SECRETS = ("p%40", "p@ß", "ß/word", "/word", BASIC[6:], TOKEN)


@pytest.fixture
def weights(hub_root: Path) -> bytes:
    return put(hub_root)


def endpoint(hub: HubServer, user: str = "user:p%40%C3%9F%2Fword") -> dict[str, Any]:
    return {"endpoint": hub.url.replace("//", f"//{user}@") + "/"}


def sent_to(hub: HubServer) -> dict[str, set[str | None]]:
    """The credentials that the hub and its CDN got."""
    cdn = {request.authorization for request in bodies(hub)}
    return {"hub": {one.authorization for one in hub.requests if one not in bodies(hub)}, "cdn": cdn}


@pytest.mark.parametrize("stock", [False, True], ids=["ours", "stock"])
async def test_the_endpoint_s_credentials_go_to_it_alone(
    stock: bool, anyio_backend: Any, hub: HubServer, weights: bytes, tmp_path: Path
) -> None:
    """On every request for metadata and bodies, in place of a token, and never to the CDN behind a redirect."""
    async with (
        httpx.AsyncClient() as own,
        opened(hub, tmp_path, **endpoint(hub), token=TOKEN, client=own if stock else None) as one,
    ):
        snapshot = (await one.prefetch("org/big"))["org/big"]
    assert (snapshot / "model.safetensors").read_bytes() == weights
    assert sent_to(hub) == {"hub": {BASIC}, "cdn": {None}}


@on_one_loop
@pytest.mark.parametrize("stock", [False, True], ids=["ours", "stock"])
async def test_bodies_of_the_endpoint_get_them(
    stock: bool, anyio_backend: Any, hub: HubServer, weights: bytes, tmp_path: Path
) -> None:
    """A mirror that serves bodies itself gets them there too, also behind a redirect to itself."""
    hub.app.cdn = None
    moved = f"{hub.url}/org/big/resolve/main/model.safetensors"
    hub.faults.add(Redirect(moved), path="/resolve/.*/model.safetensors$")
    async with (
        httpx.AsyncClient() as own,
        opened(hub, tmp_path, **endpoint(hub, "user"), client=own if stock else None) as one,
    ):
        await one.prefetch("org/big")
    assert sent_to(hub) == {"hub": {"Basic " + b64encode(b"user:").decode()}, "cdn": set()}
    assert any(request.path == moved.removeprefix(hub.url) for request in hub.requests)


@on_one_loop
@pytest.mark.parametrize("stock", [False, True], ids=["ours", "stock"])
async def test_credentials_in_a_redirect_are_not_used(
    stock: bool, anyio_backend: Any, hub: HubServer, weights: bytes, tmp_path: Path
) -> None:
    """As for the official client: what a server writes before an @ is sent to nobody, and changes no origin."""
    for target in (hub.cdn_url, hub.url):
        hub.clear()
        path = target.replace("//", "//other:secret@") + "/org/big/resolve/main/config.json"
        hub.faults.add(Redirect(path), path="/resolve/.*/config.json$")
        async with (
            httpx.AsyncClient() as own,
            opened(hub, tmp_path / target[-6:], **endpoint(hub), client=own if stock else None) as one,
        ):
            await one.prefetch("org/big", include="config.json")
        shown = None if target == hub.cdn_url else BASIC
        assert [request.authorization for request in hub.requests][-2:] == [BASIC, shown]


@on_one_loop
@pytest.mark.parametrize(
    "fault",
    [
        Status(401),
        Status(403),
        Status(404),
        Status(500),
        Status(400, {"X-Error-Message": "no"}),
        Reset(),
        Stall(-1),
        Html(),
        Redirect(),
        Redirect("ftp://127.0.0.1/x"),
        Redirect("http://x:theirs@[bad"),
        Redirect("http://other:theirs@127.0.0.1:9/x"),
        Both(Status(302), Headers({"Location": "//other:theirs@127.0.0.1:9"})),
    ],
    ids=lambda value: str(value)[:24],
)
@pytest.mark.parametrize("path", ["^/api/", "/resolve/"], ids=["metadata", "body"])
async def test_no_error_log_or_trace_shows_a_secret(
    path: str,
    fault: Fault,
    anyio_backend: Any,
    hub: HubServer,
    weights: bytes,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither the text of an error nor its attributes or causes, nor a log record of any library, nor the trace."""
    caplog.set_level(logging.DEBUG)
    hub.faults.add(fault, path=path, times=None)
    with recording() as trace, pytest.raises(LoaderError) as caught:
        async with opened(hub, tmp_path, **endpoint(hub), token=TOKEN, stall=0.05) as one:
            settings = one.session.settings
            one.session.settings = dataclasses.replace(settings, metadata_timeout=0.05)
            await one.prefetch("org/big")
    shown = [json.dumps(trace.document()), caplog.text, repr(settings), repr(one)]
    error: BaseException | None = caught.value
    while error is not None:
        shown += [repr(error), str(error), repr(vars(error)), "".join(traceback.format_exception(error))]
        error = error.__cause__ or error.__context__
    for secret in SECRETS:
        assert not [text for text in shown if secret in text]
    assert "theirs" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    ["ftp://user:p%40ß/word@hub", "http://user:pß/word@hub:x", "user:p@ß@hub", "//user:p@ß@", "http://user:p@ß@[x"],
)
def test_an_endpoint_that_is_no_url_is_not_repeated_in_full(wrong: str) -> None:
    """What stands before the @ may be a password, and is left out."""
    with pytest.raises(InvalidArgumentError, match="not an http") as caught:
        read_settings(cache_dir=None, token=None, endpoint=wrong, local_files_only=None)
    for secret in SECRETS:
        assert secret not in str(caught.value)

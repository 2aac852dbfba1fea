"""One request over a real connection: its redirects, its token, its headers, its end."""

from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from tests.fetch.fetching import opened, put
from tests.support.faults import Answer, Chunked, Cut, Fault, Gzip, Headers, Redirect, Reset, Stall, Status
from tests.support.hub import HubServer
from tests.support.loops import on_one_loop
from tests.support.stopwatch import Stopwatch
from tests.support.waiting import until
from yaie_async import ClosedHubError, GatedModelError, Hub, HubUnavailableError
from yaie_async.fetch.failures import Asked, TransientError
from yaie_async.fetch.http import answer

pytestmark = pytest.mark.anyio
API = "/api/models/org/big/revision/main"
ASKED = Asked("org/big", "main", None, has_token=True)


@pytest.fixture
def hub_root(hub_root: Path) -> Path:
    put(hub_root, 100)
    return hub_root


async def ask(one: Hub, url: str, method: str = "GET", **options: Any) -> httpx.Response:
    async with answer(one.session, method, url, asked=ASKED, timeout=5, **options) as response:
        await response.aread()
    return response


async def test_an_answer_and_its_headers(anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """The body comes as it is: no encoding is asked for, the user agent is ours, the token a bearer's."""
    async with opened(hub, tmp_path, token="secret") as one:
        response = await ask(one, hub.url + API)
    assert response.json()["id"] == "org/big"
    (request,) = hub.requests
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["user-agent"].startswith("yaie_async/")
    assert request.authorization == "Bearer secret"


@on_one_loop
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_every_redirect_is_followed_and_none_takes_the_token_away(
    status: int, anyio_backend: Any, hub: HubServer, tmp_path: Path
) -> None:
    """Relative and absolute, of every status; the token goes on at the Hub, and never to another origin."""
    for target, shown in ((API, "Bearer secret"), (hub.url + API, "Bearer secret"), (hub.cdn_url + API, None)):
        hub.clear()
        hub.faults.add(Redirect(target, status=status), path="^/start")
        async with opened(hub, tmp_path, token="secret") as one:
            response = await ask(one, hub.url + "/start")
        assert response.status_code == 200
        assert [history.status_code for history in response.history] == [status]
        assert [request.authorization for request in hub.requests] == ["Bearer secret", shown]


async def test_the_token_comes_back_with_the_hub(anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """Hub, another host, Hub again: it is each host by itself that may see the token, or may not."""
    hub.faults.add(Redirect(hub.cdn_url + "/away"), path="^/start")
    hub.faults.add(Redirect(hub.url + API), path="^/away")
    async with opened(hub, tmp_path, token="secret") as one:
        await ask(one, hub.url + "/start")
    assert [request.authorization for request in hub.requests] == ["Bearer secret", None, "Bearer secret"]


async def test_a_head_stops_where_the_hub_ends(anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """With leave_hub=False a redirect away from the Hub is the answer itself, and one within is followed."""
    hub.faults.add(Redirect("/org/big/resolve/main/model.safetensors", status=307), path="^/start")
    async with opened(hub, tmp_path) as one:
        response = await ask(one, hub.url + "/start", "HEAD", leave_hub=False)
    assert response.status_code == 302
    assert response.headers["x-linked-size"] == "100"
    assert [request.method for request in hub.requests] == ["HEAD", "HEAD"]


@on_one_loop
@pytest.mark.parametrize(
    ("target", "says"),
    [
        (None, "more than 20 redirects, the last to 127.0.0.1"),
        ("ftp://127.0.0.1/x", "redirects from http to ftp"),
        ("file:///etc/passwd", "redirects from http to file"),
        ("http://[bad", "the server redirected to an invalid URL"),
    ],
)
async def test_a_redirect_that_leads_nowhere(
    target: str | None, says: str, anyio_backend: Any, hub: HubServer, tmp_path: Path
) -> None:
    """A loop, another scheme and no URL at all are errors of ours that name the model and where to look."""
    hub.faults.add(Redirect(target), path="^/start", times=None)
    async with opened(hub, tmp_path) as one:
        with pytest.raises(HubUnavailableError, match=f"{says}.*HF_ENDPOINT") as caught:
            await ask(one, hub.url + "/start")
    assert caught.value.model == "org/big"


async def test_a_redirect_without_a_target_is_an_answer(anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """A 302 without Location leads nowhere, and is handed over as it is."""
    hub.faults.add(Status(302), path="^/start")
    async with opened(hub, tmp_path) as one:
        assert (await ask(one, hub.url + "/start")).status_code == 302


@pytest.mark.parametrize("fault", [Cut(10), Reset(10), Reset()])
async def test_a_broken_body_is_transient(fault: Fault, anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """A body that ends early or a connection that is reset is a TransientError, from httpx's own."""
    hub.faults.add(fault)
    async with opened(hub, tmp_path) as one:
        with pytest.raises(TransientError) as caught:
            await ask(one, hub.url + API)
    assert caught.value.kind == "read"
    assert isinstance(caught.value.__cause__, httpx.HTTPError)


@pytest.mark.parametrize("after", [-1, 10])
async def test_silence_is_a_stall(after: int, anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """No byte within the timeout, before the head or in the body, is a stall."""
    hub.faults.add(Stall(after))
    async with opened(hub, tmp_path) as one:
        with pytest.raises(TransientError) as caught:
            async with answer(one.session, "GET", hub.url + API, asked=ASKED, timeout=0.3) as response:
                await response.aread()
    assert caught.value.kind == "stall"


async def test_a_port_where_nobody_is(anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """A refused connection is a connect failure that names the host."""
    async with opened(hub, tmp_path) as one:
        with pytest.raises(TransientError, match=r"127\.0\.0\.1") as caught:
            await ask(one, "http://127.0.0.1:9/")
    assert caught.value.kind == "connect"


@pytest.mark.parametrize("fault", [Chunked(), Gzip()])
async def test_other_framings_are_understood(fault: Fault, anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """A chunked body, or one that is compressed although nobody asked, reads as itself."""
    hub.faults.add(fault)
    async with opened(hub, tmp_path) as one:
        assert (await ask(one, hub.url + API)).json()["id"] == "org/big"


class Endless(Fault):
    """A refusal whose page takes ten seconds to send."""

    def edit_answer(self, answer: Answer) -> None:
        answer.status = 403
        answer.headers = {}
        answer.replace_body(b"x" * (20 << 20))
        answer.rate = 2 << 20


# httpx's generators can't be closed from outside; only under trio does that make a warning, off by default.
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
async def test_an_error_s_body_is_read_within_bounds(anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """What an error says is read, of an endless body only its beginning; the header says it without a body."""
    hub.faults.add(Status(403, body=b'{"error": "because"}'))
    hub.faults.add(Endless())
    hub.faults.add(Status(403, {"X-Error-Message": "said"}))
    async with opened(hub, tmp_path) as one:
        watch = Stopwatch()
        for said in ("because", None, "said"):
            with pytest.raises(GatedModelError) as caught:
                await ask(one, hub.url + API)
            assert caught.value.server_message == said
        assert watch.seconds < 5


async def test_a_cancel_closes_the_connection(anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """Cancelled while a server says nothing, control returns at once and the next request is as good as ever."""
    stall = Stall(-1)
    hub.faults.add(stall)
    async with opened(hub, tmp_path) as one:
        async with anyio.create_task_group() as group:
            group.start_soon(ask, one, hub.url + API)
            await until(lambda: hub.requests)
            watch = Stopwatch()
            group.cancel_scope.cancel()
        assert watch.seconds < 1
        assert (await ask(one, hub.url + API)).status_code == 200


async def test_a_client_that_is_closed(anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """A client of the user's that is closed too early is said, by an error of ours."""
    async with httpx.AsyncClient() as client:
        pass
    async with opened(hub, tmp_path, client=client) as one:
        with pytest.raises(ClosedHubError, match="client=.*is closed"):
            await ask(one, hub.url + API)


async def test_a_client_s_own_credentials_stay_with_the_hub(anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """Authorization and auth= of the user's client are not shown to another host."""
    hub.faults.add(Redirect(hub.cdn_url + API), path="^/start")
    own = httpx.AsyncClient(headers={"Authorization": "Bearer own"}, auth=("user", "secret"))
    async with own as client, opened(hub, tmp_path, client=client) as one:
        await ask(one, hub.url + "/start")
    assert [request.authorization for request in hub.requests] == ["Bearer own", None]


async def test_headers_of_a_call_are_sent(anyio_backend: Any, hub: HubServer, tmp_path: Path) -> None:
    """What a caller adds is sent, and an odd answer header is harmless."""
    hub.faults.add(Headers({"X-Odd": "\xe9", "Set-Cookie": "a=b"}))
    async with opened(hub, tmp_path) as one:
        await ask(one, hub.url + API, headers={"range": "bytes=0-3"})
        await ask(one, hub.cdn_url + API)
    assert hub.requests[0].range == "bytes=0-3"
    assert "cookie" not in hub.requests[1].headers

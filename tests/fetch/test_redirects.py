"""Where redirects may lead: from a public host never into this machine or a private network."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from tests.fetch.fetching import bodies, opened, put
from tests.fetch.test_clients import HttpProxy, proxy
from tests.support.faults import Redirect
from tests.support.hub import HubServer
from tests.support.loops import on_one_loop
from yaie_async import HubUnavailableError
from yaie_async.fetch.failures import Asked
from yaie_async.fetch.redirects import reach_by, reach_of, refuses, target_of

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", "private"),
        ("127.1", "private"),
        ("2130706433", "private"),
        ("0x7f.0.0.1", "private"),
        ("0177.0.0.1", "private"),
        ("127.0.0.1.", "private"),
        ("0.0.0.0", "private"),
        ("0", "private"),
        ("10.1.2.3", "private"),
        ("172.16.0.1", "private"),
        ("192.168.0.1", "private"),
        ("100.64.0.1", "private"),
        ("169.254.169.254", "private"),
        ("198.18.0.1", "private"),
        ("255.255.255.255", "private"),
        ("::1", "private"),
        ("::", "private"),
        ("fe80::1", "private"),
        ("fe80::1%25eth0", "private"),
        ("fd00::1", "private"),
        ("::ffff:10.0.0.1", "private"),
        ("localhost", "private"),
        ("LocalHost.", "private"),
        ("a.localhost", "private"),
        ("1.1.1.1", "public"),
        ("16843009", "public"),
        ("2606:4700::1111", "public"),
        ("::ffff:1.1.1.1", "public"),
        ("huggingface.co", None),
        ("localhost.example", None),
        ("1.2.3.4.example", None),
        ("dead.beef", None),
        ("", None),
    ],
)
def test_what_a_spelling_says(host: str, expected: str | None) -> None:
    """An address in any spelling that a connection would take, and localhost; any other name says nothing."""
    assert reach_of(host) == expected


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        (["1.1.1.1", "2606:4700::1111"], "public"),
        (["10.0.0.1"], "private"),
        (["1.1.1.1", "10.0.0.1"], "private"),
        (["fe80::1%eth0"], "private"),
        (["198.18.0.7"], "unknown"),
        (["198.18.0.7", "fd00::7"], "private"),
    ],
)
def test_what_addresses_say(addresses: list[str], expected: str) -> None:
    """One private address is enough. Those that a fake-ip proxy hands out stand for any host."""
    assert reach_by(addresses) == expected


@pytest.mark.parametrize(
    ("source", "by_name", "expected"),
    [
        ("public", True, True),
        ("public", False, True),
        ("unknown", True, False),
        ("unknown", False, True),
        ("private", True, False),
        ("private", False, False),
    ],
)
def test_what_is_refused(source: Any, by_name: bool, expected: bool) -> None:
    """A private target, from a public source; from an unknown one only where it is no name."""
    assert refuses(source, by_name=by_name) is expected


@pytest.fixture
def internet(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give names addresses: `internet(**{"hub.example": "1.1.1.1"})`; all addresses lead to this machine."""
    look_up, connect = socket.getaddrinfo, socket.socket.connect
    names: dict[str, str] = {}

    def named(host: Any, *args: Any, **options: Any) -> Any:
        text = host.decode() if isinstance(host, bytes) else host
        return look_up(names.get(text, host), *args, **options)

    def led(self: socket.socket, address: Any) -> None:
        connect(self, ("127.0.0.1", address[1]) if address[0] in names.values() else address)

    monkeypatch.setattr(socket, "getaddrinfo", named)
    monkeypatch.setattr(socket.socket, "connect", led)
    return names.update


async def ends(hub: HubServer, cache: Path, source: str, target: str, **options: Any) -> list[str]:
    """Fetch from a hub of one host that redirects weights to another; return the paths that the other was asked for."""
    hub.clear()
    port = hub.url.rsplit(":", 1)[1]
    hub.app.cdn = f"http://{target}:{hub.cdn_url.rsplit(':', 1)[1] if target == '127.0.0.2' else port}"
    async with opened(hub, cache / f"{source} {target}", endpoint=f"http://{source}:{port}", **options) as one:
        with anyio.fail_after(20):
            await one.prefetch("org/big")
    return [request.path for request in bodies(hub)]


REFUSED = r"redirects? .*to {}.*allow_private_redirects"


@on_one_loop
async def test_a_public_hub_does_not_lead_inside(
    internet: Callable[..., None], anyio_backend: Any, hub_root: Path, hub: HubServer, tmp_path: Path
) -> None:
    """Neither by an address, nor by localhost, nor by a name of a private address: nobody there gets a request."""
    put(hub_root, 1000)
    internet(**{"hub.example": "1.1.1.1", "inside.example": "10.0.0.1", "cdn.example": "1.1.1.2"})
    for target in ("127.0.0.2", "localhost", "inside.example", "0x7f000001"):
        with pytest.raises(HubUnavailableError, match=REFUSED.format(target)) as caught:
            await ends(hub, tmp_path, "hub.example", target)
        assert (caught.value.attempts, caught.value.file, bodies(hub)) == (1, "model.safetensors", [])
    assert await ends(hub, tmp_path, "hub.example", "cdn.example")
    assert await ends(hub, tmp_path, "hub.example", "127.0.0.2", allow_private_redirects=True)


@on_one_loop
async def test_inside_redirects_stay_what_they_were(
    internet: Callable[..., None], anyio_backend: Any, hub_root: Path, hub: HubServer, tmp_path: Path
) -> None:
    """A mirror on this machine or in a private network may lead to another there; all names may be a proxy's."""
    put(hub_root, 1000)
    internet(
        **{
            "mirror.example": "10.0.0.1",
            "store.example": "10.0.0.2",
            "faked.example": "198.18.0.1",
            "faked2.example": "198.18.0.2",
        }
    )
    for source, target in [
        ("localhost", "127.0.0.2"),
        ("mirror.example", "store.example"),
        ("mirror.example", "127.0.0.2"),
        ("10.0.0.1", "store.example"),
        ("faked.example", "faked2.example"),
        ("faked.example", "store.example"),
    ]:
        assert await ends(hub, tmp_path, source, target)
    with pytest.raises(HubUnavailableError, match=REFUSED.format("127.0.0.2")):
        await ends(hub, tmp_path, "faked.example", "127.0.0.2")


@on_one_loop
@pytest.mark.parametrize("stock", [False, True], ids=["ours", "stock"])
async def test_metadata_is_not_led_inside_either(
    stock: bool,
    internet: Callable[..., None],
    anyio_backend: Any,
    hub_root: Path,
    hub: HubServer,
    tmp_path: Path,
) -> None:
    """A listing behind a redirect; also where the client is the user's, of which nobody knows how it goes out."""
    put(hub_root, 1000)
    internet(**{"hub.example": "1.1.1.1"})
    hub.faults.add(Redirect(f"{hub.cdn_url}/api/models/org/big"), path="^/api/", times=None)
    async with httpx.AsyncClient() as own:
        with pytest.raises(HubUnavailableError, match=REFUSED.format("127.0.0.2")):
            await ends(hub, tmp_path, "hub.example", "127.0.0.2", client=own if stock else None)
    assert {request.host.split(":")[0] for request in hub.requests} == {"hub.example"}


@on_one_loop
async def test_behind_a_proxy(
    internet: Callable[..., None],
    anyio_backend: Any,
    hub_root: Path,
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody knows what a name stands for there, so that names are followed, and addresses are not."""
    put(hub_root, 1000)
    internet(**{"hub.example": "1.1.1.1", "inside.example": "10.0.0.1"})
    with proxy(HttpProxy) as port:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
        assert await ends(hub, tmp_path, "hub.example", "inside.example")
        with pytest.raises(HubUnavailableError, match=REFUSED.format("127.0.0.2")):
            await ends(hub, tmp_path, "hub.example", "127.0.0.2")
        monkeypatch.setenv("NO_PROXY", "inside.example")
        assert await ends(hub, tmp_path / "2", "hub.example", "inside.example")


@on_one_loop
@pytest.mark.parametrize("spelling", ["https", "HTTPS"])
async def test_https_never_becomes_http(spelling: str, anyio_backend: Any) -> None:
    """However the endpoint is spelled, and also where private redirects are allowed; see tests/loader/test_tls.py."""
    asked = Asked("org/big", "main", None, has_token=False)
    response = httpx.Response(302, headers={"location": "http://hub.example/x"})
    with pytest.raises(HubUnavailableError, match="from https to http"):
        target_of(response, f"{spelling}://hub.example/", asked)

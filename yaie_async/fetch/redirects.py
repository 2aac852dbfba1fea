"""Which redirects are followed: none to another protocol, and none from a public host into a private network.

Otherwise a public server could make this machine send requests to services that trust its network.
"""

import ipaddress
import socket
from collections.abc import Iterable
from contextlib import suppress
from urllib.parse import urljoin, urlsplit

import httpx

from yaie_async.core.errors import printable
from yaie_async.fetch.failures import Asked
from yaie_async.fetch.origin import Reach, origin_of, split_userinfo
from yaie_async.fetch.session import Session
from yaie_async.fetch.transport import resolve

# A fake-ip proxy answers every DNS query with an address of its own, of this range by default (RFC 2544).
_FAKE = ipaddress.ip_network("198.18.0.0/15")


def target_of(response: httpx.Response, url: str, asked: Asked) -> str | None:
    """Where a response redirects to, or None; HubUnavailableError for no URL, no HTTP, and from https to http."""
    location: str = response.headers.get("location", "")
    if response.status_code not in (301, 302, 303, 307, 308) or not location:
        return None
    try:
        target, _ = split_userinfo(urljoin(url, location))  # as the official client, never send what is before the @
        before, after = origin_of(url), origin_of(target)
    except ValueError as error:
        raise asked.misled("the server redirected to an invalid URL") from error
    if after.scheme not in ("http", "https") or (before.scheme, after.scheme) == ("https", "http"):
        problem = f"{before.host} redirects from {before.scheme} to {printable(after.scheme)}, which is not followed"
        raise asked.misled(problem, status=response.status_code)
    return target


async def check_reach(session: Session, url: str, target: str, asked: Asked, timeout: float) -> None:
    """Refuse, with HubUnavailableError, a redirect from a public host to an address that only this side can reach.

    **Cancellation:** at once; a DNS query runs on in its thread.

    **Raises:** HubUnavailableError.
    """
    source, host = urlsplit(url).hostname or "", urlsplit(target).hostname or ""
    if session.allow_private_redirects or host == source or await _reach(session, target, timeout) != "private":
        return
    if refuses(await _reach(session, url, timeout), by_name=reach_of(host) is None):
        raise asked.unavailable(
            f"The request for {asked.what} failed: {source} redirects to {printable(host)}, in this machine or a "
            "private network. Check HF_ENDPOINT. If you trust that server, use Hub(allow_private_redirects=True)."
        )


def refuses(source: Reach, *, by_name: bool) -> bool:
    """Whether a redirect to a private address is refused. A proxy may know the same name by a public address."""
    return source == "public" or (source == "unknown" and not by_name)


def reach_of(host: str) -> Reach | None:
    """How public a host is by its spelling: an IP address in any form that `connect` takes, or localhost; else None."""
    host = host.lower().rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return "private"
    with suppress(OSError, ValueError):
        address = host if ":" in host else socket.inet_ntoa(socket.inet_aton(host))  # "127.1", "0x7f000001"
        return "public" if reach_by([address]) == "public" else "private"
    return None


def reach_by(addresses: Iterable[str]) -> Reach:
    """How public a host is by the addresses of its name."""
    mapped = (getattr(one, "ipv4_mapped", None) or one for one in map(ipaddress.ip_address, addresses))
    local = [one for one in mapped if not one.is_global]
    return "public" if not local else "unknown" if all(one in _FAKE for one in local) else "private"


async def _reach(session: Session, url: str, timeout: float) -> Reach:
    origin = origin_of(url)
    known = reach_of(origin.host) or session.reaches.get(origin.host)
    if known is None and session.drain(url) is not None:  # else a proxy or the user's client looks it up
        with suppress(httpx.TransportError):  # the request itself will fail
            addresses = await resolve(origin, timeout)
            known = session.reaches[origin.host] = reach_by(address[4][0] for address in addresses)
    return known or "unknown"

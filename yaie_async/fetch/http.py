"""One request to the Hub: follows its redirects by hand and turns its failures into errors of this package."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache

import anyio
import httpx

from yaie_async.core.errors import ClosedHubError, printable
from yaie_async.core.log import guarded
from yaie_async.fetch.content import content
from yaie_async.fetch.failures import Asked, failure, transport_failure
from yaie_async.fetch.origin import origin_of
from yaie_async.fetch.redirects import check_reach, target_of
from yaie_async.fetch.session import Session

_HOPS = 20  # as the official client and httpx
_PHASES = 3  # timeouts in which the head of a response has to come: to connect, for TLS, and for the head
_ERROR_BODY = 64 * 1024  # bytes

# They log from within a request, which an application's handler would fail with whatever it raises.
for _name in ("httpx", *(f"httpcore.{part}" for part in ("connection", "http11", "http2", "proxy", "socks"))):
    guarded(_name)


@asynccontextmanager
async def answer(
    session: Session,
    method: str,
    url: str,
    *,
    asked: Asked,
    timeout: float,
    headers: Mapping[str, str] | None = None,
    leave_hub: bool = True,
    body: bool = False,
) -> AsyncIterator[httpx.Response]:
    """Send a request and yield the final response, its body not yet read. `history` has the redirects before it.

    Credentials are sent by `Settings.authorization` only, also across redirects. `timeout` is in seconds, for each
    phase of the request. `leave_hub=False` yields a redirect that leads away from the Hub, because it carries the
    file's metadata. `body=True` is for the body of a file, which `transport.drainable` then finds.

    **Cancellation:** the connection is closed.

    **Raises:** TransientError for a failure that may pass; LoaderError for any other.
    """
    history: list[httpx.Response] = []
    while True:
        try:
            with anyio.fail_after(_PHASES * timeout):
                response = await _send(session, method, url, headers or {}, timeout, body=body)
        except (httpx.HTTPError, TimeoutError) as error:
            raise transport_failure(error, asked, url) from error
        except (httpx.InvalidURL, UnicodeError) as error:
            raise asked.misled("the server redirected to an invalid URL") from error
        try:
            target = target_of(response, url, asked)
            stays = target is not None and (session.settings.is_hub(target) or origin_of(target) == origin_of(url))
            if target is None or not (leave_hub or stays):
                response.history = history
                if response.status_code >= 400:
                    hub, text = session.settings.is_hub(url), await _text(response, timeout)
                    raise failure(response.status_code, response.headers, text, url, asked, hub=hub)
                try:
                    yield response
                except httpx.HTTPError as error:
                    raise transport_failure(error, asked, url) from error
                return
        finally:
            await response.aclose()
        history.append(response)
        if len(history) > _HOPS:
            problem = f"it met more than {_HOPS} redirects, the last to {printable(origin_of(target).host)}"
            raise asked.misled(problem, status=response.status_code)
        await check_reach(session, url, target, asked, timeout)
        url = target


async def _send(
    session: Session, method: str, url: str, headers: Mapping[str, str], timeout: float, *, body: bool
) -> httpx.Response:
    if session.client.is_closed:
        raise ClosedHubError("The httpx client that was passed to Hub(client=...) is closed. Close it after the Hub.")
    sent = {"user-agent": session.settings.user_agent, "accept-encoding": "identity", **headers}
    if authorization := session.settings.authorization(url):
        sent["authorization"] = authorization
    if body and (drain := session.drain(url)) is not None:
        # Without an httpx client around it. The client's cookies, merged headers and log records (with the signature of
        # the URL) took a fifth of the loop's time for a range.
        extensions = {"timeout": httpx.Timeout(timeout).as_dict()}
        request = httpx.Request(method, _parsed(url), headers=sent, extensions=extensions)
        response = await drain.handle_async_request(request)
        response.request = request
        return response
    request = session.client.build_request(method, _parsed(url), headers=sent, timeout=timeout)
    if not session.settings.is_hub(url):
        request.headers.pop("authorization", None)  # from the user's client
    # auth=None: credentials from a .netrc or the user's client are not for every host of a redirect chain.
    return await session.client.send(request, stream=True, follow_redirects=False, auth=None)


@lru_cache(maxsize=32)
def _parsed(url: str) -> httpx.URL:
    # All ranges of a file request the same signed URL, up to a thousand characters that httpx checks one by one.
    # The cache holds signatures and is never cleared, so it is no larger than the URLs in use at once.
    return httpx.URL(url)


async def _text(response: httpx.Response, timeout: float) -> str:
    try:
        with anyio.fail_after(timeout):
            return (await content(response, _ERROR_BODY, timeout))[:_ERROR_BODY].decode(errors="replace")
    except (httpx.HTTPError, TimeoutError):
        return ""  # the status is what counts

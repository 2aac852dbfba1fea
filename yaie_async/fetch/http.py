"""One request, with the Hub's redirects followed by hand and its answers turned into our errors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache
from urllib.parse import urljoin, urlsplit

import httpx

from yaie_async.core.errors import ClosedHubError, HubUnavailableError
from yaie_async.fetch.failures import Asked, failure, transport_failure
from yaie_async.fetch.session import Session
from yaie_async.fetch.settings import origin
from yaie_async.fetch.transport import DrainTransport

_HOPS = 20  # as the official client and httpx
_ERROR_BODY = 64 * 1024


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
    """The final answer to a request, its body not yet read; its `history` has the redirects before it.

    `leave_hub=False` stops at a redirect that leads away from the Hub, and gives that redirect: it carries the
    file's metadata. `body=True` is for a file's body, which `transport.drainable` then finds. The token goes to the
    Hub's origins only, whatever redirects to where.

    **Cancellation:** the connection is closed.

    **Raises:** TransientError for what may pass; LoaderError for what will not.
    """
    history: list[httpx.Response] = []
    while True:
        drain = session.drain(url) if body else None
        response = await _send(session, drain, method, url, asked=asked, timeout=timeout, headers=headers)
        try:
            target = _redirect(response, url, asked)
            stays = target is not None and (session.settings.is_hub(target) or origin(target) == origin(url))
            if target is None or not (leave_hub or stays):
                response.history = history
                if response.status_code >= 400:
                    hub = session.settings.is_hub(url)
                    raise failure(response.status_code, response.headers, await _text(response), url, asked, hub=hub)
                try:
                    yield response
                except httpx.HTTPError as error:
                    raise transport_failure(error, asked, url) from error
                return
        finally:
            await response.aclose()
        history.append(response)
        if len(history) > _HOPS:
            raise HubUnavailableError(
                f"{asked.model}: more than {_HOPS} redirects, the last to {urlsplit(target).hostname}. "
                "Check HF_ENDPOINT and any proxy between here and it.",
                model=asked.model,
                file=asked.file,
                status=response.status_code,
            )
        url = target


async def _send(
    session: Session,
    drain: DrainTransport | None,
    method: str,
    url: str,
    *,
    asked: Asked,
    timeout: float,
    headers: Mapping[str, str] | None,
) -> httpx.Response:
    if session.client.is_closed:
        raise ClosedHubError("The httpx client that was passed to Hub(client=...) is closed. Close it after the Hub.")
    sent = {"user-agent": session.settings.user_agent, "accept-encoding": "identity", **(headers or {})}
    on_hub = session.settings.is_hub(url)
    if session.settings.token and on_hub:
        sent["authorization"] = f"Bearer {session.settings.token}"
    try:
        if drain is not None:
            # Without a client around it: its cookies, merged headers and log records, which would have the signature
            # of the URL, were a fifth of what the loop does for a range.
            request = httpx.Request(
                method, _parsed(url), headers=sent, extensions={"timeout": httpx.Timeout(timeout).as_dict()}
            )
            response = await drain.handle_async_request(request)
            response.request = request
            return response
        request = session.client.build_request(method, _parsed(url), headers=sent, timeout=timeout)
        if not on_hub:
            request.headers.pop("authorization", None)  # of the user's client
        # auth=None: credentials of a .netrc or of the user's client are not for every host in a chain.
        return await session.client.send(request, stream=True, follow_redirects=False, auth=None)
    except httpx.HTTPError as error:
        raise transport_failure(error, asked, url) from error
    except (httpx.InvalidURL, UnicodeError) as error:
        raise _no_url(asked) from error


@lru_cache(maxsize=32)
def _parsed(url: str) -> httpx.URL:
    # httpx looks at each character, of which a signed URL has some hundred to a thousand, and all ranges ask for one.
    # As many as are asked for at once, and not more: what is kept here has signatures in it, and stays.
    return httpx.URL(url)


def _redirect(response: httpx.Response, url: str, asked: Asked) -> str | None:
    location: str = response.headers.get("location", "")
    if response.status_code not in (301, 302, 303, 307, 308) or not location:
        return None
    try:
        target = urljoin(url, location)
        scheme, _, _ = origin(target)
    except ValueError as error:
        raise _no_url(asked) from error
    if scheme not in ("http", "https") or (scheme == "http" and url.startswith("https:")):
        raise HubUnavailableError(
            f"{asked.model}: {urlsplit(url).hostname} redirects from {urlsplit(url).scheme} to {scheme}, "
            "which is not followed. Check HF_ENDPOINT and any proxy between here and it.",
            model=asked.model,
            file=asked.file,
            status=response.status_code,
        )
    return target


def _no_url(asked: Asked) -> HubUnavailableError:
    return HubUnavailableError(
        f"{asked.model}: the server sent us to a URL that is none. Check HF_ENDPOINT.",
        model=asked.model,
        file=asked.file,
    )


async def _text(response: httpx.Response) -> str:
    body = b""
    try:
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > _ERROR_BODY:
                break
    except httpx.HTTPError:
        pass  # the status is what counts
    return body[:_ERROR_BODY].decode(errors="replace")

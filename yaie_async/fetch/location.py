"""Where a file is fetched from: the Hub redirects once, and its signed URL serves all ranges until it expires."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import httpx

from yaie_async.core.errors import printable
from yaie_async.fetch.failures import REFUSED, Asked, TransientError
from yaie_async.fetch.http import answer
from yaie_async.fetch.metadata import check_commit, file_url, normal_etag
from yaie_async.fetch.session import Session

# The signed URL has expired, or (416) leads to a server with another version: the Hub is asked for a new URL.
_EXPIRED = REFUSED | {416}


class StartOverError(Exception):
    """Base of what makes a download go on in another way than before. Never leaves the fetch layer."""


class OtherBytesError(StartOverError):
    """Raised when the server offers another version of the file than before."""

    def __init__(self, expected: str | int, found: str | int) -> None:
        super().__init__(f"expected {expected}, but the server offers {found}")
        self.expected = expected  # the promised etag or length
        self.found = found  # what the server offers now


class Location:
    """One file on the Hub, and the signed URL behind it."""

    def __init__(self, session: Session, asked: Asked) -> None:
        self.asked = asked
        self.timeout: float = session.settings.stall_timeout  # seconds without a byte after which a body is given up
        self._session = session
        self._hub_url = file_url(session, asked)
        self._url: str | None = None
        self._served = False  # whether a signed URL has worked
        # One request follows the redirect; ranges that start at the same moment wait for it.
        self._finding = anyio.Lock()
        self._linked_etag: str | None = None
        self._body_etag: str | None = None

    @asynccontextmanager
    async def get(self, byte_range: str | None) -> AsyncIterator[httpx.Response]:
        """Yield the response to a GET of the file or of a range ("bytes=0-99"), its body not yet read.

        **Cancellation:** the connection is closed.

        **Raises:** OtherBytesError when the etag has changed; else as `answer`.
        """
        async with AsyncExitStack() as stack:
            yield await self._response(stack, byte_range)

    async def _response(self, stack: AsyncExitStack, byte_range: str | None) -> httpx.Response:
        if (url := self._url) is not None:
            try:
                return await self._ask(stack, url, byte_range)
            except TransientError as error:
                if error.status not in _EXPIRED:
                    raise
                if self._url == url:  # else another range has found the new one already
                    self._url = None
        async with self._finding:
            if self._url is None:
                response = await self._ask_hub(stack, byte_range)
                hub = response.history[-1] if response.history else response
                check_commit(hub.headers.get("x-repo-commit") or self.asked.revision, self.asked)
                if response.history:
                    self._linked_etag = _same(self._linked_etag, normal_etag(hub.headers))
                self._url = str(response.url)
                return response
        return await self._ask(stack, self._url, byte_range)

    async def _ask_hub(self, stack: AsyncExitStack, byte_range: str | None) -> httpx.Response:
        """Follow the Hub to a new URL; once more where the new URL is refused, which can't have expired."""
        for _ in range(2):
            try:
                return await self._ask(stack, self._hub_url, byte_range)
            except TransientError as error:
                if self._served or error.status not in REFUSED:
                    raise
                refused = error
        raise self.asked.unavailable(
            f"{refused}. The Hub gave this address a moment ago, so that host is blocked, most likely by your network "
            "or its proxy. Have it allowed there, or set HF_ENDPOINT to a mirror.",
            status=refused.status,
            attempts=2,
        ) from refused

    async def _ask(self, stack: AsyncExitStack, url: str, byte_range: str | None) -> httpx.Response:
        headers = {"range": byte_range} if byte_range else None
        request = answer(self._session, "GET", url, asked=self.asked, timeout=self.timeout, headers=headers, body=True)
        response = await stack.enter_async_context(request)
        self._served = True
        if not self._session.verify:
            # Digests would notice two versions in one file, and mirrors behind one name may send different etags for
            # the same bytes. Without digests the etag is the only check.
            self._body_etag = _same(self._body_etag, response.headers.get("etag"))
        return response


def _same(before: str | None, now: str | None) -> str | None:
    if before is not None and now != before:
        raise OtherBytesError(printable(before), printable(now or "no etag"))
    return now

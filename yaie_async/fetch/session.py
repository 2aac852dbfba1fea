"""An open Hub: one HTTP client, the settings that it was opened with, and what its transfers share."""

import copy
import ssl
from collections import defaultdict
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from yaie_async.core.errors import HubUnavailableError
from yaie_async.core.stall import StallWatch
from yaie_async.core.tasks import SharedCall
from yaie_async.fetch.certificates import trusting_context
from yaie_async.fetch.downloader import Downloader
from yaie_async.fetch.failures import Asked
from yaie_async.fetch.origin import Reach
from yaie_async.fetch.retry import RetryPolicy
from yaie_async.fetch.settings import Settings
from yaie_async.fetch.transport import DrainTransport


class Session:
    """What all requests of one Hub share. Made in a thread, because it loads certificates and reads files."""

    def __init__(
        self,
        settings: Settings,
        *,
        max_connections: int,
        max_bytes_per_second: float | None,
        verify: bool | Literal["require"],
        allow_private_redirects: bool,
        client: httpx.AsyncClient | None,
        policy: RetryPolicy,
    ) -> None:
        self.settings = settings  # the environment at the time of opening
        self.policy = policy  # when a failed request is retried
        self.verify: bool | str = verify  # whether digests are checked before a blob is linked; "require": each has one
        self.max_connections = max_connections
        self.allow_private_redirects = allow_private_redirects
        self.reaches: dict[str, Reach] = {}  # of hosts in redirects, by their names
        self.downloader: Downloader = Downloader(
            max_connections, verify=bool(verify), max_bytes_per_second=max_bytes_per_second
        )
        self.stall: StallWatch = StallWatch()  # what the requests for files report, of all loads
        # The blobs that are being fetched, each once for all tasks that need it.
        self.flights: defaultdict[Path, SharedCall[bool]] = defaultdict(SharedCall)
        self._client = client
        self._drain: DrainTransport | None = None
        self._broken: HubUnavailableError | None = None
        self._proxies = getproxies()
        if client is None:
            try:
                self._client, self._drain = _transports(max_connections)
            except HubUnavailableError as error:
                self._broken = error  # not raised yet: directories and cached models need no client

    @property
    def client(self) -> httpx.AsyncClient:
        """The client for metadata, and for bodies where `drain` returns None; or the error that setting it up had."""
        if self._broken is not None:
            raise copy.copy(self._broken) from self._broken.__cause__
        assert self._client is not None
        return self._client

    def drain(self, url: str) -> DrainTransport | None:
        """The transport for the body of a file; None where `client` must fetch it: a user's client, or a proxy."""
        parts = urlsplit(url)
        proxied = self._proxies.get(parts.scheme) or self._proxies.get("all")
        return None if proxied and not proxy_bypass(parts.hostname or "") else self._drain

    def asked(self, model: str, revision: str, file: str | None = None) -> Asked:
        """What a request of this Hub is for, as errors name it."""
        return Asked(model, revision, file, bool(self.settings.token or self.settings.credentials))

    async def aclose(self) -> None:
        """Close the clients, unless they are the user's.

        **Cancellation:** the sockets are closed all the same.

        **Raises:** nothing of its own.
        """
        if self._client is not None and self._drain is not None:
            await self._client.aclose()
            await self._drain.aclose()


def import_transports() -> None:
    """Import what httpx does not import before its first transport."""
    httpx.AsyncHTTPTransport(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))


def _transports(max_connections: int) -> tuple[httpx.AsyncClient, DrainTransport]:
    try:
        context = trusting_context()
        client = httpx.AsyncClient(
            verify=context,
            follow_redirects=False,  # `http.answer` follows them: the token is for the Hub's origins alone
            # Two to spare, so that metadata never waits for a body.
            limits=httpx.Limits(max_connections=max_connections + 2, max_keepalive_connections=max_connections),
        )
    except ImportError as error:
        raise HubUnavailableError(
            "A SOCKS proxy is set (ALL_PROXY, HTTPS_PROXY or HTTP_PROXY), but the package for it is missing. "
            "Run `pip install socksio`, or unset the variable."
        ) from error
    except (ValueError, OSError, httpx.InvalidURL) as error:
        raise HubUnavailableError(
            f"The HTTP client can't be set up: {error}. "
            "Check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE and SSL_CERT_DIR."
        ) from error
    return client, DrainTransport(context, max_connections)

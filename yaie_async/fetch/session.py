"""An open Hub: one HTTP client, the settings it was opened with, and what its transfers share."""

from __future__ import annotations

import copy
import ssl
from collections import defaultdict
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from yaie_async.core.errors import HubUnavailableError
from yaie_async.core.tasks import SharedCall
from yaie_async.fetch.downloader import Downloader
from yaie_async.fetch.retry import RetryPolicy
from yaie_async.fetch.settings import Settings
from yaie_async.fetch.transport import DrainTransport


class Session:
    """What every request of one Hub shares. Made in a thread: it loads certificates and reads files.

    Attributes:
        settings: the environment at the time of opening.
        policy: when a failed request is tried again.
        downloader: hands out the ranges of all files.
        verify: whether digests are checked before a blob is linked.
        flights: the blobs that are being fetched, each once for all who want it.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        max_connections: int,
        max_bytes_per_second: float | None,
        verify: bool,
        client: httpx.AsyncClient | None,
        policy: RetryPolicy,
    ) -> None:
        self.settings = settings
        self.policy = policy
        self.verify = verify
        self.max_connections = max_connections
        self.downloader: Downloader = Downloader(
            max_connections, verify=verify, max_bytes_per_second=max_bytes_per_second
        )
        self.flights: defaultdict[Path, SharedCall[bool]] = defaultdict(SharedCall)
        self._owned = client is None
        self._client = client
        self._drain: DrainTransport | None = None
        self._broken: HubUnavailableError | None = None
        self._proxies = getproxies()
        if client is None:
            try:
                self._client = _stock_client(max_connections)
                self._drain = _drain_transport(max_connections)
            except HubUnavailableError as error:
                self._broken = error  # of no concern to a directory, nor to what is cached

    @property
    def client(self) -> httpx.AsyncClient:
        """The HTTP client for metadata, and for the bodies that `drain` does not bring.

        Raises:
            HubUnavailableError: when it could not be set up.
        """
        if self._broken is not None:
            raise copy.copy(self._broken) from self._broken.__cause__
        assert self._client is not None
        return self._client

    def drain(self, url: str) -> DrainTransport | None:
        """The transport for a file body; None where `client` has to bring it: it is a user's, or goes by a proxy."""
        parts = urlsplit(url)
        proxied = self._proxies.get(parts.scheme) or self._proxies.get("all")
        return None if proxied and not proxy_bypass(parts.hostname or "") else self._drain

    async def aclose(self) -> None:
        """Close the clients, unless they are the user's."""
        if self._owned and self._client is not None:
            await self._client.aclose()
        if self._drain is not None:
            await self._drain.aclose()


def import_transports() -> None:
    """Import what httpx does not import before its first transport."""
    httpx.AsyncHTTPTransport(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))


def _stock_client(max_connections: int) -> httpx.AsyncClient:
    try:
        return httpx.AsyncClient(
            follow_redirects=False,  # by hand: the token goes to the Hub's origin alone
            # Two beyond the bodies, so that metadata never waits for one.
            limits=httpx.Limits(max_connections=max_connections + 2, max_keepalive_connections=max_connections),
        )
    except ImportError as error:
        raise HubUnavailableError(
            "A SOCKS proxy is set (ALL_PROXY, HTTPS_PROXY or HTTP_PROXY) and the package for it is missing. "
            "Run `pip install socksio`, or unset the variable."
        ) from error
    except (ValueError, OSError, httpx.InvalidURL) as error:
        raise HubUnavailableError(
            f"The HTTP client can't be set up: {error}. "
            "Check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE and SSL_CERT_DIR."
        ) from error


def _drain_transport(max_connections: int) -> DrainTransport:
    limits = httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections)
    # The context as httpx makes its own: SSL_CERT_FILE and SSL_CERT_DIR, else certifi's bundle.
    return DrainTransport(httpx.create_ssl_context(), limits)

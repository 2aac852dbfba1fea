"""An open Hub: one HTTP client, the settings it was opened with, and what its transfers share."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import anyio
import httpx

from yaie_async.core.errors import HubUnavailableError
from yaie_async.core.tasks import SharedCall
from yaie_async.fetch.retry import RetryPolicy
from yaie_async.fetch.settings import Settings


class Session:
    """What every request of one Hub shares. Made in a thread: it loads certificates and reads files.

    Attributes:
        settings: the environment at the time of opening.
        client: the one HTTP client.
        policy: when a failed request is tried again.
        bodies: how many file bodies may be under way at once.
        verify: whether digests are checked before a blob is linked.
        flights: the blobs that are being fetched, each once for all who want it.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        max_connections: int,
        verify: bool,
        client: httpx.AsyncClient | None,
        policy: RetryPolicy,
    ) -> None:
        self.settings = settings
        self.policy = policy
        self.verify = verify
        self.max_connections = max_connections
        self.bodies = anyio.CapacityLimiter(max_connections)
        self.flights: defaultdict[Path, SharedCall[bool]] = defaultdict(SharedCall)
        self._owned = client is None
        self.client = client or _client(max_connections)

    async def aclose(self) -> None:
        """Close the client, unless it is the user's."""
        if self._owned:
            await self.client.aclose()


def _client(max_connections: int) -> httpx.AsyncClient:
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

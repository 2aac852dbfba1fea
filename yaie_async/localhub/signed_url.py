"""URLs that are good for a while and for one file, as a CDN signs them."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from urllib.parse import urlencode

from starlette.datastructures import QueryParams


class UrlSigner:
    """Signs URL paths with a key that no other instance knows. `lifetime` is in seconds."""

    def __init__(self, lifetime: float) -> None:
        self._lifetime = lifetime
        self._key = secrets.token_bytes(32)

    def sign(self, path: str) -> str:
        """Return the path with the query that opens it until its lifetime is over."""
        expires = f"{time.time() + self._lifetime:.3f}"
        return f"{path}?{urlencode({'Expires': expires, 'Signature': self._signature(path, expires)})}"

    def is_valid(self, path: str, query: QueryParams) -> bool:
        """Say whether the query was signed here for this path, unaltered, and has not expired."""
        expires = query.get("Expires", "")
        expected = self._signature(path, expires).encode()
        if not hmac.compare_digest(expected, query.get("Signature", "").encode()):
            return False
        return time.time() < float(expires)

    def _signature(self, path: str, expires: str) -> str:
        return hmac.new(self._key, f"{path}\n{expires}".encode(), hashlib.sha256).hexdigest()

"""Signed URLs, as CDNs use them: valid for one file and a limited time."""

import hashlib
import hmac
import secrets
import time
from urllib.parse import urlencode

from starlette.datastructures import QueryParams


class UrlSigner:
    """Signs URL paths with a random key of its own. `lifetime` is in seconds."""

    def __init__(self, lifetime: float) -> None:
        self._lifetime = lifetime
        self._key = secrets.token_bytes(32)

    def sign(self, path: str) -> str:
        """Return the path with a query that signs it for the lifetime."""
        expires = f"{time.time() + self._lifetime:.3f}"
        return f"{path}?{urlencode({'Expires': expires, 'Signature': self._signature(path, expires)})}"

    def is_valid(self, path: str, query: QueryParams) -> bool:
        """Return whether this signer signed the query for this path, and it has not expired."""
        expires = query.get("Expires", "")
        expected = self._signature(path, expires).encode()
        if not hmac.compare_digest(expected, query.get("Signature", "").encode()):
            return False
        return time.time() < float(expires)

    def _signature(self, path: str, expires: str) -> str:
        return hmac.new(self._key, f"{path}\n{expires}".encode(), hashlib.sha256).hexdigest()

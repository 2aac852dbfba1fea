"""The origin of a URL: it decides who may see the token, and which connection a request may take."""

from typing import Literal, NamedTuple
from urllib.parse import urlsplit

_PORTS = {"http": 80, "https": 443}
Reach = Literal["public", "private", "unknown"]  # of a host: private is in this machine or in a private network


class Origin(NamedTuple):
    scheme: str
    host: str
    port: int | None  # with default ports filled in


def origin_of(url: str) -> Origin:
    """The origin of a URL; ValueError for an invalid one."""
    parts = urlsplit(url)
    return Origin(parts.scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme))


def split_userinfo(url: str) -> tuple[str, str]:
    """Split "https://user:password@host/path" into the URL without it and "user:password", "" where it has none."""
    parts = urlsplit(url)
    userinfo, at, host = parts.netloc.rpartition("@")
    return (parts._replace(netloc=host).geturl() if at else url), userinfo

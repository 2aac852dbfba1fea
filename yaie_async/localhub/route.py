"""What a request asks for, read from its undecoded path.

ASGI servers hand over a decoded `path` as well, where the revision `refs%2Fpr%2F1` can't be told from three folders.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, unquote

Kind = Literal["whoami", "info", "tree", "paths-info", "resolve", "cdn"]


@dataclass(frozen=True, slots=True)
class Route:
    """An endpoint, and the model, revision and path in the repository that it is asked about."""

    kind: Kind
    model: str = ""
    revision: str = "main"
    path: str = ""


def parse_route(raw_path: str) -> Route | None:
    """Return what an undecoded URL path asks for, or None if it is no endpoint of the Hub."""
    try:
        segments = [unquote(segment, errors="strict") for segment in raw_path.split("/")]
    except UnicodeDecodeError:
        return None
    match segments:
        case ["", "api", "whoami-v2"]:
            return Route("whoami")
        case ["", "api", "models", *rest]:
            return _parse_api(rest)
        case ["", "cdn", model, commit, *path] if path:
            return Route("cdn", model, commit, "/".join(path))
        case ["", name, "resolve", revision, *path] if path:
            return Route("resolve", name, revision, "/".join(path))
        case ["", org, name, "resolve", revision, *path] if path:
            return Route("resolve", f"{org}/{name}", revision, "/".join(path))
    return None


def _parse_api(segments: list[str]) -> Route | None:
    for length in (1, 2):
        model = "/".join(segments[:length])
        match segments[length:]:
            case ["revision", revision]:
                return Route("info", model, revision)
            case ["tree", revision, *path]:
                return Route("tree", model, revision, "/".join(path))
            case ["paths-info", revision]:
                return Route("paths-info", model, revision)
    return Route("info", "/".join(segments)) if len(segments) in (1, 2) else None


def cdn_path(model: str, commit: str, path: str) -> str:
    """Return the URL path at which the CDN serves a file; `parse_route` reads it back."""
    return f"/cdn/{quote(model, safe='')}/{commit}/{quote(path)}"

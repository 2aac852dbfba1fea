"""The routes of the Hub's protocol, parsed from the undecoded path of a request.

In the decoded path the revision `refs%2Fpr%2F1` would look like three segments.
"""

from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, unquote

Kind = Literal["whoami", "info", "tree", "paths-info", "resolve", "cdn"]


@dataclass(frozen=True, slots=True)
class Route:
    """An endpoint with its arguments: the model, the revision and the path in the repository."""

    kind: Kind
    model: str = ""
    revision: str = "main"
    path: str = ""


def parse_route(raw_path: str) -> Route | None:
    """Return the route of an undecoded URL path, or None if the Hub has no such endpoint."""
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
    """Return the URL path of a file on the CDN, which `parse_route` parses."""
    return f"/cdn/{quote(model, safe='')}/{commit}/{quote(path)}"

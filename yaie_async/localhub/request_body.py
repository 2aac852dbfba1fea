"""The body of a `paths-info` request: a list of paths, as JSON or as a form. Its size and its time are bounded."""

import json
from urllib.parse import parse_qs

import anyio
from starlette.requests import Request

from yaie_async.localhub.errors import HubError

# As on the Hub, which answers 413 to more; the official client asks for no more at once.
_MOST_PATHS = 1000
# Bytes: a thousand for each path. The event loop parses as much in some 10 ms.
_LARGEST = 1 << 20
# For the whole body: 35 kB/s are enough. The connection itself is dropped later, without an answer.
_SECONDS = 30.0


async def requested_paths(request: Request) -> tuple[list[object], bool]:
    """Return the paths in the body of a request, which may be of any JSON type, and whether `expand` is set.

    **Cancellation:** nothing is kept.

    **Raises:** HubError: 400, 408 or 413. ClientDisconnect: the client left.
    """
    try:
        with anyio.fail_after(_SECONDS):
            body = await _read(request)
        if request.headers.get("content-type", "").startswith("application/json"):
            form = json.loads(body)
            paths, expand = form["paths"], form.get("expand") is True
            if not isinstance(paths, list):
                raise TypeError
        elif body.count(b"&") > _MOST_PATHS:  # with `expand` there is one field more than paths
            raise _too_large(f"{_MOST_PATHS} paths")
        else:
            fields = parse_qs(body.decode())
            paths, expand = [*fields.get("paths", [])], fields.get("expand") == ["true"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise HubError(400, "Invalid body: it must contain a list of paths") from None
    except TimeoutError:
        raise HubError(408, "The body did not arrive in time") from None
    if len(paths) > _MOST_PATHS:
        raise _too_large(f"{_MOST_PATHS} paths")
    return paths, expand


async def _read(request: Request) -> bytearray:
    body = bytearray()
    if int(request.headers.get("content-length", 0)) > _LARGEST:
        raise _too_large(f"{_LARGEST} bytes")
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LARGEST:
            raise _too_large(f"{_LARGEST} bytes")
    return body


def _too_large(most: str) -> HubError:
    return HubError(413, f"The request is too large: at most {most} are accepted")

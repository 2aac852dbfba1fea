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

_CLOSE = {"Connection": "close"}  # what is left of the body is not read


async def requested_paths(request: Request) -> tuple[list[object], bool]:
    """Return the paths in the body of a request, which may be of any JSON type, and whether `expand` is set.

    **Cancellation:** nothing is kept.

    **Raises:** HubError: 400, 408 or 413. ClientDisconnect: the client left.
    """
    is_json = request.headers.get("content-type", "").startswith("application/json")
    try:
        if int(request.headers.get("content-length", 0)) > _LARGEST:
            raise _too_large()
        paths, expand = _parse(await _read(request), is_json=is_json)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise HubError(400, "Invalid body: it must contain a list of paths") from None
    except TimeoutError:
        raise HubError(408, "The body did not arrive in time", headers=_CLOSE) from None
    if len(paths) > _MOST_PATHS:
        raise _too_many()
    return paths, expand


async def _read(request: Request) -> bytes:
    body = bytearray()
    with anyio.fail_after(_SECONDS):
        async for chunk in request.stream():
            body += chunk
            if len(body) > _LARGEST:
                raise _too_large()
    return bytes(body)


def _parse(body: bytes, *, is_json: bool) -> tuple[list[object], bool]:
    if is_json:
        form = json.loads(body)
        return list(form["paths"]), form.get("expand") is True
    if body.count(b"&") > _MOST_PATHS:  # with `expand` there is one field more than paths
        raise _too_many()
    fields = parse_qs(body.decode())
    return [*fields.get("paths", [])], fields.get("expand") == ["true"]


def _too_many() -> HubError:
    return HubError(413, f"Too many paths: a request may have {_MOST_PATHS}")


def _too_large() -> HubError:
    return HubError(413, f"The body is too large: a request may have {_LARGEST} bytes", headers=_CLOSE)

"""Who may start a failed load again: the answer to `POST /retry/<name>`."""

from collections.abc import Iterable
from urllib.parse import urlsplit

from yaie_async.asgi.run import Run

PREFIX = "/retry/"


def answer_retry(run: Run, name: str, headers: Iterable[tuple[bytes, bytes]]) -> tuple[int, str]:
    """Start the failed load `name` again where that is allowed, and return the HTTP status and its text."""
    if not run.options.retry:
        return 403, "Loads are not started again from here: Warmup(retry=True) allows it."
    if not _same_origin(dict(headers)):
        return 403, "Only a page of this server may start a load again."
    load = run.loads.get(name)
    if load is None:
        return 404, "No model has this name."
    if load.error is None or run.stopping:
        return 409, "This load has not failed, or the server stops."
    run.retry(name)
    return 202, "The load has begun again."


def _same_origin(headers: dict[bytes, bytes]) -> bool:
    """Whether a browser sent the request for a page of this server: no other site's page can forge these headers."""
    site = headers.get(b"sec-fetch-site")
    if site is not None:
        return site == b"same-origin"
    # Browsers leave it out where a page comes by plain HTTP from another machine.
    origin = headers.get(b"origin", b"").decode("latin-1")
    try:
        return bool(host := urlsplit(origin).netloc) and host == headers.get(b"host", b"").decode("latin-1")
    except ValueError:  # brackets around what is no address
        return False

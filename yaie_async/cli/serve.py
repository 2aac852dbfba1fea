"""`yaie-async serve`: a read-only local Hub for other machines."""

import socket
import threading
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from yaie_async.cli.extras import requires_extra
from yaie_async.cli.result import INTERRUPTED, exit_process, print_json, print_status
from yaie_async.core.errors import InvalidArgumentError, LoaderError
from yaie_async.fetch.settings import read_settings

_ALL_ADDRESSES = ("0.0.0.0", "::")  # noqa: S104 - compared with --host


def serve(root: Path | None, *, host: str, port: int, token: str | None, as_json: bool) -> NoReturn:
    """Serve `root`, or the HF cache, until Ctrl-C, which exits at once.

    Raises:
        LoaderError: no model can be served, the address can't be used, or the extra is not installed.
    """
    with requires_extra("serve"):
        from yaie_async.localhub import LocalHub, running
    if token == "":
        raise InvalidArgumentError("The token is empty. Pass a token, or omit --token to let everyone read.")
    if root is None or (str(root) == "cache" and not root.is_dir()):
        root = read_settings(cache_dir=None, token=False, endpoint=None, local_files_only=True).cache_dir
    try:
        hub = LocalHub(root, tokens=[token] if token else [])
        models = hub.names()
    except NotADirectoryError:
        models = []
    if not models:
        raise InvalidArgumentError(
            f"There is no model in {root}. Name a folder of models (name/ or org/name/) or the root of an HF cache; "
            "`yaie-async prefetch org/name` fills a cache."
        )
    try:
        server = running(hub, host=host, port=port)
        with server as url:
            _announce(root, models, url, host=host, token=token, as_json=as_json)
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                print_status("Stopped.")
                exit_process(INTERRUPTED)  # open responses are dropped; nothing is ever written
    except OSError as error:
        raise LoaderError(
            f"The server could not start: {error.strerror or error}. "
            "Choose another --host or --port; port 0 chooses a free one."
        ) from error
    raise AssertionError


def _announce(root: Path, models: list[str], url: str, *, host: str, token: str | None, as_json: bool) -> None:
    endpoint = (
        url.replace(urlsplit(url).netloc.rpartition(":")[0], own_address(host)) if host in _ALL_ADDRESSES else url
    )
    if as_json:
        print_json({"ok": True, "endpoint": endpoint, "root": str(root), "models": models, "token": token is not None})
        return
    print_status(f"Serving {len(models)} models from {root}, read-only, until Ctrl-C. On the other machines:")
    print(f"export HF_ENDPOINT={endpoint}" + (" HF_TOKEN=..." if token else ""), flush=True)  # noqa: T201


def own_address(host: str) -> str:
    """Return the address at which other machines most likely reach this one, as written in a URL. Sends nothing."""
    version6 = ":" in host
    with socket.socket(socket.AF_INET6 if version6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Connecting a UDP socket only selects a route. Addresses for documentation: RFC 5737, RFC 3849.
            probe.connect(("2001:db8::1" if version6 else "192.0.2.1", 9))
            address: str = probe.getsockname()[0]
        except OSError:
            return socket.gethostname()
    return f"[{address}]" if version6 else address

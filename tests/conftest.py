"""The setup of all tests: no network, a cache per test, three event loops, no blocking calls on a loop."""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# huggingface_hub reads the environment when it is imported, and plugins of pytest may import it before a fixture runs.
# So the environment is set here, before the other imports.
_HOME = tempfile.mkdtemp(prefix="yaie-async-tests-")
for _name in list(os.environ):
    if _name.startswith(("HF_", "HUGGING", "TRANSFORMERS_")) or _name.lower().endswith("_proxy"):
        del os.environ[_name]
os.environ |= {
    "HF_HOME": _HOME,
    "XDG_CACHE_HOME": os.path.join(_HOME, "cache"),
    # The discard port: a test that does not set an endpoint is refused at once.
    "HF_ENDPOINT": "http://127.0.0.1:9",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "XDG_RUNTIME_DIR": _HOME,
}

# A shell without a terminal starts commands that ignore SIGINT, and theirs inherit it; Python then raises no
# KeyboardInterrupt. Tests press Ctrl-C, so this process and those that it starts do what they do in a terminal.
signal.signal(signal.SIGINT, signal.default_int_handler)

import blockbuster
import certifi
import hypothesis
import pytest

import yaie_async
from tests.support.hub import HubServer
from tests.support.loops import LOOPS
from yaie_async.store.arriving_file import ArrivingFile

pytest_plugins = ["tests.support.time_limit"]

# A client reads its certificate authorities when it is made. All of certifi's take 40 ms of CPU time, hundreds of times.
_AUTHORITY, _END, _ = Path(certifi.where()).read_text(encoding="utf-8").partition("-----END CERTIFICATE-----\n")
Path(_HOME, "authority.pem").write_text(_AUTHORITY + _END, encoding="utf-8")
os.environ["SSL_CERT_FILE"] = str(Path(_HOME, "authority.pem"))
os.environ.pop("SSL_CERT_DIR", None)

# Hypothesis fails an example that takes longer than 200 ms, and a test that makes its examples slowly: both happen on a
# busy machine.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")

# Further blocking calls that this package makes or might make, which blockbuster does not know.
_ALSO_BLOCKING = [
    "io.open",
    "builtins.open",
    "os.open",
    "os.lstat",
    "os.pread",
    "os.preadv",
    "os.pwrite",
    "os.fsync",
    "os.fdatasync",
    "fcntl.flock",
    "socket.getaddrinfo",
    "subprocess.run",
]


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """The event loop of a test: asyncio, asyncio with uvloop, or trio."""
    return request.param


@pytest.fixture(autouse=True)
def no_blocking() -> Iterator[None]:
    """Make a blocking call of this package on the thread of a running asyncio loop raise `BlockingError`.

    Only calls made from the package count: a test may read a file. Under trio nothing is watched, as blockbuster asks
    asyncio; the same code runs on both.
    """
    with blockbuster.blockbuster_ctx(yaie_async) as watched:
        for name in _ALSO_BLOCKING:
            watched.functions[name] = blockbuster.BlockBusterFunction(None, name, scanned_modules=yaie_async)
            watched.functions[name].activate()
        for function in watched.functions.values():
            # An async test may start and stop a hub of its own.
            function.can_block_in("tests/support/hub.py", {"__init__", "__enter__", "__exit__"})
        yield


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Counts the threads that wait for bytes of one arriving file, or of any: `readers(arriving)`, `readers()`."""
    waiting: list[ArrivingFile] = []
    wait_for = ArrivingFile._wait_for

    def counted(arriving: ArrivingFile, there: Callable[[], bool], unless: Callable[[], bool]) -> None:
        if there():
            wait_for(arriving, there, unless)
            return
        waiting.append(arriving)
        try:
            wait_for(arriving, there, unless)
        finally:
            waiting.remove(arriving)

    def count(arriving: ArrivingFile | None = None) -> int:
        return sum(arriving in (None, one) for one in waiting)

    monkeypatch.setattr(ArrivingFile, "_wait_for", counted)
    return count


@pytest.fixture
def hub_root(tmp_path: Path) -> Path:
    """The directory of models that `hub` serves; tests fill it, or override this fixture."""
    root = tmp_path / "models"
    root.mkdir()
    return root


@pytest.fixture
def hub(hub_root: Path) -> Iterator[HubServer]:
    """A hub without tokens that redirects LFS files to its CDN."""
    with HubServer(hub_root) as server:
        yield server

"""What the demo must not touch, and what must not touch the demo: the user's HF cache, token, endpoint and proxy."""

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIXES = ("HF_", "HUGGING_FACE_", "HUGGINGFACE_", "TRANSFORMERS_", "PYTORCH_TRANSFORMERS_")


@contextmanager
def own_environment(scratch: Path) -> Iterator[None]:
    """Take the settings of the HF libraries and the proxies out of the environment, and HF_HOME to `scratch`.

    huggingface_hub reads them when it is imported, so this comes before.
    """
    before = dict(os.environ)
    for name in before:
        if name.startswith(_PREFIXES) or name.lower().endswith("_proxy"):
            del os.environ[name]
    os.environ |= {"HF_HOME": str(scratch / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    # torch makes a folder in the temporary directory when it is imported.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(scratch / "inductor")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """A temporary directory that is removed at the end, whatever the end is; a second Ctrl-C does not stop that."""
    path = Path(tempfile.mkdtemp(prefix="yaie-async-demo-"))
    try:
        yield path
    finally:
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)
            shutil.rmtree(path, ignore_errors=True)
            signal.signal(signal.SIGINT, before)
        else:
            shutil.rmtree(path, ignore_errors=True)

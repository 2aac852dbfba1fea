"""Silence for the progress bars that transformers draws while it reads weights."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_Hook = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Draw no bars in this thread; other threads of the application keep theirs.

    transformers has one hook for the whole process. It decides by thread, and is taken out again only if
    nobody has put in another one meanwhile.
    """
    from transformers.utils import logging

    quiet_thread = threading.get_ident()

    def hook(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if threading.get_ident() == quiet_thread:
            return logging.EmptyTqdm(*args, **kwargs)
        return previous(factory, args, kwargs) if previous is not None else factory(*args, **kwargs)

    previous: _Hook | None = logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        current = logging.set_tqdm_hook(previous)
        if current is not hook:
            logging.set_tqdm_hook(current)

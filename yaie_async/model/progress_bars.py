"""Hides the progress bars that transformers draws while it reads weights, and counts the weights instead."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from yaie_async.model.compat import WEIGHTS_BAR, progress_bar_hook


@contextmanager
def no_progress_bars(counted: Callable[[Iterable[Any]], Iterable[Any]] | None = None) -> Iterator[None]:
    """Draw no bars in this thread; other threads of the application keep theirs. The weights are iterated `counted`.

    transformers has one hook for the whole process. This one decides by thread, and is removed again only if no
    other hook was set meanwhile. Without such a hook the bars are drawn.
    """
    found = progress_bar_hook()
    if found is None:
        yield
        return
    set_hook, no_bar = found
    quiet_thread = threading.get_ident()

    def hook(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if threading.get_ident() == quiet_thread:
            if counted is not None and args and kwargs.get("desc") == WEIGHTS_BAR:
                args = counted(args[0]), *args[1:]
            return no_bar(*args, **kwargs)
        return previous(factory, args, kwargs) if previous is not None else factory(*args, **kwargs)

    previous = set_hook(hook)
    try:
        yield
    finally:
        current = set_hook(previous)
        if current is not hook:
            set_hook(current)

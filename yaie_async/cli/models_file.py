"""A list of models in a file: one a line, with @revision where one is meant; `#` begins a comment."""

from __future__ import annotations

import re
from pathlib import Path

from yaie_async.core.errors import InvalidArgumentError
from yaie_async.loader.source import check_model_name

_COMMENT = re.compile(r"(^|\s)#.*")


def read_models(path: Path) -> list[str]:
    """The models that a file names, in its order.

    Raises:
        InvalidArgumentError: for the first bad line, with its number, and for what is no text file.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"{path} can't be read as a list of models: {error}") from error
    models = []
    for number, line in enumerate(text.splitlines(), 1):
        name = _COMMENT.sub("", line).strip()
        if name:
            try:
                check_model_name(name)
            except InvalidArgumentError as error:
                raise InvalidArgumentError(
                    f"{path}, line {number}: {error} One model a line: org/name or org/name@revision.", model=name
                ) from error
            models.append(name)
    return models

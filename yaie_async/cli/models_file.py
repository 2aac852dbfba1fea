"""A file that lists models: one per line, optionally with @revision; `#` starts a comment."""

import re
from pathlib import Path

from yaie_async.core.errors import InvalidArgumentError
from yaie_async.loader.source import check_model_name

_COMMENT = re.compile(r"(^|\s)#.*")


def read_models(path: Path) -> list[str]:
    """Return the models that the file lists, in order.

    Raises:
        InvalidArgumentError: a line is not a model (the error has the first such line's number), or the file can't be
            read as UTF-8 text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(
            f"{path} can't be read as a list of models: {error}. Pass a UTF-8 text file to --from-file."
        ) from error
    models = []
    for number, line in enumerate(text.splitlines(), 1):
        name = _COMMENT.sub("", line).strip()
        if name:
            try:
                check_model_name(name)
            except InvalidArgumentError as error:
                raise InvalidArgumentError(
                    f"{path}, line {number}: {error} Write one model per line: org/name or org/name@revision.",
                    model=name,
                ) from error
            models.append(name)
    return models

"""What a model's name stands for: a directory, or a repo id on the Hub."""

import os
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from yaie_async.core.errors import InvalidArgumentError, ModelNotFoundError, UnsafeFileError
from yaie_async.core.names import check_path


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model on the Hub at a revision."""

    repo_id: str
    revision: str


def find_source(model: str | os.PathLike[str], revision: str | None) -> Path | HubModel:
    """The directory or the Hub model that `model` names. Blocks: looks for a directory of that name.

    `./x`, `../x`, `~/x`, absolute paths and path objects are always directories. A bare name is a directory if one
    exists, else a repo id.

    Raises:
        ModelNotFoundError: the directory does not exist.
        InvalidArgumentError: it is neither a path nor a valid repo id, or the revision is invalid.
    """
    name = os.fspath(model)
    only_path = not isinstance(model, str) or name.startswith((".", "~", os.sep))
    directory = _directory(name)
    if directory is not None:
        return directory
    if only_path:
        raise ModelNotFoundError(
            f"The directory {name!r} does not exist. A name that starts with '.', '~' or '/' is always a directory; "
            "for a model on the Hub give its id (org/name).",
            model=name,
        )
    return _hub_model(name, revision)


def split_revision(name: str) -> tuple[str, str | None]:
    """Split "org/name@revision" into model and revision, None where it has no revision. A path is never split.

    Raises:
        InvalidArgumentError: the revision is empty.
    """
    model, at, revision = name.partition("@")
    if not at or name.startswith((".", "~", os.sep)):
        return name, None
    if not revision:
        raise InvalidArgumentError(
            f"{name!r} has no revision after its @. Give a branch, a tag or a commit hash, or leave the @ out.",
            model=model,
        )
    return model, revision


def check_model_name(name: str) -> None:
    """Refuse what is neither a directory nor "org/name@revision", by the name alone.

    Raises:
        InvalidArgumentError.
    """
    model, revision = split_revision(name)
    if not name.startswith((".", "~", os.sep)):
        _hub_model(model, revision)


def _hub_model(name: str, revision: str | None) -> HubModel:
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InvalidArgumentError(
            f"{name!r} is neither a directory nor a valid repo id ({error}). Give org/name as on the model's page.",
            model=name,
        ) from error
    revision = "main" if revision is None else revision
    try:
        check_path(revision, model=name)
    except UnsafeFileError as error:
        raise InvalidArgumentError(
            f"{revision!r} is not a valid revision of {name}. Give a branch, a tag or a commit hash.", model=name
        ) from error
    return HubModel(name, revision)


def _directory(name: str) -> Path | None:
    try:
        path = Path(name).expanduser().absolute()
        return path if name and path.is_dir() else None
    except (OSError, RuntimeError):
        return None  # too long a name, an unreadable parent, or an unknown user in ~user

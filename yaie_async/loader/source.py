"""What a model's name stands for: a directory, or a repo id on the Hub."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from yaie_async.core.errors import InvalidArgumentError, ModelNotFoundError, UnsafeFileError
from yaie_async.core.names import check_path
from yaie_async.store.cache import RepoCache

# What comes before the repo id in the URL of a page on the Hub, and what from there on is the URL of a model's page.
_HUB = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://")
_PAGE = re.compile(
    r"(?!(?:api|blog|collections|datasets|docs|papers|spaces)/)"
    r"(?P<id>[^/?#]+(?:/(?!(?:blob|commits?|resolve|tree)/)[^/?#]+)?)"
    r"(?:/(?:blob|commits?|resolve|tree)/(?P<revision>[^/?#]+)(?:/[^?#]*)?)?/?(?:[?#].*)?"
)


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model on the Hub at a revision."""

    repo_id: str
    revision: str


def find_source(model: str | os.PathLike[str], revision: str | None, endpoint: str = "") -> Path | HubModel:
    """The directory or the Hub model that `model` names. Blocks: looks for a directory of that name.

    `./x`, `../x`, `~/x`, absolute paths and path objects are always directories. A bare name is a directory if one
    with files exists, else a repo id or the URL of a model's page, which may be one of `endpoint`. The folder
    `models--org--name` of an HF cache stands for its snapshot. Spaces, line breaks and slashes at the end are left out.

    Raises:
        ModelNotFoundError: the directory does not exist, or the folder of a cache does not have the revision.
        InvalidArgumentError: it is neither a path nor a valid repo id, or the revision is invalid.
    """
    given = os.fspath(model)
    name = given.strip()
    only_path = not isinstance(model, str) or name.startswith((".", "~", os.sep))
    directory = _directory(given) or _directory(name)
    if directory is not None and (only_path or not _is_empty(directory)):
        return _snapshot(directory, revision)
    if only_path and os.path.isfile(name):
        raise ModelNotFoundError(f"{name!r} is a file. Pass its directory, {os.path.dirname(name)!r}.", model=given)
    if only_path:
        raise ModelNotFoundError(
            f"The directory {name!r} does not exist. A name that starts with '.', '~' or '/' is always a directory; "
            "for a model on the Hub give its id (org/name).",
            model=given,
        )
    return _hub_model(name, revision, endpoint)


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


def _hub_model(name: str, revision: str | None, endpoint: str = "") -> HubModel:
    repo_id, named = _page(name, endpoint)
    if named is not None and revision not in (None, named):
        raise InvalidArgumentError(
            f"{name!r} names the revision {named!r}, and revision={revision!r} was given. Leave one of them out.",
            model=name,
        )
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InvalidArgumentError(
            f"{name!r} is neither a directory with files nor a valid repo id ({error}). "
            "Give org/name as on the model's page.",
            model=name,
        ) from error
    return HubModel(repo_id, _checked(named or revision, repo_id))


def _checked(revision: str | None, model: str) -> str:
    revision = "main" if revision is None else revision
    try:
        check_path(revision, model=model)
    except UnsafeFileError as error:
        raise InvalidArgumentError(
            f"{revision!r} is not a valid revision of {model}. Give a branch, a tag or a commit hash.", model=model
        ) from error
    return revision


def _page(name: str, endpoint: str) -> tuple[str, str | None]:
    """The repo id and the revision of the page whose URL `name` is; a name that is no URL, without slashes behind."""
    hub = _HUB.match(name)
    start = hub.end() if hub else len(endpoint) + 1 if endpoint and name.startswith(f"{endpoint}/") else None
    if start is None and "://" not in name:
        return name.rstrip("/"), None
    page = _PAGE.fullmatch(name, start) if start is not None else None
    if page is None:
        raise InvalidArgumentError(
            f"{name!r} is a URL, but not of a model on the Hub. Give org/name as on the model's page; the address of "
            "another Hub belongs into endpoint= or HF_ENDPOINT.",
            model=name,
        )
    return page["id"], unquote(page["revision"]) if page["revision"] else None


def _snapshot(directory: Path, revision: str | None) -> Path:
    """The snapshot that a folder `models--org--name` of an HF cache has of a revision; another directory itself."""
    if not directory.name.startswith("models--") or not (directory / "snapshots").is_dir():
        return directory
    cache = RepoCache(directory.parent, directory.name.removeprefix("models--").replace("--", "/"))
    revision = _checked(revision, cache.repo_id)
    commit = cache.commit_of(revision)
    if commit is None or not cache.snapshot(commit).is_dir():
        raise ModelNotFoundError(
            f"{directory} is the folder of {cache.repo_id} in an HF cache, and has no snapshot of {revision!r}. "
            f"Pass {cache.repo_id!r}, with cache_dir={str(cache.root)!r}.",
            model=str(directory),
        )
    return cache.snapshot(commit)


def _directory(name: str) -> Path | None:
    try:
        path = Path(name).expanduser().absolute()
        return path if name and path.is_dir() else None
    except (OSError, RuntimeError, ValueError):
        return None  # too long a name, an unreadable parent, an unknown user in ~user, or a NUL in it


def _is_empty(directory: Path) -> bool:
    try:
        return not os.listdir(directory)
    except OSError:
        return False  # the load's error says that it can't be read

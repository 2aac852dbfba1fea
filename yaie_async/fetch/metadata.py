"""What the Hub says about a model: the commit of a revision, and the size and digest of each of its files."""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import quote, urljoin

from yaie_async.core.errors import (
    GatedModelError,
    HubUnavailableError,
    IntegrityError,
    ModelFileNotFoundError,
    ModelNotFoundError,
    RevisionNotFoundError,
    printable,
)
from yaie_async.core.manifest import Listing, RepoFile
from yaie_async.core.names import check_etag, check_path, is_commit
from yaie_async.core.threads import run_owned
from yaie_async.fetch.content import content, parse_json
from yaie_async.fetch.failures import Asked
from yaie_async.fetch.http import answer
from yaie_async.fetch.retry import RetryPolicy, retried
from yaie_async.fetch.session import Session

# Bytes and files. The largest listings on the Hub have some 20 MB; more is not a listing.
_LARGEST_LISTING = 100 * 1024 * 1024
MOST_FILES = 500_000
_MOST_PAGES = 1_000

# For a load that has a usable snapshot: it does not wait long for a Hub that is down.
IMPATIENT = RetryPolicy(attempts=2, first_wait=0.5)


async def commit_of(session: Session, repo_id: str, revision: str) -> str:
    """The commit of a branch or tag, by the smallest possible request and with few retries.

    **Cancellation:** at once; the connection is closed.

    **Raises:** as `listing_of`.
    """
    asked = session.asked(repo_id, revision)
    if commit := await retried(IMPATIENT, partial(_sha, session, asked), asked):
        return commit
    asked = replace(asked, file="config.json")
    commit = (await retried(IMPATIENT, partial(_head, session, asked), asked)).get("x-repo-commit", "")
    if not is_commit(commit):
        raise _not_a_hub(asked, "no commit")
    return commit


async def listing_of(session: Session, repo_id: str, revision: str) -> Listing:
    """All files at a revision, by one request. Mirrors may leave out the size and the etag of files.

    **Cancellation:** at once; the connection is closed.

    **Raises:** ModelNotFoundError, RevisionNotFoundError, GatedModelError, HubUnavailableError, StalledError,
    UnsafeFileError; IntegrityError for another commit than the one asked for by its hash.
    """
    asked = session.asked(repo_id, revision)
    info = await retried(session.policy, partial(_info, session, asked, "blobs=true"), asked)
    return await run_owned(partial(_listing, info, asked), name="listing")


async def tree_of(session: Session, repo_id: str, commit: str) -> Mapping[str, RepoFile]:
    """The files of a commit by the listing of its tree, in pages; empty for a server that has none.

    **Cancellation:** at once; the connection is closed.

    **Raises:** UnsafeFileError.
    """
    asked = session.asked(repo_id, commit)
    url: str | None = f"{session.settings.endpoint}/api/models/{repo_id}/tree/{commit}?recursive=true"
    files: dict[str, RepoFile] = {}
    seen: set[str] = set()
    with suppress(
        HubUnavailableError, ModelNotFoundError, RevisionNotFoundError, ModelFileNotFoundError, GatedModelError
    ):
        while url is not None and url not in seen and len(files) <= MOST_FILES:
            seen.add(url)
            entries, following = await retried(IMPATIENT, partial(_json, session, asked, url), asked)
            before = len(files)
            for entry in entries if isinstance(entries, list) else ():
                if isinstance(entry, dict) and entry.get("type") == "file":
                    file = _file(entry, asked, path="path", blob="oid", digest="oid")
                    files[file.path] = file
            more = len(files) > before and len(seen) < _MOST_PAGES
            url = following if following and more and session.settings.is_hub(following) else None
    return files


async def complete(session: Session, repo_id: str, commit: str, file: RepoFile) -> RepoFile:
    """The file with its size and etag, by a HEAD where the listing left out one of them.

    A digest is only what the Hub itself calls one (X-Linked-Etag): the ETag of a mirror is a candidate.

    **Cancellation:** at once; the connection is closed.

    **Raises:** as `listing_of`, and ModelFileNotFoundError.
    """
    if file.size is not None and file.etag is not None:
        return file
    asked = session.asked(repo_id, commit, file.path)
    headers = await retried(session.policy, partial(_head, session, asked), asked)
    etag, size = normal_etag(headers), _number(headers.get("x-linked-size") or headers.get("content-length"))
    if etag is not None and size is None:
        size = await retried(session.policy, partial(_size_by_range, session, asked), asked)
    if etag is None or size is None:
        raise _not_a_hub(asked, "no etag and size")
    check_etag(etag, model=repo_id, file=file.path)
    return RepoFile(file.path, size, etag, candidate="x-linked-etag" not in headers)


def file_url(session: Session, asked: Asked) -> str:
    """Where a file is downloaded from."""
    assert asked.file is not None
    revision, path = quote(asked.revision, safe=""), quote(asked.file)
    return f"{session.settings.endpoint}/{asked.model}/resolve/{revision}/{path}"


async def _sha(session: Session, asked: Asked) -> str | None:
    try:
        info = await _info(session, asked, "expand=sha")
    except HubUnavailableError:
        return None  # a mirror that does not know `expand`
    sha = info.get("sha") if isinstance(info, dict) else None
    return sha if isinstance(sha, str) and is_commit(sha) else None


async def _info(session: Session, asked: Asked, query: str) -> Any:
    url = f"{session.settings.endpoint}/api/models/{asked.model}/revision/{quote(asked.revision, safe='')}?{query}"
    return (await _json(session, asked, url))[0]


async def _json(session: Session, asked: Asked, url: str) -> tuple[Any, str | None]:
    """The JSON of an answer, and the address of the next page."""
    timeout = session.settings.metadata_timeout
    async with answer(session, "GET", url, asked=asked, timeout=timeout) as response:
        body = await content(response, _LARGEST_LISTING, timeout)
        following = response.links.get("next", {}).get("url")
    if len(body) > _LARGEST_LISTING:
        raise _not_a_hub(asked, "an endless answer")
    try:
        # In a thread: a listing of many thousand files takes long to parse.
        return await run_owned(lambda: parse_json(body), name="json"), following and urljoin(url, following)
    except (ValueError, RecursionError) as error:
        raise _not_a_hub(asked, "something that is not JSON") from error


def _listing(info: Any, asked: Asked) -> Listing:
    if not isinstance(info, dict) or not is_commit(str(info.get("sha"))):
        raise _not_a_hub(asked, "no commit")
    check_commit(info["sha"], asked)
    siblings = info.get("siblings")
    if not isinstance(siblings, list):
        raise _not_a_hub(asked, "no list of files")
    if len(siblings) > MOST_FILES:
        raise _not_a_hub(asked, "too many files")
    files = [_file(entry, asked, path="rfilename", blob="blobId", digest="sha256") for entry in siblings]
    parameters = info.get("safetensors")
    counts = parameters.get("parameters") if isinstance(parameters, dict) else None
    return Listing(
        commit=info["sha"],
        files={file.path: file for file in files},
        parameters={k: v for k, v in counts.items() if _is_count(v)} if isinstance(counts, dict) else {},
    )


def _file(entry: Any, asked: Asked, *, path: str, blob: str, digest: str) -> RepoFile:
    """A file of a listing, which calls its path, its git id and the digest of an LFS file by these names."""
    name = entry.get(path) if isinstance(entry, dict) else None
    if not isinstance(name, str):
        raise _not_a_hub(asked, "a file without a name")
    check_path(name, model=asked.model)
    lfs, xet_hash = entry.get("lfs"), entry.get("xetHash")
    # The git id of an LFS file is the digest of its pointer, never the name of its blob.
    etag = lfs.get(digest) if isinstance(lfs, dict) else entry.get(blob)
    size = lfs.get("size") if isinstance(lfs, dict) else entry.get("size")
    if isinstance(etag, str):
        check_etag(etag, model=asked.model, file=name)
    file = RepoFile(name, xet_hash=xet_hash if isinstance(xet_hash, str) else None)
    return replace(file, size=size, etag=etag) if _is_count(size) and isinstance(etag, str) else file


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 2**63  # as large as a file can be


async def _head(session: Session, asked: Asked) -> Mapping[str, str]:
    """The headers of the last response of the Hub in the chain, which has the metadata for the official client too."""
    url, timeout = file_url(session, asked), session.settings.metadata_timeout
    async with answer(session, "HEAD", url, asked=asked, timeout=timeout, leave_hub=False) as response:
        headers = {name.lower(): value for name, value in response.headers.items()}
        if response.is_redirect:
            headers.pop("content-length", None)  # not the file's
    check_commit(headers.get("x-repo-commit") or asked.revision, asked)
    return headers


async def _size_by_range(session: Session, asked: Asked) -> int | None:
    """The size of a file as the answer to a request for its first byte tells it."""
    url, timeout = file_url(session, asked), session.settings.metadata_timeout
    async with answer(session, "GET", url, asked=asked, timeout=timeout, headers={"range": "bytes=0-0"}) as response:
        if response.status_code == 206:
            return _number(response.headers.get("content-range", "").rpartition("/")[2])
        return _number(response.headers.get("content-length"))


def _number(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch("[0-9]{1,18}", text) else None


def check_commit(commit: str, asked: Asked) -> None:
    """Refuse another commit than the one that was asked for by its hash: it says which bytes are wanted."""
    if is_commit(asked.revision) and commit != asked.revision:
        raise IntegrityError(
            f"The server answered with the commit {printable(commit)} to a request for {asked.what} at "
            f"{asked.revision}. Nothing of it is used. Check HF_ENDPOINT and any proxy on the way to it.",
            expected=asked.revision,
            found=printable(commit),
            model=asked.model,
            file=asked.file,
        )


def normal_etag(headers: Mapping[str, str]) -> str | None:
    """The etag, normalised into the name of a blob exactly as the official client does it, quirks included."""
    value = headers.get("x-linked-etag") or headers.get("etag")
    return value.lstrip("W/").strip('"') if value else None


def _not_a_hub(asked: Asked, what: str) -> HubUnavailableError:
    return asked.unavailable(
        f"The server answered {what} to a request for {asked.what}: this is not how a Hub answers. "
        "Check HF_ENDPOINT, and whether a login page stands between you and the server."
    )

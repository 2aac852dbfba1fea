"""What the Hub says of a model: which commit a revision is, and the size and digest of each of its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import quote

from yaie_async.core.errors import HubUnavailableError, LoaderError
from yaie_async.core.manifest import Listing, RepoFile
from yaie_async.core.names import check_etag, check_path, is_commit
from yaie_async.core.threads import run_owned
from yaie_async.fetch.failures import Asked, gave_up
from yaie_async.fetch.http import answer
from yaie_async.fetch.retry import GaveUpError, RetryPolicy, with_retries
from yaie_async.fetch.session import Session

# The largest listings on the Hub are some 20 MB; a server that sends more than this is not one.
_LARGEST_LISTING = 128 * 1024 * 1024

# Whoever has a usable snapshot does not want to wait for a Hub that is down.
IMPATIENT = RetryPolicy(attempts=2, first_wait=0.5)


async def commit_of(session: Session, repo_id: str, revision: str) -> str:
    """The commit of a branch or tag, by the smallest request there is, and impatiently.

    **Raises:** as `listing_of`.
    """
    asked = _asked(session, repo_id, revision)
    url = f"{_api(session, repo_id, revision)}?expand=sha"

    async def ask() -> str | None:
        try:
            info = await _json(session, url, asked)
        except HubUnavailableError:
            return None  # a mirror that does not know `expand`
        sha = info.get("sha") if isinstance(info, dict) else None
        return sha if isinstance(sha, str) and is_commit(sha) else None

    try:
        commit = await with_retries(IMPATIENT, ask, about=asked.facts)
        if commit is None:
            head = partial(_head, session, repo_id, revision, "config.json")
            commit = (await with_retries(IMPATIENT, head, about=asked.facts))[0]
    except GaveUpError as error:
        raise gave_up(error, asked) from error.__cause__
    return commit


async def listing_of(session: Session, repo_id: str, revision: str) -> Listing:
    """All files at a revision, in one request. Files may lack size and etag where a mirror leaves them out.

    **Raises:** ModelNotFoundError, RevisionNotFoundError, GatedModelError, HubUnavailableError, StalledError,
    UnsafeFileError.
    """
    asked = _asked(session, repo_id, revision)
    url = f"{_api(session, repo_id, revision)}?blobs=true"
    try:
        info = await with_retries(session.policy, lambda: _json(session, url, asked), about=asked.facts)
    except GaveUpError as error:
        raise gave_up(error, asked) from error.__cause__
    return await run_owned(lambda: _listing(info, repo_id), name="listing")


async def complete(session: Session, repo_id: str, commit: str, file: RepoFile) -> RepoFile:
    """The file with its size and etag, by a HEAD where the listing left one of them out.

    **Raises:** as `listing_of`, and ModelFileNotFoundError.
    """
    if file.size is not None and file.etag is not None:
        return file
    asked = Asked(repo_id, commit, file.path, session.settings.token is not None)
    try:
        head = partial(_head, session, repo_id, commit, file.path)
        _, size, etag = await with_retries(session.policy, head, about=asked.facts)
    except GaveUpError as error:
        raise gave_up(error, asked) from error.__cause__
    return RepoFile(file.path, size, etag)


def file_url(session: Session, repo_id: str, revision: str, path: str) -> str:
    """Where a file is downloaded from."""
    return f"{session.settings.endpoint}/{repo_id}/resolve/{quote(revision, safe='')}/{quote(path)}"


def _asked(session: Session, repo_id: str, revision: str) -> Asked:
    return Asked(repo_id, revision, None, session.settings.token is not None)


def _api(session: Session, repo_id: str, revision: str) -> str:
    return f"{session.settings.endpoint}/api/models/{repo_id}/revision/{quote(revision, safe='')}"


async def _json(session: Session, url: str, asked: Asked) -> Any:
    body = bytearray()
    async with answer(session, "GET", url, asked=asked, timeout=session.settings.metadata_timeout) as response:
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > _LARGEST_LISTING:
                raise _not_a_hub(asked, "an endless answer")
    try:
        # In a thread: a listing of many thousand files takes long to parse.
        return await run_owned(lambda: json.loads(body), name="json")
    except (ValueError, RecursionError) as error:
        raise _not_a_hub(asked, "something that is not JSON") from error


def _listing(info: Any, repo_id: str) -> Listing:
    asked = Asked(repo_id, "", None, has_token=False)
    if not isinstance(info, dict) or not is_commit(str(info.get("sha"))):
        raise _not_a_hub(asked, "no commit")
    siblings = info.get("siblings")
    if not isinstance(siblings, list):
        raise _not_a_hub(asked, "no list of files")
    files = {}
    for entry in siblings:
        file = _file(entry, repo_id)
        files[file.path] = file
    parameters = info.get("safetensors")
    counts = parameters.get("parameters") if isinstance(parameters, dict) else None
    return Listing(
        commit=info["sha"],
        files=files,
        parameters={k: v for k, v in counts.items() if isinstance(v, int)} if isinstance(counts, dict) else {},
    )


def _file(entry: Any, repo_id: str) -> RepoFile:
    path = entry.get("rfilename") if isinstance(entry, dict) else None
    if not isinstance(path, str):
        raise _not_a_hub(Asked(repo_id, "", None, has_token=False), "a file without a name")
    check_path(path, model=repo_id)
    lfs = entry.get("lfs")
    # Of an LFS file `blobId` is the digest of the pointer, never the name of its blob.
    etag = lfs.get("sha256") if isinstance(lfs, dict) else entry.get("blobId")
    size = lfs.get("size") if isinstance(lfs, dict) else entry.get("size")
    if isinstance(etag, str):
        check_etag(etag, model=repo_id, file=path)
    known = isinstance(size, int) and size >= 0 and isinstance(etag, str)
    return RepoFile(path, size, etag) if known else RepoFile(path)


async def _head(session: Session, repo_id: str, revision: str, path: str) -> tuple[str, int, str]:
    """Commit, size and etag by the rules of the official client: of the last Hub answer in the chain."""
    asked = Asked(repo_id, revision, path, session.settings.token is not None)
    async with answer(
        session,
        "HEAD",
        file_url(session, repo_id, revision, path),
        asked=asked,
        timeout=session.settings.metadata_timeout,
        leave_hub=False,
    ) as response:
        headers = response.headers
    commit, etag = headers.get("x-repo-commit", ""), normal_etag(headers)
    size = headers.get("x-linked-size") or (None if response.is_redirect else headers.get("content-length"))
    if not is_commit(commit) or etag is None or size is None or not size.isdecimal():
        raise HubUnavailableError(
            f"The server does not tell commit, etag and size of {path} of {repo_id}, so it can't be cached. "
            "Check HF_ENDPOINT: this is not how a Hub answers.",
            model=repo_id,
            file=path,
            status=response.status_code,
        )
    check_etag(etag, model=repo_id, file=path)
    return commit, int(size), etag


def normal_etag(headers: Mapping[str, str]) -> str | None:
    """The etag as the official client normalises it into a blob's name: exactly so, quirks included."""
    value = headers.get("x-linked-etag") or headers.get("etag")
    return value.lstrip("W/").strip('"') if value else None


def _not_a_hub(asked: Asked, what: str) -> LoaderError:
    return HubUnavailableError(
        f"The server answered {what} when asked for {asked.model}: this is not how a Hub answers. "
        "Check HF_ENDPOINT, and whether a login page stands between here and it.",
        model=asked.model,
    )

"""One blob: fetched once for all who want it, verified, and published into the cache."""

from __future__ import annotations

import os
import re
import threading
import uuid
from functools import partial
from pathlib import Path

import httpx

from yaie_async.core.errors import IntegrityError
from yaie_async.core.plan import RepoFile
from yaie_async.core.progress import Meter
from yaie_async.core.threads import run_owned
from yaie_async.fetch.answers import Asked, gave_up
from yaie_async.fetch.http import answer
from yaie_async.fetch.metadata import file_url
from yaie_async.fetch.retry import GaveUpError, TransientError, with_retries
from yaie_async.fetch.session import Session
from yaie_async.fetch.verify import digest_of
from yaie_async.store.access import cache_errors
from yaie_async.store.cache import RepoCache
from yaie_async.store.locks import blob_lock

# Bytes gathered before a thread writes them: a thread a network chunk would cost more than the write.
_WRITE = 1024 * 1024


async def fetch_blob(session: Session, cache: RepoCache, commit: str, file: RepoFile, meter: Meter) -> bool:
    """Make `blobs/<etag>` exist; return whether this call wrote it, or found it there (or linked already).

    **Cancellation:** the lock is given back. What else awaits the same blob takes over.

    **Raises:** IntegrityError for a second wrong digest; HubUnavailableError, StalledError, DiskFullError,
    CacheAccessError; ModelFileNotFoundError.
    """
    assert file.etag is not None and file.size is not None  # `complete` saw to it
    key = cache.blob(file.etag)
    flight = session.flights[key]
    led = False

    async def lead() -> bool:
        nonlocal led
        led = True
        return await _Download(session, cache, commit, file, meter).run()

    fresh = await flight(lead)
    if session.flights.get(key) is flight:
        del session.flights[key]  # done: a later load looks at the disk again
    if not led:
        meter.cached(file.size)
    return led and fresh


class _Download:
    """One connection that brings one file, continued with Range after failures."""

    def __init__(self, session: Session, cache: RepoCache, commit: str, file: RepoFile, meter: Meter) -> None:
        assert file.etag is not None and file.size is not None
        self._session = session
        self._cache = cache
        self._commit = commit
        self._path = file.path
        self._etag = file.etag
        self._size = file.size
        self._meter = meter
        self._asked = Asked(cache.repo_id, commit, file.path, session.settings.token is not None)
        self._offset = 0

    async def run(self) -> bool:
        async with blob_lock(self._cache.lock(self._etag)):
            if await self._is_there():
                self._meter.cached(self._size)
                return False
            partial_file = await run_owned(self._create, name="create")
            try:
                await self._fetch(partial_file)
                await self._check(partial_file, again=True)
                await run_owned(partial(self._publish, partial_file), name="publish")
                self._meter.file_done()
            finally:
                await run_owned(partial(partial_file.unlink, missing_ok=True), name="unlink")
            return True

    async def _is_there(self) -> bool:
        """Whether the blob is linked, or lies there whole: what others wrote is verified before it is linked."""
        blob = self._cache.blob(self._etag)

        def look() -> bool:
            if self._cache.has(self._commit, self._path):
                return True
            with cache_errors(blob):
                return blob.exists() and blob.stat().st_size == self._size

        if not await run_owned(look, name="cache"):
            return False
        return self._cache.has(self._commit, self._path) or await self._digest(blob) == self._etag

    def _create(self) -> Path:
        path = self._cache.blobs / f"{self._etag}.{uuid.uuid4().hex[:8]}.incomplete"
        with cache_errors(path, needed=self._size):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
        return path

    async def _fetch(self, into: Path) -> None:
        self._offset = 0
        if self._size == 0:
            return  # as the official client: no request for nothing
        try:
            await with_retries(
                self._session.policy, partial(self._attempt, into), progress=lambda: self._offset
            )
        except GaveUpError as error:
            raise gave_up(error, self._asked) from error.__cause__
        except BaseException:
            self._meter.add(-self._offset)
            raise

    async def _attempt(self, into: Path) -> None:
        url = file_url(self._session, self._cache.repo_id, self._commit, self._path)
        headers = {"range": f"bytes={self._offset}-"} if self._offset else {}
        async with (
            self._session.bodies,
            answer(
                self._session,
                "GET",
                url,
                asked=self._asked,
                timeout=self._session.settings.stall_timeout,
                headers=headers,
            ) as response,
        ):
            self._accept(response)
            buffer = bytearray()
            try:
                async for chunk in response.aiter_bytes():
                    buffer += chunk
                    if self._offset + len(buffer) > self._size:
                        raise self._lied(f"more than {self._size}")
                    if len(buffer) >= _WRITE:
                        await self._write(into, buffer)
            finally:
                # What came before a failure is not asked for again.
                await self._write(into, buffer)
        if self._offset < self._size:
            raise TransientError(
                f"{self._path} of {self._cache.repo_id} ended at byte {self._offset:,} of {self._size:,}",
                kind="truncated",
            )

    def _accept(self, response: httpx.Response) -> None:
        """Check that the body is the part that was asked for; a whole one starts the file over."""
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("content-range", ""))
        if response.status_code == 206:
            if match is None or int(match[1]) != self._offset or match[3] not in ("*", str(self._size)):
                raise self._lied(response.headers.get("content-range", "no Content-Range"))
            return
        length = response.headers.get("content-length")
        encoded = response.headers.get("content-encoding", "identity") != "identity"
        if length is not None and not encoded and int(length) != self._size:
            raise self._lied(int(length))
        self._meter.add(-self._offset)
        self._offset = 0

    def _lied(self, found: str | int) -> IntegrityError:
        return IntegrityError(
            f"{self._path} of {self._cache.repo_id} has {self._size:,} bytes by the Hub's listing, and the server "
            f"sends {found}. Nothing was linked. Check HF_ENDPOINT and any proxy between here and it.",
            expected=self._size,
            found=found,
            model=self._cache.repo_id,
            file=self._path,
        )

    async def _write(self, into: Path, buffer: bytearray) -> None:
        if not buffer:
            return
        data, start = bytes(buffer), self._offset
        buffer.clear()
        # Counted first: the thread runs to its end whatever happens to this task.
        self._offset += len(data)
        self._meter.add(len(data))

        def write() -> None:
            with cache_errors(into, needed=self._size - start):
                fd = os.open(into, os.O_WRONLY | os.O_CLOEXEC)
                try:
                    view = memoryview(data)
                    while view:
                        view = view[os.pwrite(fd, view, start + len(data) - len(view)) :]
                finally:
                    os.close(fd)

        await run_owned(write, name="write")

    async def _check(self, path: Path, *, again: bool) -> None:
        if not self._session.verify:
            return
        found = await self._digest(path)
        if found == self._etag:
            return
        if again:
            self._meter.add(-self._size)
            await run_owned(partial(os.truncate, path, 0), name="truncate")
            await self._fetch(path)
            return await self._check(path, again=False)
        raise IntegrityError(
            f"{self._path} of {self._cache.repo_id} arrived twice with a wrong digest: {self._etag} was promised, "
            f"{found} came. Nothing was linked. Check HF_ENDPOINT and any proxy between here and it.",
            expected=self._etag,
            found=found,
            model=self._cache.repo_id,
            file=self._path,
        )

    async def _digest(self, path: Path) -> str:
        stop = threading.Event()

        def work() -> str:
            with cache_errors(path):
                return digest_of(path, self._etag, stop.is_set)

        return await run_owned(work, interrupt=stop.set, name="verify")

    def _publish(self, path: Path) -> None:
        blob = self._cache.blob(self._etag)
        with cache_errors(blob):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fdatasync(fd)
            finally:
                os.close(fd)
            os.replace(path, blob)

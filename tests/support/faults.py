"""Faults between a hub and its clients. Each fault is one small edit of a request or of its answer.

    hub.faults.add(Cut(after=1000), path=r"^/cdn/", times=2)

The first rule that matches a request and is not used up applies.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Request:
    """A request to the hub, with its answer.

    Attributes:
        path: the decoded path.
        headers: names in lower case.
        host: the `Host` header: 127.0.0.1 is the hub, 127.0.0.2 the CDN.
        status: the status of the answer; None before it, and if the connection was dropped instead.
        sent: bytes of the body that were passed to the connection.
        fault: the fault that was applied.
    """

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    status: int | None = None
    sent: int = 0
    fault: Fault | None = None

    @property
    def host(self) -> str:
        return self.headers.get("host", "")

    @property
    def range(self) -> str | None:
        return self.headers.get("range")

    @property
    def authorization(self) -> str | None:
        return self.headers.get("authorization")


class Gate:
    """Holds answers until `open()` is called, from any thread."""

    def __init__(self) -> None:
        self.future: Future[None] = Future()

    def open(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


@dataclass(slots=True)
class Answer:
    """An answer of the hub, which a fault may edit, and how it is delivered.

    Attributes:
        url: the URL of the request.
        raw: whether head and body are written unchanged and the connection is closed, for invalid framing.
        close_after: bytes of the body after which the connection is closed.
        reset: whether it is closed with RST, which may lose sent bytes; without `close_after`, before the head.
        stall_after: bytes of the body after which nothing is sent until the gate opens; -1 is before the head.
        rate: bytes per second.
    """

    url: str
    status: int
    headers: dict[str, str]
    body: bytes
    raw: bool = False
    close_after: int | None = None
    reset: bool = False
    stall_after: int | None = None
    gate: Gate | None = None
    rate: float | None = None

    @property
    def start(self) -> int:
        """The offset in the file at which the body starts."""
        match = re.match(r"bytes (\d+)-", self.headers.get("content-range", ""))
        return int(match[1]) if match else 0

    def replace_body(self, body: bytes, **headers: str) -> None:
        self.body = body
        self.headers["content-length"] = str(len(body))
        self.headers |= {name.replace("_", "-"): value for name, value in headers.items()}


class Fault:
    """An edit of a request's headers, of the answer, or of both."""

    def edit_request(self, headers: dict[str, str]) -> None:
        """Edit the headers of the request; names are in lower case."""

    def edit_answer(self, answer: Answer) -> None:
        """Edit the answer."""


@dataclass(frozen=True)
class Cut(Fault):
    """Close the connection after some bytes of a longer body."""

    after: int

    def edit_answer(self, answer: Answer) -> None:
        answer.close_after = self.after


@dataclass(frozen=True)
class Reset(Fault):
    """Reset the connection, after some bytes of the body or before the head."""

    after: int | None = None

    def edit_answer(self, answer: Answer) -> None:
        answer.reset = True
        answer.close_after = self.after


@dataclass(frozen=True)
class Stall(Fault):
    """Send some bytes of the body, then nothing until `gate.open()`; -1 withholds the head too."""

    after: int = 0
    gate: Gate = field(default_factory=Gate)

    def edit_answer(self, answer: Answer) -> None:
        answer.stall_after, answer.gate = self.after, self.gate


@dataclass(frozen=True)
class StallAt(Fault):
    """Send nothing from an offset in the file on, until `gate.open()`."""

    offset: int
    gate: Gate = field(default_factory=Gate)

    def edit_answer(self, answer: Answer) -> None:
        if answer.start <= self.offset < answer.start + len(answer.body):
            answer.stall_after, answer.gate = self.offset - answer.start, self.gate


class Both(Fault):
    """Apply two faults to one answer, such as a wrong byte in a body that stalls."""

    def __init__(self, first: Fault, second: Fault) -> None:
        self._both = first, second

    def edit_answer(self, answer: Answer) -> None:
        for fault in self._both:
            fault.edit_answer(answer)


@dataclass(frozen=True)
class Drip(Fault):
    """Send the body at a rate in bytes per second."""

    rate: float

    def edit_answer(self, answer: Answer) -> None:
        answer.rate = self.rate


@dataclass(frozen=True)
class Corrupt(Fault):
    """Invert some bytes at an offset in the file, if the answer contains them."""

    offset: int
    count: int = 1

    def edit_answer(self, answer: Answer) -> None:
        body = bytearray(answer.body)
        for at in range(self.offset - answer.start, self.offset - answer.start + self.count):
            if 0 <= at < len(body):
                body[at] ^= 0xFF
        answer.body = bytes(body)


@dataclass(frozen=True)
class Status(Fault):
    """Answer with a status and with headers such as `Retry-After`."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b"fault"

    def edit_answer(self, answer: Answer) -> None:
        answer.status = self.status
        answer.headers = {}
        answer.replace_body(self.body, **self.headers)


@dataclass(frozen=True)
class Html(Fault):
    """Answer 200 with an HTML page, as a captive portal does."""

    def edit_answer(self, answer: Answer) -> None:
        answer.status = 200
        answer.headers = {}
        answer.replace_body(b"<!DOCTYPE html><title>Log in</title>", content_type="text/html")


@dataclass(frozen=True)
class Redirect(Fault):
    """Redirect to a URL, or without one to the same URL in a loop. The other headers are kept."""

    to: str | None = None
    status: int = 302

    def edit_answer(self, answer: Answer) -> None:
        answer.status = self.status
        answer.replace_body(b"", location=self.to or answer.url)


@dataclass(frozen=True)
class IgnoreRange(Fault):
    """Answer 200 with the whole body, whatever the requested range."""

    def edit_request(self, headers: dict[str, str]) -> None:
        headers.pop("range", None)


@dataclass(frozen=True)
class WrongRange(Fault):
    """Serve a range that is shifted by some bytes, with its true `Content-Range`."""

    by: int

    def edit_request(self, headers: dict[str, str]) -> None:
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", "")):
            last = str(int(match[2]) + self.by) if match[2] else ""
            headers["range"] = f"bytes={int(match[1]) + self.by}-{last}"


@dataclass(frozen=True)
class LyingRange(Fault):
    """Serve the requested bytes with a `Content-Range` that is shifted by some bytes."""

    by: int

    def edit_answer(self, answer: Answer) -> None:
        if match := re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.headers.get("content-range", "")):
            first, last, total = map(int, match.groups())
            answer.headers["content-range"] = f"bytes {first + self.by}-{last + self.by}/{total}"


@dataclass(frozen=True)
class LyingLength(Fault):
    """Add some bytes to `Content-Length`, or subtract them; also for HEAD."""

    by: int

    def edit_answer(self, answer: Answer) -> None:
        answer.raw = True
        for name in ("content-length", "x-linked-size"):
            if name in answer.headers:
                answer.headers[name] = str(int(answer.headers[name]) + self.by)


@dataclass(frozen=True)
class Extra(Fault):
    """Send some bytes more than requested, with valid framing."""

    count: int

    def edit_answer(self, answer: Answer) -> None:
        answer.replace_body(answer.body + b"\0" * self.count)


@dataclass(frozen=True)
class Chunked(Fault):
    """Send the body chunked, without a `Content-Length`."""

    def edit_answer(self, answer: Answer) -> None:
        answer.headers.pop("content-length", None)


@dataclass(frozen=True)
class Gzip(Fault):
    """Send the body compressed, requested or not."""

    def edit_answer(self, answer: Answer) -> None:
        answer.replace_body(gzip.compress(answer.body), content_encoding="gzip")


class Strip(Fault):
    """Remove headers, such as `ETag` and `X-Repo-Commit`."""

    def __init__(self, *names: str) -> None:
        self.names = [name.lower() for name in names]

    def edit_answer(self, answer: Answer) -> None:
        for name in self.names:
            answer.headers.pop(name, None)


@dataclass(frozen=True)
class Headers(Fault):
    """Set headers, such as a hostile `ETag`."""

    headers: Mapping[str, str]

    def edit_answer(self, answer: Answer) -> None:
        answer.headers |= {name.lower(): value for name, value in self.headers.items()}


@dataclass(frozen=True)
class EditJson(Fault):
    """Change the JSON of an answer; the function edits it in place."""

    edit: Callable[[Any], None]

    def edit_answer(self, answer: Answer) -> None:
        if not answer.body:  # of HEAD
            return
        document = json.loads(answer.body)
        self.edit(document)
        answer.replace_body(json.dumps(document).encode())


def without_blobs() -> EditJson:
    """Remove sizes and digests from a model's info or from a tree; some mirrors lack them."""

    def edit(document: Any) -> None:
        entries = document["siblings"] if isinstance(document, dict) else document
        for entry in entries:
            for name in entry.keys() - {"rfilename", "path", "type"}:
                del entry[name]

    return EditJson(edit)


def rename_file(old: str, new: str) -> EditJson:
    """List a file under another name, such as `../x`, in a model's info or in a tree."""

    def edit(document: Any) -> None:
        entries = document["siblings"] if isinstance(document, dict) else document
        for entry in entries:
            for key in ("rfilename", "path"):
                if entry.get(key) == old:
                    entry[key] = new

    return EditJson(edit)


def set_etag(file: str, etag: str) -> EditJson:
    """Replace the digest of a file in a model's info, for example by one with a slash."""

    def edit(info: Any) -> None:
        for sibling in info["siblings"]:
            if sibling["rfilename"] == file:
                if "lfs" in sibling:
                    sibling["lfs"]["sha256"] = etag
                else:
                    sibling["blobId"] = etag

    return EditJson(edit)


@dataclass(slots=True)
class Rule:
    """A fault and the requests that it applies to.

    Attributes:
        left: how often it will still apply; None for always.
        hits: how often it has applied.
    """

    fault: Fault
    method: str | None
    path: re.Pattern[str]
    when: Callable[[Request], bool]
    left: int | None
    hits: int = 0

    def matches(self, request: Request) -> bool:
        return (
            self.left != 0
            and self.method in (None, request.method)
            and self.path.search(request.path) is not None
            and self.when(request)
        )


class Faults:
    """The rules of a server, in order. They may change while the server answers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[Rule] = []

    def add(
        self,
        fault: Fault,
        *,
        method: str | None = None,
        path: str = "",
        when: Callable[[Request], bool] = lambda _: True,
        times: int | None = 1,
    ) -> Rule:
        """Apply a fault to the next `times` requests with `method` whose decoded path matches the regex `path`."""
        rule = Rule(fault, method, re.compile(path), when, times)
        with self._lock:
            self._rules.append(rule)
        return rule

    def take(self, request: Request) -> Fault | None:
        """Return the fault for a request, and count it."""
        with self._lock:
            rule = next((rule for rule in self._rules if rule.matches(request)), None)
            if rule is None:
                return None
            rule.hits += 1
            if rule.left is not None:
                rule.left -= 1
            return rule.fault

    def clear(self) -> None:
        with self._lock:
            self._rules.clear()

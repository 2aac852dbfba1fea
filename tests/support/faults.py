"""What can go wrong between a hub and its clients: each fault is one small edit of a request or of its answer.

    hub.faults.add(Cut(after=1000), path=r"^/cdn/", times=2)

The first rule that matches a request and is not used up applies to it.
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
    """One request as the hub saw it, and what it got.

    Attributes:
        path: decoded.
        headers: names in lower case.
        host: the `Host` header, which tells the hub (127.0.0.1) from the CDN (127.0.0.2).
        status: of the answer; None before it, and for a connection that was dropped instead.
        sent: bytes of body that were handed to the connection.
        fault: what was done to it.
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
    """An answer of the hub, to be edited by a fault, and how to deliver it.

    Attributes:
        url: of the request.
        raw: written as it stands and closed after, since no HTTP library would frame it so.
        close_after: bytes of body after which the connection is closed.
        reset: closed by RST, where the bytes that are under way may be lost; without `close_after`, before the head.
        stall_after: bytes of body after which nothing comes until the gate opens; -1 is before the head.
        rate: bytes a second.
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
        """Where in the file the body starts."""
        match = re.match(r"bytes (\d+)-", self.headers.get("content-range", ""))
        return int(match[1]) if match else 0

    def replace_body(self, body: bytes, **headers: str) -> None:
        self.body = body
        self.headers["content-length"] = str(len(body))
        self.headers |= {name.replace("_", "-"): value for name, value in headers.items()}


class Fault:
    """An edit of a request's headers, of the answer, or of both."""

    def ask(self, headers: dict[str, str]) -> None:
        """Edit what the hub is asked, headers in lower case."""

    def tell(self, answer: Answer) -> None:
        """Edit what the client is told."""


@dataclass(frozen=True)
class Cut(Fault):
    """Close the connection after some bytes of a body whose length promised more."""

    after: int

    def tell(self, answer: Answer) -> None:
        answer.close_after = self.after


@dataclass(frozen=True)
class Reset(Fault):
    """Reset the connection, after some bytes of the body or before the head."""

    after: int | None = None

    def tell(self, answer: Answer) -> None:
        answer.reset = True
        answer.close_after = self.after


@dataclass(frozen=True)
class Stall(Fault):
    """Send some bytes of the body and then nothing until `gate.open()`; -1 sends no head either."""

    after: int = 0
    gate: Gate = field(default_factory=Gate)

    def tell(self, answer: Answer) -> None:
        answer.stall_after, answer.gate = self.after, self.gate


@dataclass(frozen=True)
class StallAt(Fault):
    """Send nothing from an offset in the file on until `gate.open()`, in the answer that holds it."""

    offset: int
    gate: Gate = field(default_factory=Gate)

    def tell(self, answer: Answer) -> None:
        if answer.start <= self.offset < answer.start + len(answer.body):
            answer.stall_after, answer.gate = self.offset - answer.start, self.gate


class Both(Fault):
    """Two faults in one answer, such as a wrong byte in a body that stalls."""

    def __init__(self, first: Fault, second: Fault) -> None:
        self._both = first, second

    def tell(self, answer: Answer) -> None:
        for fault in self._both:
            fault.tell(answer)


@dataclass(frozen=True)
class Drip(Fault):
    """Send the body at so many bytes a second."""

    rate: float

    def tell(self, answer: Answer) -> None:
        answer.rate = self.rate


@dataclass(frozen=True)
class Corrupt(Fault):
    """Invert some bytes at an offset in the file, where the answer holds them."""

    offset: int
    count: int = 1

    def tell(self, answer: Answer) -> None:
        body = bytearray(answer.body)
        for at in range(self.offset - answer.start, self.offset - answer.start + self.count):
            if 0 <= at < len(body):
                body[at] ^= 0xFF
        answer.body = bytes(body)


@dataclass(frozen=True)
class Status(Fault):
    """Answer with a status, with headers such as `Retry-After`."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b"fault"

    def tell(self, answer: Answer) -> None:
        answer.status = self.status
        answer.headers = {}
        answer.replace_body(self.body, **self.headers)


@dataclass(frozen=True)
class Html(Fault):
    """Answer 200 with a page of HTML, as a captive portal does."""

    def tell(self, answer: Answer) -> None:
        answer.status = 200
        answer.headers = {}
        answer.replace_body(b"<!DOCTYPE html><title>Log in</title>", content_type="text/html")


@dataclass(frozen=True)
class Redirect(Fault):
    """Redirect to a URL; without one, to the same for ever. The other headers stay as they are."""

    to: str | None = None
    status: int = 302

    def tell(self, answer: Answer) -> None:
        answer.status = self.status
        answer.replace_body(b"", location=self.to or answer.url)


@dataclass(frozen=True)
class IgnoreRange(Fault):
    """Answer 200 with the whole body, whatever range was asked for."""

    def ask(self, headers: dict[str, str]) -> None:
        headers.pop("range", None)


@dataclass(frozen=True)
class WrongRange(Fault):
    """Serve another range than the one asked for, moved by some bytes, and say so in `Content-Range`."""

    by: int

    def ask(self, headers: dict[str, str]) -> None:
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", "")):
            last = str(int(match[2]) + self.by) if match[2] else ""
            headers["range"] = f"bytes={int(match[1]) + self.by}-{last}"


@dataclass(frozen=True)
class LyingRange(Fault):
    """Serve the bytes asked for under a `Content-Range` that is moved by some bytes."""

    by: int

    def tell(self, answer: Answer) -> None:
        if match := re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.headers.get("content-range", "")):
            first, last, total = map(int, match.groups())
            answer.headers["content-range"] = f"bytes {first + self.by}-{last + self.by}/{total}"


@dataclass(frozen=True)
class LyingLength(Fault):
    """Promise some bytes more than are sent, or fewer, in `Content-Length`; for a HEAD, lie about the size."""

    by: int

    def tell(self, answer: Answer) -> None:
        answer.raw = True
        for name in ("content-length", "x-linked-size"):
            if name in answer.headers:
                answer.headers[name] = str(int(answer.headers[name]) + self.by)


@dataclass(frozen=True)
class Extra(Fault):
    """Send some bytes more than were asked for, in a well-framed answer."""

    count: int

    def tell(self, answer: Answer) -> None:
        answer.replace_body(answer.body + b"\0" * self.count)


@dataclass(frozen=True)
class Chunked(Fault):
    """Send the body chunked, without a `Content-Length`."""

    def tell(self, answer: Answer) -> None:
        answer.headers.pop("content-length", None)


@dataclass(frozen=True)
class Gzip(Fault):
    """Send the body compressed, asked or not."""

    def tell(self, answer: Answer) -> None:
        answer.replace_body(gzip.compress(answer.body), content_encoding="gzip")


class Strip(Fault):
    """Leave headers out, such as `ETag` and `X-Repo-Commit`."""

    def __init__(self, *names: str) -> None:
        self.names = [name.lower() for name in names]

    def tell(self, answer: Answer) -> None:
        for name in self.names:
            answer.headers.pop(name, None)


@dataclass(frozen=True)
class Headers(Fault):
    """Set headers, such as a hostile `ETag`."""

    headers: Mapping[str, str]

    def tell(self, answer: Answer) -> None:
        answer.headers |= {name.lower(): value for name, value in self.headers.items()}


@dataclass(frozen=True)
class EditJson(Fault):
    """Change the JSON of an answer; the function edits it in place."""

    edit: Callable[[Any], None]

    def tell(self, answer: Answer) -> None:
        if not answer.body:  # of a HEAD
            return
        document = json.loads(answer.body)
        self.edit(document)
        answer.replace_body(json.dumps(document).encode())


def without_blobs() -> EditJson:
    """Leave sizes and digests out of a model's info, as some mirrors do."""

    def edit(info: Any) -> None:
        info["siblings"] = [{"rfilename": sibling["rfilename"]} for sibling in info["siblings"]]

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
    """Give a file another digest in a model's info, one with a slash for example."""

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
        left: how often it will still apply; None is always.
        hits: how often it did.
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
    """The rules of a server, in order; safe to change while it answers."""

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
        """Apply a fault to the next `times` requests of a method whose decoded path the regex `path` finds."""
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

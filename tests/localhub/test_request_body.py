"""Tests of the only requests with a body: `paths-info`, of hostile size, number, shape and speed."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import pytest
from huggingface_hub import HfApi

from tests.localhub.conftest import CONFIG
from tests.support.hub import HubServer
from tests.support.waiting import wait_until
from yaie_async.localhub import request_body

URL = "/api/models/org/name/paths-info/main"
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@contextmanager
def connected(hub: HubServer, head: str) -> Iterator[socket.socket]:
    """A connection that has sent the head of a request and none of its body."""
    address = urlsplit(hub.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(f"POST {URL} HTTP/1.1\r\nHost: hub\r\n{head}\r\n\r\n".encode())
        yield connection


def answer_of(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    with connection.makefile("rb") as answer:
        return answer.read()


def test_paths_info_takes_json(hub: HubServer) -> None:
    """`paths-info` accepts JSON as well as a form, and refuses a body without a list of paths."""
    (entry,) = httpx.post(hub.url + URL, json={"paths": ["config.json", 1, ["x"]]}).json()
    assert (entry["path"], entry["size"]) == ("config.json", len(CONFIG))
    for body in (b"{", b"[]", b"{}", b'{"paths": 1}', b"\xff"):
        assert httpx.post(hub.url + URL, content=body, headers=JSON).status_code == 400


@pytest.mark.parametrize("most", [True, False])
def test_a_request_has_as_many_paths_as_on_the_hub(hub: HubServer, most: bool) -> None:
    """A thousand, of the official client too; one more is 413, as a form and as JSON, in at most 1 MiB."""
    paths = ["config.json"] * (1000 if most else 1001)
    status = 200 if most else 413
    assert httpx.post(hub.url + URL, json={"paths": paths}).status_code == status
    assert httpx.post(hub.url + URL, data={"paths": paths, "expand": "true"}).status_code == status
    if most:
        assert len(HfApi(hub.url).get_paths_info("org/name", paths)) == 1000
        assert httpx.post(hub.url + URL, content=b" " * (1 << 20), headers=JSON).status_code == 400
        assert httpx.post(hub.url + URL, content=b"&" * 1000, headers=FORM).status_code == 200
    else:
        assert httpx.post(hub.url + URL, content=b" " * (1 + (1 << 20)), headers=JSON).status_code == 413
        assert httpx.post(hub.url + URL, content=b"&" * 1001, headers=FORM).status_code == 413


@pytest.mark.parametrize("length", ["1048577", "9" * 19])
def test_a_body_that_is_announced_too_large_is_not_waited_for(hub: HubServer, length: str) -> None:
    """413 comes before any of it is sent, and closes the connection."""
    with connected(hub, f"Content-Length: {length}") as connection:
        assert answer_of(connection).startswith(b"HTTP/1.1 413 ")


def test_an_endless_body_is_ended(hub: HubServer) -> None:
    """A body in chunks is read up to the limit; then 413 comes, and the connection ends."""
    with connected(hub, "Transfer-Encoding: chunked") as connection:
        chunk = b"%x\r\n%b\r\n" % (1 << 16, bytes(1 << 16))
        with pytest.raises(ConnectionError):
            for _ in range(10_000):
                connection.sendall(chunk)


@pytest.mark.parametrize("depth", [1000, 100_000])
@pytest.mark.parametrize("opening", ["[", '{"paths":'])
def test_deep_json_is_a_bad_request(hub: HubServer, opening: str, depth: int) -> None:
    """Of any depth, whole or cut off, and a number of as many digits."""
    closing = "]" if opening == "[" else "}"
    for body in (opening * depth, opening * depth + "1" + closing * depth, "9" * depth):
        assert httpx.post(hub.url + URL, content=body, headers=JSON).status_code == 400


def test_names_that_no_file_has_are_left_out(hub: HubServer) -> None:
    """Lone surrogates, NULs and dots are no error."""
    body = json.dumps({"paths": ["\ud800", "a\0b", "../config.json", "config.json"]})
    (entry,) = httpx.post(hub.url + URL, content=body, headers=JSON).json()
    assert entry["path"] == "config.json"


@pytest.mark.parametrize("sent", [b"", b'{"paths": ['])
def test_a_body_that_does_not_come_is_not_waited_for(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """None of it, or a part: 408, and the connection is closed."""
    monkeypatch.setattr(request_body, "_SECONDS", 0.1)
    with connected(hub, "Content-Length: 1000") as connection:
        connection.sendall(sent)
        assert answer_of(connection).startswith(b"HTTP/1.1 408 ")


def test_a_client_that_leaves_is_no_error(hub: HubServer, caplog: pytest.LogCaptureFixture) -> None:
    """A client that leaves in the middle of a body is not logged as an error of the server."""
    with connected(hub, "Content-Length: 1000") as connection:
        wait_until(lambda: hub.requests)
        connection.sendall(b"{")
    with connected(hub, "Content-Length: 0\r\nConnection: close") as connection:
        assert answer_of(connection).startswith(b"HTTP/1.1 200 ")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []

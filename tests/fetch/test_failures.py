"""What an HTTP answer means. Pure: a status and headers in, an error of ours out."""

import ssl
from typing import Any

import httpx
import pytest
from huggingface_hub import errors as official

from yaie_async.core.errors import (
    GatedModelError,
    HubUnavailableError,
    ModelFileNotFoundError,
    ModelNotFoundError,
    RevisionNotFoundError,
    StalledError,
)
from yaie_async.fetch.failures import Asked, TransientError, failure, gave_up, transport_failure

URL = "https://hub.example/api/models/org/name?Signature=secret"


def asked(file: str | None = None, *, has_token: bool = False) -> Asked:
    return Asked("org/name", "v9", file, has_token)


def meaning(status: int, *, code: str = "", file: str | None = None, hub: bool = True, **options: Any) -> Any:
    headers = {"x-request-id": "r1"} | ({"x-error-code": code} if code else {}) | options.pop("headers", {})
    body = options.pop("body", "")
    return failure(status, headers, body, URL, asked(file, **options), hub=hub)


@pytest.mark.parametrize(
    ("status", "code", "file", "expected", "says"),
    [
        (404, "RepoNotFound", None, ModelNotFoundError, "no public model 'org/name'.*hf auth login"),
        (401, "RepoNotFound", None, ModelNotFoundError, "no public model"),
        (401, "", None, ModelNotFoundError, "no public model"),
        (404, "", None, ModelNotFoundError, "no public model"),
        (404, "RevisionNotFound", None, RevisionNotFoundError, "org/name has no revision 'v9'"),
        (404, "RevisionNotFound", "f", RevisionNotFoundError, "org/name has no revision 'v9'"),
        (404, "EntryNotFound", "f", ModelFileNotFoundError, "does not have f of org/name"),
        (404, "", "f", ModelFileNotFoundError, "does not have f of org/name"),
        (403, "GatedRepo", "f", GatedModelError, r"gated and no token was sent\. Accept its terms at https"),
        (401, "GatedRepo", "f", GatedModelError, "gated and no token was sent"),
        (403, "", None, GatedModelError, "does not let this token read org/name"),
        (403, "RepoNotFound", None, ModelNotFoundError, "no public model"),
        (400, "", None, HubUnavailableError, "HTTP 400 for org/name.*HF_ENDPOINT"),
        (407, "", "f", HubUnavailableError, "HTTP 407 for f of org/name.*proxy"),
        (501, "", None, HubUnavailableError, "HTTP 501"),
    ],
)
def test_an_answer_for_good(status: int, code: str, file: str | None, expected: type[Any], says: str) -> None:
    """Each answer that will not change has its error, which names model and file, and carries the answer."""
    error = meaning(status, code=code, file=file)
    assert type(error) is expected
    with pytest.raises(expected, match=says):
        raise error
    assert (error.model, error.file, error.status, error.request_id) == ("org/name", file, status, "r1")
    assert error.response.status_code == status
    assert isinstance(error, official.HfHubHTTPError)


def test_a_revision_error_has_the_revision() -> None:
    """RevisionNotFoundError tells which revision was asked for."""
    assert meaning(404, code="RevisionNotFound").revision == "v9"


def test_a_token_changes_the_advice() -> None:
    """Who has sent a token is told to check its access, not to log in; one that is not accepted is told so."""
    assert "this token may see" in str(meaning(404, code="RepoNotFound", has_token=True))
    assert "this token's account has no access" in str(meaning(403, code="GatedRepo", has_token=True))
    said = {"x-error-message": "Invalid credentials in Authorization header"}
    refused = meaning(401, headers=said, has_token=True)
    assert isinstance(refused, ModelNotFoundError)
    assert "does not accept the token" in str(refused)
    assert refused.server_message == said["x-error-message"]


@pytest.mark.parametrize("status", [408, 416, 425, 429, 500, 502, 503, 504])
def test_an_answer_that_may_pass(status: int) -> None:
    """Timeouts, rate limits and server trouble are tried again, after what the answer asks to wait."""
    error = meaning(status, file="f", headers={"retry-after": "9"})
    assert isinstance(error, TransientError)
    assert (error.status, error.wait, error.kind) == (status, 9.0, "status")
    assert f"f of org/name: HTTP {status}" in str(error)


@pytest.mark.parametrize("status", [401, 403, 410])
def test_a_signed_url_that_has_run_out(status: int) -> None:
    """From another host than the Hub these are the end of a signed URL, and pass with a new one."""
    assert isinstance(meaning(status, file="f", hub=False), TransientError)


def test_what_the_server_said_is_told() -> None:
    """The header's message, else the JSON's `error`, is in the error; other bodies are no message."""
    assert meaning(400, body='{"error": "too odd"}').server_message == "too odd"
    assert "too odd" in str(meaning(400, body='{"error": "too odd"}'))
    assert meaning(400, headers={"x-error-message": "head"}, body='{"error": "body"}').server_message == "head"
    for body in ("<html>", "[1]", '{"error": 3}', "null", '{"error": {"a": 1}}'):
        assert meaning(400, body=body).server_message is None
    assert len(meaning(400, body='{"error": "%s"}' % ("x" * 9999)).server_message) <= 300


def test_a_signature_is_not_told() -> None:
    """Signed URLs are secrets: an error carries the URL without its query."""
    error = meaning(400)
    assert error.url == "https://hub.example/api/models/org/name"
    assert "secret" not in str(error) + repr(vars(error))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (httpx.ConnectError("refused"), "connect"),
        (httpx.ConnectTimeout(""), "connect"),
        (httpx.ReadTimeout(""), "stall"),
        (httpx.WriteTimeout(""), "stall"),
        (httpx.PoolTimeout(""), "stall"),
        (httpx.ReadError("reset"), "read"),
        (httpx.RemoteProtocolError("ended early"), "read"),
        (httpx.DecodingError("gzip"), "read"),
    ],
)
def test_a_connection_that_failed(error: httpx.HTTPError, kind: str) -> None:
    """A request without a whole answer is tried again; the text names file, model and host."""
    failed = transport_failure(error, asked("f"), URL)
    assert isinstance(failed, TransientError)
    assert failed.kind == kind
    assert "f of org/name" in str(failed)
    assert "hub.example" in str(failed)


@pytest.mark.parametrize(
    "error", [httpx.UnsupportedProtocol("x"), httpx.ProxyError("407 says no"), httpx.TooManyRedirects("x")]
)
def test_a_connection_that_never_will_be(error: httpx.HTTPError) -> None:
    """A refusing proxy or a scheme that is none is said at once, with the variables to look at."""
    failed = transport_failure(error, asked(), URL)
    assert type(failed) is HubUnavailableError
    assert "HF_ENDPOINT and the proxy variables" in str(failed)


def test_a_certificate_that_is_not_trusted() -> None:
    """It is not tried again: the error says which variable takes a CA bundle."""
    error = httpx.ConnectError("failed")
    error.__cause__ = ssl.SSLCertVerificationError("self-signed certificate")
    failed = transport_failure(error, asked(), URL)
    assert type(failed) is HubUnavailableError
    assert "SSL_CERT_FILE" in str(failed)
    assert "hub.example shows a certificate" in str(failed)


@pytest.mark.parametrize(
    ("last", "expected", "says"),
    [
        (TransientError("x", kind="stall"), StalledError, "Check the network"),
        (TransientError("x", kind="connect"), HubUnavailableError, "Check the network"),
        (TransientError("x", kind="status", status=429), HubUnavailableError, "limits your rate.*HF_TOKEN"),
        (TransientError("x", kind="status", status=503), HubUnavailableError, "has trouble"),
    ],
)
def test_what_is_said_in_the_end(last: TransientError, expected: type[Any], says: str) -> None:
    """Used-up attempts end in an error that counts them, has the last status, and gives advice to fit."""
    error: Any = gave_up(last, 6, asked("f"))
    assert type(error) is expected
    assert (error.attempts, error.status, error.model, error.file) == (6, last.status, "org/name", "f")
    with pytest.raises(expected, match=rf"Gave up after 6 attempts: x\. .*{says}.*is kept"):
        raise error


def test_when_to_come_back_is_told_in_the_end() -> None:
    """Where a server asks for a longer wait than the attempts may take, whoever tries again later on knows it."""
    error: Any = gave_up(TransientError("x", kind="status", status=429, wait=999.5), 1, asked())
    assert error.response.headers["retry-after"] == "1000"

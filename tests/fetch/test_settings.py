"""What arguments and environment say. That each variable is heard is tested in tests/loader/test_environment.py."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from yaie_async.core.errors import InvalidArgumentError, TokenMissingError
from yaie_async.fetch.origin import origin_of
from yaie_async.fetch.settings import Settings, read_settings


def read(**arguments: Any) -> Settings:
    return read_settings(**{"cache_dir": None, "token": None, "endpoint": None, "local_files_only": None} | arguments)


def test_arguments_go_before_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Endpoint, cache and token of the arguments are taken; without them those of the environment."""
    monkeypatch.setenv("HF_TOKEN", "of-environment")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "environment"))
    monkeypatch.setattr(constants, "ENDPOINT", "https://environment.example")
    given = read(cache_dir=tmp_path, token="mine", endpoint="https://mine.example/prefix//")
    assert (given.cache_dir, given.token, given.endpoint) == (tmp_path, "mine", "https://mine.example/prefix")
    found = read()
    assert found.cache_dir == tmp_path / "environment"
    assert (found.token, found.endpoint) == ("of-environment", "https://environment.example")
    assert read(token=False).token is None
    assert read(token=True).token == "of-environment"


def test_a_cache_dir_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`~` and `..` are resolved once, so that changing the working directory moves no cache."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert read(cache_dir="~/a/../b").cache_dir == tmp_path / "b"
    assert read(cache_dir="c").cache_dir == tmp_path / "c"


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "a\0b"])
def test_a_cache_dir_that_can_be_none(path: str) -> None:
    """The home of nobody, or a name with NUL, is an InvalidArgumentError that shows it."""
    with pytest.raises(InvalidArgumentError, match="HF_HUB_CACHE or cache_dir"):
        read(cache_dir=path)


@pytest.mark.parametrize(
    "endpoint", ["hub", "ftp://hub", "http://", "http://hub:abc", "http://hub:99999999", "http://[x"]
)
def test_an_endpoint_that_is_no_url(endpoint: str) -> None:
    """An endpoint without scheme, host or a valid port is refused before any request."""
    with pytest.raises(InvalidArgumentError, match="not an http"):
        read(endpoint=endpoint)


@pytest.mark.parametrize("token", ["with space", "line\nbreak", "\N{LATIN SMALL LETTER E WITH ACUTE}", "x\x7f"])
def test_a_token_that_no_header_can_hold(token: str) -> None:
    """It is refused at once, and the error does not repeat it."""
    with pytest.raises(InvalidArgumentError, match="The token has characters") as caught:
        read(token=token)
    assert token not in str(caught.value)


def test_a_token_that_is_not_there() -> None:
    """token=True without a stored one says how to get one."""
    with pytest.raises(TokenMissingError, match="hf auth login"):
        read(token=True)


def test_offline_sends_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline no token is looked for; HF_HUB_OFFLINE holds against local_files_only=False."""
    assert read(local_files_only=True, token=True) == read(local_files_only=True)
    assert read(local_files_only=True).offline
    assert not read().offline
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert read().offline
    assert read(local_files_only=False).offline


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://endpoint.example/x", True),
        ("https://endpoint.example:443/x", True),
        ("HTTPS://Endpoint.Example/x", True),
        ("https://endpoint.example:8443/x", False),
        ("http://endpoint.example/x", False),
        ("https://endpoint.example.evil/x", False),
        ("https://evil/https://endpoint.example", False),
        ("https://endpoint.example@evil/", False),
        ("https://sub.endpoint.example/", False),
        ("https://huggingface.co/x", True),
        ("https://hf.co/x", True),
        ("https://hub-ci.huggingface.co/x", True),
        ("https://cdn-lfs.huggingface.co/x", False),
        ("http://huggingface.co/x", False),
    ],
)
def test_who_may_see_the_token(url: str, expected: bool) -> None:
    """The endpoint's origin and the Hub's own: scheme, host and port all count."""
    assert read(endpoint="https://endpoint.example/prefix").is_hub(url) is expected


def test_an_origin_has_its_port() -> None:
    """Default ports are filled in, names are lower case, IPv6 is understood."""
    assert origin_of("HTTP://A/b") == ("http", "a", 80)
    assert origin_of("https://[::1]/") == ("https", "::1", 443)
    assert origin_of("https://a:8/") == ("https", "a", 8)


def test_the_user_agent_can_be_a_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """It names this package first, and torch only where telemetry is on."""
    assert read().user_agent.startswith("yaie_async/")
    assert "torch" not in read().user_agent
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    assert "; torch/" in read().user_agent

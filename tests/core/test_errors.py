"""The error tree: base classes, attributes, pickling."""

from __future__ import annotations

import copy
import errno
import inspect
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import errors as official

import yaie_async
from yaie_async.core import errors

EXAMPLES: list[errors.LoaderError] = [
    errors.LoaderError("x", model="org/name", file="f"),
    errors.InvalidArgumentError("x", model="org/name"),
    errors.TokenMissingError("x"),
    errors.ModelNotFoundError(
        "x", model="org/name", status=401, url="https://hub/api", headers={"X-Request-Id": "r1", "Set-Cookie": "no"}
    ),
    errors.RevisionNotFoundError("x", revision="v9", model="org/name", status=404),
    errors.GatedModelError("x", model="org/name", status=403, server_message="said"),
    errors.ModelFileNotFoundError("x", model="org/name", file="f", status=404),
    errors.OfflineError("x", model="org/name"),
    errors.HubUnavailableError("x", model="org/name", attempts=6, status=503),
    errors.StalledError("x", model="org/name", attempts=3),
    errors.IntegrityError("x", expected="a", found="b", model="org/name", file="f"),
    errors.DiskFullError("x", needed=5, free=3, path="/cache", model="org/name"),
    errors.CacheAccessError("x", path="/cache", cause_errno=errno.EROFS),
    errors.IncompatibleModelError("x", architecture="T5", model="org/name"),
    errors.OutOfMemoryError("x", needed=5, free=3, device="cpu", model="org/name"),
    errors.TokenizerError("x", model="org/name"),
    errors.UnsafeFileError("x", model="org/name", file="../f"),
    errors.ClosedHubError("x"),
    errors.WarmupError("x", model="org/name"),
    errors.PrefetchError("x", failures={"a": errors.OfflineError("y", model="a")}, snapshots={"b": Path("/b")}),
]

BASES: dict[type[errors.LoaderError], tuple[type[BaseException], ...]] = {
    errors.InvalidArgumentError: (official.HFValidationError, ValueError),
    errors.TokenMissingError: (official.LocalTokenNotFoundError, OSError),
    errors.ModelNotFoundError: (official.RepositoryNotFoundError, official.HfHubHTTPError, httpx2.HTTPError, OSError),
    errors.RevisionNotFoundError: (official.RevisionNotFoundError, official.HfHubHTTPError),
    errors.GatedModelError: (official.GatedRepoError, official.RepositoryNotFoundError),
    errors.ModelFileNotFoundError: (official.RemoteEntryNotFoundError, official.EntryNotFoundError),
    errors.OfflineError: (official.OfflineModeIsEnabled, official.LocalEntryNotFoundError, FileNotFoundError),
    errors.HubUnavailableError: (official.HfHubHTTPError, official.LocalEntryNotFoundError),
    errors.StalledError: (errors.HubUnavailableError, TimeoutError),
    errors.IntegrityError: (OSError,),
    errors.DiskFullError: (OSError,),
    errors.CacheAccessError: (OSError,),
    errors.IncompatibleModelError: (ValueError,),
    errors.OutOfMemoryError: (MemoryError,),
    errors.TokenizerError: (ValueError,),
    errors.UnsafeFileError: (ValueError,),
    errors.ClosedHubError: (RuntimeError,),
    errors.WarmupError: (errors.LoaderError,),
    errors.PrefetchError: (ExceptionGroup,),
}

each = pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)


def attributes(error: errors.LoaderError) -> dict[str, Any]:
    """The attributes of an error, with requests and responses as text (they compare by identity)."""
    carried = {}
    for name, value in vars(error).items():
        if name in ("failures",):
            value = {model: (type(inner), str(inner)) for model, inner in value.items()}
        elif isinstance(value, httpx2.Response):
            value = (value.status_code, dict(value.headers), str(value.request.url))
        elif isinstance(value, httpx2.Request):
            value = str(value.url)
        carried[name] = value
    return carried


def test_there_is_an_example_of_every_error() -> None:
    """The list above has every error class, so that the tests below cover them all."""
    tree = {
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and issubclass(value, errors.LoaderError) and not value.__name__.startswith("_")
    }
    assert {type(error) for error in EXAMPLES} == tree
    assert {name.__name__ for name in tree} <= set(yaie_async.__all__)
    assert set(BASES) == tree - {errors.LoaderError}


@each
def test_it_survives_pickling_and_copying(error: errors.LoaderError) -> None:
    """Type, text and every attribute survive pickle at each protocol, copy and deepcopy."""
    twins = [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for twin in (*twins, copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is type(error)
        assert twin is not error
        assert str(twin) == str(error)
        assert twin.args == error.args
        assert attributes(twin) == attributes(error)


@each
def test_it_is_what_people_already_catch(error: errors.LoaderError) -> None:
    """Each error also has the base class that the official client or Python has for its case."""
    assert isinstance(error, errors.LoaderError)
    for base in BASES.get(type(error), ()):
        assert isinstance(error, base), base


@each
def test_its_text_is_its_message(error: errors.LoaderError) -> None:
    """Base classes that format their own text do not change the message."""
    assert str(error).startswith("x")
    assert repr(error)


def test_the_tree_is_drawn_as_it_is() -> None:
    """The module's docstring names every error."""
    drawn = errors.__doc__ or ""
    for error in EXAMPLES:
        assert f"{type(error).__name__} " in drawn or type(error) is errors.LoaderError


def test_a_response_is_kept_without_its_secrets() -> None:
    """An error has status, request id and response like the official ones; cookies are not kept."""
    error = EXAMPLES[3]
    assert isinstance(error, errors.ModelNotFoundError)
    assert error.response.status_code == error.status == 401
    assert error.request_id == "r1"
    assert error.request.url == "https://hub/api"
    assert "set-cookie" not in error.response.headers


def test_an_error_without_a_response_still_has_a_status() -> None:
    """`error.response.status_code`, which handlers read, always exists; `status` is None without a response."""
    error = errors.HubUnavailableError("x")
    assert error.status is None
    assert error.response.status_code == 503


def test_a_full_disk_has_its_errno() -> None:
    """DiskFullError has ENOSPC, and CacheAccessError the number of its cause."""
    assert errors.DiskFullError("x", needed=1, free=0, path="/").errno == errno.ENOSPC
    assert errors.CacheAccessError("x", path="/", cause_errno=errno.EACCES).errno == errno.EACCES


def test_a_prefetch_error_is_a_group_of_its_failures() -> None:
    """`except*` and `split` work on it, and the parts keep their models and the snapshots."""
    failures = {"a": errors.OfflineError("1", model="a"), "b": errors.IntegrityError("2", expected="", found="")}
    group = errors.PrefetchError("two", failures=failures, snapshots={"c": Path("/c")})
    assert list(group.exceptions) == list(failures.values())
    offline, rest = group.split(errors.OfflineError)
    assert isinstance(offline, errors.PrefetchError)
    assert isinstance(rest, errors.PrefetchError)
    assert (list(offline.failures), list(rest.failures)) == (["a"], ["b"])
    assert offline.snapshots == group.snapshots
    caught: list[Exception] = []
    try:
        raise group
    except* errors.IntegrityError as part:
        caught.extend(part.exceptions)
    except* errors.OfflineError:
        pass
    assert caught == [failures["b"]]


def test_importing_the_package_imports_nothing_heavy() -> None:
    """`import yaie_async` imports neither torch, transformers nor huggingface_hub, and costs little more than anyio and httpx."""
    script = """if True:
        import time, sys
        import anyio, httpx
        before, start = set(sys.modules), time.process_time()
        import yaie_async
        yaie_async.Hub, yaie_async.ModelLoader
        took = time.process_time() - start
        heavy = {"torch", "transformers", "huggingface_hub", "accelerate", "rich", "typer", "numpy", "httpx2"}
        print(heavy & set(sys.modules) - before or "nothing", took)
    """
    seconds = []
    for _ in range(3):  # the first may compile the modules, and a core that others share is slow
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        heavy, took = done.stdout.split()
        assert heavy == "nothing"
        seconds.append(float(took))
    assert min(seconds) < 0.1


def test_every_public_name_is_there() -> None:
    """Every name of `__all__` can be imported under the name that its module gives it; other names fail."""
    for name in yaie_async.__all__:
        assert getattr(yaie_async, name).__name__ == name
    assert set(yaie_async.__all__) <= set(dir(yaie_async))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = yaie_async.nothing


@pytest.mark.parametrize(
    "text",
    [
        "https://user:s3cretword@hub.example/x",
        "Bearer hf_s3cretword",
        "Basic s3cretword==",
        "the token hf_s3cretword12",
    ],
)
def test_no_secret_is_in_an_error(text: str) -> None:
    """Somebody has pasted it, or a server has sent it back."""
    error = errors.LoaderError(f"It can't be had: {text}", model=text)
    assert "s3cretword" not in f"{error} {error!r} {error.model}"

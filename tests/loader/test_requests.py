"""Tests of the requests to the Hub: their number, outages, and the token."""

import logging
from pathlib import Path
from typing import Any

import anyio
import pytest
from huggingface_hub import snapshot_download
from transformers import AutoTokenizer

from tests.loader.conftest import Put, prefetch
from tests.support import models
from tests.support.faults import Redirect, Stall, Status, without_blobs
from tests.support.hub import HubServer
from tests.support.stopwatch import Stopwatch
from yaie_async import (
    GatedModelError,
    HubUnavailableError,
    IncompatibleModelError,
    InvalidArgumentError,
    ModelLoader,
    ModelNotFoundError,
    OfflineError,
    RevisionNotFoundError,
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_retries")]


@pytest.fixture
def anyio_backend() -> str:
    """Runs these tests on asyncio only: the requests do not depend on the event loop."""
    return "asyncio"


async def test_a_cold_model_costs_one_request_and_its_bodies(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """A cold load sends one metadata request, one per small file, and a redirect and ranges for the LFS file."""
    put_fake("org/big")
    await prefetch(hub, tmp_path)
    kinds = [line.rsplit("/", 1)[0].split("/resolve/")[0] for line in hub.lines]
    assert kinds.count("GET /api/models/org/big/revision") == 1
    assert kinds.count("GET /org/big") == 4  # three small files, and the redirect of the LFS file
    assert not [line for line in hub.lines if line.startswith("HEAD")]
    bodies = [request for request in hub.requests if request.path.startswith("/cdn/")]
    assert len(bodies) <= 3  # of 9 MiB: the header, and ranges on two connections


async def test_a_mirror_without_sizes_is_asked_by_head_for_what_is_wanted(
    hub: HubServer, put: Put, tmp_path: Path
) -> None:
    """Without sizes in the listing there is a HEAD for each file that is fetched, and digests are verified."""
    put("gpt2", "gpt2_like_repo")
    hub.faults.add(without_blobs(), path="^/api/", times=None)
    snapshot = await prefetch(hub, tmp_path, "gpt2")
    heads = {line.rsplit("/", 1)[1] for line in hub.lines if line.startswith("HEAD")}
    assert heads == {path.name for path in snapshot.iterdir()}


async def test_a_mirror_that_does_not_know_expand(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """Where `?expand=sha` is refused, a HEAD of config.json has the commit of a cached branch."""
    put_fake("org/big")
    found = await prefetch(hub, tmp_path)
    hub.clear()
    hub.faults.add(Status(400), path="^/api/", times=None)
    assert await prefetch(hub, tmp_path) == found
    assert [line.split("/")[0] for line in hub.lines] == ["GET ", "HEAD "]


@pytest.mark.parametrize(
    "fault",
    [
        Status(500),
        Status(503, {"Retry-After": "0"}),
        Status(429),
        Status(401, {"X-Error-Code": "RepoNotFound"}),
        Status(403, {"X-Error-Code": "GatedRepo"}),
    ],
    ids=["500", "503", "429", "401", "gated"],
)
async def test_a_whole_snapshot_outlives_the_hub(
    fault: Status, hub: HubServer, put_fake: Put, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If the Hub is down or denies access, a complete snapshot is used, and that is logged."""
    put_fake("org/big")
    found = await prefetch(hub, tmp_path)
    hub.faults.add(fault, times=None)
    with caplog.at_level(logging.WARNING, "yaie_async"):
        assert await prefetch(hub, tmp_path) == found
    assert "using the cached snapshot" in caplog.text


async def test_a_hub_that_is_gone_is_the_same_as_one_that_is_down(
    hub: HubServer, put_fake: Put, tmp_path: Path
) -> None:
    """After a refused connection the cache is used; without a cache the error has the number of attempts."""
    put_fake("org/big")
    found = await prefetch(hub, tmp_path)
    gone: dict[str, Any] = {"endpoint": "http://127.0.0.1:9"}
    assert await ModelLoader("org/big", cache_dir=tmp_path, **gone).prefetch() == found
    with pytest.raises(HubUnavailableError, match=r"can't connect to 127\.0\.0\.1 \(Connection refused\)") as caught:
        await ModelLoader("org/other", cache_dir=tmp_path, **gone).prefetch()
    assert (caught.value.attempts, caught.value.status) == (3, None)
    assert isinstance(caught.value, OSError)


async def test_a_partial_snapshot_does_not_outlive_the_hub(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """An incomplete snapshot is not used during an outage: the Hub's failure is raised, and the next await retries."""
    put_fake("org/big")
    loader = ModelLoader("org/big", endpoint=hub.url, cache_dir=tmp_path)
    (await prefetch(hub, tmp_path) / "model.safetensors").unlink()
    hub.faults.add(Status(500), times=None)
    with pytest.raises(HubUnavailableError):
        await loader.prefetch()
    hub.faults.clear()
    assert (await loader.prefetch() / "model.safetensors").exists()


async def test_a_revision_that_is_gone_is_said(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """RevisionNotFound is not an outage: it is raised even if a snapshot is cached."""
    put_fake("org/big")
    await prefetch(hub, tmp_path)
    fault = Status(404, {"X-Error-Code": "RevisionNotFound"})
    hub.faults.add(fault, path="^/api/", times=None)
    with pytest.raises(RevisionNotFoundError) as caught:
        await prefetch(hub, tmp_path)
    assert caught.value.revision == "main"


async def test_unknown_model_and_revision(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """An unknown model and an unknown revision have different errors, which are also the official classes."""
    from huggingface_hub import errors as official

    put_fake("org/big")
    with pytest.raises(official.RepositoryNotFoundError) as missing:
        await prefetch(hub, tmp_path, "org/nothing")
    assert isinstance(missing.value, ModelNotFoundError)
    assert missing.value.model == "org/nothing"
    assert "HF_TOKEN" in str(missing.value)
    assert missing.value.response.status_code in (401, 404)
    with pytest.raises(official.RevisionNotFoundError) as revision:
        await prefetch(hub, tmp_path, revision="v9")
    assert isinstance(revision.value, RevisionNotFoundError)
    assert "'v9'" in str(revision.value)
    assert not list(tmp_path.rglob("snapshots"))


async def test_gated_with_and_without_a_token(hub_root: Path, put_fake: Put, tmp_path: Path) -> None:
    """For a gated model the error says to log in or, with a token without access, to request access."""
    from huggingface_hub import errors as official

    put_fake("org/big")
    with HubServer(hub_root, gated={"org/big": {"good"}}) as hub:
        with pytest.raises(official.GatedRepoError, match="hf auth login") as without:
            await prefetch(hub, tmp_path, token=False)
        assert isinstance(without.value, GatedModelError)
        with pytest.raises(GatedModelError, match="Ask for it") as denied:
            await prefetch(hub, tmp_path, token="poor")
        assert denied.value.model == "org/big"
        assert (await prefetch(hub, tmp_path, token="good")).exists()


async def test_the_token_goes_to_the_hub_only(hub_root: Path, put_fake: Put, tmp_path: Path) -> None:
    """The token is not sent after a redirect to the CDN or to another metadata host."""
    put_fake("org/big")
    with HubServer(hub_root, tokens=("secret",)) as hub, HubServer(hub_root) as elsewhere:
        await prefetch(hub, tmp_path / "one", token="secret")
        for request in hub.requests:
            expected = None if request.path.startswith("/cdn/") else "Bearer secret"
            assert request.authorization == expected, request.path
        hub.clear()
        hub.faults.add(Redirect(f"{elsewhere.url}/api/models/org/big/revision/main?blobs=true"), path="^/api/")
        await prefetch(hub, tmp_path / "two", token="secret")
        assert [request.authorization for request in elsewhere.requests] == [None]


async def test_offline_asks_nothing(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """Offline a cached model loads, and the error for another says how to download it."""
    put_fake("org/big")
    with pytest.raises(OfflineError, match="prefetch org/big"):
        await prefetch(hub, tmp_path, local_files_only=True)
    assert not hub.requests


async def test_a_silent_hub_is_cancelled_at_once(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """A cancel while the Hub is silent returns at once, and leaves no lock and no thread."""
    put_fake("org/big")
    hub.faults.add(Stall(-1), path="^/api/", times=None)
    watch = Stopwatch()
    with anyio.move_on_after(0.1):
        await prefetch(hub, tmp_path)
    assert watch.seconds < 1


@pytest.mark.parametrize(
    ("name", "revision"),
    [
        ("org/big", "main"),
        ("org/big\n", "main"),
        (" org/big/ ", "main"),
        ("https://huggingface.co/org/big", "main"),
        ("https://huggingface.co/org/big/\n", "main"),
        ("https://huggingface.co/org/big?library=transformers#usage", "main"),
        ("https://huggingface.co/org/big/tree/main", "main"),
        ("https://huggingface.co/org/big/tree/refs%2Fpr%2F1", "refs/pr/1"),
        ("https://huggingface.co/org/big/blob/v1/config.json", "v1"),
        ("https://huggingface.co/org/big/resolve/v1/sub/model.safetensors?download=true", "v1"),
        ("http://www.huggingface.co/org/big/commit/" + "a" * 40, "a" * 40),
        ("huggingface.co/org/big", "main"),
        ("hf.co/org/big", "main"),
        ("hf://org/big", "main"),
        ("{endpoint}/org/big/tree/v1", "v1"),
    ],
)
async def test_a_name_as_it_was_pasted(name: str, revision: str, hub: HubServer, tmp_path: Path) -> None:
    """Spaces and slashes at the ends are left out, and the URL of a page names its model and its revision."""
    hub.faults.add(Status(404, {"X-Error-Code": "RevisionNotFound"}), path="^/api/", times=None)
    with pytest.raises(RevisionNotFoundError) as caught:
        await prefetch(hub, tmp_path, name.format(endpoint=hub.url))
    assert (caught.value.model, caught.value.revision) == ("org/big", revision)
    assert {line.split("/revision/")[0] for line in hub.lines} == {"GET /api/models/org/big"}


async def test_the_page_of_a_model_without_an_organisation(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """Old models have one name, and a page of it is no model of the organisation of that name."""
    put_fake("gpt2")
    found = await prefetch(hub, tmp_path, "gpt2")
    for page in ("", "/", "/tree/main", "/blob/main/config.json"):
        assert await prefetch(hub, tmp_path, f"https://huggingface.co/gpt2{page}") == found


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("https://example.com/org/big", "is a URL, but not of a model on the Hub"),
        ("https://huggingface.co/datasets/org/big", "is a URL, but not of a model on the Hub"),
        ("https://huggingface.co/datasets/squad", "is a URL, but not of a model on the Hub"),
        ("https://huggingface.co/spaces/org/big", "is a URL, but not of a model on the Hub"),
        ("https://huggingface.co/org/big/discussions/1", "is a URL, but not of a model on the Hub"),
        ("https://huggingface.co/", "is a URL, but not of a model on the Hub"),
        ("file:///tmp/model", "is a URL, but not of a model on the Hub"),
        ("https://huggingface.co.evil.com/org/big", "is a URL, but not of a model on the Hub"),
        ("https://huggingface.co/org/big/tree/..%2F..", "not a valid revision"),
    ],
)
async def test_a_url_of_something_else(name: str, says: str, hub: HubServer, tmp_path: Path) -> None:
    """The error says that it was taken for a URL, and nothing is requested."""
    with pytest.raises(InvalidArgumentError, match=says):
        await prefetch(hub, tmp_path, name)
    assert not hub.requests


async def test_a_page_of_another_revision(hub: HubServer, tmp_path: Path) -> None:
    """A URL and `revision=` that name two revisions contradict each other."""
    with pytest.raises(InvalidArgumentError, match="'v1'.*'v2'"):
        await prefetch(hub, tmp_path, "https://huggingface.co/org/big/tree/v1", revision="v2")
    assert not hub.requests


async def test_an_empty_folder_is_no_model(
    hub: HubServer, put_fake: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty folder does not hide the Hub's model of its name, and the error for one with files says what it is."""
    put_fake("org/big")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "big").mkdir(parents=True)
    found = await prefetch(hub, tmp_path / "cache")
    assert found.is_relative_to(tmp_path / "cache")
    for path in ("./org/big", tmp_path / "org" / "big"):
        with pytest.raises(IncompatibleModelError, match="has no config.json"):
            await ModelLoader(path).prefetch()
    (tmp_path / "org" / "big" / "checkpoint-1").mkdir()
    with pytest.raises(IncompatibleModelError, match="big has no config.json.* directory of that name"):
        await prefetch(hub, tmp_path / "cache")


async def test_a_file_is_no_directory(hub: HubServer, put_fake: Put) -> None:
    """The path of a file gets an error that says so, with the directory to pass."""
    directory = put_fake("org/big")
    with pytest.raises(ModelNotFoundError, match=f"is a file.*Pass its directory, '{directory}'"):
        await ModelLoader(directory / "model.safetensors").prefetch()


async def test_a_path_as_it_was_pasted(put_fake: Put) -> None:
    """A path may end with a line break or a slash."""
    directory = put_fake("org/big")
    for end in ("\n", "/", "/\n"):
        assert await ModelLoader(f"{directory}{end}").prefetch() == directory


async def test_the_folder_of_a_cache(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """The folder `models--org--big` of a cache stands for its snapshot of the revision, without a request."""
    put_fake("org/big")
    snapshot = await prefetch(hub, tmp_path)
    hub.clear()
    folder = snapshot.parent.parent
    assert folder.name == "models--org--big"
    assert await prefetch(hub, tmp_path, str(folder)) == snapshot
    assert await prefetch(hub, tmp_path, f"{folder}/", revision=snapshot.name) == snapshot
    with pytest.raises(ModelNotFoundError, match="the folder of org/big in an HF cache.*'v1'.*Pass 'org/big'"):
        await prefetch(hub, tmp_path, str(folder), revision="v1")
    for outside in ("../snapshots", "a/../../x"):
        with pytest.raises(InvalidArgumentError, match="not a valid revision"):
            await prefetch(hub, tmp_path, str(folder), revision=outside)
    assert not hub.requests


@pytest.mark.parametrize("beside", [None, "adapter_config.json", "model.gguf"])
async def test_a_tokenizer_without_a_model(beside: str | None, hub: HubServer, hub_root: Path, tmp_path: Path) -> None:
    """A repository without config.json has a tokenizer as for AutoTokenizer: from the Hub, offline and a directory."""
    directory = hub_root / "org" / "tokenizer"
    models.bpe_tokenizer(directory)
    if beside is not None:
        (directory / beside).write_text('{"base_model_name_or_path": "org/base", "peft_type": "LORA"}')
    stock = AutoTokenizer.from_pretrained(str(directory))
    options: dict[str, Any] = {"endpoint": hub.url, "cache_dir": tmp_path / "cache"}
    snapshot_download("org/tokenizer", endpoint=hub.url, cache_dir=tmp_path / "official")
    found = {
        "cold": await ModelLoader("org/tokenizer", **options).load_tokenizer(),
        "warm": await ModelLoader("org/tokenizer", **options).load_tokenizer(),
    }
    hub.clear()
    found |= {
        "offline": await ModelLoader("org/tokenizer", local_files_only=True, **options).load_tokenizer(),
        "official": await ModelLoader(
            "org/tokenizer", local_files_only=True, cache_dir=tmp_path / "official"
        ).load_tokenizer(),
        "directory": await ModelLoader(directory).load_tokenizer(),
    }
    assert not hub.requests
    for place, tokenizer in found.items():
        assert type(tokenizer) is type(stock), place
        assert tokenizer.get_vocab() == stock.get_vocab(), place
        assert tokenizer("hello wörld").input_ids == stock("hello wörld").input_ids, place
        assert tokenizer.eos_token == stock.eos_token == tokenizer.pad_token, place
    with pytest.raises(IncompatibleModelError, match="has no config.json"):
        await ModelLoader("org/tokenizer", **options).load_model()


async def test_a_tokenizer_of_a_model_whose_config_is_still_missing(hub: HubServer, put: Put, tmp_path: Path) -> None:
    """Offline, the files that a killed fetch has left are not taken for a repository that has only a tokenizer."""
    put("org/tiny")
    snapshot = await prefetch(hub, tmp_path, "org/tiny")
    (snapshot / "config.json").unlink()
    (snapshot / "tokenizer_config.json").unlink()
    with pytest.raises(OfflineError):
        await prefetch(hub, tmp_path, "org/tiny", local_files_only=True)
    loader = ModelLoader("org/tiny", endpoint=hub.url, cache_dir=tmp_path, local_files_only=True)
    with pytest.raises(OfflineError):
        await loader.load_tokenizer()


async def test_an_adapter_without_a_tokenizer(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """Where neither a model nor a tokenizer is there, the error still says what the repository is."""
    directory = put_fake("org/big")
    for path in directory.iterdir():
        path.unlink()
    (directory / "adapter_config.json").write_text("{}")
    with pytest.raises(IncompatibleModelError, match="PEFT adapter"):
        await ModelLoader("org/big", endpoint=hub.url, cache_dir=tmp_path).load_tokenizer()

"""Tests of the attributes of log records: model, stage, file, bytes, seconds and retries."""

import logging
from pathlib import Path

import anyio
import pytest

from tests.loader.conftest import Put
from tests.support import models
from tests.support.faults import Cut, Status
from tests.support.hub import HubServer
from yaie_async import Hub, ModelLoader


@pytest.mark.usefixtures("quick_retries")
def test_records_of_a_load_with_failures(
    hub: HubServer, put: Put, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each retry and each file has a record: a listing that fails once, weights that break off twice."""
    directory = put("org/name")
    hub.faults.add(Status(503), path="^/api/")
    hub.faults.add(Cut(100), path="^/cdn/.*safetensors")
    hub.faults.add(Cut(50), path="^/cdn/.*safetensors")

    async def main() -> None:
        await ModelLoader("org/name", endpoint=hub.url, cache_dir=tmp_path).load()

    with caplog.at_level(logging.DEBUG, "yaie_async"):
        anyio.run(main)
    records = [record.__dict__ for record in caplog.records if record.name == "yaie_async"]
    assert {record["model"] for record in records} == {"org/name"}
    assert {"resolving", "downloading", "ready"} <= {record["stage"] for record in records}
    retried = [(one["file"], one["stage"], one["retries"]) for one in records if "Retrying in" in one["msg"]]
    weights = "model.safetensors"
    assert retried == [(None, "resolving", 1), (weights, "downloading", 1), (weights, "downloading", 2)]
    files = {one["file"]: (one["bytes"], one["retries"]) for one in records if "downloaded %s in" in one["msg"]}
    assert files == {path.name: (path.stat().st_size, 2 if path.name == weights else 0) for path in directory.iterdir()}
    assert all(one["seconds"] >= 0 for one in records if "downloaded %s in" in one["msg"])
    ready = {one["args"][1]: one["bytes"] for one in records if "is ready" in one["msg"]}
    assert ready["the model"] == sum(path.stat().st_size for path in directory.iterdir())
    assert "the tokenizer" in ready


def test_one_warning_of_a_masked_language_model(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each load warns once, whether it is built during the download, from the cache or from a directory."""
    directory = models.masked(hub.root / "org" / "bert")
    loaders = [ModelLoader("org/bert", endpoint=hub.url, cache_dir=tmp_path) for _ in range(2)]
    for loader in (*loaders, ModelLoader(directory)):
        caplog.clear()
        anyio.run(loader.load_model)
        ours = [record for record in caplog.records if record.name == "yaie_async"]
        (record,) = [record for record in ours if record.levelno >= logging.WARNING]
        assert f"{loader.model} (BertForMaskedLM) is a masked language model" in record.getMessage()


def test_records_of_a_prefetch_and_of_a_hub_that_is_down(
    hub: HubServer, put_fake: Put, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A prefetch logs its totals before the first body, and a fallback to the cache logs its model."""
    for name in ("org/a", "org/b"):
        put_fake(name, 1000)

    async def main() -> None:
        async with Hub(endpoint=hub.url, cache_dir=tmp_path) as one:
            await one.prefetch("org/a", "org/b")
            hub.faults.add(Status(500), times=None)
            await ModelLoader("org/a", hub=one).prefetch()

    with caplog.at_level(logging.INFO, "yaie_async"):
        anyio.run(main)
    records = [record.__dict__ for record in caplog.records]
    (total,) = [record["bytes"] for record in records if "models:" in record["msg"]]
    assert total == 2 * sum(path.stat().st_size for path in (hub.root / "org/a").iterdir())
    (fallen,) = [record for record in records if record["levelno"] == logging.WARNING]
    assert (fallen["model"], fallen["stage"]) == ("org/a", "resolving")
    assert all(
        {"model", "bytes", "bytes_total", "seconds"} <= record.keys() for record in records if record["msg"] == "%s"
    )


def test_no_record_has_the_signature_of_a_url(
    hub: HubServer, put: Put, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No record has the signature of a URL, which gives access to private files; httpx's own records do, at INFO."""
    put("org/name")
    with caplog.at_level(logging.INFO):
        anyio.run(ModelLoader("org/name", endpoint=hub.url, cache_dir=tmp_path).prefetch)
    assert any("Signature" in request.query for request in hub.requests)
    # uvicorn's records are those of the test's hub.
    told = [record.getMessage() for record in caplog.records if not record.name.startswith("uvicorn")]
    assert any("org/name" in text for text in told)
    assert not any("Signature" in text for text in told)

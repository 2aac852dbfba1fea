"""What a server may not slip in: bytes without a digest to check, another digest's spelling, another commit."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.fetch.fetching import nothing_is_linked, opened, put
from tests.support.faults import Both, Corrupt, EditJson, Headers, Strip, set_etag, without_blobs
from tests.support.hub import HubServer
from tests.support.loops import on_one_loop
from yaie_async import Hub, IntegrityError, InvalidArgumentError, ModelLoader, UnsafeFileError
from yaie_async.fetch.digest import digest_of
from yaie_async.fetch.metadata import listing_of

pytestmark = pytest.mark.anyio

WEIGHTS, NO_DIGEST = "model.safetensors", "W-1234-5678"


@pytest.fixture
def weights(hub_root: Path) -> bytes:
    return put(hub_root, 100_000)


async def test_a_digest_in_upper_case_is_compared(
    anyio_backend: Any, hub: HubServer, weights: bytes, tmp_path: Path
) -> None:
    """Right bytes are linked, under the very name that the server gave them; a flipped bit is found."""
    shouted = hashlib.sha256(weights).hexdigest().upper()
    hub.faults.add(set_etag(WEIGHTS, shouted), path="^/api/", times=None)
    async with opened(hub, tmp_path / "right") as one:
        snapshot = (await one.prefetch("org/big"))["org/big"]
    assert (snapshot / WEIGHTS).read_bytes() == weights
    assert (snapshot / WEIGHTS).resolve().name == shouted
    hub.faults.add(Corrupt(5_000), path="^/cdn/", times=None)
    with pytest.raises(IntegrityError, match="wrong contents twice"):
        async with opened(hub, tmp_path / "wrong") as one:
            await one.prefetch("org/big")
    nothing_is_linked(tmp_path / "wrong")


@on_one_loop
async def test_a_cached_blob_in_upper_case_is_compared(
    anyio_backend: Any, hub: HubServer, weights: bytes, tmp_path: Path
) -> None:
    """A blob that others have left under such a name is hashed before it is linked, and used if it is right."""
    shouted = hashlib.sha256(weights).hexdigest().upper()
    for left, fetched in ((weights, False), (bytes(len(weights)), True)):
        hub.clear()
        hub.faults.add(set_etag(WEIGHTS, shouted), path="^/api/", times=None)
        blob = tmp_path / str(fetched) / "models--org--big" / "blobs" / shouted
        blob.parent.mkdir(parents=True)
        blob.write_bytes(left)
        async with opened(hub, tmp_path / str(fetched)) as one:
            snapshot = (await one.prefetch("org/big"))["org/big"]
        assert (snapshot / WEIGHTS).read_bytes() == weights
        assert any(WEIGHTS in line for line in hub.lines) is fetched


async def test_weights_without_a_digest_are_named(
    anyio_backend: Any, hub: HubServer, weights: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are loaded, since a mirror may have none; a log line and the plan say so."""
    hub.faults.add(set_etag(WEIGHTS, NO_DIGEST), path="^/api/", times=None)
    with caplog.at_level(logging.WARNING, logger="yaie_async"):
        async with opened(hub, tmp_path) as one:
            loader = ModelLoader("org/big", hub=one)
            digests = {file.path: file.digest for file in (await loader.plan()).files}
            assert not caplog.records
            snapshot = await loader.prefetch()
    assert (digests[WEIGHTS], digests["config.json"]) == (None, "git-sha1")
    assert (snapshot / WEIGHTS).read_bytes() == weights
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{WEIGHTS} of org/big has no digest that its bytes can be checked by: they are taken as they come."
    )


@pytest.mark.parametrize("file", [WEIGHTS, "config.json"])
async def test_a_digest_may_be_required(
    file: str, anyio_backend: Any, hub: HubServer, weights: bytes, tmp_path: Path
) -> None:
    """Then no file comes without one, not from the cache either; files with digests load as ever."""
    async with opened(hub, tmp_path / "with", verify="require") as one:
        await one.prefetch("org/big")
    async with opened(hub, tmp_path / "with", verify="require") as one:
        await one.prefetch("org/big")
    hub.clear()
    hub.faults.add(set_etag(file, NO_DIGEST), path="^/api/", times=None)
    with pytest.raises(IntegrityError, match=f"{file} of org/big has no digest") as caught:
        async with opened(hub, tmp_path / "cold", verify="require") as one:
            await one.prefetch("org/big")
    assert (caught.value.found, caught.value.file) == (NO_DIGEST, file)
    assert not any("/cdn/" in line or "/resolve/" in line for line in hub.lines)
    nothing_is_linked(tmp_path / "cold")
    async with opened(hub, tmp_path / "warm") as one:
        await one.prefetch("org/big")
    for offline in (False, True):
        with pytest.raises(IntegrityError, match=f"{file} of org/big has no digest"):
            async with opened(hub, tmp_path / "warm", verify="require", local_files_only=offline) as one:
                await one.prefetch("org/big")


async def test_a_directory_of_links_has_no_digests(
    anyio_backend: Any, hub: HubServer, weights: bytes, tmp_path: Path
) -> None:
    """Nothing of it comes from a server: `verify="require"` does not refuse it, and its plan claims no check."""
    for file in (hub.root / "org" / "big").iterdir():
        (tmp_path / file.name).symlink_to(file)
    named_like_one = tmp_path / ("a" * 64)
    named_like_one.write_bytes(weights)
    (tmp_path / WEIGHTS).unlink()
    (tmp_path / WEIGHTS).symlink_to(named_like_one)
    async with opened(hub, tmp_path / "cache", verify="require") as one:
        loader = ModelLoader(tmp_path, hub=one)
        assert await loader.prefetch() == tmp_path
        assert {file.digest for file in (await loader.plan()).files} == {None}


@pytest.mark.parametrize("file", ["own.py", "other.bin", "model.pt"])
async def test_a_choice_by_patterns_refuses_them_too(
    file: str, anyio_backend: Any, hub: HubServer, weights: bytes, tmp_path: Path
) -> None:
    """A later load would take what is linked as it stands."""
    (hub.root / "org" / "big" / file).write_bytes(b"x")
    hub.faults.add(set_etag(file, NO_DIGEST), path="^/api/", times=None)
    with pytest.raises(UnsafeFileError, match=f"{file} of org/big has no digest"):
        async with opened(hub, tmp_path) as one:
            await one.prefetch("org/big", include=file)
    assert not list(tmp_path.glob(f"models--*/snapshots/*/{file}"))


def test_what_verify_may_be() -> None:
    with pytest.raises(InvalidArgumentError, match="verify must be True, False or \"require\", not 'always'"):
        Hub(verify="always")  # type: ignore[arg-type]


@pytest.mark.parametrize("file", ["modeling_own.py", "pytorch_model.bin"])
async def test_code_and_pickles_without_a_digest_are_refused(
    file: str, anyio_backend: Any, hub: HubServer, weights: bytes, tmp_path: Path
) -> None:
    """They would run whatever came. `verify=False` is the consent to that."""
    folder = hub.root / "org" / "big"
    (folder / file).write_bytes(b"raise SystemExit")
    if file.endswith(".bin"):
        (folder / WEIGHTS).unlink()
    hub.faults.add(set_etag(file, NO_DIGEST), path="^/api/", times=None)
    with pytest.raises(UnsafeFileError, match=f"{file} of org/big has no digest"):
        async with opened(hub, tmp_path) as one:
            await ModelLoader("org/big", hub=one, trust_remote_code=True).prefetch()
    assert not list(tmp_path.glob(f"models--*/snapshots/*/{file}"))
    async with opened(hub, tmp_path, verify=False) as one:
        snapshot = await ModelLoader("org/big", hub=one, trust_remote_code=True).prefetch()
    assert (snapshot / file).read_bytes() == b"raise SystemExit"


@pytest.mark.parametrize("by_head", [False, True])
async def test_another_commit_than_the_pinned_one(
    by_head: bool, anyio_backend: Any, hub: HubServer, weights: bytes, tmp_path: Path
) -> None:
    """It is refused by both names, from a listing and from the answer to a HEAD."""
    other = "b" * 40
    async with opened(hub, tmp_path / "known") as one:
        commit = (await one.prefetch("org/big"))["org/big"].name
    if by_head:
        hub.faults.add(without_blobs(), path="^/api/", times=None)
        hub.faults.add(Headers({"X-Repo-Commit": other}), path="/resolve/", times=None)
    else:
        hub.faults.add(EditJson(lambda info: info.update(sha=other)), path="^/api/", times=None)
    with pytest.raises(IntegrityError, match=f"the commit {other} to a request for .*org/big at {commit}") as caught:
        async with opened(hub, tmp_path / "new") as one:
            await ModelLoader("org/big", revision=commit, hub=one).prefetch()
    assert (caught.value.expected, caught.value.found) == (commit, other)
    nothing_is_linked(tmp_path / "new")


def _mirror(hub: HubServer, etag: str, file: str = WEIGHTS) -> None:
    """Make the hub a mirror that knows a file by an ETag of its own alone."""
    hub.faults.add(without_blobs(), path="^/api/", times=None)
    own = Both(Strip("X-Linked-Etag", "X-Linked-Size", "X-Repo-Commit"), Headers({"ETag": f'"{etag}"'}))
    hub.faults.add(own, method="HEAD", path=f"{file}$", times=None)


async def test_an_etag_that_is_the_sha1_of_the_bytes_verifies(
    anyio_backend: Any, hub: HubServer, weights: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Artifactory's is that, where the Hub's is git's or a sha256."""
    etag = hashlib.sha1(weights).hexdigest()
    _mirror(hub, etag)
    async with opened(hub, tmp_path) as one:
        snapshot = (await one.prefetch("org/big"))["org/big"]
    assert (snapshot / WEIGHTS).resolve().name == etag
    assert "no digest" not in caplog.text
    assert await anyio.to_thread.run_sync(digest_of, snapshot / WEIGHTS, etag) == etag  # for `verify` too


@pytest.mark.parametrize("length", [40, 64])
async def test_an_etag_of_a_mirror_may_be_anything(
    length: int, anyio_backend: Any, hub: HubServer, weights: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One that looks like a digest and is none says nothing about the bytes: they are taken, once, with a warning."""
    _mirror(hub, ("c0ffee" * 11)[:length])
    async with opened(hub, tmp_path) as one:
        (file,) = [file for file in (await ModelLoader("org/big", hub=one).plan()).files if file.path == WEIGHTS]
        assert file.digest is None
        snapshot = (await one.prefetch("org/big"))["org/big"]
        assert await ModelLoader("org/big", hub=one).prefetch() == snapshot
    assert (snapshot / WEIGHTS).read_bytes() == weights
    assert len([request for request in hub.requests if request.path.startswith("/cdn/") and request.sent > 1]) == 1
    (record,) = [record for record in caplog.records if "no digest" in record.getMessage()]
    assert record.levelname == "WARNING"


@on_one_loop
@pytest.mark.parametrize("required", ["everything", "code"])
async def test_a_mirror_s_etag_does_not_do_for_code(
    required: str, anyio_backend: Any, hub_root: Path, hub: HubServer, weights: bytes, tmp_path: Path
) -> None:
    """What runs as code, and all files where a digest is required, have to match what the server names."""
    file = WEIGHTS if required == "everything" else "modeling_big.py"
    (hub_root / "org/big" / "modeling_big.py").write_text("print(1)")
    _mirror(hub, "c0ffee" * 6 + "c0ff", file)
    async with opened(hub, tmp_path, verify="require" if required == "everything" else True) as one:
        with pytest.raises(IntegrityError, match="wrong contents twice") as caught:
            await ModelLoader("org/big", hub=one, trust_remote_code=True).prefetch()
    assert caught.value.file == file
    assert not list(tmp_path.glob(f"models--*/snapshots/*/{file}"))


async def test_two_files_with_one_etag_are_not_one(
    anyio_backend: Any, hub_root: Path, hub: HubServer, tmp_path: Path
) -> None:
    """An ETag that is no digest names no content: nginx gives files of one size and second the same."""
    put(hub_root, 1000)
    (hub_root / "org/big" / "special_tokens_map.json").write_text("[]")

    def edit(info: Any) -> None:
        for sibling in info["siblings"]:
            if sibling["rfilename"] in ("special_tokens_map.json", "tokenizer_config.json"):
                sibling["blobId"] = NO_DIGEST

    hub.faults.add(EditJson(edit), path="/revision/", times=None)
    async with opened(hub, tmp_path) as one:
        with pytest.raises(IntegrityError, match="can't be told apart"):
            await one.prefetch("org/big")


async def test_another_commit_than_the_pinned_one_with_a_body(
    anyio_backend: Any, hub: HubServer, weights: bytes, tmp_path: Path
) -> None:
    """The answer to a request for a file says its commit too."""
    async with opened(hub, tmp_path) as one:
        listing = await listing_of(one.session, "org/big", "main")
        hub.faults.add(Headers({"X-Repo-Commit": "f" * 40}), method="GET", path="/resolve/", times=None)
        with pytest.raises(IntegrityError, match="f{40} to a request for"):
            await one.prefetch("org/big", revision=listing.commit)


def test_the_plan_on_the_command_line_names_what_has_no_digest(hub: HubServer, weights: bytes, tmp_path: Path) -> None:
    from yaie_async.cli.options import LoadOptions
    from yaie_async.cli.plan import plan

    hub.faults.add(set_etag(WEIGHTS, NO_DIGEST), path="^/api/", times=None)
    options = LoadOptions(tmp_path, None, hub.url, False, None, False, False)
    result = plan(["org/big"], options, dtype="float16")
    assert f"org/big: no digest to check {WEIGHTS} by." in [line for line in result.lines if isinstance(line, str)]
    files = json.loads(json.dumps(result.document))["models"]["org/big"]["files"]
    assert {file["path"]: file["digest"] for file in files}[WEIGHTS] is None

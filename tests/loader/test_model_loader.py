"""Tests of ModelLoader: one shared load from one commit, and no work before the first await."""

import asyncio
import inspect
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.loader.conftest import Put
from tests.support.faults import Cut, Stall, Status
from tests.support.hub import HubServer
from tests.support.loops import on_one_loop
from yaie_async import (
    ClosedHubError,
    Hub,
    HubUnavailableError,
    IncompatibleModelError,
    InvalidArgumentError,
    ModelLoader,
    ModelNotFoundError,
    TokenizerError,
    UnsafeFileError,
)

pytestmark = pytest.mark.anyio


def test_the_signature_is_the_documented_one() -> None:
    """The arguments, their order and their defaults are part of the public interface."""
    parameters = inspect.signature(ModelLoader).parameters
    assert {name: one.default for name, one in parameters.items() if one.default is not one.empty} == {
        "revision": None,
        "dtype": "float16",
        "device_map": "auto",
        "hub": None,
        "cache_dir": None,
        "token": None,
        "endpoint": None,
        "local_files_only": None,
        "trust_remote_code": False,
        "allow_pickle": True,
        "responsive": True,
        "on_progress": None,
    }
    assert list(inspect.signature(Hub).parameters) == [
        "cache_dir",
        "token",
        "endpoint",
        "local_files_only",
        "max_connections",
        "max_bytes_per_second",
        "verify",
        "allow_private_redirects",
        "client",
        "on_progress",
    ]


def test_nothing_happens_before_the_first_await(hub: HubServer, tmp_path: Path) -> None:
    """The constructor reads, imports and sends nothing, whatever its arguments."""
    code = (
        "import sys; from yaie_async import ModelLoader, Hub\n"
        "ModelLoader('/no/such/directory'); ModelLoader('not a valid id !', hub=Hub())\n"
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'httpx2', 'rich', 'tenacity'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    ModelLoader("org/tiny", endpoint=hub.url, cache_dir=tmp_path / "cache")
    assert not hub.requests
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "options", [{"cache_dir": "x"}, {"token": "x"}, {"endpoint": "http://x"}, {"local_files_only": True}]
)
def test_what_belongs_to_the_hub_is_not_taken_beside_one(options: dict[str, Any]) -> None:
    """`hub=` together with an argument of Hub is an error that names the argument."""
    with pytest.raises(InvalidArgumentError, match=next(iter(options))):
        ModelLoader("org/tiny", hub=Hub(), **options)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ModelLoader("x", dtype="bfloat16", torch_dtype="float32"), "torch_dtype"),
        (lambda: ModelLoader("x", gguf_file="x.gguf"), "gguf_file"),
        (lambda: ModelLoader("x", force_download=True), "force_download"),
        (lambda: ModelLoader("x", use_safetensors=False, allow_pickle=False), "use_safetensors"),
        (lambda: Hub(max_connections=0), "max_connections"),
        (lambda: Hub(max_bytes_per_second=0), "max_bytes_per_second"),
    ],
)
def test_arguments_that_can_t_be_meant_are_refused_at_once(make: Any, says: str) -> None:
    """Contradictory arguments and reserved keywords raise in the constructor."""
    with pytest.raises(InvalidArgumentError, match=says):
        make()


async def test_model_and_tokenizer_come_from_one_commit(hub: HubServer, put: Put, tmp_path: Path) -> None:
    """`load` returns both, in the default dtype and with a pad token, after one metadata request."""
    put("org/tiny")
    loader = ModelLoader("org/tiny", endpoint=hub.url, cache_dir=tmp_path)
    model, tokenizer = await loader.load()
    assert str(model.dtype) == "torch.float16"
    assert not model.training
    assert tokenizer.pad_token is not None
    assert [line for line in hub.lines if "/api/" in line] == ["GET /api/models/org/tiny/revision/main"]
    assert loader.commit is not None
    assert {path.split("/")[4] for path in hub.lines if "/resolve/" in path} == {loader.commit}


async def test_a_branch_that_moves_does_not_split_model_and_tokenizer(hub: HubServer, put: Put, tmp_path: Path) -> None:
    """A loader keeps its commit once resolved; a new loader gets the new commit."""
    directory = put("org/tiny")
    loader = ModelLoader("org/tiny", endpoint=hub.url, cache_dir=tmp_path)
    await loader.load_tokenizer()
    first = loader.commit
    hub.clear()
    again = await loader.load_tokenizer()
    assert again is await loader.load_tokenizer()
    assert not hub.requests
    (directory / "notes.txt").write_text("new commit")
    assert (await loader.plan()).commit == first
    assert (await ModelLoader("org/tiny", endpoint=hub.url, cache_dir=tmp_path).plan()).commit != first


async def test_concurrent_awaits_share_one_load(hub: HubServer, put: Put, tmp_path: Path) -> None:
    """Ten tasks that await one loader get the same object, and its bytes are sent once."""
    put("org/tiny")
    loader = ModelLoader("org/tiny", endpoint=hub.url, cache_dir=tmp_path)
    got: list[Any] = []

    async def one() -> None:
        got.append(await loader.load_model())

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(one)
    assert len({id(model) for model in got}) == 1
    assert await loader.load_model() is got[0]
    assert len([line for line in hub.lines if line.startswith("GET /cdn/")]) == 1


async def test_ten_loaders_fetch_one_model_once(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """Ten loaders on one event loop share the implicit Hub, so each blob is fetched once."""
    directory = put_fake("org/big")

    async def one() -> None:
        await ModelLoader("org/big", endpoint=hub.url, cache_dir=tmp_path).prefetch()

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(one)
    sent = sum(request.sent for request in hub.requests if request.path.startswith("/cdn/"))
    assert sent == (directory / "model.safetensors").stat().st_size


async def test_the_next_waiter_takes_over_from_a_cancelled_one(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """If the loading task is cancelled, the next waiter continues from the bytes on disk."""
    directory = put_fake("org/big", 12 << 20)
    stall = Stall(100)
    hub.faults.add(stall, path="^/cdn/", when=lambda request: request.range is not None, times=1)
    loader = ModelLoader("org/big", endpoint=hub.url, cache_dir=tmp_path)
    done: list[Path] = []

    async def second() -> None:
        done.append(await loader.prefetch())

    scope = anyio.CancelScope()

    async def leader() -> None:
        with scope:
            await loader.prefetch()

    async with anyio.create_task_group() as group:
        group.start_soon(leader)
        await hub.until(lambda: len([r for r in hub.requests if r.path.startswith("/cdn/")]) >= 3)
        group.start_soon(second)
        await anyio.sleep(0.02)
        scope.cancel()
    assert (done[0] / "model.safetensors").read_bytes() == (directory / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("quick_retries")
async def test_a_failure_is_not_remembered(hub: HubServer, put: Put, tmp_path: Path) -> None:
    """Each waiter gets its own copy of the error; the next await tries again and succeeds."""
    put("org/tiny")
    hub.faults.add(Status(500), path="/api/", times=3)
    loader = ModelLoader("org/tiny", endpoint=hub.url, cache_dir=tmp_path)
    errors: list[HubUnavailableError] = []

    async def one() -> None:
        with pytest.raises(HubUnavailableError) as caught:
            await loader.load_tokenizer()
        errors.append(caught.value)

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(one)
    assert len({id(error) for error in errors}) == 4
    assert {(error.status, error.attempts, str(error)) for error in errors} == {(500, 3, str(errors[0]))}
    assert all(error.__cause__ is not None for error in errors)
    assert (await loader.load_tokenizer()).eos_token is not None


async def test_a_directory_never_touches_the_network(put: Put, hub: HubServer, made: Any, tmp_path: Path) -> None:
    """A directory has no commit, and every method works without a Hub."""
    loader = ModelLoader(made("llama"), endpoint=hub.url)
    model, tokenizer = await loader.load()
    assert loader.commit is None
    assert await loader.prefetch() == made("llama")
    assert (await loader.plan()).bytes_to_fetch == 0
    assert model.name_or_path == str(made("llama"))
    assert tokenizer.pad_token is not None
    assert not hub.requests


@on_one_loop
@pytest.mark.parametrize("name", ["./org/tiny", "~/no-such-directory", "/no/such/directory", "../no-such"])
async def test_a_path_is_never_asked_of_the_hub(
    name: str, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing path is an error that says so, without a request."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match="The directory .* does not exist") as caught:
        await ModelLoader(name, endpoint=hub.url, cache_dir=tmp_path).prefetch()
    assert caught.value.model == name
    assert not hub.requests


async def test_a_bare_name_is_a_directory_if_one_is_there(
    hub: HubServer, put: Put, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`tiny` is ./tiny if that exists, else a Hub id; a path object is always a directory."""
    put("tiny")
    monkeypatch.chdir(tmp_path)
    assert "models--tiny" in str(await ModelLoader("tiny", endpoint=hub.url, cache_dir=tmp_path / "c").prefetch())
    hub.clear()
    os.symlink(made("llama"), tmp_path / "tiny")
    assert await ModelLoader("tiny", endpoint=hub.url).prefetch() == tmp_path / "tiny"
    assert not hub.requests
    with pytest.raises(ModelNotFoundError):
        await ModelLoader(Path("org/elsewhere"), endpoint=hub.url).prefetch()


@on_one_loop
@pytest.mark.parametrize("name", ["", "a/b/c", "a b", "https://example.com/gpt2", "x" * 200, "a--b", "\0"])
async def test_a_bad_repo_id_is_refused_without_a_request(name: str, hub: HubServer, tmp_path: Path) -> None:
    """An invalid repo id is an InvalidArgumentError, which is also the official HFValidationError."""
    with pytest.raises(InvalidArgumentError):
        await ModelLoader(name, endpoint=hub.url, cache_dir=tmp_path).prefetch()
    assert not hub.requests


@on_one_loop
@pytest.mark.parametrize("revision", ["../../x", "/etc", "", "a//b"])
async def test_a_bad_revision_is_refused_without_a_request(revision: str, hub: HubServer, tmp_path: Path) -> None:
    """A revision is part of a path in the cache, so one that leaves the cache is refused."""
    with pytest.raises(InvalidArgumentError):
        await ModelLoader("org/tiny", revision=revision, endpoint=hub.url, cache_dir=tmp_path).prefetch()
    assert not hub.requests


async def test_prefetch_never_imports_torch(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """A script that only prefetches imports neither torch nor transformers."""
    put_fake("org/big")
    code = (
        "import anyio, sys; from yaie_async import ModelLoader\n"
        f"loader = ModelLoader('org/big', endpoint={hub.url!r}, cache_dir={str(tmp_path)!r})\n"
        "anyio.run(loader.prefetch); anyio.run(loader.plan)\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    await anyio.run_process([sys.executable, "-c", code])


async def test_a_plan_tells_what_a_load_then_fetches(hub: HubServer, put: Put, tmp_path: Path) -> None:
    """The files and bytes of a plan are those that a load fetches; a later plan lists them as cached."""
    put("org/tiny", "gpt2_like_repo")
    loader = ModelLoader("org/tiny", endpoint=hub.url, cache_dir=tmp_path)
    plan = await loader.plan()
    assert plan.bytes_to_fetch > 0
    assert plan.bytes_cached == 0
    assert plan.fits
    assert plan.memory > 0
    snapshot = await loader.prefetch()
    fetched = {path.name: path.stat().st_size for path in snapshot.iterdir()}
    assert {file.path: file.size for file in plan.files} == fetched
    after = await loader.plan()
    assert (after.bytes_to_fetch, after.bytes_cached) == (0, plan.bytes_to_fetch)


async def test_one_weight_set_of_a_repository_that_has_five(hub: HubServer, put: Put, tmp_path: Path) -> None:
    """From a repository in the layout of gpt2 only the safetensors, config and tokenizer files are fetched."""
    put("gpt2", "gpt2_like_repo")
    snapshot = await ModelLoader("gpt2", endpoint=hub.url, cache_dir=tmp_path).prefetch()
    names = {path.name for path in snapshot.rglob("*") if path.is_file()}
    assert "model.safetensors" in names
    assert not [n for n in names if re.search(r"\.(bin|h5|msgpack|onnx|tflite|ot)$", n)]


async def test_code_is_fetched_with_consent_only(hub: HubServer, put: Put, tmp_path: Path) -> None:
    """Without trust_remote_code no .py file is fetched, and the error names the argument."""
    put("org/code", "remote_code")
    with pytest.raises(UnsafeFileError, match="trust_remote_code"):
        await ModelLoader("org/code", endpoint=hub.url, cache_dir=tmp_path).load_model()
    assert not [line for line in hub.lines if line.endswith(".py")]
    loader = ModelLoader("org/code", endpoint=hub.url, cache_dir=tmp_path, trust_remote_code=True)
    model = await loader.load_model()
    assert type(model).__name__ == "TinyForCausalLM"


async def test_pickles_can_be_refused(hub: HubServer, put: Put, tmp_path: Path) -> None:
    """allow_pickle=False refuses a repository with pickles only, before fetching weights."""
    put("org/bin", "dialogpt")
    with pytest.raises(UnsafeFileError, match=r"pytorch_model\.bin"):
        await ModelLoader("org/bin", endpoint=hub.url, cache_dir=tmp_path, allow_pickle=False).load_model()
    assert not [line for line in hub.lines if "pytorch_model" in line]
    model = await ModelLoader("org/bin", endpoint=hub.url, cache_dir=tmp_path).load_model()
    assert type(model).__name__ == "GPT2LMHeadModel"


@pytest.mark.parametrize("kind", ["t5", "gpt2_classifier"])
async def test_a_wrong_architecture_is_refused_before_its_weights_arrive(
    kind: str, hub: HubServer, put: Put, tmp_path: Path
) -> None:
    """A wrong architecture is refused while the server still withholds the weights."""
    put("org/wrong", kind)
    hub.faults.add(Stall(10), path="^/cdn/.*safetensors", times=None)
    with anyio.fail_after(60), pytest.raises(IncompatibleModelError) as caught:
        await ModelLoader("org/wrong", endpoint=hub.url, cache_dir=tmp_path).load_model()
    assert caught.value.architecture in ("T5ForConditionalGeneration", "GPT2ForSequenceClassification")
    assert "org/wrong" in str(caught.value)


async def test_a_bad_dtype_is_refused(hub: HubServer, put: Put, tmp_path: Path) -> None:
    """An unknown dtype is an InvalidArgumentError."""
    put("org/tiny")
    with pytest.raises(InvalidArgumentError, match="float17"):
        await ModelLoader("org/tiny", endpoint=hub.url, cache_dir=tmp_path, dtype="float17").load_model()


async def test_an_unknown_keyword_is_named(hub: HubServer, put: Put, tmp_path: Path) -> None:
    """A keyword that from_pretrained does not know is an InvalidArgumentError that names it."""
    put("org/tiny")
    with pytest.raises(InvalidArgumentError, match="no_such_option"):
        await ModelLoader("org/tiny", endpoint=hub.url, cache_dir=tmp_path, no_such_option=1).load_model()


async def test_torch_dtype_is_dtype(made: Any) -> None:
    """`torch_dtype`, transformers' old name, is accepted for `dtype`."""
    model = await ModelLoader(made("llama"), torch_dtype="float32").load_model()
    assert str(model.dtype) == "torch.float32"


async def test_a_tokenizer_without_pad_and_eos_is_an_error(made: Any, tmp_path: Path) -> None:
    """A tokenizer without pad and eos tokens is an error that says what to do."""
    import shutil

    from tests.support import models

    directory = Path(shutil.copytree(made("llama"), tmp_path / "m"))
    models.bpe_tokenizer(directory, eos=False)
    with pytest.raises(TokenizerError, match="pad"):
        await ModelLoader(directory).load_tokenizer()


async def test_unload_drops_the_model(made: Any) -> None:
    """After unload the package holds no reference to the model, and the next await loads again."""
    import weakref

    loader = ModelLoader(made("llama"))
    model = await loader.load_model()
    gone = weakref.ref(model)
    del model
    await loader.unload()
    assert gone() is None
    assert await loader.load_model() is not None


async def test_loaders_share_a_hub_that_closes_with_the_last(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """There is one implicit Hub per cache, endpoint and token, which exists only while it is used."""
    from yaie_async.loader import model_loader

    put_fake("org/big")
    stall = Stall(-1)
    hub.faults.add(stall, path="^/api/", times=None)
    options: dict[str, Any] = {"endpoint": hub.url, "cache_dir": str(tmp_path)}
    async with anyio.create_task_group() as group:
        for token in (None, None, "other"):
            group.start_soon(ModelLoader("org/big", token=token, **options).prefetch)
        await hub.until(lambda: len(hub.requests) == 3)
        hubs = dict(model_loader._shared_hubs.get({}))
        assert len(hubs) == 2
        assert all(one.session for one in hubs.values())
        stall.gate.open()
    assert not model_loader._shared_hubs.get({})
    for one in hubs.values():
        with pytest.raises(ClosedHubError):
            _ = one.session


async def test_a_hub_of_another_loop_is_refused(hub: HubServer) -> None:
    """An open Hub belongs to its event loop."""
    failed: list[BaseException] = []
    async with Hub(endpoint=hub.url) as opened:

        def elsewhere() -> None:
            async def use() -> None:
                async with opened:
                    pass

            try:
                asyncio.run(use())
            except ClosedHubError as error:
                failed.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        await anyio.to_thread.run_sync(thread.join)
    assert "another event loop" in str(failed[0])
    with pytest.raises(ClosedHubError, match="not open"):
        _ = opened.session


def test_forks(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """A Hub opened before a fork raises in the child; a loader made before one works there."""
    put_fake("org/big")
    code = (
        "import anyio, os, sys\n"
        "from yaie_async import ClosedHubError, Hub, ModelLoader\n"
        f"options = dict(endpoint={hub.url!r}, cache_dir={str(tmp_path)!r})\n"
        "loader = ModelLoader('org/big', **options)\n"
        "async def main():\n"
        "    async with Hub(**options) as hub:\n"
        "        inside = ModelLoader('org/big', hub=hub)\n"
        "        child = os.fork()\n"
        "        if child:\n"
        "            assert os.waitpid(child, 0)[1] == 0\n"
        "            return\n"
        "        import threading\n"
        "        def fresh():\n"
        "            anyio.run(loader.prefetch)\n"
        "            try:\n"
        "                anyio.run(inside.prefetch)\n"
        "            except ClosedHubError as error:\n"
        "                assert 'fork' in str(error)\n"
        "                os._exit(0)\n"
        "            os._exit(1)\n"
        "        threading.Thread(target=fresh).start()\n"
        "        import time; time.sleep(20)\n"
        "anyio.run(main)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


async def test_no_exception_group_escapes(hub: HubServer, put_fake: Put, tmp_path: Path) -> None:
    """If many ranges and files fail at once, one LoaderError is raised."""
    put_fake("org/big", 20 << 20)
    hub.faults.add(Status(404), path="^/cdn/", times=None)
    hub.faults.add(Cut(10), path="tokenizer", times=None)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - its very type is the point
        await ModelLoader("org/big", endpoint=hub.url, cache_dir=tmp_path).prefetch()
    assert type(caught.value).__name__ == "ModelFileNotFoundError"

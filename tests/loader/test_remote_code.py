"""Models whose code is in another repository, and what their own code reads beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.loader.conftest import Put
from tests.model.test_model import assert_same_parts, stock_model
from tests.support.faults import Corrupt, Headers, StallAt, without_blobs
from tests.support.hub import HubServer
from tests.support.layouts import edit_json
from tests.support.loops import on_one_loop
from yaie_async import Hub, IntegrityError, LoaderError, ModelLoader, ModelNotFoundError, UnsafeFileError

pytestmark = [pytest.mark.anyio, on_one_loop]


@pytest.fixture
def elsewhere(put: Put, hub_root: Path) -> Path:
    """A model of org/model, whose code is in org/code alone."""
    directory = put("org/model", "remote-code".replace("-", "_"))
    code = hub_root / "org" / "code"
    code.mkdir()
    for path in directory.glob("*.py"):
        path.rename(code / path.name)

    def point_there(config: Any) -> None:
        config["auto_map"] = {name: f"org/code--{reference}" for name, reference in config["auto_map"].items()}

    edit_json(directory / "config.json", point_there)
    return directory


def whole(elsewhere: Path, place: Path) -> Path:
    """The same model with its code beside it."""
    shutil.copytree(elsewhere, place)
    for path in (elsewhere.parent / "code").glob("*.py"):
        shutil.copy(path, place)
    edit_json(place / "config.json", lambda config: config.update(auto_map=_own(config["auto_map"])))
    return place


def _own(auto_map: dict[str, str]) -> dict[str, str]:
    return {name: reference.partition("--")[2] for name, reference in auto_map.items()}


@pytest.mark.parametrize("place", ["hub", "directory"])
async def test_it_is_fetched_with_consent(
    place: str, anyio_backend: Any, elsewhere: Path, hub: HubServer, tmp_path: Path
) -> None:
    """The model is stock's; after a prefetch it loads without the network; the code has a commit of its own."""
    expected = stock_model(str(whole(elsewhere, tmp_path / "whole")), "float16")
    async with Hub(endpoint=hub.url, cache_dir=tmp_path / "cache") as one:
        name = "org/model" if place == "hub" else str(elsewhere)
        await ModelLoader(name, hub=one, trust_remote_code=True).prefetch()
        cached = list(tmp_path.glob("cache/models--org--code/snapshots/*/*.py"))
        assert {path.name for path in cached} == {"modeling_tiny.py", "configuration_tiny.py"}
        hub.clear()
        # The Hub is gone: what is cached serves.
        hub.faults.add(StallAt(0), path="/org/code/", times=None)
    async with Hub(cache_dir=tmp_path / "cache", local_files_only=True) as one:
        built = await ModelLoader(name, hub=one, trust_remote_code=True).load_model()
    assert_ours(built, expected)
    assert not hub.requests
    # A cold load is right too, and transformers asks for nothing by itself.
    hub.clear()
    async with Hub(endpoint=hub.url, cache_dir=tmp_path / "cold") as one:
        assert_ours(await ModelLoader(name, hub=one, trust_remote_code=True).load_model(), expected)
    assert all("yaie_async/" in request.headers["user-agent"] for request in hub.requests)


def assert_ours(built: Any, expected: Any) -> None:
    for model in (built, expected):
        model.name_or_path = model.config.name_or_path = ""
        model.config.auto_map = None
    assert_same_parts(built, expected)


async def test_no_weights_are_requested_before_the_code(
    anyio_backend: Any, elsewhere: Path, hub: HubServer, tmp_path: Path
) -> None:
    """Where there is consent to run code."""
    async with Hub(endpoint=hub.url, cache_dir=tmp_path) as one:
        await ModelLoader("org/model", hub=one, trust_remote_code=True).prefetch()
    paths = [request.path for request in hub.requests]
    weights = min(i for i, path in enumerate(paths) if path.endswith(".safetensors"))
    assert weights > max(i for i, path in enumerate(paths) if path.endswith(".py"))


async def test_code_with_a_wrong_digest_is_not_run(
    anyio_backend: Any, elsewhere: Path, hub: HubServer, tmp_path: Path
) -> None:
    """Nor is what else of it has come: an error of integrity is never taken for an outage."""
    hub.faults.add(Corrupt(5), path="/org/code/resolve/.*/modeling_tiny.py", times=None)
    with pytest.raises(IntegrityError):
        await ModelLoader("org/model", endpoint=hub.url, cache_dir=tmp_path, trust_remote_code=True).load_model()


async def test_a_model_that_names_itself_runs_the_code_of_its_commit(
    anyio_backend: Any, put: Put, hub: HubServer, tmp_path: Path
) -> None:
    """As with stock: `org/model--modeling_x.X` at a pinned commit is the code of that commit."""
    directory = put("org/self", "remote_code")
    edit_json(
        directory / "config.json",
        lambda config: config.update(auto_map={k: f"org/self--{v}" for k, v in config["auto_map"].items()}),
    )
    async with Hub(endpoint=hub.url, cache_dir=tmp_path) as one:
        old = ModelLoader("org/self", hub=one, trust_remote_code=True)
        await old.prefetch()
        code = directory / "modeling_tiny.py"
        code.write_text(code.read_text() + "\nraise RuntimeError('the code of another commit')\n")
        await ModelLoader("org/self", hub=one, trust_remote_code=True).prefetch()
    async with Hub(cache_dir=tmp_path, local_files_only=True) as one:
        pinned = ModelLoader("org/self", revision=old.commit, hub=one, trust_remote_code=True)
        assert type(await pinned.load_model()).__name__ == "TinyForCausalLM"


async def test_a_tokenizer_s_second_repository_is_named(
    anyio_backend: Any, put: Put, hub: HubServer, tmp_path: Path
) -> None:
    """Without consent."""
    directory = put("org/named", "llama")
    edit_json(
        directory / "tokenizer_config.json",
        lambda config: config.update(auto_map={"AutoTokenizer": ["org/other--tok.Tok", None]}, tokenizer_class="Tok"),
    )
    with pytest.raises(UnsafeFileError, match=r"another repo, org/other \(tok\.Tok\)"):
        await ModelLoader("org/named", endpoint=hub.url, cache_dir=tmp_path).load_tokenizer()


async def test_without_consent_both_repositories_are_named_at_once(
    anyio_backend: Any, elsewhere: Path, hub: HubServer, tmp_path: Path
) -> None:
    """The weights are not waited for, and nothing of the code is fetched."""
    hub.faults.add(StallAt(100), path="safetensors$", times=None)
    with pytest.raises(
        UnsafeFileError, match=r"org/model can only be loaded by running code from another repo, org/code"
    ):
        await ModelLoader("org/model", endpoint=hub.url, cache_dir=tmp_path).load_model()
    assert not [request for request in hub.requests if "org/code" in request.path]


async def test_code_that_can_not_be_had_is_said_at_once(
    anyio_backend: Any, elsewhere: Path, hub: HubServer, tmp_path: Path
) -> None:
    """With consent too: before the weights are there."""
    shutil.rmtree(elsewhere.parent / "code")
    hub.faults.add(StallAt(100), path="safetensors$", times=None)
    with pytest.raises(ModelNotFoundError, match="org/code"):
        await ModelLoader("org/model", endpoint=hub.url, cache_dir=tmp_path, trust_remote_code=True).load_model()


@pytest.mark.parametrize("name", ["../x", "a/b/c", "x" * 500, "-", ""])
async def test_a_name_that_is_no_repository(
    name: str, anyio_backend: Any, elsewhere: Path, hub: HubServer, tmp_path: Path
) -> None:
    """Nothing is requested for it, and the error is ours."""
    edit_json(
        elsewhere / "config.json",
        lambda config: config.update(auto_map={"AutoModelForCausalLM": f"{name}--modeling_tiny.TinyForCausalLM"}),
    )
    with pytest.raises(LoaderError):
        await ModelLoader("org/model", endpoint=hub.url, cache_dir=tmp_path, trust_remote_code=True).load_model()
    assert all("org/model" in request.path or "/cdn/" in request.path for request in hub.requests)


@pytest.mark.parametrize("place", ["model", "code"])
async def test_too_much_code_is_not_requested(
    place: str, anyio_backend: Any, elsewhere: Path, hub: HubServer, tmp_path: Path
) -> None:
    """Neither of the model's repository nor of the second one: their listings are enough to refuse it."""
    for number in range(1001):
        (elsewhere.parent / place / f"x{number}.py").touch()
    loader = ModelLoader("org/model", endpoint=hub.url, cache_dir=tmp_path, trust_remote_code=True)
    with pytest.raises(UnsafeFileError, match=rf"org/{place} has 1,00\d small files.* `hf download org/{place}`"):
        await loader.load_model()
    assert not [request for request in hub.requests if request.path.endswith((".py", ".safetensors"))]


@pytest.mark.parametrize("place", ["model", "code"])
async def test_too_many_bytes_of_code_from_a_mirror_without_sizes(
    place: str, anyio_backend: Any, elsewhere: Path, hub: HubServer, tmp_path: Path
) -> None:
    """They are refused once the HEADs have told the sizes, before any of it is requested."""
    for number in range(3):
        (elsewhere.parent / place / f"x{number}.py").touch()
    hub.faults.add(without_blobs(), path="^/api/", times=None)
    hub.faults.add(Headers({"X-Linked-Size": "90000000"}), method="HEAD", path=r"/x\d\.py$", times=None)
    loader = ModelLoader("org/model", endpoint=hub.url, cache_dir=tmp_path, trust_remote_code=True)
    with pytest.raises(UnsafeFileError, match=rf"org/{place} has .* with 270 MB of code"):
        await loader.load_model()
    assert not [line for line in hub.lines if line.startswith("GET") and line.endswith((".py", ".safetensors"))]


async def test_what_the_code_reads_beside_it_comes_too(
    anyio_backend: Any, put: Put, hub: HubServer, tmp_path: Path
) -> None:
    """A tokenizer with code of its own opens files of any name; without consent they are not fetched."""
    directory = put("org/own", "llama")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).unlink()
    (directory / "rwkv_vocab_v20230424.txt").write_text("a b c")
    (directory / "large.txt").write_bytes(bytes((16 << 20) + 1))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"})
    )
    (directory / "own.py").write_text(
        "from transformers import PreTrainedTokenizer\n"
        "class Own(PreTrainedTokenizer):\n"
        "    vocab_files_names = {'vocab_file': 'rwkv_vocab_v20230424.txt'}\n"
        "    def __init__(self, vocab_file, **kwargs):\n"
        "        with open(vocab_file) as file: self.words = file.read().split()\n"
        "        super().__init__(eos_token='c', **kwargs)\n"
        "    @property\n"
        "    def vocab_size(self): return len(self.words)\n"
        "    def get_vocab(self): return {word: i for i, word in enumerate(self.words)}\n"
        "    def _tokenize(self, text): return text.split()\n"
        "    def _convert_token_to_id(self, token): return self.words.index(token)\n"
        "    def _convert_id_to_token(self, index): return self.words[index]\n"
    )
    async with Hub(endpoint=hub.url, cache_dir=tmp_path) as one:
        tokenizer = await ModelLoader("org/own", hub=one, trust_remote_code=True).load_tokenizer()
        assert tokenizer("b a")["input_ids"] == [1, 0]
        plain = {file.path for file in (await ModelLoader("org/own", hub=one).plan()).files}
        trusted = {file.path for file in (await ModelLoader("org/own", hub=one, trust_remote_code=True).plan()).files}
    assert trusted - plain == {"own.py", "rwkv_vocab_v20230424.txt"}

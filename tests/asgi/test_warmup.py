"""Tests of Warmup as an app uses it, on all event loops."""

import asyncio
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from tests.asgi.conftest import MakeLoader, Put, asked
from tests.support.faults import Drip, Fault, Stall, Status
from tests.support.hub import HubServer
from tests.support.process import started
from tests.support.stopwatch import Stopwatch
from tests.support.waiting import until
from yaie_async import (
    GatedModelError,
    HubUnavailableError,
    InvalidArgumentError,
    LoaderError,
    ModelLoader,
    ModelNotFoundError,
    WarmupError,
)
from yaie_async.asgi import Warmup, backoff, exit_code
from yaie_async.fetch import metadata, retry

pytestmark = pytest.mark.anyio


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortens the waits between attempts; the policies have their own tests."""
    policy = retry.RetryPolicy(attempts=2, first_wait=0.01, longest_wait=0.02)
    monkeypatch.setattr(metadata, "IMPATIENT", policy)
    monkeypatch.setattr(retry, "RetryPolicy", lambda: policy)
    monkeypatch.setattr(backoff, "_POLICY", replace(backoff._POLICY, first_wait=0.05, longest_wait=0.05))


async def test_the_model_is_awaited(loader: MakeLoader, put: Put) -> None:
    """Inside `async with` the models load in the background; each is awaited by its name, with its tokenizer ready."""
    put("org/name")
    put("org/other")
    warmup = Warmup(chat=loader(), code=loader("org/other"))
    async with warmup:
        model = await warmup["chat"]
        other, tokenizer = await warmup.loader("code").load()
        assert type(model).__name__ == type(other).__name__ == "LlamaForCausalLM"
        assert model is await warmup["chat"] is await warmup.loader("chat").load_model()
        assert other is await warmup["code"]
        assert tokenizer.pad_token is not None


async def test_probes_tell_how_far_it_is(loader: MakeLoader, put: Put, hub: HubServer) -> None:
    """/readyz is 503 with stage, fraction and Retry-After during the load, then 200; /livez is always 200."""
    put("org/name")
    stall = Stall(1000)
    hub.faults.add(stall, path="^/cdn/")
    warmup = Warmup(chat=loader())
    async with warmup, asked(warmup) as client:
        assert (await client.get("/livez")).text == "ok\n"
        await until(lambda: (told := warmup.loader("chat").progress) and told.bytes_done >= 1000)
        answer = await client.get("/readyz")
        told = answer.json()
        assert answer.status_code == 503
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert (told["state"], told["stage"]) == ("loading", "downloading")
        assert 0 < told["fraction"] < 1
        assert told["models"]["chat"]["bytes_total"] > told["models"]["chat"]["bytes_done"] >= 1000
        assert (await client.get("/status")).status_code == 200
        stall.gate.open()
        await warmup["chat"]
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["state"], answer.json()["fraction"]) == (200, "ready", 1.0)
        assert "retry-after" not in answer.headers
        status = (await client.get("/status")).json()["models"]["chat"]
        assert status["bytes_done"] == status["bytes_total"] > 0
        assert (status["stage"], status["error"], status["seconds_left"]) == ("ready", None, None)


@pytest.mark.parametrize("use", ["/readyz", "/status", "await"])
async def test_without_a_lifespan_the_first_use_begins(use: str, loader: MakeLoader, put: Put, hub: HubServer) -> None:
    """Without a lifespan the first use starts the loads; /livez does not, and no request is sent before."""
    put("org/name")
    warmup = Warmup(chat=loader())
    async with asked(warmup) as client:
        assert (await client.get("/livez")).status_code == 200
        await anyio.sleep(0.05)
        assert not hub.requests
        if use == "await":
            await warmup["chat"]
        else:
            await client.get(use)
        await hub.until(lambda: hub.requests)
        await warmup["chat"]
        assert (await client.get("/readyz")).status_code == 200


async def test_leaving_ends_the_loads_and_the_next_start_goes_on(
    loader: MakeLoader, put_large: Put, hub: HubServer, tmp_path: Path
) -> None:
    """Leaving during a download takes less than a second and fails the waiters; the next start continues it."""
    put_large("org/name")
    hub.faults.add(Drip(12 << 20), path="^/cdn/", times=None)

    def sent() -> int:
        return sum(request.sent for request in hub.requests if request.path.startswith("/cdn/"))

    warmup = Warmup(chat=loader())
    failures: list[LoaderError] = []

    async def wait() -> None:
        try:
            await warmup["chat"]
        except LoaderError as error:
            failures.append(error)

    async with anyio.create_task_group() as group:
        async with warmup:
            group.start_soon(wait)
            await hub.until(lambda: sent() > 12 << 20)
            watch = Stopwatch()
        assert watch.seconds < 1
    assert isinstance(failures[0], WarmupError)
    assert "org/name" in str(failures[0])
    hub.faults.clear()
    again = Warmup(chat=loader())
    async with again:
        await again["chat"]
    size = sum(file.stat().st_size for file in (hub.root / "org/name").iterdir())
    assert sent() < size + 8 * (4 << 20)


async def test_a_failure_is_told_and_the_server_serves_on(loader: MakeLoader, put: Put) -> None:
    """A failed model makes /readyz 500 with its error; each waiter gets its own copy, and the other model loads."""
    put("org/name")
    warmup = Warmup(chat=loader(), typo=loader("org/no-such-model"))
    async with warmup, asked(warmup) as client:
        errors = []
        for _ in range(2):
            with pytest.raises(ModelNotFoundError) as caught:
                await warmup["typo"]
            errors.append(caught.value)
        assert errors[0] is not errors[1]
        await warmup["chat"]
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["state"], answer.json()["stage"]) == (500, "failed", "failed")
        told = answer.json()["models"]
        assert told["typo"]["error"] == str(errors[0])
        assert (told["chat"]["state"], told["chat"]["error"]) == ("ready", None)
        assert (await client.get("/livez")).status_code == 200


async def test_a_gated_model_without_a_token(hub_root: Path, put: Put, tmp_path: Path) -> None:
    """A gated model is not retried, and /readyz says what to do."""
    put("org/gated")
    with HubServer(hub_root, gated=("org/gated",)) as hub:
        warmup = Warmup(chat=ModelLoader("org/gated", endpoint=hub.url, cache_dir=tmp_path / "cache"))
        async with warmup, asked(warmup) as client:
            with pytest.raises(GatedModelError):
                await warmup["chat"]
            assert "HF_TOKEN" in (await client.get("/readyz")).json()["models"]["chat"]["error"]


@pytest.mark.usefixtures("quick_retries")
async def test_an_outage_is_waited_for(
    loader: MakeLoader, put: Put, hub: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    """During an outage the probe has the error and the wait; after the outage the model loads."""
    put("org/name")
    caplog.set_level(logging.INFO, "yaie_async")
    hub.faults.add(Status(503), times=None)
    warmup = Warmup(chat=loader())
    async with warmup, asked(warmup) as client:
        await until(lambda: warmup._run.get().status().stage == "retrying")  # type: ignore[union-attr]
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert "503" in answer.json()["models"]["chat"]["error"]
        assert answer.json()["models"]["chat"]["retry_in"] is not None
        assert answer.json()["models"]["chat"]["attempt"] >= 2
        hub.faults.clear()
        await warmup["chat"]
        told = (await client.get("/readyz")).json()["models"]["chat"]
        assert told["error"] is told["attempt"] is None
        # The steps add up to the whole load: those of the last attempt, and the time before it.
        assert told["steps"]["retrying"] > 0
        assert sum(told["steps"].values()) == pytest.approx(told["seconds"], abs=0.1)
    again, *_, ready = [record.__dict__ for record in caplog.records if record.msg.startswith("warm-up")]
    assert (again["levelname"], again["model"], again["stage"], again["retries"]) == (
        "WARNING",
        "org/name",
        "retrying",
        1,
    )
    assert (ready["levelname"], ready["model"], ready["stage"]) == ("INFO", "org/name", "ready")
    assert ready["retries"] >= 1
    assert 0 < ready["seconds"] < 60


@pytest.mark.parametrize(
    ("fault", "deadline", "told"),
    [
        (Stall(-1), 0.3, "resolving"),
        (Status(429, {"Retry-After": "1000"}), 3.0, "retrying, 0%.*limits your rate"),
    ],
    ids=["slow", "away"],
)
async def test_a_deadline(
    fault: Fault, deadline: float, told: str, loader: MakeLoader, put: Put, hub: HubServer
) -> None:
    """A model that is not ready by the deadline has failed, with its stage and last error in the message."""
    put("org/name")
    hub.faults.add(fault, times=None)
    warmup = Warmup({"chat": loader()}, deadline=deadline)
    async with warmup, asked(warmup) as client:
        with pytest.raises(WarmupError, match=f"within {deadline:g} s .{told}") as caught:
            await warmup["chat"]
        assert isinstance(caught.value.__cause__, HubUnavailableError) == isinstance(fault, Status)
        assert (await client.get("/readyz")).status_code == 500
        hub.clear()


async def test_a_dependency_waits_or_says_when_to_come_back(loader: MakeLoader, put: Put, hub: HubServer) -> None:
    """The dependency raises 503 with Retry-After until the model is ready, then returns it, even with wait=0."""
    from starlette.exceptions import HTTPException

    put("org/name")
    stall = Stall(0)
    hub.faults.add(stall, path="^/cdn/")
    warmup = Warmup(chat=loader(), typo=loader("org/no-such-model"))
    async with warmup:
        for name in ("chat", "typo"):
            with pytest.raises(HTTPException) as caught:
                await warmup.dependency(name, wait=0.01)()
            assert caught.value.status_code == 503
            assert caught.value.headers is not None
            assert int(caught.value.headers["Retry-After"]) >= 1
            assert repr(name) in caught.value.detail
        stall.gate.open()
        model = await warmup.dependency("chat", wait=30)()
        assert model is await warmup["chat"] is await warmup.dependency("chat", wait=0)()


async def test_an_optional_model(loader: MakeLoader, put: Put, handled: list[int]) -> None:
    """An optional model that failed neither holds back the others nor ends the process; it has a probe of its own."""
    put("org/name")
    loaders = {"chat": loader(), "org/typo": loader("org/no-such-model")}
    warmup = Warmup(loaders, optional=(name for name in ("org/typo",)), on_failure="exit")  # type: ignore[arg-type]
    async with warmup, asked(warmup) as client:
        with pytest.raises(ModelNotFoundError):
            await warmup["org/typo"]
        await warmup["chat"]
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["state"]) == (200, "ready")
        assert answer.json()["models"]["org/typo"]["optional"]
        assert (await client.get("/readyz/chat")).json() == answer.json()["models"]["chat"]
        probe = await client.get("/readyz/org/typo")
        assert (probe.status_code, probe.json()["state"]) == (500, "failed")
        unknown = await client.get("/readyz/caht")
        assert (unknown.status_code, unknown.text) == (404, "No model is named 'caht'; there are: chat, org/typo.\n")
        assert warmup.status().as_json() == (await client.get("/status")).json()
        assert warmup.status().models[0].state == "ready"
    assert not handled


async def test_a_hook_runs_before_a_model_is_ready(loader: MakeLoader, put: Put) -> None:
    """`warm` gets the model and its tokenizer, None where there is none; until it ends the model is not ready."""
    put("org/name")
    for file in put("org/bare").glob("*token*"):
        file.unlink()
    go, got = anyio.Event(), []

    async def warm(model: object, tokenizer: object) -> None:
        got.append((model, tokenizer))
        await go.wait()

    warmup = Warmup(chat=loader(), bare=loader("org/bare"), warm=warm)
    async with warmup, asked(warmup) as client:
        await until(lambda: len(got) == 2)
        assert {model.stage for model in warmup.status().models} == {"building"}
        assert (await client.get("/readyz")).status_code == 503
        go.set()
        assert {await warmup["chat"], await warmup["bare"]} == {model for model, _ in got}
        assert (await client.get("/readyz")).status_code == 200
        assert [tokenizer for _, tokenizer in got].count(None) == 1


async def test_a_hook_fails(loader: MakeLoader, put: Put) -> None:
    """A model whose hook fails has failed at once, with the hook's error as the cause."""
    put("org/name")

    async def warm(_model: object, _tokenizer: object) -> None:
        raise HubUnavailableError("no outage of our load", status=503)

    async with Warmup(chat=loader(), warm=warm) as warmup:
        with pytest.raises(
            WarmupError, match=r"chat .org/name. was loaded, but the hook warm= failed: Hub.*: no outage"
        ):
            await warmup["chat"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_hook_is_cancelled(loader: MakeLoader, put: Put) -> None:
    """A hook that ends by the cancellation of its own task has not succeeded."""
    put("org/name")

    async def warm(_model: object, _tokenizer: object) -> None:
        task = asyncio.create_task(anyio.sleep_forever())
        task.cancel()
        await task

    async with Warmup(chat=loader(), warm=warm) as warmup:
        with pytest.raises(WarmupError, match="the hook warm= failed: .* it ended by CancelledError"):
            await warmup["chat"]


@pytest.mark.parametrize("in_thread", [False, True])
async def test_a_hook_never_ends(in_thread: bool, loader: MakeLoader, put: Put) -> None:
    """The deadline is met all the same, even by a hook that can't be cancelled."""
    put("org/name")
    ended = threading.Event()

    async def warm(_model: object, _tokenizer: object) -> None:
        if in_thread:
            await anyio.to_thread.run_sync(ended.wait)
        else:
            await anyio.sleep_forever()

    one = loader()
    await one.load()  # so that the deadline is the hook's
    async with Warmup(chat=one, warm=warm, deadline=0.1) as warmup:
        with pytest.raises(WarmupError, match=r"not ready within 0.1 s .building"):
            await warmup["chat"]
        ended.set()


async def test_it_is_entered_twice(loader: MakeLoader, put: Put, hub: HubServer) -> None:
    """A warm-up can be entered by an app and by a part of it; leaving the outer block stops it."""
    put("org/name")
    warmup = Warmup(chat=loader())
    async with warmup:
        run = warmup._run.get()
        async with warmup.lifespan(object()):
            pass
        assert warmup._run.get() is run
        assert run is not None
        assert not run.stopping
        await warmup["chat"]
    assert run.stopping
    async with warmup:  # and once more after its end, as a test client does
        await warmup["chat"]
    assert len([request for request in hub.requests if request.path.startswith("/api/")]) == 1


async def test_two_warmups_share_a_loader(loader: MakeLoader, put: Put, hub: HubServer) -> None:
    """A loader that is in two warm-ups loads once."""
    put("org/name")
    shared = loader()
    one, two = Warmup(chat=shared), Warmup(chat=shared)
    async with one, two:
        assert await one["chat"] is await two["chat"]
    assert sum(request.path.startswith("/cdn/") for request in hub.requests) == 1


async def test_a_model_without_a_tokenizer(loader: MakeLoader, put: Put, caplog: pytest.LogCaptureFixture) -> None:
    """A model without a tokenizer is loaded all the same: the app may bring its own."""
    for file in put("org/name").glob("*token*"):
        file.unlink()
    warmup = Warmup(chat=loader())
    async with warmup:
        assert await warmup["chat"] is not None
    assert "no usable tokenizer" in caplog.text


async def test_what_is_wrong_with_a_warmup(loader: MakeLoader) -> None:
    """Wrong arguments raise in the constructor, and an unknown name raises where it is used."""
    one = loader()
    with pytest.raises(InvalidArgumentError, match="Two models are named 'chat'"):
        Warmup({"chat": one}, chat=one)
    with pytest.raises(InvalidArgumentError, match="at least one"):
        Warmup()
    with pytest.raises(InvalidArgumentError, match=re.escape("Pass ModelLoader('gpt2')")):
        Warmup(chat="gpt2")  # type: ignore[arg-type]
    for deadline in (0, -1, float("nan")):
        with pytest.raises(InvalidArgumentError, match="deadline"):
            Warmup(chat=one, deadline=deadline)
    with pytest.raises(InvalidArgumentError, match="group is the name"):
        Warmup(chat=one, group=one)  # type: ignore[arg-type]
    for optional in ("chat", ["caht"]):
        with pytest.raises(InvalidArgumentError, match="optional is a tuple of models' names, of these: chat"):
            Warmup(chat=one, optional=optional)
    with pytest.raises(InvalidArgumentError, match="warm is an async function"):
        Warmup(chat=one, warm=True)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="on_failure"):
        Warmup(chat=one, on_failure="panic")  # type: ignore[arg-type]
    asks: list[Callable[[Warmup], object]] = [
        lambda w: w["caht"],
        lambda w: w.loader("caht"),
        lambda w: w.dependency("caht"),
    ]
    for ask in asks:
        with pytest.raises(KeyError, match="there are: chat"):
            ask(Warmup(chat=one))


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """Handles SIGTERM as a server does: records the signal, and the event loop continues."""
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: seen.append(number))
    yield seen
    signal.signal(signal.SIGTERM, before)


async def test_a_signal_to_stop_ends_it_before_the_server_does(
    loader: MakeLoader, put: Put, hub: HubServer, handled: list[int]
) -> None:
    """A stop signal fails the waiters at once, since the server waits for their responses; its own handler runs too."""
    put("org/name")
    hub.faults.add(Stall(-1), path="^/cdn/", times=None)
    handler = signal.getsignal(signal.SIGTERM)
    warmup = Warmup(chat=loader())
    async with warmup:
        await hub.until(lambda: any(request.path.startswith("/cdn/") for request in hub.requests))
        os.kill(os.getpid(), signal.SIGTERM)
        watch = Stopwatch()
        with pytest.raises(WarmupError):
            await warmup["chat"]
        assert watch.seconds < 1
        assert handled == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is handler
    hub.clear()


def test_a_failure_can_end_the_process() -> None:
    """With on_failure="exit" the first failure sends one SIGTERM to this process, which then ends with code 3.

    Although it raises the signal again, as uvicorn does, its exit functions run and its output is complete.
    """
    code = """if True:
        import atexit, logging, signal
        from yaie_async import ModelLoader
        from yaie_async.asgi import Warmup

        async def main():
            seen = []
            signal.signal(signal.SIGTERM, lambda number, _frame: seen.append(number))
            loaders = {name: ModelLoader(f"org/{name}", local_files_only=True) for name in ("typo", "other")}
            async with Warmup(loaders, on_failure="exit") as warmup:
                while not warmup._run.get().stopping:
                    await anyio.sleep(0.01)
            print("handled", seen)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)
            print("ends", end=" ")

        logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)
        atexit.register(print, "in order", end="")
        anyio.run(main)"""
    done = started(code)
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.endswith("handled [15]\nends in order")
    assert done.stdout.count("CRITICAL") == 1
    assert "on_failure is 'exit'" in done.stdout


@pytest.mark.parametrize("action", ["SIG_DFL", "SIG_IGN"])
def test_a_failure_ends_a_process_that_handles_no_signal(action: str) -> None:
    """Where SIGTERM has no handler there is no shutdown to run, and the process ends with code 3 at once."""
    code = f"""if True:
        import signal
        from yaie_async import ModelLoader
        from yaie_async.asgi import Warmup

        async def main():
            async with Warmup(typo=ModelLoader("org/typo", local_files_only=True), on_failure="exit"):
                await anyio.sleep_forever()

        print("not lost", end=" ")
        signal.signal(signal.SIGTERM, signal.{action})
        anyio.run(main)"""
    done = started(code)
    assert (done.returncode, done.stdout) == (3, "not lost ")


@pytest.mark.parametrize("left", ["thread", "executor"])
def test_a_failure_ends_a_process_whose_threads_do_not(left: str) -> None:
    """Neither a thread that never ends, nor a loop that waits for one at its close, keeps the process from its end."""
    code = f"""if True:
        import asyncio, signal, threading
        from yaie_async import ModelLoader
        from yaie_async.asgi import Warmup, exit_code

        async def main():
            signal.signal(signal.SIGTERM, lambda *_: None)
            never = threading.Event()
            if {left!r} == "thread":
                threading.Thread(target=never.wait).start()
            else:
                asyncio.get_running_loop().run_in_executor(None, never.wait)
            async with Warmup(typo=ModelLoader("org/typo", local_files_only=True), on_failure="exit") as warmup:
                while not warmup._run.get().stopping:
                    await anyio.sleep(0.01)
            print("has shut down", end=" ")

        exit_code._GRACE = exit_code._LONGEST = 0.1
        anyio.run(main)"""
    done = started(code)
    assert (done.returncode, done.stdout) == (3, "has shut down ")


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_failure_ends_a_child_of_multiprocessing(method: str, tmp_path: Path) -> None:
    """Its code is 3 too, however it was started."""
    (tmp_path / "main.py").write_text("""if True:
        import multiprocessing, signal, sys
        import anyio
        from yaie_async import ModelLoader
        from yaie_async.asgi import Warmup

        async def main():
            signal.signal(signal.SIGTERM, lambda *_: None)
            async with Warmup(typo=ModelLoader("org/typo", local_files_only=True), on_failure="exit") as warmup:
                while not warmup._run.get().stopping:
                    await anyio.sleep(0.01)

        def work():
            anyio.run(main)

        if __name__ == "__main__":
            process = multiprocessing.get_context(sys.argv[1]).Process(target=work)
            process.start()
            process.join()
            print(process.exitcode)
    """)
    environment = os.environ | {"PYTHONPATH": str(Path(exit_code.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "main.py", method], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "3\n", done.stderr

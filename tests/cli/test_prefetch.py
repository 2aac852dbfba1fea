"""`prefetch`: what arrives, what is told, and what a failure and a Ctrl-C leave."""

from pathlib import Path

from filelock import FileLock

from tests.support.command import Command
from tests.support.faults import Stall
from tests.support.hub import HubServer


def test_several_models_and_one_that_is_unknown(hub: HubServer, command: Command) -> None:
    """The others are fetched and told; the exit code is 1; stdout holds one JSON object."""
    done = command.run("prefetch", "org/one", "org/none", "org/two", "--json")
    assert done.code == 1
    told = done.json
    assert told["ok"] is False
    assert told["error"]["failures"]["org/none"]["type"] == "ModelNotFoundError"
    for name in ("one", "two"):
        snapshot = Path(told["models"][f"org/{name}"]["snapshot"])
        assert snapshot.is_relative_to(command.cache)
        assert (snapshot / "model.safetensors").read_bytes() == (
            hub.root / "org" / name / "model.safetensors"
        ).read_bytes()
        assert told["models"][f"org/{name}"]["files"] == 4
    assert "Traceback" not in done.err

    table = command.run("prefetch", "org/one", "org/none")
    assert table.code == 1
    assert "ModelNotFoundError" in table.out
    assert str(command.cache) in table.out


def test_an_unknown_model_alone(command: Command) -> None:
    """One line on stderr, no traceback, and the error's attributes under --json."""
    done = command.run("prefetch", "org/none")
    assert done.code == 1
    assert done.out == ""
    assert "ModelNotFoundError: " in done.err
    assert "Traceback" not in done.err

    error = command.run("prefetch", "org/none", "--json").json["error"]
    assert (error["type"], error["model"], error["status"]) == ("ModelNotFoundError", "org/none", 401)


def test_ctrl_c_ends_at_once(hub: HubServer, command: Command) -> None:
    """While a body stalls: out in under two seconds, says what is kept, frees the lock; the next run is whole."""
    hub.faults.add(Stall(after=1000), path=r"^/cdn/.*model\.safetensors")
    done, seconds = command.interrupted(
        "prefetch", "org/one", "--json", when=lambda _: any(request.sent for request in hub.requests if request.fault)
    )
    assert done.code == 130
    assert seconds < 2
    assert "kept; run the same command again" in done.err
    assert "Traceback" not in done.err
    assert done.json["error"]["type"] == "KeyboardInterrupt"
    locks = list(command.cache.glob(".locks/**/*.lock"))
    assert locks
    for lock in locks:
        FileLock(lock).acquire(blocking=False).lock.release()
    assert not list(command.cache.glob("models--*/snapshots/*/config.json"))

    hub.faults.clear()
    again = command.run("prefetch", "org/one", "--json")
    assert again.code == 0
    assert again.json["models"]["org/one"]["files"] == 4


def test_offline_and_not_cached(command: Command) -> None:
    done = command.run("prefetch", "org/one", "--offline", "--json")
    assert done.code == 1
    assert done.json["error"]["type"] == "OfflineError"
    assert done.json["error"]["model"] == "org/one"

"""Tests of `yaie-async prefetch`: its files, its output, failures and Ctrl-C."""

import hashlib
import time
from pathlib import Path

from filelock import FileLock

from tests.support.command import Command
from tests.support.faults import Stall, StallAt
from tests.support.hub import HubServer
from yaie_async.loader.text import size
from yaie_async.store.blockmap import BLOCK
from yaie_async.store.claims import resumable_bytes


def test_several_models_and_one_that_is_unknown(hub: HubServer, command: Command) -> None:
    """The other models are fetched and in the result; the exit code is 1; stdout is one JSON object."""
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
    """The error is one line on stderr without a traceback, and has its attributes with --json."""
    done = command.run("prefetch", "org/none")
    assert done.code == 1
    assert done.out == ""
    assert "ModelNotFoundError: " in done.err
    assert "Traceback" not in done.err

    error = command.run("prefetch", "org/none", "--json").json["error"]
    assert (error["type"], error["model"], error["status"]) == ("ModelNotFoundError", "org/none", 401)


def test_ctrl_c_ends_at_once(hub: HubServer, command: Command) -> None:
    """Ctrl-C during a stalled body exits within two seconds and releases the locks; the next run is complete."""
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


def test_ctrl_c_says_how_much_is_kept(hub: HubServer, command: Command) -> None:
    """On Ctrl-C the bytes kept of each model are printed, and the next run fetches only the rest."""
    large = hub.root / "org/one/model.safetensors"
    large.write_bytes(bytes(number % 251 for number in range(BLOCK)) + b"end")
    totals = {name: sum(path.stat().st_size for path in (hub.root / "org" / name).iterdir()) for name in ("one", "two")}
    hub.faults.add(StallAt(BLOCK), path=r"^/cdn/org/one/", times=None)
    hub.faults.add(StallAt(1000), path=r"^/cdn/org/two/")
    blobs = command.cache / "models--org--one/blobs"
    etag = hashlib.sha256(large.read_bytes()).hexdigest()

    def stand_still(_: object) -> bool:
        stalled = any("/cdn/org/two/" in request.path and request.sent for request in hub.requests)
        return stalled and resumable_bytes(blobs, etag, large.stat().st_size) == BLOCK

    done, _ = command.interrupted("prefetch", "org/one", "org/two", when=stand_still)
    assert done.code == 130
    hub.clear()
    assert command.run("prefetch", "org/one", "org/two").code == 0
    for name, total in totals.items():
        fetched = sum(one.sent for one in hub.requests if f"org/{name}/" in one.path and "/api/" not in one.path)
        assert 0 < fetched < total
        assert f"org/{name}: stopped; {size(total - fetched)} of {size(total)} are kept\n" in done.err


def test_offline_and_not_cached(command: Command) -> None:
    """With --offline a model that is not cached is an OfflineError that names it."""
    done = command.run("prefetch", "org/one", "--offline", "--json")
    assert done.code == 1
    assert done.json["error"]["type"] == "OfflineError"
    assert done.json["error"]["model"] == "org/one"


def test_a_file_of_models(hub: HubServer, command: Command) -> None:
    """Comments and blank lines are skipped, a name keeps its @revision, and a repeated name counts once."""
    (command.home / "models.txt").write_text("# ours\n\norg/one@main  # pinned\n\torg/two \norg/two\n")
    done = command.run("prefetch", "org/two", "--from-file", "models.txt", "--json")
    assert done.code == 0, done.err
    assert list(done.json["models"]) == ["org/two", "org/one@main"]
    assert "org/one@main: ready" in done.err
    assert "2 models: " in done.err
    assert len([line for line in hub.lines if line.startswith("GET /cdn/")]) == 2


def test_what_names_no_model(command: Command, hub: HubServer) -> None:
    """A bad line is reported with its number before any request; an empty or missing list is an error."""
    (command.home / "bad.txt").write_text("org/one\n\norg/t wo\n")
    done = command.run("prefetch", "--from-file", "bad.txt", "--json")
    assert (done.code, done.json["error"]["type"]) == (1, "InvalidArgumentError")
    assert "bad.txt, line 3: 'org/t wo'" in done.json["error"]["message"]
    (command.home / "empty.txt").write_text("# nothing\n")
    assert "empty.txt names no model" in command.run("prefetch", "--from-file", "empty.txt").err
    assert "no.txt can't be read" in command.run("prefetch", "--from-file", "no.txt").err
    assert not hub.requests
    for arguments in ([], ["org/one", "--limit-rate", "fast"]):
        assert command.run("prefetch", *arguments).code == 2


def test_a_gated_model_among_others(command: Command, hub_root: Path) -> None:
    """A gated model without a token is an error that says what to do; the other model is fetched."""
    with HubServer(hub_root, gated=["org/two"]) as gated:
        command.endpoint = gated.url
        done = command.run("prefetch", "org/one", "org/two")
    assert done.code == 1
    line = next(line for line in done.out.splitlines() if "org/two" in line)
    assert "GatedModelError" in line
    assert "hf auth login" in line
    assert str(command.cache) in next(line for line in done.out.splitlines() if "org/one" in line)


def test_chosen_files_at_a_limited_rate(command: Command, hub: HubServer) -> None:
    """--include and --exclude choose files as `hf download` does, and --limit-rate limits the speed."""
    (hub.root / "org/one/README.md").write_text("x")
    start = time.monotonic()
    done = command.run(
        *("prefetch", "org/one", "--json", "--limit-rate", "300k"),
        *("--include", "*.md", "--include", "model*", "--include", "*.json", "--exclude", "tok*"),
    )
    assert time.monotonic() - start > 0.5  # seconds for 300 kB, of which the first burst is not limited
    assert done.code == 0, done.err
    snapshot = Path(done.json["models"]["org/one"]["snapshot"])
    assert {path.name for path in snapshot.iterdir()} == {"README.md", "model.safetensors", "config.json"}

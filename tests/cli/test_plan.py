"""Tests of `yaie-async plan`, which downloads no file."""

from typing import Any

from tests.support.command import Command
from tests.support.faults import EditJson
from tests.support.hub import HubServer


def test_plan_tells_what_a_load_would_fetch(hub: HubServer, command: Command) -> None:
    """The plan has the bytes to fetch and in the cache, free disk and memory, and leaves no cache behind."""
    done = command.run("plan", "org/one", "org/two", "--json")
    assert done.code == 0
    one = done.json["models"]["org/one"]
    size = sum(file.stat().st_size for file in (hub.root / "org" / "one").iterdir())
    assert (one["bytes_to_fetch"], one["bytes_cached"]) == (size, 0)
    assert {file["path"] for file in one["files"]} == {file.name for file in (hub.root / "org" / "one").iterdir()}
    weights = (hub.root / "org" / "one" / "model.safetensors").stat().st_size
    assert one["memory"] == weights  # the stored dtype is unknown until config.json is fetched
    assert one["fits"] is True
    assert done.json["free_disk"] > 0
    assert not any("/resolve/" in line or "/cdn/" in line for line in hub.lines)
    assert not command.cache.exists()


def test_plan_of_what_is_cached_in_words(hub: HubServer, command: Command) -> None:
    """A cached model needs 0 B, and its memory is computed from its config."""
    assert command.run("prefetch", "org/one").code == 0
    weights = (hub.root / "org" / "one" / "model.safetensors").stat().st_size
    known = command.run("plan", "org/one", "--json").json["models"]["org/one"]
    assert known["memory"] == weights // 2  # fp32 becomes fp16

    done = command.run("plan", "org/one", "org/two")
    assert done.code == 0
    assert "fits" in done.out
    one = next(line for line in done.out.splitlines() if "org/one" in line)
    assert "0 B" in one


def test_a_model_that_is_not_there(command: Command) -> None:
    """Its row is one line too, and the reason stands below the table."""
    done = command.run("plan", "org/one", "org/none")
    assert done.code == 1
    assert any(line.split() == ["org/none", "failed"] for line in done.out.splitlines())
    assert any(line.startswith("org/none: ModelNotFoundError: ") for line in done.out.splitlines())


def test_no_room_is_said_and_no_failure(command: Command, hub: HubServer) -> None:
    """A model larger than any disk does not fit; the exit code is 0."""
    from tests.support.faults import EditJson

    def edit(info: dict[str, list[dict[str, dict[str, int]]]]) -> None:
        for sibling in info["siblings"]:
            if "lfs" in sibling:
                sibling["lfs"]["size"] = 10**18

    hub.faults.add(EditJson(edit), path="/api/models/", times=None)
    told = command.run("plan", "org/one", "--json")
    assert told.code == 0
    assert told.json["fits"] is False
    assert "does not fit" in command.run("plan", "org/one").out


def test_a_name_that_would_move_the_cursor(command: Command, hub: HubServer) -> None:
    """What a terminal would obey is not printed, whoever has named a file."""

    def edit(info: Any) -> None:
        for sibling in info["siblings"]:
            if sibling["rfilename"] == "tokenizer.json":
                sibling |= {"rfilename": "tokenizer\x1b[2J.json", "blobId": "none"}

    hub.faults.add(EditJson(edit), path="/revision/", times=None)
    done = command.run("plan", "org/one")
    assert "no digest to check tokenizer [2J.json by" in done.out
    assert "\x1b" not in done.out + done.err

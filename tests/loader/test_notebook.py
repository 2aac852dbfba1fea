"""Tests of the display in a notebook, with a real kernel."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

import yaie_async
from tests.loader.conftest import Put
from tests.support.faults import Stall
from tests.support.hub import HubServer

LOAD = """
import anyio
from yaie_async import ModelLoader

loader = ModelLoader("org/big")
async with anyio.create_task_group() as group:
    group.start_soon(loader.prefetch)
    while loader.progress is None or loader.progress.stage != "downloading":
        await anyio.sleep(0.01)
    await ModelLoader({directory!r}).prefetch()
"""


class Client(NotebookClient):
    """Keeps the messages with outputs, and opens the gate of `stall` when one says that a model is ready."""

    stall: Stall
    sent: list[tuple[str, datetime, dict[str, str]]]

    def process_message(self, msg: dict[str, Any], cell: NotebookNode, cell_index: int) -> Any:
        if data := msg["content"].get("data"):
            self.sent.append((msg["msg_type"], msg["header"]["date"], data))
            if "ready" in data["text/plain"]:
                self.stall.gate.open()
        return super().process_message(msg, cell, cell_index)


def test_a_notebook_shows_its_loads(
    hub: HubServer, put_fake: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All loads are in one output, which is updated in place, and nothing else is shown."""
    put_fake("org/big", 1 << 20)
    directory = put_fake("org/<b>two", 1000)
    for name, value in {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path),
        "IPYTHONDIR": str(tmp_path),
        "PYTHONPATH": str(Path(yaie_async.__file__).parents[1]),
    }.items():
        monkeypatch.setenv(name, value)
    cell = new_code_cell(LOAD.format(directory=str(directory)))  # type: ignore[no-untyped-call]
    client = Client(new_notebook(cells=[cell]), timeout=60)  # type: ignore[no-untyped-call]
    client.stall, client.sent = Stall(1 << 10), []
    hub.faults.add(client.stall, path="^/cdn/")
    client.execute()

    kinds = [kind for kind, *_ in client.sent]
    assert kinds == ["display_data", *["update_display_data"] * (len(kinds) - 1)]
    seconds = (client.sent[-1][1] - client.sent[0][1]).total_seconds()
    assert 4 < len(kinds) < 10 + 4 * seconds  # each stage of each load, and four a second
    pictures = [data["text/plain"] for *_, data in client.sent]
    assert any("of 1.0 MB" in picture for picture in pictures)
    (output,) = cell.outputs
    assert set(output.data) == {"text/html", "text/plain"}
    html = output.data["text/html"]
    assert html.count("ready</td>") == 2
    assert "org/&lt;b&gt;two</td>" in html and "<b>" not in html
    assert '<progress value="1.000"></progress>' in html
    assert "2 models" in pictures[-1]

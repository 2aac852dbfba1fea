"""Tests of the tables of results."""

import io

import pytest
from rich.console import Console

from yaie_async.cli.tables import table

HEADERS = ("model", "files", "to fetch", "cached", "memory", "fits")
ROWS = [
    ("meta-llama/Llama-3.1-8B-Instruct", "12", "16.1 GB", "999.9 MB", "16.1 GB", "no memory"),
    ("gpt2[bold]", "5", "0 B", "548.1 MB", "274.1 MB", "yes"),
]

PICTURES = {
    60: """
model         files  to fetch    cached    memory  fits
────────────────────────────────────────────────────────────
meta-l…truct     12   16.1 GB  999.9 MB   16.1 GB  no memory
gpt2[bold]        5       0 B  548.1 MB  274.1 MB  yes
""",
    80: """
model                             files  to fetch    cached    memory  fits
────────────────────────────────────────────────────────────────────────────────
meta-llama/Llama-3.1-8B-Instruct     12   16.1 GB  999.9 MB   16.1 GB  no memory
gpt2[bold]                            5       0 B  548.1 MB  274.1 MB  yes
""",
}


@pytest.mark.parametrize("width", PICTURES)
def test_a_table_has_a_line_a_row(width: int) -> None:
    """Where room is short, names are cut in the middle, and no other cell."""
    file = io.StringIO()
    Console(file=file, width=width, markup=False).print(table(*HEADERS, rows=ROWS))
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert "\n".join(["", *lines, ""]) == PICTURES[width]


def test_a_last_cell_that_is_long() -> None:
    """A path as the last cell goes on in further lines, and nothing of it is lost."""
    file = io.StringIO()
    path = "/home/me/.cache/huggingface/hub/models--org--name/snapshots/" + "0123456789" * 4
    Console(file=file, width=60).print(table("model", "files", "snapshot", rows=[("org/name", "5", path)]))
    assert path in "".join(line[17:].strip() for line in file.getvalue().splitlines()[2:])

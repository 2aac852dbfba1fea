"""Tests of the table's text: pictures of it at several widths."""

import tracemalloc

import pytest

from yaie_async import Progress
from yaie_async.loader.layout import cut, layout
from yaie_async.loader.text import row_of, total

LOADS = [
    (Progress("meta-llama/Llama-3.1-8B-Instruct", "downloading", 4_200_000_000, 16_100_000_000, 45.3e6, 263.0), ""),
    (
        Progress(
            "org/two", "stalled", 3, 5, reason="the Hub does not answer: connection refused", attempt=3, retry_in=4.2
        ),
        "",
    ),
    (Progress("org/three", "importing", 5_000_000, 5_000_000, seconds_left=3.0, stage_fraction=0.5), ""),
    (Progress("org/four", "building", 5_000_000, 5_000_000), ""),
    (Progress("org/five", "waiting", 5, 10), ""),
    (Progress("gpt2", "resolving"), ""),
    (Progress("org/six", "ready", 5_000_000, 5_000_000), ""),
    (Progress("org/seven", "downloading", 5_000_000, 10_000_000, 1e6, 5.0), "stopped"),
    (Progress("org/eight", "downloading", 5, 10), "failed"),
]

PICTURES = {
    120: """
meta-llama/Llama-3.1-8B-Instruct  downloading  ━━━━━━──────────────────  4.2 GB of 16.1 GB  45.3 MB/s  4m23s left
org/two                           stalled      the Hub does not answer: connection refused, attempt 3 in 4 s
org/three                         importing    ━━━━━━━━━━━━────────────   5.0 MB of 5.0 MB               3 s left
org/four                          building                                5.0 MB of 5.0 MB
org/five                          waiting      for another process
gpt2                              resolving
org/six                           ready        ━━━━━━━━━━━━━━━━━━━━━━━━   5.0 MB of 5.0 MB
org/seven                         stopped                                5.0 MB of 10.0 MB
org/eight                         failed
9 models                                       ━━━━━━──────────────────  4.2 GB of 16.1 GB  45.3 MB/s
""",
    80: """
meta-llama/Llama-3.1-8B-Instruct  downloading  4.2 GB of 16.1 GB  4m23s left
org/two                           stalled      the Hub…refused, attempt 3 in 4 s
org/three                         importing     5.0 MB of 5.0 MB    3 s left
org/four                          building      5.0 MB of 5.0 MB
org/five                          waiting      for another process
gpt2                              resolving
org/six                           ready         5.0 MB of 5.0 MB
org/seven                         stopped      5.0 MB of 10.0 MB
org/eight                         failed
9 models                                       4.2 GB of 16.1 GB
""",
    60: """
meta-lla…nstruct  downloading  4.2 GB of 16.1 GB  4m23s left
org/two           stalled      the H…fused, attempt 3 in 4 s
org/three         importing     5.0 MB of 5.0 MB    3 s left
org/four          building      5.0 MB of 5.0 MB
org/five          waiting      for another process
gpt2              resolving
org/six           ready         5.0 MB of 5.0 MB
org/seven         stopped      5.0 MB of 10.0 MB
org/eight         failed
9 models                       4.2 GB of 16.1 GB
""",
    40: """
meta…ruct  4.2 GB of 16.1 GB  4m23s left
org/two    stalled  attempt 3 in 4 s
org/three  importing            3 s left
org/four   building
org/five   waiting  for another process
gpt2       resolving
org/six    ready
org/seven  stopped
org/eight  failed
9 models   4.2 GB of 16.1 GB
""",
}


@pytest.mark.parametrize("width", PICTURES)
def test_the_table_at_a_width(width: int) -> None:
    """First the bar goes, then the rate, then names are cut in the middle; no number is ever cut."""
    lines = layout([*(row_of(*load) for load in LOADS), total(LOADS)], width)
    assert "\n".join(["", *lines, ""]) == PICTURES[width]
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("width", range(40))
def test_a_terminal_that_is_too_narrow(width: int) -> None:
    """No line is wider than the terminal, be it of one column, and names of wide characters count twice."""
    from rich.cells import cell_len

    wide = Progress("./模型/目录", "downloading", 5, 10)
    for line in layout([*(row_of(*load) for load in LOADS), row_of(wide)], width):
        assert cell_len(line) <= width


@pytest.mark.parametrize("long", range(40, 97, 8))
@pytest.mark.parametrize("width", [50, 60, 80, 120])
def test_a_stalled_load_with_a_long_name(long: int, width: int) -> None:
    """The name is cut before the reason, and both before the attempt."""
    event = Progress("m" * long, "stalled", reason="HTTP 503 from the Hub", attempt=3, retry_in=12.4)
    (line,) = layout([row_of(event)], width)
    assert "HTT" in line and line.endswith(", attempt 3 in 12 s")
    assert layout([row_of(event)], 32) == ["mm…m  stalled  attempt 3 in 12 s"]


def test_a_terminal_without_an_end() -> None:
    """A terminal that says that it has 100,000,000 columns takes no memory."""
    tracemalloc.start()
    try:
        layout([row_of(LOADS[1][0])], 10**8)
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


def test_nothing_to_lay_out() -> None:
    """No rows are no lines."""
    assert layout([], 80) == []


@pytest.mark.parametrize(
    ("text", "width", "short"),
    [("abcdef", 6, "abcdef"), ("abcdef", 5, "ab…ef"), ("abcdef", 4, "ab…f"), ("abcdef", 2, "ab"), ("abcdef", -1, "")],
)
def test_a_text_that_is_cut(text: str, width: int, short: str) -> None:
    """A text that is too long keeps both of its ends."""
    assert cut(text, width) == short

"""The timeline: recorded spans, and their cost without a recording."""

import threading
import timeit

import pytest

from yaie_async.core import trace
from yaie_async.core.trace import recording, span


def test_a_span_is_a_complete_event_on_its_track() -> None:
    """Spans of any thread have microseconds and arguments, are on one track per name, and are in order; failed ones too."""
    with recording() as kept:

        def work() -> None:
            with span("two", "inner", file="x", start=5):
                pass

        with span("one", "outer"):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        with pytest.raises(ValueError, match="one"), span("one", "failed"):
            raise ValueError("one")
    document = kept.document()
    outer, inner, failed = (event for event in document["traceEvents"] if event["ph"] == "X")
    named = {event["tid"]: event["args"]["name"] for event in document["traceEvents"] if event["name"] == "thread_name"}
    assert [named[event["tid"]] for event in (outer, inner, failed)] == ["one", "two", "one"]
    assert inner["args"] == {"file": "x", "start": 5}
    assert outer["ts"] <= inner["ts"] <= inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"] <= failed["ts"]


def test_nothing_is_kept_outside_of_a_recording() -> None:
    """Spans before and after a recording are dropped, and the outer recording continues after an inner one."""
    with span("t", "before"), recording() as outer:
        with recording() as inner, span("t", "inner"):
            pass
        with span("t", "outer"):
            pass
    with span("t", "after"):
        pass
    assert trace._trace is None
    names = [[event["name"] for event in one.document()["traceEvents"] if event["ph"] == "X"] for one in (inner, outer)]
    assert names == [["inner"], ["outer"]]


def test_a_span_costs_microseconds_without_a_recording() -> None:
    """A few microseconds at most, beside bodies that take milliseconds."""

    def one() -> None:
        with span("track", "name", file="x", start=1, stop=2):
            pass

    assert min(timeit.repeat(one, number=1000, repeat=5)) < 1000 * 10e-6

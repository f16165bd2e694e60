"""The ends of texts, two texts beside each other, what was edited, and attempts on a line of time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from jobrunner.web.pages.run import trace_id_of
from jobrunner.web.pages.tails import Pair, Tail, difference, side_by_side, tail_of
from jobrunner.web.pages.timeline import spans_of, timeline

T0 = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
LINES = st.lists(st.sampled_from(["a", "b", "c", ""]), max_size=20).map("\n".join)


def test_the_end_of_a_text_is_kept():
    assert tail_of("a\nb\nc\n", lines=2) == Tail("b\nc", is_cut=True)
    assert tail_of("a\nb", lines=2) == Tail("a\nb", is_cut=False)
    assert tail_of("x" * 1000, characters=10) == Tail("x" * 10, is_cut=True)
    assert (tail_of(None), tail_of(" \n")) == (None, None)


def test_lines_that_are_the_same_stand_beside_each_other():
    pairs = side_by_side("a\nb\nc", "a\nc\nd")
    assert pairs == [Pair("a", "a"), Pair("b", None), Pair("c", "c"), Pair(None, "d")]
    assert [pair.differs for pair in pairs] == [False, True, False, True]
    assert side_by_side("a 1", "a 2") == [Pair("a 1", "a 2")]
    assert side_by_side("", "") == []


@given(LINES, LINES)
def test_no_line_is_lost_beside_each_other(left, right):
    pairs = side_by_side(left, right)
    assert [pair.left for pair in pairs if pair.left is not None] == left.rstrip().splitlines()
    assert [pair.right for pair in pairs if pair.right is not None] == right.rstrip().splitlines()


def test_what_was_edited_is_told_line_by_line():
    told = difference('{\n  "a": 1,\n  "b": 2\n}', '{\n  "a": 1,\n  "b": 3\n}')
    assert [(each.kind, each.text) for each in told] == [
        ("place", "@@ -1,4 +1,4 @@"),
        ("same", " {"),
        ("same", '   "a": 1,'),
        ("removed", '-  "b": 2'),
        ("added", '+  "b": 3'),
        ("same", " }"),
    ]
    assert difference("a\n", "a") == []


@given(LINES, LINES)
def test_nothing_is_told_only_of_what_is_the_same(stored, edited):
    assert bool(difference(stored, edited)) == (stored.splitlines() != edited.splitlines())


def test_of_very_many_lines_the_first_difference_is_told():
    stored = "\n".join(map(str, range(20_000)))
    told = difference(stored, stored.replace("\n15000\n", "\nother\n"))
    assert told[0].text == "@@ the first difference is at line 15001 @@"
    assert ("removed", "-15000") in [(each.kind, each.text) for each in told]
    assert len(told) < 50


def attempt(number: int, due: float, started: float | None, finished: float, outcome: str = "failed") -> dict[str, Any]:
    at = [None if each is None else T0 + timedelta(seconds=each) for each in (due, started, finished)]
    took = None if started is None else round((finished - started) * 1000)
    named = dict(zip(("due_at", "started_at", "finished_at"), at, strict=True))
    return {"attempt": number, "outcome": outcome, "duration_ms": took, **named}


def story(*attempts: dict[str, Any], state: str = "exhausted", **more: Any) -> dict[str, Any]:
    return {"state": state, "created_at": T0, "attempts": attempts, "due_at": T0, "started_at": None, **more}


def told(found: dict[str, Any], seconds: float = 100) -> list[tuple[str, float, float]]:
    spans = spans_of(found, T0 + timedelta(seconds=seconds))
    return [(span.kind, *((at - T0).total_seconds() for at in (span.start, span.end))) for span in spans]


def test_attempts_and_the_waits_between_them_follow_each_other():
    assert told(story(attempt(1, 0, 5, 7), attempt(2, 17, 20, 21, "succeeded"))) == [
        ("pending", 0, 5),
        ("failed", 5, 7),
        ("delay", 7, 17),
        ("pending", 17, 20),
        ("succeeded", 20, 21),
    ]


def test_what_runs_or_waits_goes_on_until_now():
    running: dict[str, Any] = {"state": "running", "attempt": 2, "due_at": T0 + timedelta(seconds=10)}
    running["started_at"] = T0 + timedelta(seconds=12)
    whole = told(story(attempt(1, 0, 0, 2), **running))
    assert whole == [("failed", 0, 2), ("delay", 2, 10), ("pending", 10, 12), ("running", 12, 100)]
    later = told(story(state="pending", due_at=T0 + timedelta(seconds=500)))
    assert later == [("delay", 0, 500)]


def test_clocks_that_lie_apart_turn_nothing_round():
    spans = spans_of(story(attempt(1, 10, 5, 3), attempt(1, 2, None, 1, "cancelled")), T0)
    assert all(span.end >= span.start for span in spans)
    assert "<svg" in (timeline(spans) or "")


def test_of_nothing_there_is_no_drawing():
    assert timeline([]) is None


def test_the_trace_is_that_of_its_context():
    assert trace_id_of("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01") == "0af7651916cd43dd8448eb211c80319c"
    assert (trace_id_of(None), trace_id_of("other")) == (None, "other")

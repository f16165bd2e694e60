"""What history says about limits, against a judge that compares every pair of attempts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from jobrunner.policy.limit_sweep import Begun, Holders, Starts
from jobrunner.policy.rates import Rate

T0 = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def second(count: float) -> datetime:
    return T0 + timedelta(seconds=count)


@st.composite
def histories(draw: Any) -> list[Begun]:
    """Attempts in the order of their starts; times are few, so that many are equal."""
    found = []
    for run_id in range(draw(st.integers(0, 14))):
        start = draw(st.integers(0, 20))
        end = None if draw(st.integers(0, 9)) == 0 else second(start + draw(st.integers(0, 8)))
        found.append(Begun(second(start), draw(st.booleans()), run_id, end))
    return sorted(found, key=lambda begun: begun[:3])


@given(histories(), st.integers(1, 4), st.integers(0, 2))
def test_holders_are_judged_as_by_comparing_all(rows: list[Begun], most: int, tolerance: int):
    judge = Holders(most, timedelta(seconds=tolerance))
    found = {(wrong.at, wrong.count) for begun in rows if (wrong := judge.add(begun)) is not None}
    ends = {begun: second(1000) if begun.end is None else begun.end - timedelta(seconds=tolerance) for begun in rows}
    held = [begun for begun in rows if begun.started < ends[begun]]
    expected = {}
    for place, begun in enumerate(held):
        count = 1 + sum(ends[before] > begun.started for before in held[:place])
        if count > most:
            expected[place] = (begun.started, count)
    assert found == set(expected.values())


@given(histories(), st.integers(1, 4), st.integers(1, 6), st.integers(0, 2))
def test_starts_are_judged_as_by_comparing_all(rows: list[Begun], count: int, seconds: int, tolerance: int):
    judge = Starts(Rate(count, seconds), timedelta(seconds=tolerance))
    found = [wrong.run_ids for begun in rows if (wrong := judge.add(begun)) is not None]
    window = timedelta(seconds=seconds - tolerance)
    expected = []
    for place, begun in enumerate(rows):
        before = [each.run_id for each in rows[:place] if begun.started - each.started < window]
        if len(before) >= count and not begun.is_forced:
            expected.append((*before[-count:], begun.run_id))
    assert found == expected

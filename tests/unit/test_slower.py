"""Who takes longer than before, by the lengths of runs."""

from __future__ import annotations

import pytest

from jobrunner.policy.slower import Slower, judge


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ([1000] * 4, [9000] * 30),  # too few before
        ([1000] * 30, [9000] * 4),  # too few now
        ([1000] * 30, [1400] * 30),  # not half as long again
        ([10] * 30, [90] * 30),  # too short to matter
        ([1000] * 20 + [5000] * 10, [4000] * 30),  # a third took longer before, too
        ([], []),
    ],
)
def test_what_says_little_is_not_told(before: list[int], now: list[int]):
    assert judge("w", before, now) is None


def test_runs_that_take_half_as_long_again_are_told():
    found = judge("w", [1000] * 28 + [5000] * 2, [1500] * 5)
    assert found == Slower("w", p50_before=1000, p50_now=1500, p95_before=5000, p95_now=1500)
    assert found.ratio == 1.5


def test_what_took_no_time_before_is_no_division_by_zero():
    found = judge("w", [0] * 9, [200] * 9)
    assert found is not None
    assert found.ratio == 200

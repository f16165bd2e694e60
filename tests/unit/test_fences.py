"""The walk over fences finds those that were drawn twice, or not at all, in whatever order claims have ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobrunner.policy import fences
from jobrunner.policy.fences import DrawnTwice, Fences, NotDrawn


def walked(numbers: Sequence[int | None], last: int = 100, worker: str = "a") -> list[fences.FenceFault]:
    rows = [(worker, None, None, None, number) for number in numbers]
    return list(Fences({"a": last}).add(rows))


def test_fences_in_order_and_out_of_order_are_right():
    assert walked([5, 4, 3, 2, 1], last=5) == []
    assert walked([3, 5, 1, None, 4, 2], last=5) == []
    assert walked([97, 3], last=100) == []  # the others were pruned, or are live


def test_a_fence_drawn_twice_is_found_wherever_it_is():
    assert walked([5, 4, 4, 3]) == [DrawnTwice("a", 4)]
    assert walked([5, 4, 3, 5]) == [DrawnTwice("a", 5)]
    assert walked([9, 3, 6, 6]) == [DrawnTwice("a", 6)]


def test_a_fence_beyond_the_last_one_drawn_is_found():
    assert walked([6, 5], last=5) == [NotDrawn("a", 6, 5)]
    assert walked([6], worker="gone") == []  # a worker that was removed


@given(st.lists(st.integers(1, 40), max_size=60))
def test_it_says_what_counting_says(numbers: list[int]):
    twice = [fault.fence for fault in walked(numbers) if isinstance(fault, DrawnTwice)]
    assert Counter(twice) == Counter(numbers) - Counter(set(numbers))


@given(st.permutations(range(1, 30)), st.integers(2, 6))
def test_what_it_has_forgotten_it_does_not_judge(numbers: list[int], most: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fences, "_GAPS_AT_MOST", most)
        assert walked(numbers) == []

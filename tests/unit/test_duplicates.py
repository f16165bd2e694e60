"""When a postponed run is due, and which triggers may speak of duplicates at all."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jobrunner.errors import InvalidSetting
from jobrunner.model.run import HELD_UNTIL
from jobrunner.policy.duplicates import check_duplicate, postponed

T0 = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("due", "asked", "at_most", "now", "then"),
    [
        (10, 15, None, 5, 15),  # put off
        (10, 15, 60, 5, 15),
        (10, 75, 60, 65, None),  # the bound has passed
        (50, 65, 60, 55, 60),  # the bound cuts it
        (60, 65, 60, 55, None),  # as far as it goes already
        (10, 8, None, 3, None),  # never earlier
        (10, 4, None, 4, None),  # nor into the past
        (0, 15, 0, 5, None),  # no time at all
    ],
)
def test_a_postponed_run_moves_later_and_never_past_its_bound(
    due: float, asked: float, at_most: float | None, now: float, then: float | None
):
    bound = None if at_most is None else timedelta(seconds=at_most)
    found = postponed(at(due), at(asked), T0, bound, at(now))
    assert found == (None if then is None else at(then))


def test_a_step_that_waits_for_others_stays_held():
    assert postponed(HELD_UNTIL, HELD_UNTIL + timedelta(days=1), T0, None, T0) is None


@pytest.mark.parametrize("kind", ["keep", "replace", "postpone"])
def test_what_goes_together_is_taken(kind: str):
    assert check_duplicate(kind, has_key=True, has_delay=True) is None


def test_a_bound_may_be_said_in_any_way_a_length_of_time_is():
    for said in (60, "1m", timedelta(minutes=1)):
        assert check_duplicate("postpone", said, has_key=True, has_delay=True) == timedelta(minutes=1)
    assert check_duplicate("postpone", 1e300, has_key=True, has_delay=True) is None


@pytest.mark.parametrize(
    ("kind", "at_most", "has_key", "has_delay", "why"),
    [
        ("drop", None, True, True, "on_duplicate 'drop' is none of keep, replace, postpone"),
        (None, None, True, True, "on_duplicate None is none of"),
        ("replace", None, False, True, "needs a key"),
        ("postpone", None, False, True, "needs a key"),
        ("postpone", None, True, False, "needs a delay"),
        ("keep", 5, True, True, "at_most goes with on_duplicate 'postpone'"),
        ("replace", 5, True, True, "at_most goes with on_duplicate 'postpone'"),
        ("postpone", -1, True, True, "at_most must not be negative"),
        ("postpone", "soon", True, True, "at_most must be a number of seconds, a timedelta or text"),
    ],
)
def test_what_does_not_go_together_is_refused(kind: Any, at_most: Any, has_key: bool, has_delay: bool, why: str):
    with pytest.raises(InvalidSetting, match=why):
        check_duplicate(kind, at_most, has_key=has_key, has_delay=has_delay)

"""`Discard`, `Snooze` and `RetryAfter`: what they are given is looked at where they are raised."""

from __future__ import annotations

import math
import pickle
from datetime import timedelta
from fractions import Fraction
from typing import Any

import pytest

from jobrunner import Discard, RetryAfter, Snooze
from jobrunner.runtime.raised import signal_in

ASKING = pytest.mark.parametrize("signal", [Snooze, RetryAfter])


@ASKING
@pytest.mark.parametrize(
    ("given", "seconds"),
    [(timedelta(minutes=5), 300.0), (5, 5.0), (0.5, 0.5), (Fraction(1, 2), 0.5), (math.inf, math.inf)],
)
def test_a_length_of_time_is_a_number_or_a_timedelta(signal: Any, given: Any, seconds: float):
    assert signal(given).seconds == seconds


@ASKING
@pytest.mark.parametrize("given", ["3600", None, True, b"1", [1], 1j, object()], ids=lambda given: type(given).__name__)
def test_anything_else_is_refused_where_it_is_raised(signal: Any, given: Any):
    with pytest.raises(TypeError, match=f"a number of seconds or a timedelta, not {type(given).__name__}"):
        signal(given)


@ASKING
@pytest.mark.parametrize("given", [math.nan, 10**400], ids=["nan", "huge"])
def test_a_number_that_is_no_length_of_time_is_refused(signal: Any, given: Any):
    with pytest.raises(ValueError, match="a length of time is a number of seconds"):
        signal(given)


def test_a_reason_is_its_text():
    assert (str(Discard(404)), Discard(404).reason) == ("404", "404")
    assert str(Discard()) == "discarded by its handler"
    assert str(Snooze(timedelta(minutes=5))) == "snoozed for 300 s"
    assert str(RetryAfter(1, "busy")) == "busy"


@pytest.mark.parametrize("signal", [Snooze(timedelta(minutes=5), "later"), RetryAfter(7), Discard(404)], ids=repr)
def test_they_travel_between_processes(signal: Any):
    copy = pickle.loads(pickle.dumps(signal))
    assert (type(copy), str(copy), vars(copy)) == (type(signal), str(signal), vars(signal))


def test_a_group_of_nothing_but_such_is_the_strongest_of_them():
    short, long, discard = Snooze(1), Snooze(2), Discard("gone")
    assert signal_in(ExceptionGroup("", [short, ExceptionGroup("", [long])])) is long
    assert signal_in(ExceptionGroup("", [long, RetryAfter(1), discard])) is discard
    assert signal_in(ExceptionGroup("", [discard, ValueError()])) is None
    assert signal_in(ValueError()) is None
    assert signal_in(short) is short

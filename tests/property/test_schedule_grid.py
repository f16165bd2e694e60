"""The grid of a schedule never drifts, and every function that names a time names one that lies on it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jobrunner.model.schedule import CronSchedule, IntervalSchedule, Schedule
from jobrunner.model.worker import Misfire
from jobrunner.policy.schedule import (
    SKIP_GRACE,
    count_due,
    decide_firing,
    first_due,
    is_too_far_ahead,
    next_after_now,
    occurrences,
    rescheduled,
    step_after,
)

MICROSECOND = timedelta(microseconds=1)
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca"]
EXPRESSIONS = [
    "* * * * *",
    "*/7 * * * *",
    "30 2 * * *",
    "0 */2 * * *",
    "15,45 1-3 * * MON-FRI",
    "0 0 1 * *",
    "5 4 29 2 *",
]

instants = st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
micros = st.integers(1, 10**6) | st.integers(1, 10**12)
offsets = st.integers(0, 600 * 10**6).map(lambda micro: micro / 10**6)
intervals = st.builds(IntervalSchedule, micros.map(lambda micro: micro / 10**6), offsets)
crons = st.builds(CronSchedule, st.sampled_from(EXPRESSIONS), st.sampled_from(ZONES), offsets)
schedules: st.SearchStrategy[Schedule] = intervals | crons
lateness = st.integers(0, 10**6).map(lambda micro: timedelta(microseconds=micro)) | st.timedeltas(
    timedelta(), timedelta(days=900)
)
fast = settings(deadline=None, max_examples=150)


def due_times(schedule: Schedule, oldest: datetime, now: datetime, at_most: int) -> list[datetime]:
    """Return the times due, one single step after the other."""
    found: list[datetime] = []
    while oldest <= now and len(found) < at_most:
        found.append(oldest)
        oldest = step_after(schedule, oldest)
    return found


@fast
@given(instants, st.integers(1, 10**9), st.integers(0, 300))
def test_many_single_steps_and_one_jump_meet_in_the_same_instant(start: datetime, micro: int, count: int) -> None:
    schedule = IntervalSchedule(micro / 10**6)
    reached = start
    for _ in range(count):
        reached = step_after(schedule, reached)
    assert reached == start + count * timedelta(microseconds=micro)
    firing = decide_firing(schedule, Misfire.RUN_ONCE, start, reached)
    assert firing.scheduled_for == reached
    assert firing.next_run_at == next_after_now(schedule, start, reached) == reached + timedelta(microseconds=micro)


@fast
@given(schedules, instants, lateness, st.sampled_from(Misfire))
def test_a_firing_accounts_for_every_time_due(
    schedule: Schedule, start: datetime, late: timedelta, misfire: Misfire
) -> None:
    oldest = first_due(schedule, start)
    now = oldest + late
    due = due_times(schedule, oldest, now, at_most=400)
    assume(len(due) < 400)
    firing = decide_firing(schedule, misfire, oldest, now)
    if misfire is Misfire.RUN_ALL:
        assert (firing.scheduled_for, firing.next_run_at, firing.missed) == (oldest, step_after(schedule, oldest), None)
        return
    runs = misfire is Misfire.RUN_ONCE or now - due[-1] <= SKIP_GRACE
    missed = due[:-1] if runs else due
    assert firing.scheduled_for == (due[-1] if runs else None)
    assert firing.next_run_at == step_after(schedule, due[-1])
    assert firing.next_run_at > now
    assert (firing.missed is None) == (not missed)
    if firing.missed:
        assert (firing.missed.first, firing.missed.last) == (missed[0], missed[-1])
        assert firing.missed.occurrences == len(missed)


@fast
@given(schedules, instants, lateness)
def test_the_missed_times_of_years_are_counted_up_to_1000(schedule: Schedule, start: datetime, late: timedelta) -> None:
    oldest = first_due(schedule, start)
    missed = count_due(schedule, oldest, oldest + late, "disabled")
    assert missed is not None
    assert missed.occurrences == len(due_times(schedule, oldest, oldest + late, at_most=1000))
    assert oldest <= missed.last <= oldest + late < step_after(schedule, missed.last)


@fast
@given(schedules, instants, lateness, st.sampled_from(Misfire))
def test_no_time_just_computed_is_too_far_ahead(
    schedule: Schedule, start: datetime, late: timedelta, misfire: Misfire
) -> None:
    oldest = first_due(schedule, start)
    now = oldest + late
    firing = decide_firing(schedule, misfire, oldest, now)
    computed = [
        firing.next_run_at,
        first_due(schedule, now),
        next_after_now(schedule, None, now),
        next_after_now(schedule, oldest, now),
        next_after_now(schedule, now + late, now),
        rescheduled(schedule, None, now),
        rescheduled(schedule, oldest, now),
        rescheduled(schedule, now + late, now),
    ]
    assert [time for time in computed if time is None or is_too_far_ahead(schedule, time, now)] == []


@fast
@given(schedules, instants, st.timedeltas(timedelta(days=-30), timedelta(days=30)))
def test_the_next_time_after_now_is_the_first_on_the_grid(
    schedule: Schedule, start: datetime, later: timedelta
) -> None:
    last_due = first_due(schedule, start)
    now = last_due + later
    following = next_after_now(schedule, last_due, now)
    assert following > now
    if isinstance(schedule, IntervalSchedule):
        period = step_after(schedule, last_due) - last_due
        assert following - period <= now
        assert (following - last_due) % period == timedelta()
    else:
        assert following == step_after(schedule, following - MICROSECOND) == step_after(schedule, now)


@fast
@given(schedules, instants)
def test_occurrences_are_the_single_steps(schedule: Schedule, start: datetime) -> None:
    due = first_due(schedule, start)
    until = due + timedelta(days=400)
    steps = due_times(schedule, due, until, at_most=20)[1:]
    assert list(islice(occurrences(schedule, due, until), 19)) == steps

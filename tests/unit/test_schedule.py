from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest

from jobrunner.errors import InvalidSchedule
from jobrunner.model.schedule import CronSchedule, Firing, IntervalSchedule, Missed, Schedule
from jobrunner.model.worker import Misfire, WorkerConfig, WorkerExecutionMode
from jobrunner.policy.schedule import (
    count_due,
    decide_firing,
    first_due,
    is_too_far_ahead,
    next_after_now,
    occurrences,
    rescheduled,
    schedule_of,
    step_after,
)

MINUTELY = IntervalSchedule(60.0)
DAILY = CronSchedule("0 3 * * *", "Europe/Berlin")
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


# --- schedule_of


@pytest.mark.parametrize("mode", [WorkerExecutionMode.TRIGGERED, WorkerExecutionMode.CONTINUOUS])
def test_only_a_scheduled_worker_has_a_schedule(mode: WorkerExecutionMode) -> None:
    assert schedule_of(WorkerConfig("w", execution_mode=mode, interval_seconds=5.0)) is None


def test_a_scheduled_worker_runs_every_300_seconds_unless_it_says_otherwise() -> None:
    assert schedule_of(WorkerConfig("w")) == IntervalSchedule(300.0)
    assert schedule_of(WorkerConfig("w", interval_seconds=0.001)) == IntervalSchedule(0.001)
    assert schedule_of(WorkerConfig("w", cron="0 3 * * *", timezone="Asia/Tokyo")) == CronSchedule(
        "0 3 * * *", "Asia/Tokyo"
    )


def test_the_offset_of_a_name_is_stable_and_below_the_jitter() -> None:
    found = schedule_of(WorkerConfig("fetch-data", jitter_seconds=60.0))
    assert found == IntervalSchedule(300.0, 14.497273)
    offsets = [schedule_of(WorkerConfig(f"w{number}", jitter_seconds=10.0)) for number in range(200)]
    values = [offset.offset_seconds for offset in offsets if offset]
    assert 0 <= min(values) < 1
    assert 9 < max(values) < 10


def test_the_smallest_jitter_gives_no_offset() -> None:
    assert schedule_of(WorkerConfig("w", jitter_seconds=0.000001)) == IntervalSchedule(300.0, 0.0)


@pytest.mark.parametrize("interval", [0.0, -1.0, float("nan"), float("inf"), 1e12])
def test_an_interval_that_is_no_time_is_refused(interval: float) -> None:
    with pytest.raises(InvalidSchedule, match="interval_seconds"):
        schedule_of(WorkerConfig("w", interval_seconds=interval))


@pytest.mark.parametrize("jitter", [-1.0, float("nan"), float("inf")])
def test_a_jitter_that_is_no_time_is_refused(jitter: float) -> None:
    with pytest.raises(InvalidSchedule, match="jitter_seconds"):
        schedule_of(WorkerConfig("w", jitter_seconds=jitter))


def test_a_cron_expression_that_cannot_be_used_is_refused() -> None:
    with pytest.raises(InvalidSchedule, match="minute"):
        schedule_of(WorkerConfig("w", cron="x * * * *"))


# --- first_due and step_after


def test_the_first_run_of_an_interval_is_due_at_once() -> None:
    assert first_due(MINUTELY, NOON) == NOON


def test_an_offset_delays_the_first_run_and_so_the_whole_grid() -> None:
    schedule = IntervalSchedule(60.0, 7.5)
    assert first_due(schedule, NOON) == NOON + seconds(7.5)
    assert step_after(schedule, first_due(schedule, NOON)) == NOON + seconds(67.5)


def test_a_cron_offset_moves_every_time() -> None:
    schedule = CronSchedule("0 * * * *", "UTC", 90.0)
    assert first_due(schedule, utc("2026-05-01T12:01")) == utc("2026-05-01T12:01:30")
    assert step_after(schedule, utc("2026-05-01T12:01:30")) == utc("2026-05-01T13:01:30")


def test_an_interval_is_elapsed_time_that_dst_never_shifts() -> None:
    daily = IntervalSchedule(86400.0)
    assert step_after(daily, utc("2026-03-28T12:00")) == utc("2026-03-29T12:00")
    assert step_after(DAILY, utc("2026-03-28T02:00")) == utc("2026-03-29T01:00")


# --- decide_firing


@pytest.mark.parametrize("misfire", list(Misfire))
@pytest.mark.parametrize("late", [0.0, 0.5, 59.999999])
def test_a_single_time_that_is_due_runs_under_every_rule(misfire: Misfire, late: float) -> None:
    assert decide_firing(MINUTELY, misfire, NOON, NOON + seconds(late)) == Firing(NOON, NOON + seconds(60), None)


def test_run_once_takes_the_latest_and_misses_the_rest() -> None:
    firing = decide_firing(MINUTELY, Misfire.RUN_ONCE, NOON, NOON + seconds(200))
    assert firing.scheduled_for == NOON + seconds(180)
    assert firing.next_run_at == NOON + seconds(240)
    assert firing.missed == Missed(NOON, NOON + seconds(120), 3, "passed over for a later time (misfire run_once)")


def test_run_all_takes_the_oldest_and_moves_one_step() -> None:
    firing = decide_firing(MINUTELY, Misfire.RUN_ALL, NOON, NOON + seconds(200))
    assert firing == Firing(NOON, NOON + seconds(60), None)


def test_skip_takes_the_latest_up_to_60_seconds_late() -> None:
    hourly = IntervalSchedule(3600.0)
    firing = decide_firing(hourly, Misfire.SKIP, NOON, NOON + seconds(7260))
    assert firing.scheduled_for == NOON + seconds(7200)
    assert firing.next_run_at == NOON + seconds(10800)
    assert firing.missed == Missed(NOON, NOON + seconds(3600), 2, "passed over for a later time (misfire skip)")


def test_skip_takes_none_when_the_latest_is_more_than_60_seconds_late() -> None:
    hourly = IntervalSchedule(3600.0)
    firing = decide_firing(hourly, Misfire.SKIP, NOON, NOON + seconds(7260.000001))
    missed = Missed(NOON, NOON + seconds(7200), 3, "more than 60 s late (misfire skip)")
    assert firing == Firing(None, NOON + seconds(10800), missed)


def test_a_time_that_is_due_right_now_is_due() -> None:
    firing = decide_firing(MINUTELY, Misfire.RUN_ONCE, NOON, NOON + seconds(60))
    assert firing == Firing(
        NOON + seconds(60),
        NOON + seconds(120),
        Missed(NOON, NOON, 1, "passed over for a later time (misfire run_once)"),
    )


def test_nothing_is_decided_before_the_time_comes() -> None:
    assert decide_firing(MINUTELY, Misfire.RUN_ONCE, NOON, NOON - seconds(1)) == Firing(None, NOON, None)


def test_cron_times_are_passed_over_like_those_of_an_interval() -> None:
    firing = decide_firing(DAILY, Misfire.RUN_ONCE, utc("2026-03-27T02:00"), utc("2026-03-31T00:00"))
    assert firing.scheduled_for == utc("2026-03-30T01:00")
    assert firing.next_run_at == utc("2026-03-31T01:00")
    assert firing.missed is not None
    assert (firing.missed.first, firing.missed.last) == (utc("2026-03-27T02:00"), utc("2026-03-29T01:00"))
    assert firing.missed.occurrences == 3


def test_an_oldest_time_that_the_expression_does_not_name_counts_as_due() -> None:
    stray = utc("2026-05-01T12:00:07")
    assert decide_firing(DAILY, Misfire.RUN_ONCE, stray, stray + seconds(5)).scheduled_for == stray
    firing = decide_firing(DAILY, Misfire.RUN_ONCE, stray, utc("2026-05-02T12:00"))
    assert firing.scheduled_for == utc("2026-05-02T01:00")
    assert firing.missed is not None
    assert (firing.missed.first, firing.missed.last, firing.missed.occurrences) == (stray, stray, 1)


@pytest.mark.parametrize("schedule", [IntervalSchedule(0.001), CronSchedule("* * * * *", "America/New_York", 12.5)])
@pytest.mark.parametrize("misfire", [Misfire.RUN_ONCE, Misfire.SKIP])
def test_years_of_missed_times_are_counted_up_to_1000(schedule: Schedule, misfire: Misfire) -> None:
    oldest = first_due(schedule, utc("2006-01-01T00:00"))
    now = utc("2026-05-01T12:00:50")
    firing = decide_firing(schedule, misfire, oldest, now)
    assert firing.missed is not None
    assert firing.missed.occurrences == 1000
    assert firing.missed.first == oldest
    assert firing.scheduled_for is not None
    assert firing.scheduled_for <= now
    assert firing.next_run_at == step_after(schedule, firing.scheduled_for)
    assert firing.next_run_at > now


# --- next_after_now, rescheduled


def test_the_next_time_after_now_stays_on_the_grid_of_the_last() -> None:
    assert next_after_now(MINUTELY, NOON, NOON + seconds(200)) == NOON + seconds(240)
    assert next_after_now(MINUTELY, NOON, NOON + seconds(240)) == NOON + seconds(300)


def test_after_the_clock_went_back_the_next_time_is_within_one_period() -> None:
    assert next_after_now(MINUTELY, NOON, NOON - seconds(3610)) == NOON - seconds(3600)


def test_a_worker_that_never_ran_is_due_at_once_when_enabled() -> None:
    assert next_after_now(MINUTELY, None, NOON) == NOON
    assert next_after_now(DAILY, None, NOON) == utc("2026-05-02T01:00")


def test_a_cron_time_is_strictly_after_now() -> None:
    assert next_after_now(DAILY, utc("2026-05-01T01:00"), utc("2026-05-02T01:00")) == utc("2026-05-03T01:00")


def test_a_new_interval_counts_from_the_last_due_time() -> None:
    assert rescheduled(MINUTELY, NOON - seconds(10), NOON) == NOON + seconds(50)


def test_a_new_interval_is_due_no_earlier_than_now() -> None:
    assert rescheduled(MINUTELY, NOON - seconds(3600), NOON) == NOON


def test_a_new_schedule_of_a_worker_that_never_was_due_starts_afresh() -> None:
    assert rescheduled(IntervalSchedule(60.0, 5.0), None, NOON) == NOON + seconds(5)


def test_a_new_cron_expression_takes_the_next_time_after_now() -> None:
    assert rescheduled(DAILY, NOON - seconds(10), NOON) == utc("2026-05-02T01:00")


# --- is_too_far_ahead


def test_a_time_more_than_one_period_ahead_is_too_far() -> None:
    assert is_too_far_ahead(MINUTELY, NOON + seconds(3600), NOON)
    assert not is_too_far_ahead(MINUTELY, NOON + seconds(60), NOON)
    assert is_too_far_ahead(DAILY, utc("2026-05-03T01:00"), NOON)
    assert not is_too_far_ahead(DAILY, utc("2026-05-02T01:00"), NOON)


def test_clocks_that_differ_a_little_do_not_look_like_a_clock_that_went_back() -> None:
    due = utc("2026-05-02T01:00")
    for schedule in (MINUTELY, DAILY, IntervalSchedule(0.5)):
        fired = decide_firing(schedule, Misfire.RUN_ONCE, due, due)
        assert fired.next_run_at is not None
        assert not is_too_far_ahead(schedule, fired.next_run_at, due - seconds(5))


def test_a_first_time_that_waits_for_a_long_offset_is_not_too_far() -> None:
    schedule = IntervalSchedule(60.0, 600.0)
    assert not is_too_far_ahead(schedule, first_due(schedule, NOON), NOON)


# --- count_due, occurrences


def test_what_was_missed_until_a_worker_is_disabled_is_counted() -> None:
    assert count_due(MINUTELY, NOON, NOON + seconds(120), "disabled") == Missed(
        NOON, NOON + seconds(120), 3, "disabled"
    )
    assert count_due(DAILY, utc("2026-05-01T01:00"), NOON, "disabled") == Missed(
        utc("2026-05-01T01:00"), utc("2026-05-01T01:00"), 1, "disabled"
    )


def test_a_worker_disabled_before_its_time_missed_nothing() -> None:
    assert count_due(MINUTELY, NOON, NOON - seconds(1), "disabled") is None


def test_occurrences_are_after_the_first_bound_and_up_to_the_second() -> None:
    assert list(occurrences(MINUTELY, NOON, NOON + seconds(120))) == [NOON + seconds(60), NOON + seconds(120)]
    assert list(occurrences(DAILY, utc("2026-03-28T02:00"), utc("2026-03-30T01:00"))) == [
        utc("2026-03-29T01:00"),
        utc("2026-03-30T01:00"),
    ]


def test_occurrences_come_one_at_a_time() -> None:
    endless = occurrences(IntervalSchedule(0.001), NOON, NOON + timedelta(days=36500))
    assert list(islice(endless, 2)) == [NOON + seconds(0.001), NOON + seconds(0.002)]

"""What a clock that was wrong has left behind, and what becomes of it.

Terms. A *wait* of a given length (for the next time of a schedule, a retry, a snooze, a delay, a pause, a circuit's
cooldown) began at some instant, by the clock of whoever wrote it. A wait that began ahead of now, by more than clocks
of two machines may differ (`CLOCK_TOLERANCE`), began under a clock that was wrong, or was written by hand: nobody would
see the end of it before that time has come round. It begins anew, now. Times that an operator has named (a trigger's
`at`, the end of a pause) are nobody's mistake, and stay.

`reach_seconds` says how long a worker's wait for its next time may be. The database keeps it beside the next time, so
that one look finds those that lie too far ahead. For an interval it is exact; of a cron expression, whose times may be
hours apart by day and days at the weekend, and of a loop that fails, it is what was seen so far (`longer_reach`). What
it finds is judged here.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from jobrunner.errors import InvalidSchedule
from jobrunner.model.limits import LONGEST_SECONDS
from jobrunner.model.unreadable import UNREADABLE_TIME
from jobrunner.model.worker import CircuitState, WorkerConfig, WorkerExecutionMode, WorkerState
from jobrunner.policy import schedule as schedules
from jobrunner.policy.schedule import CLOCK_TOLERANCE
from jobrunner.policy.transitions import next_time, with_cooldown

FIRST_TIME = datetime(1970, 1, 1, tzinfo=UTC)

MARKS = ("last_ended_at", "last_run_at", "last_success_at", "circuit_opened_at")
"""Times of what has happened: none of them lies ahead."""


def reach_seconds(config: WorkerConfig) -> float:
    """Return for how many seconds ahead a worker's next time may be set; 0 for one that has none."""
    if config.execution_mode is WorkerExecutionMode.CONTINUOUS:
        return config.interval_seconds or 0.0
    try:
        schedule = schedules.usable_schedule(config)
        return 0.0 if schedule is None else schedules.reach(schedule).total_seconds()
    except InvalidSchedule:  # written by hand; whoever fires it says so
        return 0.0


def longer_reach(config: WorkerConfig, state: WorkerState) -> float:
    """Return the reach in seconds that a next time which is right shows to be needed."""
    if config.execution_mode is WorkerExecutionMode.CONTINUOUS:
        return _longest_pause(config, state).total_seconds()
    seconds = reach_seconds(config)
    try:
        schedule = schedules.usable_schedule(config)
        if schedule is None or state.next_run_at is None:
            return seconds
        return max(seconds, schedules.gap_before(schedule, state.next_run_at).total_seconds())
    except InvalidSchedule:
        return seconds


def shifted(moment: datetime, by: timedelta) -> datetime:
    """Return the time so much later, at most the last there is."""
    try:
        return moment + by
    except OverflowError:
        return UNREADABLE_TIME


def is_real_time(moment: datetime) -> bool:
    """Say whether the database can hold the time: from 1970 to 9999."""
    return FIRST_TIME <= moment <= UNREADABLE_TIME


def _longest_pause(config: WorkerConfig, state: WorkerState) -> timedelta:
    """Return how long a loop may wait: its pause, and after runs that failed as long as a retry does."""
    after_failure = config.retry_max_delay_seconds if state.consecutive_failures else 0.0
    return timedelta(seconds=max(config.interval_seconds or 0.0, after_failure))


def is_ahead(moment: datetime | None, now: datetime) -> bool:
    """Say whether a time that should have passed lies further ahead than two clocks may differ."""
    return moment is not None and moment > now + CLOCK_TOLERANCE


def set_right(config: WorkerConfig, state: WorkerState, now: datetime) -> WorkerState:
    """Return the worker's state as a clock that was right would have left it; the same where nothing is wrong."""
    try:
        after = _cool_down_anew(config, _end_pause_sooner(state, now), now)
        after = _plan_anew(config, after, now, is_moved=after is not state)
    except (InvalidSchedule, OverflowError):  # written by hand, at the end of time perhaps; whoever fires it says so
        return state
    marks: dict[str, Any] = {name: now for name in MARKS if is_ahead(getattr(after, name), now)}
    return replace(after, **marks) if marks else after


def _end_pause_sooner(state: WorkerState, now: datetime) -> WorkerState:
    if state.paused_at is None or state.paused_until is None or not is_ahead(state.paused_at, now):
        return state
    return replace(state, paused_until=shifted(now, state.paused_until - state.paused_at), paused_at=now)


def _cool_down_anew(config: WorkerConfig, state: WorkerState, now: datetime) -> WorkerState:
    if state.circuit_state is not CircuitState.OPEN or state.probe_at is None:
        return state
    cooldown = timedelta(seconds=min(state.cooldown_current_seconds or 0.0, LONGEST_SECONDS))
    if not is_ahead(state.probe_at - cooldown, now):
        return state
    return with_cooldown(replace(state, circuit_opened_at=now), config, now)


def _plan_anew(config: WorkerConfig, state: WorkerState, now: datetime, *, is_moved: bool) -> WorkerState:
    """Compute a next time again that lies too far ahead, or whose pause or cooldown was moved."""
    waits_for_probe = not state.is_enabled and state.probe_at is not None
    if state.next_run_at is None or not (state.is_enabled or waits_for_probe):
        return state
    start = max(now, state.paused_until or now, (state.probe_at if waits_for_probe else None) or now)
    if not is_moved and not _is_too_far(config, state, state.next_run_at, start, now):
        return state
    following = _following(config, state, start if waits_for_probe else now, now)
    is_sooner = following is not None and following < state.next_run_at
    return replace(state, next_run_at=following) if is_sooner else state


def _following(config: WorkerConfig, state: WorkerState, start: datetime, now: datetime) -> datetime | None:
    ended_at, planned = state.last_ended_at, state.next_run_at
    is_loop = config.execution_mode is WorkerExecutionMode.CONTINUOUS
    if is_loop and planned is not None and ended_at is not None and is_ahead(ended_at, now) and planned > ended_at:
        return max(now + (planned - ended_at), state.paused_until or now)  # the same pause, from now on
    return next_time(config, state, start if start == now else start - timedelta(microseconds=1))


def _is_too_far(
    config: WorkerConfig, state: WorkerState, next_run_at: datetime, start: datetime, now: datetime
) -> bool:
    if config.execution_mode is WorkerExecutionMode.CONTINUOUS:
        is_far = next_run_at > start + _longest_pause(config, state) + CLOCK_TOLERANCE
        return is_far or (next_run_at > start and is_ahead(state.last_ended_at, now))
    schedule = schedules.usable_schedule(config)
    return schedule is not None and schedules.is_too_far_ahead(schedule, next_run_at, start)

"""Times of a schedule that pass without a run because the worker is off, or because no live node can run it.

Terms. A worker is *off* while it is disabled, by an operator or by its circuit, or paused. `missed_from` is the first
time of its schedule that passes meanwhile and stands in no `missed` row yet. What ends that or changes its cause
(enabling, resuming, a circuit that closes, another disable or pause, another schedule, the first claim after a pause
has ended, the firing that is a circuit's probe) records what has passed as one row, which says the cause and its
author, in the transaction of the switch, the end or the claim. So nothing is recorded twice, and a kill in the middle
leaves all as it was.

A *gap* is a time in which no live node could run the worker. What a claim or a switch passes over and was due in the
gap is recorded as such, in a row of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from jobrunner.policy import schedule as schedules
from jobrunner.policy.words import show_time

if TYPE_CHECKING:
    from jobrunner.model.schedule import Missed, Schedule
    from jobrunner.model.worker import WorkerConfig, WorkerState

UNTIL_RESUMED = datetime(9999, 12, 31, tzinfo=UTC)
NO_NODE = "no live node could run it"

_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Gap:
    """No live node could run the worker after `after` (None: ever before) and before `before` (None: until now)."""

    after: datetime | None
    before: datetime | None


def show_end_of_pause(until: datetime, timezone: str = "UTC") -> str:
    """Return `until resumed`, or `until 2026-03-02 12:01:00 UTC`, with the time in `timezone` beside it."""
    return "until resumed" if until.year >= UNTIL_RESUMED.year else f"until {show_time(until, timezone)}"


def is_off(state: WorkerState, now: datetime) -> bool:
    """Say whether the worker is disabled or paused."""
    return not state.is_enabled or (state.paused_until is not None and state.paused_until > now)


def why_disabled(state: WorkerState) -> str:
    """Say who disabled a worker, and why: `disabled by root@vm: maintenance`."""
    if state.disabled_by == "circuit":
        return f"disabled by its circuit: {state.disabled_reason or 'it kept failing'}"
    return f"disabled by {state.disabled_actor or 'an operator'}: {state.disabled_reason or 'no reason given'}"


def why_off(state: WorkerState) -> str:
    """Say why a worker is off, or was until now, and by whom: `disabled by root@vm: maintenance`."""
    if not state.is_enabled:
        return why_disabled(state)
    if state.paused_until is None:
        return "switched off by hand, in the database"
    return show_pause(state, state.paused_until)


def show_pause(state: WorkerState, until: datetime, timezone: str = "UTC") -> str:
    """Say until when a worker is paused, by whom and why: `paused until resumed, by root@vm: too many errors`."""
    said = f"paused {show_end_of_pause(until, timezone)}"
    if state.paused_by:
        said += f", by {state.paused_by}"
    return f"{said}: {state.paused_reason}" if state.paused_reason else said


def kind_of(reason: str) -> str:
    """Return why times were missed in one of a few words, for a metric, whose labels must be few.

    `disabled`, `paused`, `no_node`, or `not_started`: the worker was on, and something else kept it.
    """
    for beginning, kind in (("disabled", "disabled"), ("switched off", "disabled"), ("paused", "paused")):
        if reason.startswith(beginning):
            return kind
    return "no_node" if reason.startswith(NO_NODE) else "not_started"


def passed_while_off(state: WorkerState, config: WorkerConfig, now: datetime) -> tuple[Missed, ...]:
    """Count the times that have passed while the worker was off and are in no row yet; none, or one row.

    A worker that is on again owes those before `next_run_at`: what comes from there on can still be served.
    """
    schedule = schedules.usable_schedule(config)
    is_still_off = is_off(state, now)
    first = state.missed_from
    if first is None and is_still_off:  # switched off by hand, or its circuit's probe runs
        first = state.next_run_at
    if schedule is None or first is None:
        return ()
    last = now if is_still_off or state.next_run_at is None else min(now, _before(state.next_run_at))
    return _found(schedules.count_due(schedule, first, last, why_off(state)))


def passed_before_probe(state: WorkerState, schedule: Schedule, firing: datetime) -> tuple[Missed, ...]:
    """Count the times that have passed while the circuit was open, before the firing that is its probe."""
    if state.missed_from is None:
        return ()
    return _found(schedules.count_due(schedule, state.missed_from, _before(firing), why_off(state)))


def passed_while_on(
    state: WorkerState, config: WorkerConfig, now: datetime, reason: str, gap: Gap | None = None
) -> tuple[Missed, ...]:
    """Count the times up to `now` that a worker which is on has not served, and now never will, for `reason`."""
    schedule = schedules.usable_schedule(config)
    if schedule is None or state.next_run_at is None or is_off(state, now):
        return ()
    missed = schedules.count_due(schedule, state.next_run_at, now, reason)
    return () if missed is None else by_gap(schedule, missed, gap)


def first_to_pass(state: WorkerState, config: WorkerConfig, now: datetime) -> datetime | None:
    """Return `missed_from` of a worker that is off from `now` on: the first time of its schedule still to come.

    `state` is that before the switch. None for a worker without a schedule: a loop has no times that pass.
    """
    schedule = schedules.usable_schedule(config)
    if schedule is None:
        return None
    planned = state.missed_from or state.next_run_at
    if planned is not None and planned > now:
        return planned
    return schedules.next_after_now(schedule, planned or state.last_due_at, now)


def still_to_record(state: WorkerState, config: WorkerConfig) -> datetime | None:
    """Return `missed_from` of a worker that stays off, and whose `next_run_at` is about to be set anew."""
    return None if schedules.usable_schedule(config) is None else state.missed_from or state.next_run_at


def end_pause(state: WorkerState, config: WorkerConfig, now: datetime) -> tuple[WorkerState, tuple[Missed, ...]]:
    """Clear a pause that has ended, at the first claim after it, and count what has passed meanwhile."""
    if (state.paused_until is None and state.missed_from is None) or is_off(state, now):
        return state, ()
    missed = passed_while_off(state, config, now)
    return without_pause(replace(state, missed_from=None)), missed


def without_pause(state: WorkerState) -> WorkerState:
    """Return the state of a worker that is not paused."""
    return replace(state, paused_until=None, paused_reason=None, paused_at=None, paused_by=None)


def with_schedule_of(
    config: WorkerConfig, state: WorkerState, before: WorkerConfig, now: datetime
) -> tuple[WorkerState, tuple[Missed, ...]]:
    """Count what passed while off by the schedule of `before`; from now on times pass by that of `config`."""
    schedule = schedules.usable_schedule(config)
    first = None
    if schedule is not None and is_off(state, now):
        first = schedules.next_after_now(schedule, state.last_due_at, now)
    return replace(state, missed_from=first), passed_while_off(state, before, now)


def by_gap(schedule: Schedule, missed: Missed, gap: Gap | None) -> tuple[Missed, ...]:
    """Split times that were passed over at the ends of a gap: those in it were missed for want of a node."""
    if gap is None:
        return (missed,)
    before_gap = None if gap.after is None else (gap.after, missed.reason)
    in_gap = (missed.last if gap.before is None else _before(gap.before), NO_NODE)
    parts: list[Missed] = []
    first = missed.first
    for until, reason in (each for each in (before_gap, in_gap, (missed.last, missed.reason)) if each is not None):
        part = schedules.count_due(schedule, first, min(until, missed.last), reason)
        if part is not None:
            parts.append(part)
            first = schedules.step_after(schedule, part.last)
            if first > missed.last:
                break
    return tuple(parts)


def _found(missed: Missed | None) -> tuple[Missed, ...]:
    return () if missed is None else (missed,)


def _before(moment: datetime) -> datetime:
    return moment - _MICROSECOND

"""What the end of an attempt changes: `decide_finish(outcome) -> Finish`.

The order of judgement for an attempt that used up a try (`failed`, `timed_out`, `lost`):

1. the handler gave up (`Discard`): the run ends `discarded`, the streak is untouched;
2. tries are left, the error is one to be tried again (`retry_on`), it is no probe, and it was not lost three times in a
   row: the run waits and is tried again, unless an operator has asked to cancel it meanwhile: then it ends `cancelled`,
   as after any attempt that does not end it;
3. the payload never fitted: the run ends `discarded`, the streak is untouched;
4. else the run is exhausted: a dead letter, one more on the streak, and the circuit may open.

A run that is lost for the first time in a row is due again at once: its node has died, nothing speaks against the work.
Lost again it waits, since it may be what kills nodes. Its retry delay then counts from the node's last sign of life, so
that the time it took to find out is not added; that of other attempts from their end.

The streak and the circuit change here only, and in `policy.switches` when an operator enables or disables.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from jobrunner.model.limits import MAX_BIG_COUNT, MAX_COUNT
from jobrunner.model.run import FROM_SCHEDULE, MOST_ATTEMPTS, USES_UP_AN_ATTEMPT, EndsRun, Outcome, OutcomeKind, Run
from jobrunner.model.unreadable import UNREADABLE, Unreadable
from jobrunner.model.worker import CircuitState, WorkerConfig, WorkerExecutionMode, WorkerState
from jobrunner.policy import schedule as schedules
from jobrunner.policy.backoff import later, retry_delay
from jobrunner.policy.missed import first_to_pass, is_off, passed_while_off, passed_while_on, still_to_record, why_off
from jobrunner.policy.words import counted

if TYPE_CHECKING:
    from datetime import datetime

    from jobrunner.model.schedule import Missed, Schedule

POISON_AFTER = 3  # a run lost this many times in a row is exhausted, whatever its retries
LONGEST_COOLDOWN_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Retry:
    """The run goes back to `pending`: `attempt` is the number of the attempt to come."""

    attempt: int
    due_at: datetime
    lost_in_a_row: int
    since: datetime | None = None
    """When the wait for `due_at` began, by the clock of whoever ended the attempt."""


@dataclass(frozen=True, slots=True)
class Audit:
    """A decision the system took, for `audit_log`."""

    action: str
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Finish:
    """All that one ended attempt changes. Exactly one of `ends_run` and `retry` is set."""

    outcome: Outcome
    ends_run: EndsRun | None
    retry: Retry | None
    has_letter: bool
    state: WorkerState
    missed: tuple[Missed, ...] = ()
    audits: tuple[Audit, ...] = ()


def decide_finish(
    run: Run,
    outcome: Outcome,
    rules: WorkerConfig,
    current: WorkerConfig,
    state: WorkerState,
    jitter: float,
) -> Finish:
    """Decide what follows from the end of one attempt.

    Args:
        run: the run as it was claimed, with what was asked of it since.
        outcome: how the attempt ended.
        rules: the definition the run was claimed with; its retries hold.
        current: the definition now; its schedule and circuit hold.
        state: the worker's state now, locked; for several outcomes of one worker, as the one before left it.
        jitter: the share by which a retry delay is moved, -0.1 to 0.1, drawn by the caller.
    """
    ends_run, retry = _end_or_retry(run, outcome, rules, state, jitter)
    if retry is not None and run.cancel_requested_at is not None:
        ends_run, retry = EndsRun.CANCELLED, None
        outcome = replace(outcome, reason=_with_reason(outcome.reason, run.cancel_reason))
    after, missed, audits = after_end(state, run, outcome, ends_run, current)
    has_letter = ends_run in {EndsRun.EXHAUSTED, EndsRun.DISCARDED}
    return Finish(outcome, ends_run, retry, has_letter, after, missed, audits)


def after_end(
    state: WorkerState, run: Run, outcome: Outcome, ends_run: EndsRun | None, current: WorkerConfig
) -> tuple[WorkerState, tuple[Missed, ...], tuple[Audit, ...]]:
    """Return the worker's state after an attempt that ends its run so (None: not at all), and what that records."""
    after = _count(state, run, outcome, ends_run)
    if ends_run is None:
        return after, (), ()
    after, missed, audits = _move_circuit(after, run, outcome, ends_run, current)
    return _next_loop(after, run, outcome, ends_run, current), missed, audits


def unreadable_end(run: Run, now: datetime) -> Outcome | None:
    """Return how a run ends that cannot be begun, since its payload cannot be read; None for any other."""
    if not isinstance(run.payload, Unreadable):
        return None
    error = f"its payload cannot be read: {run.payload.problem}"
    return Outcome(OutcomeKind.FAILED, now, duration_ms=0, error_type=UNREADABLE, error=error, is_discard=True)


def _with_reason(reason: str | None, cancelled: str | None) -> str | None:
    """Add why a run was cancelled to what else is said of its last attempt."""
    return "; ".join(each for each in (reason, cancelled) if each) or None


def is_probe(run: Run, state: WorkerState) -> bool:
    """Say whether `run` is the one run that may move the worker's open circuit."""
    return state.circuit_state is CircuitState.HALF_OPEN and state.probe_run_id == run.id


def _end_or_retry(
    run: Run, outcome: Outcome, rules: WorkerConfig, state: WorkerState, jitter: float
) -> tuple[EndsRun | None, Retry | None]:
    kind, now = outcome.kind, outcome.finished_at
    if kind is OutcomeKind.SUCCEEDED:
        return EndsRun.SUCCEEDED, None
    if kind is OutcomeKind.CANCELLED:
        return EndsRun.CANCELLED, None
    if kind is OutcomeKind.INTERRUPTED:
        delay = outcome.delay_seconds  # set where its node could not start it; else at once, as before
        due_at = min(run.due_at, now) if delay is None else later(now, delay)
        return None, Retry(run.attempt, due_at, run.lost_in_a_row, None if delay is None else now)
    if kind is OutcomeKind.SNOOZED:
        return None, Retry(run.attempt, later(now, outcome.delay_seconds or 0.0), 0, now)
    if outcome.is_discard:
        return EndsRun.DISCARDED, None
    lost_in_a_row = run.lost_in_a_row + 1 if kind is OutcomeKind.LOST else 0
    most_tries = min(rules.max_retries, MOST_ATTEMPTS - 1)
    has_tries = run.attempt <= most_tries and lost_in_a_row < POISON_AFTER and not outcome.is_final
    if has_tries and not is_probe(run, state):
        delay = outcome.delay_seconds
        if delay is None:
            delay = 0.0 if lost_in_a_row == 1 else _retry_delay(rules, run.attempt, jitter)
        due_at = max(later(outcome.retry_from or now, delay), now)
        return None, Retry(run.attempt + 1, due_at, lost_in_a_row, now)
    return (EndsRun.DISCARDED if outcome.does_not_fit else EndsRun.EXHAUSTED), None


def _retry_delay(rules: WorkerConfig, attempt: int, jitter: float) -> float:
    return retry_delay(attempt, rules.retry_delay_seconds, rules.retry_backoff, rules.retry_max_delay_seconds, jitter)


def _count(state: WorkerState, run: Run, outcome: Outcome, ends_run: EndsRun | None) -> WorkerState:
    """Note the attempt's end; the streak and what ended last change on success and exhaustion only."""
    ended_at = outcome.finished_at if state.last_ended_at is None else max(state.last_ended_at, outcome.finished_at)
    # A claim that was written by hand may carry a fence that was never drawn: none is given out twice. (After the
    # largest, none could be drawn any more.)
    fence = run.fence if run.fence is not None and run.fence < MAX_BIG_COUNT else 0
    changes: dict[str, Any] = {"last_ended_at": ended_at, "last_fence": max(state.last_fence, fence)}
    if outcome.duration_ms is not None:
        changes["last_duration_ms"] = outcome.duration_ms
    if outcome.kind in USES_UP_AN_ATTEMPT:
        changes["last_error"] = outcome.error
    if ends_run is not None:
        changes["total_runs"] = min(state.total_runs + 1, MAX_BIG_COUNT)
    if ends_run is EndsRun.SUCCEEDED:
        changes |= {
            "consecutive_failures": 0,
            "last_run_outcome": str(OutcomeKind.SUCCEEDED),
            "last_success_at": outcome.finished_at,
            "last_error": None,
        }
    elif ends_run in {EndsRun.EXHAUSTED, EndsRun.DISCARDED}:
        changes["total_failures"] = min(state.total_failures + 1, MAX_BIG_COUNT)
    if ends_run is EndsRun.EXHAUSTED:
        changes["consecutive_failures"] = min(state.consecutive_failures + 1, MAX_COUNT)
        changes["last_run_outcome"] = str(outcome.kind)
    return replace(state, **changes)


def _move_circuit(
    state: WorkerState, run: Run, outcome: Outcome, ends_run: EndsRun, current: WorkerConfig
) -> tuple[WorkerState, tuple[Missed, ...], tuple[Audit, ...]]:
    now = outcome.finished_at
    if is_probe(run, state):
        return _end_probe(state, run, outcome, ends_run, current)
    has_failed_enough = state.consecutive_failures >= current.max_consecutive_failures
    if ends_run is not EndsRun.EXHAUSTED or not state.is_enabled or not has_failed_enough:
        return state, (), ()
    reason = f"{counted(state.consecutive_failures, 'run')} in a row failed; the last: {_sentence(outcome)}"
    opened = replace(
        state,
        is_enabled=False,
        disabled_by="circuit",
        disabled_reason=reason,
        circuit_state=CircuitState.OPEN,
        circuit_opened_at=now,
        cooldown_current_seconds=current.cooldown_seconds,
        missed_from=first_to_pass(state, current, now),
    )
    detail = {"run_id": run.id, "consecutive_failures": state.consecutive_failures, "reason": reason}
    missed = passed_while_off(state, current, now) + passed_while_on(state, current, now, why_off(opened))
    return with_cooldown(opened, current, now), missed, (Audit("trip", detail),)


def _end_probe(
    state: WorkerState, run: Run, outcome: Outcome, ends_run: EndsRun, current: WorkerConfig
) -> tuple[WorkerState, tuple[Missed, ...], tuple[Audit, ...]]:
    now = outcome.finished_at
    if ends_run is EndsRun.SUCCEEDED:
        closed = enabled_state(state, current, now)
        next_run_at = next_time(current, closed, now)
        missed = passed_while_off(state, current, now)
        detail = {"run_id": run.id, "reason": "the probe succeeded"}
        return replace(closed, next_run_at=next_run_at), missed, (Audit("close", detail),)
    state = replace(state, missed_from=still_to_record(state, current))
    if ends_run is not EndsRun.EXHAUSTED:
        # Cancelled or discarded, it proved nothing: the next run is the probe, at once.
        waiting = replace(state, circuit_state=CircuitState.OPEN, probe_run_id=None, probe_at=now)
        return replace(waiting, next_run_at=_first_from(current, waiting, now)), (), ()
    base = state.cooldown_current_seconds or current.cooldown_seconds or LONGEST_COOLDOWN_SECONDS
    reason = f"the probe failed too, {state.consecutive_failures} runs in a row; the last: {_sentence(outcome)}"
    opened = replace(
        state,
        disabled_reason=reason,
        circuit_state=CircuitState.OPEN,
        circuit_opened_at=now,
        probe_run_id=None,
        # The cap stops the doubling; it never shortens a cooldown that was set longer.
        cooldown_current_seconds=max(base, min(base * 2, LONGEST_COOLDOWN_SECONDS)),
    )
    detail = {"run_id": run.id, "consecutive_failures": state.consecutive_failures, "reason": reason}
    return with_cooldown(opened, current, now), (), (Audit("trip", detail),)


def with_cooldown(opened: WorkerState, current: WorkerConfig, now: datetime) -> WorkerState:
    """Set when a probe may start, and the schedule's first time from there on; without a cooldown, neither.

    `opened` is the state of a worker whose circuit opens at `now`.
    """
    if opened.cooldown_current_seconds is None:
        return replace(opened, probe_at=None, next_run_at=None)
    probe_at = later(now, opened.cooldown_current_seconds)
    waiting = replace(opened, probe_at=probe_at)
    return replace(waiting, next_run_at=_first_from(current, waiting, probe_at))


def _first_from(current: WorkerConfig, state: WorkerState, moment: datetime) -> datetime | None:
    """Return the first time of the schedule or loop at or after `moment`."""
    return next_time(current, state, moment - timedelta(microseconds=1))


def enabled_state(state: WorkerState, current: WorkerConfig, now: datetime) -> WorkerState:
    """Close the circuit and enable a worker that is disabled; the streak is the caller's to zero."""
    enabled = replace(
        state,
        is_enabled=True,
        disabled_by=None,
        disabled_reason=None,
        disabled_actor=None,
        circuit_state=CircuitState.CLOSED,
        circuit_opened_at=None,
        cooldown_current_seconds=None,
        probe_at=None,
        probe_run_id=None,
    )
    return replace(enabled, missed_from=first_to_pass(state, current, now) if is_off(enabled, now) else None)


def next_time(current: WorkerConfig, state: WorkerState, after: datetime) -> datetime | None:
    """Return the first time of the worker's schedule after `after`; a pause moves it to the pause's end.

    None for triggered workers. A continuous worker is due as soon as it may be.
    """
    if state.paused_until is not None and state.paused_until > after:
        after = state.paused_until - timedelta(microseconds=1)
    if after.year >= 9998:
        return None
    if current.execution_mode is WorkerExecutionMode.CONTINUOUS:
        return after + timedelta(microseconds=1)
    schedule = schedules.usable_schedule(current)
    return None if schedule is None else _next_unserved(schedule, state.last_due_at, after)


def rescheduled_time(state: WorkerState, current: WorkerConfig, now: datetime) -> datetime | None:
    """Return the next time of a worker whose schedule has become that of `current` at `now`."""
    if state.paused_until is not None and state.paused_until > now:
        return next_time(current, state, now)
    if current.execution_mode is WorkerExecutionMode.CONTINUOUS:
        return now
    schedule = schedules.usable_schedule(current)
    return None if schedule is None else schedules.rescheduled(schedule, state.last_due_at, now)


def _next_unserved(schedule: Schedule, served: datetime | None, after: datetime) -> datetime:
    """Return the first time after `after`, but not one that has just been served.

    Served since `after` was read, by a claim we waited for or by a node whose clock is a little ahead; or the clock
    went back, by less than a period: a firing happens once. What was served further ahead says only that the clock was
    wrong, and holds up nothing.
    """
    found = schedules.next_after_now(schedule, served, after)
    if served is None or served <= after:
        return found
    is_just_served = served == found or served <= after + schedules.CLOCK_TOLERANCE
    return schedules.next_after_now(schedule, served, served) if is_just_served else found


def _next_loop(state: WorkerState, run: Run, outcome: Outcome, ends_run: EndsRun, current: WorkerConfig) -> WorkerState:
    """Set a continuous worker's next time: the pause after its end, after a failure the streak's retry delay."""
    if run.trigger not in FROM_SCHEDULE or current.execution_mode is not WorkerExecutionMode.CONTINUOUS:
        return state
    if not state.is_enabled:
        return state
    pause = current.interval_seconds or 0.0
    if ends_run in {EndsRun.EXHAUSTED, EndsRun.DISCARDED}:
        pause = max(pause, _retry_delay(current, max(state.consecutive_failures, 1), 0.0))
    next_run_at = later(outcome.finished_at, pause)
    if state.paused_until is not None and state.paused_until > next_run_at:
        next_run_at = state.paused_until
    return replace(state, next_run_at=None if next_run_at.year >= 9998 else next_run_at)


def _sentence(outcome: Outcome) -> str:
    """Name the error in one line of at most 200 characters."""
    text = outcome.error or str(outcome.kind).replace("_", " ")
    first = text.strip().splitlines()[0] if text.strip() else str(outcome.kind)
    named = f"{outcome.error_type}: {first}" if outcome.error_type else first
    return named[:200]

"""What an operator's switches change: enable, disable, pause, resume.

Pure: the state before; the state after, and what of the schedule was missed and is in no row yet (`policy.missed`).
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from jobrunner.errors import InvalidSetting
from jobrunner.model.worker import CircuitState, WorkerConfig, WorkerExecutionMode, WorkerState
from jobrunner.policy.missed import (
    UNTIL_RESUMED,
    first_to_pass,
    passed_while_off,
    passed_while_on,
    still_to_record,
    why_off,
    without_pause,
)
from jobrunner.policy.transitions import enabled_state, next_time

if TYPE_CHECKING:
    from datetime import datetime

    from jobrunner.model.schedule import Missed
    from jobrunner.policy.missed import Gap

    Switched = tuple[WorkerState, tuple[Missed, ...]]


def end_of_pause(now: datetime, seconds: float | None, until: datetime | None) -> datetime:
    """Return when a pause ends: so many seconds from `now`, or at `until`; with neither, when it is resumed.

    Raises:
        InvalidSetting: both are given, or that is not after `now`.
    """
    if seconds is not None and until is not None:
        raise InvalidSetting("a pause is given both a length and an end; keep one")
    end = until if seconds is None else now + timedelta(seconds=seconds)
    if end is None:
        return UNTIL_RESUMED
    if end <= now:
        raise InvalidSetting("a pause must end in the future; `jobrunner admin resume` ends one now")
    return end


def enable(state: WorkerState, config: WorkerConfig, now: datetime, *, has_loop_run: bool = False) -> Switched:
    """Enable, zero the streak, close the circuit, and set the next time after `now`; what passed until then is missed.

    A worker that is enabled already keeps its next time. `has_loop_run` says that a continuous worker's run is live:
    its end sets the next time.
    """
    after = replace(enabled_state(state, config, now), consecutive_failures=0)
    if state.is_enabled:
        return replace(after, missed_from=state.missed_from), ()
    is_loop_running = has_loop_run and config.execution_mode is WorkerExecutionMode.CONTINUOUS
    next_run_at = None if is_loop_running else next_time(config, after, now)
    return replace(after, next_run_at=next_run_at), passed_while_off(state, config, now)


def disable(
    state: WorkerState,
    config: WorkerConfig,
    now: datetime,
    reason: str | None,
    actor: str | None = None,
    gap: Gap | None = None,
) -> Switched:
    """Disable by an operator: what was missed so far is counted, the next time cleared, a cooldown ended.

    One that an operator has disabled already keeps the reason it has, and its author, unless another is given.
    """
    keeps = not reason and not state.is_enabled and state.disabled_by == "operator"
    after = replace(
        state,
        is_enabled=False,
        disabled_by="operator",
        disabled_reason=state.disabled_reason if keeps else reason or "no reason given",
        disabled_actor=state.disabled_actor if keeps else actor,
        circuit_state=CircuitState.CLOSED,
        circuit_opened_at=None,
        cooldown_current_seconds=None,
        probe_at=None,
        probe_run_id=None,
        next_run_at=None,
        missed_from=first_to_pass(state, config, now),
    )
    if keeps and state.missed_from is not None:  # why times pass is the same as before
        return replace(after, missed_from=state.missed_from), ()
    missed = passed_while_off(state, config, now) + passed_while_on(state, config, now, why_off(after), gap)
    return after, missed


def pause(
    state: WorkerState,
    config: WorkerConfig,
    now: datetime,
    until: datetime,
    reason: str | None = None,
    *,
    is_length: bool = False,
    actor: str | None = None,
    gap: Gap | None = None,
) -> Switched:
    """Pause until `until`, for `reason`: the next time becomes the schedule's first at or after that.

    `is_length` says that `until` was not named, but is so long from now: then it moves with a clock that went back.
    """
    paused_at = now if is_length else None
    after = replace(state, paused_until=until, paused_reason=reason, paused_at=paused_at, paused_by=actor)
    missed: tuple[Missed, ...] = ()
    if state.is_enabled:  # while it is disabled, that is why times pass
        missed = passed_while_off(state, config, now) + passed_while_on(state, config, now, why_off(after), gap)
        after = replace(after, missed_from=first_to_pass(state, config, now))
    else:
        after = replace(after, missed_from=still_to_record(state, config))
    was_paused = _is_paused(state, now)
    if state.next_run_at is None and not (was_paused and _has_times(state)):
        return after, missed  # only triggered, disabled, or a loop whose run has not ended
    if _is_loop(config) and state.next_run_at is not None and not was_paused and until != UNTIL_RESUMED:
        return replace(after, next_run_at=max(state.next_run_at, until)), missed
    return replace(after, next_run_at=next_time(config, after, now)), missed


def resume(state: WorkerState, config: WorkerConfig, now: datetime, *, has_loop_run: bool = False) -> Switched:
    """End a pause now; the next time is the schedule's first after `now`, and for a loop `now`."""
    after = without_pause(state)
    missed: tuple[Missed, ...] = ()
    if state.is_enabled:
        after, missed = replace(after, missed_from=None), passed_while_off(state, config, now)
    else:
        after = replace(after, missed_from=still_to_record(state, config))
    if not _is_paused(state, now) or not _has_times(state):
        return after, missed
    if _is_loop(config) and has_loop_run:
        return after, missed
    return replace(after, next_run_at=next_time(config, after, now)), missed


def _is_paused(state: WorkerState, now: datetime) -> bool:
    return state.paused_until is not None and state.paused_until > now


def _has_times(state: WorkerState) -> bool:
    """Say whether the schedule has a next time: it is enabled, or its circuit is to let a probe through."""
    return state.is_enabled or state.probe_at is not None


def _is_loop(config: WorkerConfig) -> bool:
    return config.execution_mode is WorkerExecutionMode.CONTINUOUS

"""What an operator's switches change: enable, disable, pause, resume. Pure: the state before, the state after."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from jobrunner.errors import InvalidSetting
from jobrunner.model.worker import CircuitState, WorkerConfig, WorkerExecutionMode, WorkerState
from jobrunner.policy.transitions import enabled_state, missed_so_far, next_time
from jobrunner.policy.words import show_time

if TYPE_CHECKING:
    from jobrunner.model.schedule import Missed

UNTIL_RESUMED = datetime(9999, 12, 31, tzinfo=UTC)


def show_end_of_pause(until: datetime) -> str:
    """Return `until resumed`, or `until 2026-03-02 12:01:00 UTC`."""
    return "until resumed" if until.year >= UNTIL_RESUMED.year else f"until {show_time(until)}"


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


def enable(state: WorkerState, config: WorkerConfig, now: datetime, *, has_loop_run: bool = False) -> WorkerState:
    """Enable, zero the streak, close the circuit, and set the next time after `now`.

    A worker that is enabled already keeps its next time. `has_loop_run` says that a continuous worker's run is live:
    its end sets the next time.
    """
    after = replace(enabled_state(state), consecutive_failures=0)
    if state.is_enabled:
        return after
    if has_loop_run and config.execution_mode is WorkerExecutionMode.CONTINUOUS:
        return replace(after, next_run_at=None)
    return replace(after, next_run_at=next_time(config, after, now))


def disable(
    state: WorkerState, config: WorkerConfig, now: datetime, reason: str | None
) -> tuple[WorkerState, Missed | None]:
    """Disable by an operator: what was missed so far is counted, the next time cleared, a cooldown ended."""
    missed = missed_so_far(state, config, now, "disabled by operator") if state.is_enabled else None
    after = replace(
        state,
        is_enabled=False,
        disabled_by="operator",
        disabled_reason=reason or "no reason given",
        circuit_state=CircuitState.CLOSED,
        circuit_opened_at=None,
        cooldown_current_seconds=None,
        probe_at=None,
        probe_run_id=None,
        next_run_at=None,
    )
    return after, missed


def pause(
    state: WorkerState,
    config: WorkerConfig,
    now: datetime,
    until: datetime,
    reason: str | None = None,
    *,
    is_length: bool = False,
) -> tuple[WorkerState, Missed | None]:
    """Pause until `until`, for `reason`: the next time becomes the schedule's first at or after that.

    `is_length` says that `until` was not named, but is so long from now: then it moves with a clock that went back.
    """
    missed = missed_so_far(state, config, now, "paused") if state.is_enabled else None
    after = replace(state, paused_until=until, paused_reason=reason, paused_at=now if is_length else None)
    was_paused = _is_paused(state, now)
    if state.next_run_at is None and not (was_paused and _has_times(state)):
        return after, missed  # only triggered, disabled, or a loop whose run has not ended
    if _is_loop(config) and state.next_run_at is not None and not was_paused and until != UNTIL_RESUMED:
        return replace(after, next_run_at=max(state.next_run_at, until)), missed
    return replace(after, next_run_at=next_time(config, after, now)), missed


def resume(state: WorkerState, config: WorkerConfig, now: datetime, *, has_loop_run: bool = False) -> WorkerState:
    """End a pause now; the next time is the schedule's first after `now`, and for a loop `now`."""
    after = replace(state, paused_until=None, paused_reason=None, paused_at=None)
    if not _is_paused(state, now) or not _has_times(state):
        return after
    if _is_loop(config) and has_loop_run:
        return after
    return replace(after, next_run_at=next_time(config, after, now))


def _is_paused(state: WorkerState, now: datetime) -> bool:
    return state.paused_until is not None and state.paused_until > now


def _has_times(state: WorkerState) -> bool:
    """Say whether the schedule has a next time: it is enabled, or its circuit is to let a probe through."""
    return state.is_enabled or state.probe_at is not None


def _is_loop(config: WorkerConfig) -> bool:
    return config.execution_mode is WorkerExecutionMode.CONTINUOUS

"""A worker's own time: when it is first, what comes of it once the worker can start, and what a start changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jobrunner.model.run import Trigger
from jobrunner.model.schedule import IntervalSchedule
from jobrunner.model.worker import CircuitState, WorkerConfig, WorkerExecutionMode, WorkerState
from jobrunner.policy import schedule as schedules
from jobrunner.policy.missed import by_gap, end_pause, passed_before_probe

if TYPE_CHECKING:
    from datetime import datetime

    from jobrunner.model.schedule import Missed
    from jobrunner.policy.missed import Gap


@dataclass(frozen=True, slots=True)
class Fired:
    """What comes of a due schedule or loop: the state after, a run (`trigger` None: none), and what was missed."""

    state: WorkerState
    trigger: Trigger | None = None
    scheduled_for: datetime | None = None
    missed: tuple[Missed, ...] = ()


def first_time(config: WorkerConfig, now: datetime) -> datetime | None:
    """Return when a worker that is new is due first: None when only triggered, else at once or by its cron."""
    if config.execution_mode is WorkerExecutionMode.CONTINUOUS:
        return now
    schedule = schedules.usable_schedule(config)
    return None if schedule is None else schedules.first_due(schedule, now)


def fire(config: WorkerConfig, state: WorkerState, now: datetime, gap: Gap | None = None) -> Fired:
    """Turn a due schedule or loop into a run, or (with `misfire` skip) only into what was missed.

    What passed while the worker was off is missed, too, if it is in no row yet. `gap` says when no live node could run
    the worker.
    """
    oldest = state.next_run_at
    if oldest is None:
        return Fired(state)
    state, earlier = end_pause(state, config, now)
    if config.execution_mode is WorkerExecutionMode.CONTINUOUS:
        return Fired(replace(state, next_run_at=None, last_due_at=oldest), Trigger.CONTINUOUS, oldest)
    schedule = schedules.usable_schedule(config)
    if schedule is None:
        problem = schedules.schedule_problem(config)
        return Fired(replace(state, next_run_at=None, last_error=problem or state.last_error))
    earlier += passed_before_probe(state, schedule, oldest)
    if state.last_due_at is None and isinstance(schedule, IntervalSchedule):
        oldest = max(oldest, now)  # the grid begins with the first run: a thousand new workers spread by themselves
    firing = schedules.decide_firing(schedule, config.misfire, oldest, now)
    last_due_at = firing.scheduled_for or (firing.missed.last if firing.missed else state.last_due_at)
    state = replace(state, next_run_at=firing.next_run_at, last_due_at=last_due_at, missed_from=None)
    trigger = None if firing.scheduled_for is None else Trigger.SCHEDULE
    passed_over = () if firing.missed is None else by_gap(schedule, firing.missed, gap)
    return Fired(state, trigger, firing.scheduled_for, earlier + passed_over)


def after_starts(
    state: WorkerState, last_fence: int, begun_at: datetime | None, probe_run_id: int | None
) -> WorkerState:
    """Return the state once runs have started: the last fence given out, and what a first try or a probe changes.

    `begun_at` is when the first try of a run started, None when only retries did.
    """
    changes: dict[str, Any] = {"last_fence": last_fence}
    if begun_at is not None:
        changes["last_run_at"] = begun_at
    if probe_run_id is not None:
        changes |= {"circuit_state": CircuitState.HALF_OPEN, "probe_run_id": probe_run_id}
    return replace(state, **changes)

"""What the gates would have read of a worker at a moment that is past, rebuilt from what was recorded of it.

What an attempt was at a moment follows from its times: it waited from the end of the attempt before, else from its due
time, and was active from its start to its end. A run that was triggered for later counts as known from the first start
of a run with a higher id on.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

from jobrunner.model.facts import MOST_LATER, ActiveRun, Candidate, Later, WorkerFacts
from jobrunner.model.run import FROM_SCHEDULE, Trigger
from jobrunner.policy import schedule as schedules
from jobrunner.policy.past_limits import with_limits_at
from jobrunner.policy.past_states import state_at

if TYPE_CHECKING:
    from datetime import datetime

    from jobrunner.model.past import Passed, Past, Spell
    from jobrunner.model.worker import WorkerConfig

_MOST_NAMED = 3


def facts_at(past: Past, at: datetime, known_id: int) -> WorkerFacts:
    """Return a worker's facts as they were at `at`; `known_id` is the highest id of a run that there was by then.

    Which node had the handler is not said here: `has_handler` is true.
    """
    active: list[Spell] = []
    waiting: list[Candidate] = []
    later: list[Candidate] = []
    retries: list[datetime] = []
    errors: dict[int, str] = {}
    scheduled: int | None = None
    for run_id, spells in past.spells.items():
        spell = _standing(spells, at, known_id)
        if spell is None:
            continue
        scheduled = run_id if spell.trigger in FROM_SCHEDULE else scheduled
        if spell.has_started(at):
            active.append(spell)
            continue
        ended = [each for each in spells if each.is_over(at)]
        has_started = spell.attempt > 1 or any(each.has_started(at) for each in spells)
        (waiting if spell.due_at <= at else later).append(_candidate(past.config, spell, has_started=has_started))
        retries += [spell.due_at] if spell.attempt > 1 else []
        if ended:
            errors[run_id] = _said(ended[-1])
    active.sort(key=lambda spell: (spell.started_at, spell.run_id))
    later.sort(key=attrgetter("due_at", "id"))
    worker = WorkerFacts(
        past.config,
        state_at(past, at),
        active=tuple(_active(past.config.name, spell, slot) for slot, spell in enumerate(active)),
        waiting=tuple(sorted(waiting, key=attrgetter("order"))),
        waiting_retry=min(retries, default=None),
        counterparts=past.counterparts,
        scheduled_run=scheduled,
        later=Later(tuple(later[:_MOST_NAMED]), min(len(later), MOST_LATER + 1), errors) if later else None,
    )
    return with_limits_at(worker, past, at, [*waiting, *later])


def _standing(spells: tuple[Spell, ...], at: datetime, known_id: int) -> Spell | None:
    """Return the attempt that was active or waited at `at`; None if the run had ended, or was not there yet."""
    spell = next((each for each in spells if not each.is_over(at)), None)
    if spell is None or spell.has_started(at):
        return spell
    if spell is not spells[0] or spell.attempt > 1:  # set back by the attempt before
        return spell
    if spell.trigger in FROM_SCHEDULE:  # a firing has no row before it starts
        return None
    was_made = spell.created_at is not None and spell.created_at <= at
    return spell if was_made or spell.due_at <= at or spell.run_id <= known_id else None


def _candidate(config: WorkerConfig, spell: Spell, *, has_started: bool) -> Candidate:
    priority = int(config.priority) if spell.priority is None else spell.priority
    return Candidate(
        config.name,
        spell.run_id,
        priority,
        spell.due_at,
        spell.attempt,
        spell.is_forced,
        has_started_before=has_started,
        limit_key=spell.limit_key,
    )


def _active(worker: str, spell: Spell, slot: int) -> ActiveRun:
    assert spell.started_at is not None  # noqa: S101 - it is active
    return ActiveRun(spell.run_id, worker, slot, spell.node_id or "?", spell.started_at, spell.trigger, spell.limit_key)


def _said(spell: Spell) -> str:
    if spell.error:
        return f"{spell.error_type}: {spell.error}" if spell.error_type else spell.error
    return spell.reason or str(spell.outcome)


def served(past: Past, at: datetime) -> tuple[Spell, ...] | Passed | None:
    """Return what came of the time of the schedule that `at` is, or that came last before it.

    The attempts of its run, or the row of times that were missed; None where neither is known, or there is no schedule.
    """
    schedule = schedules.usable_schedule(past.config)
    if schedule is None:
        return None
    runs = [spells for spells in past.spells.values() if _is_for(spells[0], at)]
    run = max(runs, key=lambda spells: spells[0].scheduled_for, default=None)
    rows = [row for row in past.passed if row.first <= at]
    missed = max(rows, key=lambda row: (row.last, row.noted_at), default=None)
    last_run = None if run is None else run[0].scheduled_for
    if missed is not None and (last_run is None or last_run < missed.last or missed.first <= at <= missed.last):
        return missed if at < schedules.step_after(schedule, missed.last) else None
    if run is None or last_run is None or at >= schedules.step_after(schedule, last_run):
        return None
    return run


def _is_for(spell: Spell, at: datetime) -> bool:
    return spell.trigger is Trigger.SCHEDULE and spell.scheduled_for <= at


def next_start(past: Past, at: datetime) -> Spell | None:
    """Return the attempt of the worker that started first after `at`."""
    starts = [each for spells in past.spells.values() for each in spells if each.started_at and each.started_at > at]
    return min(starts, key=attrgetter("started_at"), default=None)

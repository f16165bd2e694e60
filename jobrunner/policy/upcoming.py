"""What the schedules will fire in the time ahead, as `jobrunner upcoming` lists it.

Pure, and lazy: a listing of a hundred rows costs a hundred rows, however many workers fire every second.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING

from jobrunner.model.facts import WorkerFacts
from jobrunner.model.schedule import CronSchedule
from jobrunner.policy import cron
from jobrunner.policy import schedule as schedules
from jobrunner.policy.gates import why_switched_off

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from jobrunner.model.schedule import Schedule
    from jobrunner.model.worker import WorkerConfig, WorkerState


@dataclass(frozen=True, slots=True)
class Upcoming:
    """One firing to come. `due_at` None: it would fire, but is disabled or paused until resumed; `note` says so."""

    worker: str
    due_at: datetime | None
    timezone: str
    note: str | None = None
    run_id: int | None = None

    @property
    def order(self) -> tuple[bool, datetime | None, str]:
        """Sort key: by time, what will not fire last."""
        return (self.due_at is None, self.due_at, self.worker)


def firings(workers: Iterable[tuple[WorkerConfig, WorkerState]], now: datetime, until: datetime) -> Iterator[Upcoming]:
    """Yield the firings of scheduled workers up to `until` in the order of time, those that will not fire last.

    A time that is already due is yielded once, marked; what a paused worker's schedule does begins after the pause.
    """
    streams, standing = [], []
    for config, state in workers:
        schedule = schedules.usable_schedule(config)
        if schedule is None:
            continue
        obstacle = why_switched_off(WorkerFacts(config, state), now)
        if state.next_run_at is None:
            standing.append(Upcoming(config.name, None, config.timezone, obstacle or "its next time is not set"))
        else:
            streams.append(_of_one(config, schedule, state.next_run_at, obstacle, now, until))
    ahead = heapq.merge(*streams, key=lambda row: (row.due_at, row.worker))
    return chain(ahead, sorted(standing, key=lambda row: row.worker))


def first_of(rows: Iterable[Upcoming], limit: int) -> tuple[list[Upcoming], bool]:
    """Return the first `limit` rows, and whether there are more."""
    found = list(islice(rows, limit + 1))
    return found[:limit], len(found) > limit


def _of_one(
    config: WorkerConfig, schedule: Schedule, first: datetime, obstacle: str | None, now: datetime, until: datetime
) -> Iterator[Upcoming]:
    if first <= now:
        due_note = "due now" if obstacle is None else f"due now; {obstacle}"
        yield Upcoming(config.name, first, config.timezone, due_note)
        first = schedules.next_after_now(schedule, first, now)
    if first > until:
        return
    for due in chain([first], schedules.occurrences(schedule, first, until)):
        notes = [obstacle] if obstacle else []
        if isinstance(schedule, CronSchedule):
            change = cron.transition_note(config.timezone, due)
            notes += [change] if change else []
        yield Upcoming(config.name, due, config.timezone, "; ".join(notes) or None)

"""What the schedules will fire in the time ahead, as `jobrunner upcoming` lists it.

Pure, and lazy: a listing of a hundred rows costs a hundred rows, however many workers fire every second. For people a
few next times of each worker are enough (`few_of_each`): else one that fires every second would hide all others.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
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

MOST_OF_EACH = 3
MOST_COUNTED = 100


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
    streams, standing = _each(workers, now, until)
    ahead = heapq.merge(*streams.values(), key=lambda row: (row.due_at, row.worker))
    return chain(ahead, sorted(standing, key=lambda row: row.worker))


def _each(
    workers: Iterable[tuple[WorkerConfig, WorkerState]], now: datetime, until: datetime
) -> tuple[dict[str, Iterator[Upcoming]], list[Upcoming]]:
    """Return the firings of each scheduled worker that has a next time, by name, and those that have none."""
    streams: dict[str, Iterator[Upcoming]] = {}
    standing: list[Upcoming] = []
    for config, state in workers:
        schedule = schedules.usable_schedule(config)
        if schedule is None:
            continue
        obstacle = why_switched_off(WorkerFacts(config, state), now)
        if state.next_run_at is None:
            standing.append(Upcoming(config.name, None, config.timezone, obstacle or "its next time is not set"))
        else:
            streams[config.name] = _of_one(config, schedule, state.next_run_at, obstacle, now, until)
    return streams, standing


@dataclass(frozen=True, slots=True)
class Few:
    """The next times of every worker, some of each in the order of time, and how many more there are of some.

    A number in `more` is at most `MOST_COUNTED` + 1; `is_cut`: there are workers of which nothing is in `rows`.
    """

    rows: list[Upcoming]
    more: dict[str, int]
    is_cut: bool


def few_of_each(
    workers: Iterable[tuple[WorkerConfig, WorkerState]],
    planned: Iterable[Upcoming],
    now: datetime,
    until: datetime,
    limit: int,
) -> Few:
    """Return the next times of every worker up to `until`, at most `MOST_OF_EACH` of each and `limit` in all.

    `planned` are the runs that wait for their time, in its order.
    """
    streams, standing = _each(workers, now, until)
    sources: defaultdict[str, list[Iterable[Upcoming]]] = defaultdict(list)
    for name, stream in streams.items():
        sources[name].append(stream)
    waiting: defaultdict[str, list[Upcoming]] = defaultdict(list)
    for run in planned:
        waiting[run.worker].append(run)
    for name, runs in waiting.items():
        sources[name].append(runs)
    by_worker = {name: heapq.merge(*each, key=lambda row: row.order) for name, each in sources.items()}
    first = [row for each in by_worker.values() for row in islice(each, MOST_OF_EACH)]
    rows, is_cut = first_of(sorted([*first, *standing], key=lambda row: row.order), limit)
    more = {}
    taken, seen = (Counter(row.worker for row in some) for some in (first, rows))
    for name in sorted(seen.keys() & by_worker.keys()):
        cut = max(taken[name] - seen[name], 0)
        more[name] = cut + sum(1 for _ in islice(by_worker[name], MOST_COUNTED + 1 - cut))
    return Few(rows, {name: count for name, count in more.items() if count}, is_cut)


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

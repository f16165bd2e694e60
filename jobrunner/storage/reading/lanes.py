"""What really ran of some workers lately, and what their schedules plan: the two halves of the lanes of `/upcoming`.

Bounded: of each worker the newest `MOST_SPANS` rows of history, along its index; the active runs; of each schedule the
first times.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.model.facts import WorkerFacts
from jobrunner.policy.gates import why_switched_off
from jobrunner.policy.upcoming import firings
from jobrunner.storage.database.rowsets import built_once
from jobrunner.storage.reading.status import planned_run, read_schedules
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.claims import is_active
from jobrunner.storage.tables.rows import names_json

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.policy.upcoming import Upcoming
    from jobrunner.storage.database.dialect import Dialect

MOST_LANES = 40
MOST_SPANS = 200
"""Of each worker so many attempts are shown."""
MOST_TIMES = 100
"""Of each worker so many times to come."""
_MOST_PLANNED = 500
_MOST_ACTIVE = 1000
_PENDING: sa.ColumnElement[bool] = sa.literal_column("runs.state = 'pending'")


@dataclass(frozen=True, slots=True)
class Span:
    """An attempt from its start to its end, or times that were missed, from the first to the last.

    `outcome` is `running` for one that has not ended; then `ends_at` is now. `planned_at`: the time of its schedule.
    """

    outcome: str
    begins_at: datetime
    ends_at: datetime
    run_id: int | None = None
    planned_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Lane:
    """What ran of one worker, by start; `cut_at`: before that there may be more, which was not read."""

    spans: list[Span] = field(default_factory=list)
    cut_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Planned:
    """The times of some workers, by name, each at most `MOST_TIMES`; `has_more`: of these there are more.

    `held`: of those that are disabled or paused now, until when; None: nobody knows. `is_cut`: there are workers with
    times that are not among them.
    """

    times: dict[str, list[Upcoming]]
    has_more: frozenset[str]
    held: dict[str, datetime | None]
    is_cut: bool


@built_once
def _ended(dialect: Dialect) -> sa.Select[Any]:
    h = t.run_history
    columns = [h.c[name] for name in ("worker", "id", "run_id", "outcome", "trigger", "scheduled_for", "due_at")]
    newest = dialect.newest_ends("names", [*columns, h.c.started_at, h.c.finished_at], MOST_SPANS).subquery()
    return sa.select(newest).where(newest.c.finished_at >= sa.bindparam("past", type_=h.c.finished_at.type))


async def read_lanes(
    conn: AsyncConnection, dialect: Dialect, now: datetime, past: datetime, names: Collection[str]
) -> dict[str, Lane]:
    """Return what ended of each of `names` from `past` on, and what runs; of the first `MOST_LANES` by name."""
    wanted = sorted(names)[:MOST_LANES]
    if not wanted:
        return {}
    found: defaultdict[str, list[Any]] = defaultdict(list)
    for row in await conn.execute(_ended(dialect), {"names": names_json(wanted), "past": past}):
        found[row.worker].append(row)
    r = t.runs
    active = sa.select(r.c.worker, r.c.id, r.c.started_at, r.c.scheduled_for, r.c.trigger)
    active = active.where(is_active(), r.c.worker.in_(wanted)).limit(_MOST_ACTIVE)
    running: defaultdict[str, list[Span]] = defaultdict(list)
    for row in await conn.execute(active):
        planned = row.scheduled_for if row.trigger == "schedule" else None
        running[row.worker].append(Span("running", min(row.started_at, now), now, row.id, planned))
    lanes = {}
    for name in wanted:
        rows = found[name]
        spans = sorted((*map(_span, rows), *running[name]), key=lambda span: span.begins_at)
        cut_at = min(row.finished_at for row in rows) if len(rows) == MOST_SPANS else None
        lanes[name] = Lane(spans, cut_at)
    return lanes


def _span(row: Any) -> Span:
    """Return a row of history as what it takes up of the time."""
    if row.started_at is None:
        first = row.scheduled_for or row.due_at or row.finished_at
        return Span(row.outcome, first, max(first, row.due_at or first), row.run_id)
    planned = row.scheduled_for if row.trigger == "schedule" else None
    return Span(row.outcome, row.started_at, max(row.started_at, row.finished_at), row.run_id, planned)


async def read_planned(conn: AsyncConnection, now: datetime, until: datetime, worker: str | None = None) -> Planned:
    """Return the times up to `until` of the schedules that fire next, and of the runs that wait for their time."""
    schedules = await read_schedules(conn, worker, most=MOST_LANES + 1)
    times: dict[str, list[Upcoming]] = {}
    has_more = set()
    held: dict[str, datetime | None] = {}
    for config, state in schedules[:MOST_LANES]:
        rows = list(islice(firings([(config, state)], now, until), MOST_TIMES + 1))
        if len(rows) > MOST_TIMES:
            has_more.add(config.name)
        times[config.name] = rows[:MOST_TIMES]
        if why_switched_off(WorkerFacts(config, state), now) is not None:
            is_paused = state.is_enabled and state.paused_until is not None
            held[config.name] = state.paused_until if is_paused else state.next_run_at
    waiting = await _read_waiting(conn, now, until, worker)
    is_cut = len(schedules) > MOST_LANES or len(waiting) > _MOST_PLANNED
    for run in waiting[:_MOST_PLANNED]:
        if run.worker not in times and len(times) >= MOST_LANES:
            is_cut = True
        else:
            times.setdefault(run.worker, []).append(run)
    ordered = {name: sorted(rows, key=lambda row: row.order)[:MOST_TIMES] for name, rows in sorted(times.items())}
    return Planned(ordered, frozenset(has_more), held, is_cut)


async def _read_waiting(conn: AsyncConnection, now: datetime, until: datetime, worker: str | None) -> list[Upcoming]:
    r = t.runs
    columns = (r.c.id, r.c.worker, r.c.due_at, r.c.trigger, r.c.attempt)
    later = sa.select(*columns).where(_PENDING, r.c.due_at > now, r.c.due_at <= until)
    if worker is not None:
        later = later.where(r.c.worker == worker)
    later = later.order_by(r.c.due_at, r.c.id).limit(_MOST_PLANNED + 1)
    return [planned_run(dict(row)) for row in (await conn.execute(later)).mappings()]

"""How all workers stand, as numbers for a monitoring system: read in a few bounded statements.

Of more than so many workers the others are told as one: a monitoring system keeps every name it was ever told.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.storage.reading.incidents import count_waiting
from jobrunner.storage.reading.named_limits import read_fill
from jobrunner.storage.reading.nodes_heard import read_nodes_heard
from jobrunner.storage.reading.one_page import names_after
from jobrunner.storage.reading.status import MOST_COUNTED, read_status
from jobrunner.storage.reading.waiting import read_waiting
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.claims import is_active

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.database.dialect import Dialect

MOST_NAMED = 1000
_MOST_LETTERS = 100_000
_MOST_MISSED = 10_000


@dataclass(frozen=True, slots=True)
class Missed:
    """A row of history about times that passed without a run."""

    worker: str
    reason: str
    occurrences: int


@dataclass(frozen=True, slots=True)
class Gauges:
    """How things stand at `at`.

    `workers` are rows of `worker_status`, the first by name; `others` says of those that are left out how many they
    are, how many of them are disabled, the longest streak, and how many runs of them wait (at most 10,001). `active`
    and `letters` count by worker (and state), those of workers that are left out as None. `due_since`: when the first
    run of a worker that is due fell due. `messages` of alerts wait, at most 10,001. `beat_age` is that of the live node
    that was not heard of for longest. `limits`: of the first limits by name, the active runs under each, and its
    `max_running`.
    """

    at: datetime
    workers: list[dict[str, Any]]
    others: dict[str, int] | None
    due_since: dict[str, datetime]
    active: dict[tuple[str | None, str], int]
    letters: dict[str | None, int]
    nodes: dict[str, int]
    beat_age: float | None
    messages: int
    limits: list[tuple[str, int, int | None]]
    missed: list[Missed] = field(default_factory=list)
    last_missed: int = 0


async def read_gauges(conn: AsyncConnection, dialect: Dialect, now: datetime, after_missed: int | None) -> Gauges:
    """Read all of it; of what was missed the rows whose ids are above `after_missed`, with None no row.

    `last_missed` of the answer is what to give as `after_missed` the next time.
    """
    names = await names_after(conn, None, MOST_NAMED + 1)
    named, last = names[:MOST_NAMED], names[MOST_NAMED - 1] if len(names) > MOST_NAMED else None
    rows = await read_status(conn, names=named) if named else []
    waiting = await read_waiting(conn, dialect, now, [row["name"] for row in rows if row["pending_runs"]])
    missed, last_missed = await _missed(conn, after_missed)
    nodes, beat_age = await _nodes(conn, now)
    return Gauges(
        at=now,
        workers=rows,
        others=None if last is None else await _others(conn, last),
        due_since={name: each.next_at for name, each in waiting.items() if each.next_at <= now},
        active=await _active(conn, set(named)),
        letters=await _letters(conn, set(named)),
        nodes=nodes,
        beat_age=beat_age,
        messages=await count_waiting(conn, MOST_COUNTED + 1),
        limits=await read_fill(conn, MOST_NAMED),
        missed=missed,
        last_missed=last_missed,
    )


async def _others(conn: AsyncConnection, last: str) -> dict[str, int]:
    """Count what there is of the workers after `last`, in the order of names."""
    s, r = t.worker_state, t.runs
    counts = sa.select(
        sa.func.count().label("workers"),
        sa.func.count().filter(sa.not_(s.c.is_enabled)).label("disabled"),
        sa.func.coalesce(sa.func.max(s.c.consecutive_failures), 0).label("streak"),
    ).where(s.c.worker > last)
    one: sa.ColumnElement[int] = sa.literal_column("1")
    some = sa.select(one).where(sa.literal_column("runs.state = 'pending'"), r.c.worker > last)
    waiting = sa.select(sa.func.count()).select_from(some.limit(MOST_COUNTED + 1).subquery())
    found = dict((await conn.execute(counts)).mappings().one())
    return {**found, "waiting": (await conn.execute(waiting)).scalar_one()}


async def _active(conn: AsyncConnection, named: set[str]) -> dict[tuple[str | None, str], int]:
    r = t.runs
    counts = sa.select(r.c.worker, r.c.state, sa.func.count().label("n")).where(is_active())
    found: dict[tuple[str | None, str], int] = {}
    for row in await conn.execute(counts.group_by(r.c.worker, r.c.state)):
        key = (row.worker if row.worker in named else None, str(row.state))
        found[key] = found.get(key, 0) + row.n
    return found


async def _letters(conn: AsyncConnection, named: set[str]) -> dict[str | None, int]:
    d = t.dead_letters
    opened = sa.select(d.c.worker).where(sa.literal_column("dead_letters.status = 'open'")).limit(_MOST_LETTERS)
    some = opened.subquery()
    counts = sa.select(some.c.worker, sa.func.count().label("n")).group_by(some.c.worker)
    found: dict[str | None, int] = {}
    for row in await conn.execute(counts):
        key = row.worker if row.worker in named else None
        found[key] = found.get(key, 0) + row.n
    return found


async def _nodes(conn: AsyncConnection, now: datetime) -> tuple[dict[str, int], float | None]:
    heard, _ = await read_nodes_heard(conn, now)
    n = t.nodes
    left = sa.select(n.c.state, sa.func.count().label("n")).where(n.c.state.in_(("stopped", "lost")))
    counts = {row.state: row.n for row in await conn.execute(left.group_by(n.c.state))}
    counts |= {"active": len(heard.active), "draining": len(heard.draining), "silent": len(heard.silent)}
    live = [*heard.active, *heard.draining]
    oldest = (await conn.execute(sa.select(sa.func.min(n.c.heartbeat_at)).where(n.c.id.in_(live)))).scalar()
    return counts, None if oldest is None else max((now - oldest).total_seconds(), 0.0)


async def _missed(conn: AsyncConnection, after: int | None) -> tuple[list[Missed], int]:
    h = t.run_history
    if after is None:
        return [], (await conn.execute(sa.select(sa.func.coalesce(sa.func.max(h.c.id), 0)))).scalar_one()
    is_missed: sa.ColumnElement[bool] = sa.literal_column(
        "run_history.outcome = 'missed' AND run_history.outcome <> 'succeeded'"
    )
    columns = (h.c.id, h.c.worker, h.c.reason, h.c.occurrences)
    newer = sa.select(*columns).where(is_missed, h.c.id > after).order_by(h.c.id).limit(_MOST_MISSED)
    rows = (await conn.execute(newer)).all()
    found = [Missed(row.worker, row.reason or "", row.occurrences or 1) for row in rows]
    return found, rows[-1].id if rows else after

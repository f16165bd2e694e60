"""Reading all there is of a long list, a page at a time: each page begins after the last row of the one before.

No page holds a transaction open and no page costs more than the one before, so that whoever reads the answer may take
all the time in the world, and millions of rows need no more memory than a page. What changes meanwhile is seen or not:
a run that moves to a later time may come twice.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.policy.upcoming import Upcoming
from jobrunner.storage.database.rowsets import same
from jobrunner.storage.reading.incidents import list_incidents
from jobrunner.storage.reading.status import planned_run, read_active, read_firings
from jobrunner.storage.records.history import read_history
from jobrunner.storage.runs.dead_letters import list_letters
from jobrunner.storage.runs.fact_statements import PRIORITIES
from jobrunner.storage.tables import define as t

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.database.database import Database

    Row = dict[str, Any]
    ReadAfter = Callable[[AsyncConnection, Row | None], Awaitable[list[Row]]]

PAGE_ROWS = 500
_PENDING: sa.ColumnElement[bool] = sa.literal_column("runs.state = 'pending'")


async def _pages(db: Database, read: ReadAfter) -> AsyncIterator[list[Row]]:
    last: Row | None = None
    while True:
        async with db.peek() as conn:
            page = await read(conn, last)
        if page:
            yield page
        if len(page) < PAGE_ROWS:
            return
        last = page[-1]


def history_pages(db: Database, **narrowed: Any) -> AsyncIterator[list[Row]]:
    """Yield all of history, the newest first, narrowed as by `read_history`."""
    return _pages(db, lambda conn, last: read_history(conn, **narrowed, limit=PAGE_ROWS, before=last))


def letter_pages(db: Database, *, worker: str | None, status: str | None) -> AsyncIterator[list[Row]]:
    """Yield all dead letters, the newest first, narrowed as by `list_letters`."""

    def read(conn: AsyncConnection, last: Row | None) -> Awaitable[list[Row]]:
        before = None if last is None else last["id"]
        return list_letters(conn, worker=worker, status=status, limit=PAGE_ROWS, before_id=before)

    return _pages(db, read)


def alert_pages(db: Database, **narrowed: Any) -> AsyncIterator[list[Row]]:
    """Yield all incidents, the newest first, narrowed as by `list_incidents`."""

    def read(conn: AsyncConnection, last: Row | None) -> Awaitable[list[Row]]:
        return list_incidents(conn, PAGE_ROWS, **narrowed, before_id=None if last is None else last["id"])

    return _pages(db, read)


async def run_pages(db: Database, worker: str | None) -> AsyncIterator[list[Row]]:
    """Yield all live runs: the active ones by start, then those that wait by due time. Raises `WorkerNotFound`."""
    async with db.peek() as conn:
        ids = await read_active(conn, worker)
    for place in range(0, len(ids), PAGE_ROWS):
        some = ids[place : place + PAGE_ROWS]
        async with db.peek() as conn:
            rows = (await conn.execute(sa.select(t.runs).where(t.runs.c.id.in_(some)))).mappings()
            found = {row["id"]: dict(row) for row in rows}
        yield [found[run_id] for run_id in some if run_id in found and found[run_id]["slot"] is not None]
    async for page in _pages(db, lambda conn, last: read_waiting_after(conn, worker, last)):
        yield page


async def read_waiting_after(
    conn: AsyncConnection,
    worker: str | None,
    last: Row | None,
    limit: int = PAGE_ROWS,
    until: datetime | None = None,
) -> list[Row]:
    """Read the next waiting runs in the order of (due_at, id): the rest of those due with the last, then later ones.

    In two statements, each along an index: of one that says both, all would be sorted that are due at one time.
    """
    r = t.runs
    rows: list[Row] = []
    if last is not None and "id" in last:
        at_once = (r.c.due_at == last["due_at"], r.c.id > last["id"])
        rows = await _first(conn, worker, at_once, limit)
    if len(rows) < limit:
        later = [] if last is None else [r.c.due_at > last["due_at"]]
        later += [] if until is None else [r.c.due_at <= until]
        rows += await _first(conn, worker, later, limit - len(rows))
    return rows


async def _first(
    conn: AsyncConnection, worker: str | None, conditions: Sequence[sa.ColumnElement[bool]], limit: int
) -> list[Row]:
    r = t.runs
    first = sa.select(r).where(_PENDING, *conditions).order_by(r.c.due_at, r.c.id).limit(limit)
    if worker is not None:
        parts = [
            sa.select(r.c.id)
            .where(_PENDING, r.c.worker == worker, same(r.c.priority, sa.literal(priority)), *conditions)
            .order_by(r.c.priority, r.c.due_at, r.c.id)
            .limit(limit)
            .subquery()
            for priority in PRIORITIES
        ]
        among = sa.union_all(*(sa.select(part.c.id) for part in parts))
        first = sa.select(r).where(r.c.id.in_(among)).order_by(r.c.due_at, r.c.id).limit(limit)
    return [dict(row) for row in (await conn.execute(first)).mappings()]


async def to_cancel(conn: AsyncConnection, worker: str, newest: int | None) -> tuple[int, list[int]]:
    """Return the ids of a worker's waiting runs, some at a time, and once there is none those of the active ones.

    Only of those no newer than `newest`, which is returned, too: without one, the newest run there is.
    """
    r = t.runs
    if newest is None:
        newest = (await conn.execute(sa.select(sa.func.coalesce(sa.func.max(r.c.id), 0)))).scalar_one()
    waiting = [row["id"] for row in await _first(conn, worker, [r.c.id <= newest], PAGE_ROWS)]
    return newest, waiting or [run_id for run_id in await read_active(conn, worker) if run_id <= newest]


async def upcoming_pages(
    db: Database, now: datetime, until: datetime, worker: str | None, begins: Mapping[str, datetime]
) -> AsyncIterator[list[Upcoming]]:
    """Yield what will fire up to `until`, in the order of time: the schedules, and the runs triggered for later.

    `begins` as for `read_schedules`.
    """
    async with db.peek() as conn:
        ahead = await read_firings(conn, now, until, worker, begins=begins)
    held = next(ahead, None)
    page: list[Upcoming] = []

    async def planned() -> AsyncIterator[list[Row]]:
        first = {"due_at": now}
        async for rows in _pages(db, lambda conn, last: read_waiting_after(conn, worker, last or first, until=until)):
            yield rows

    async for rows in planned():
        for run in map(planned_run, rows):
            while held is not None and held.due_at is not None and held.order <= run.order:
                page.append(held)
                held = next(ahead, None)
                if len(page) >= PAGE_ROWS:
                    yield page
                    page = []
            page.append(run)
    if held is not None:
        page.append(held)
    while page:
        yield page
        page = list(islice(ahead, PAGE_ROWS))

"""Finding history, live runs and dead letters by a filter (`policy.filters`), and decisions, however many there are.

What has an index is looked up along it: a run, a worker, what did not succeed, a time. Whatever else is asked (a field
of the payload, a part of an error) is looked for among the newest rows only, `WINDOW_ROWS` of them, piece by piece,
until enough are found. The answer names how far it looked: `Found.after` goes on from there, so that all there is can
be gone through a page at a time, and no page costs more than another.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.policy.filters import Filter
from jobrunner.storage.database.rowsets import same
from jobrunner.storage.reading.narrowing import (
    WRITTEN_LATE,
    Base,
    bases_of_history,
    of_all,
    of_history,
    of_worker,
    read_span,
)
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.claims import is_active

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.reading.narrowing import Conditions

    Row = dict[str, Any]
    Columns = Sequence[str]

WINDOW_ROWS = 50_000
"""So many of the newest rows are looked through for what has no index."""
FIRST_PIECE, PIECES_GROW = 1000, 4


@dataclass(frozen=True, slots=True)
class Found:
    """Rows, the newest first; `after` is the id from which to go on, None at the end of all there is.

    `searched` is how many rows were looked through where that ended the search, so that rows beyond may fit, too.
    """

    rows: list[Row]
    after: int | None
    searched: int | None = None


async def search_history(conn: AsyncConnection, asked: Filter, limit: int, after: int | None = None) -> Found:
    """Return the newest rows of history that fit, at most `limit`; with `after` those of smaller ids only."""
    h = t.run_history
    conditions = of_all(asked, h) + of_history(asked)
    if asked.run:
        return _page(await _read(conn, h, Base([h.c.run_id.in_(asked.run)]), conditions, limit, after), limit)
    last, below = await read_span(conn, asked)
    after = min((each for each in (after, below) if each is not None), default=None)
    conditions += [h.c.id >= last] if last is not None else []
    # Beside `until` there may be an hour of later rows to pass by.
    has_index = not (asked.until or asked.payload or asked.error or asked.node or asked.trigger or asked.attempt)
    if has_index and not asked.outcome and (not asked.worker or asked.only_worker is not None):
        return _page(await _read(conn, h, of_worker(asked, h), conditions, limit, after), limit)
    bases, left = bases_of_history(asked)
    conditions += left
    return await _pieces(conn, h, bases, conditions, limit, after)


async def search_letters(
    conn: AsyncConnection, asked: Filter, limit: int, after: int | None = None, columns: Columns = ()
) -> Found:
    """Return the newest dead letters that fit, as `search_history` does; without `status` of every one.

    With `columns`, the id among them, the rows have no others.
    """
    d = t.dead_letters
    conditions = of_all(asked, d)
    if asked.id:
        return _page(await _read(conn, d, Base([d.c.id.in_(asked.id)]), conditions, limit, after, columns), limit)
    if asked.key:
        conditions.append(d.c.key.in_(asked.key))
    bases = [of_worker(asked, d)]
    if asked.only_worker is None and asked.status:
        bases = [Base([d.c.status == status]) for status in asked.status]
    if asked.status:
        conditions.append(d.c.status.in_(asked.status))
    return await _pieces(conn, d, bases, conditions, limit, after, columns)


async def search_runs(
    conn: AsyncConnection, asked: Filter, limit: int, after: int | None = None, columns: Columns = ()
) -> Found:
    """Return the live runs that fit, the newest first: the active ones and, of the newest, those that wait.

    `columns` as for `search_letters`.
    """
    r = t.runs
    conditions = of_all(asked, r)
    for column, values in ((r.c.state, asked.state), (r.c.node_id, asked.node), (r.c.key, asked.key)):
        if values:
            conditions.append(column.in_(values))
    for column, numbers in ((r.c.priority, asked.priority), (r.c.attempt, asked.attempt)):
        if numbers:
            conditions.append(column.in_(numbers))
    if asked.node or (asked.state and "pending" not in asked.state):
        return _page(await _read(conn, r, Base([is_active()]), conditions, limit, after, columns), limit)
    return await _pieces(conn, r, [Base()], conditions, limit, after, columns)


async def search_audits(
    conn: AsyncConnection,
    limit: int,
    after: int | None = None,
    *,
    worker: str | None = None,
    since: datetime | None = None,
    actions: Collection[str] = (),
    actor: str | None = None,
) -> Found:
    """Return the newest decisions that fit, at most `limit`; with `after` those of smaller ids only.

    `actor`: as it stands in the log, or without the host.
    """
    a = t.audit_log
    base = Base() if worker is None else Base([same(a.c.worker, sa.literal(worker))], a.c.worker)
    conditions: Conditions = [] if since is None else [a.c.at >= since]
    if actions:
        conditions.append(a.c.action.in_(actions))
    if actor is not None:
        conditions.append(sa.or_(a.c.actor == actor, a.c.actor.startswith(f"{actor}@", autoescape=True)))
    oldest = None if since is None else (a.c.at, since - WRITTEN_LATE)
    return await _pieces(conn, a, [base], conditions, limit, after, oldest=oldest)


async def _read(
    conn: AsyncConnection,
    table: sa.Table,
    base: Base,
    conditions: Conditions,
    limit: int,
    after: int | None,
    columns: Columns = (),
) -> list[Row]:
    below = [] if after is None else [table.c.id < after]
    shown = [table.c[name] for name in columns] or table.c
    found = sa.select(*shown).where(*base.conditions, *conditions, *below)
    statement = found.order_by(*base.newest_first(table.c.id)).limit(limit)
    return [dict(row) for row in (await conn.execute(statement)).mappings()]


def _page(rows: list[Row], limit: int) -> Found:
    return Found(rows, rows[-1]["id"] if len(rows) == limit else None)


async def _pieces(
    conn: AsyncConnection,
    table: sa.Table,
    bases: Sequence[Base],
    conditions: Conditions,
    limit: int,
    after: int | None,
    columns: Columns = (),
    oldest: tuple[sa.ColumnElement[datetime], datetime] | None = None,
) -> Found:
    """Look through the newest rows of `bases`, each of which has an index, until `limit` fit or the window is over.

    With `oldest`, a column and a time, it is over for good where a row is older.
    """
    key = table.c.id
    if after is None:
        after = ((await conn.execute(sa.select(sa.func.max(key)))).scalar() or 0) + 1
    rows: list[Row] = []
    piece, left = FIRST_PIECE, WINDOW_ROWS
    while left > 0:
        piece = min(piece, left)
        bound = await _bound(conn, key, bases, after, piece)
        found: list[Row] = []
        for base in bases:  # each along its index; of a condition that says all of them a database makes a scan
            found += await _read(conn, table, base, [key >= bound, *conditions], limit - len(rows), after, columns)
        rows += sorted(found, key=itemgetter("id"), reverse=True)[: limit - len(rows)]
        if len(rows) >= limit:
            return Found(rows, rows[-1]["id"])
        if bound <= 0 or (oldest is not None and await _is_older(conn, key, bound, *oldest)):
            return Found(rows, None)
        after, left, piece = bound, left - piece, piece * PIECES_GROW
    return Found(rows, after, WINDOW_ROWS)


async def _is_older(
    conn: AsyncConnection,
    key: sa.ColumnElement[int],
    row_id: int,
    column: sa.ColumnElement[datetime],
    time: datetime,
) -> bool:
    found = (await conn.execute(sa.select(column).where(key == row_id))).scalar()
    return found is not None and found < time


async def _bound(
    conn: AsyncConnection, key: sa.ColumnElement[int], bases: Sequence[Base], after: int, piece: int
) -> int:
    """Return the id down to which no base has more than `piece` rows below `after`; 0 where that is all there are."""
    bounds = []
    for base in bases:
        rows = sa.select(key).where(key < after, *base.conditions).order_by(*base.newest_first(key))
        there = rows.limit(1).offset(piece - 1)
        bounds.append((await conn.execute(there)).scalar() or 0)
    return max(bounds)

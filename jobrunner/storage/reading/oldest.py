"""Finding history from its old end: what fits a filter, the oldest first.

As `reading.search` does it from the new end: along an index, or piece by piece among the oldest `WINDOW_ROWS` rows.
With `since`, and without a worker or outcome that an index knows, the rows come by the time of their end, along the
index on it: in the order of ids there would be an hour of older rows to pass by first.
"""

from __future__ import annotations

from dataclasses import replace
from operator import itemgetter
from typing import TYPE_CHECKING

import sqlalchemy as sa

from jobrunner.storage.reading import search
from jobrunner.storage.reading.narrowing import (
    Base,
    bases_of_history,
    of_all,
    of_history,
    of_times,
    of_worker,
    read_span,
)
from jobrunner.storage.reading.search import Found
from jobrunner.storage.tables import define as t

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.policy.filters import Filter
    from jobrunner.storage.reading.narrowing import Conditions
    from jobrunner.storage.reading.search import Row

_NO_END = 2**63 - 1


async def search_oldest(conn: AsyncConnection, asked: Filter, limit: int, after: int | None = None) -> Found:
    """Return the oldest rows of history that fit, at most `limit`; with `after` those beyond the row of that id."""
    h = t.run_history
    conditions = of_all(replace(asked, since=None, until=None), h) + of_history(asked)
    times = of_times(asked, h)
    if asked.run:
        of_runs = Base([h.c.run_id.in_(asked.run)])
        return _page(await _read(conn, of_runs, conditions + times, limit, after or 0), limit)
    bases, left = bases_of_history(asked)
    conditions += left
    is_bare = not any(base.conditions for base in bases)
    if is_bare and asked.since is not None:
        return await _by_time(conn, conditions, asked.since, asked.until, limit, after)
    first, below = await read_span(conn, asked)
    beyond = max(after or 0, (first or 1) - 1)
    conditions += times if below is None else [*times, h.c.id < below]
    has_index = not (asked.since or asked.payload or asked.error or asked.node or asked.trigger or asked.attempt)
    if has_index and not asked.outcome and (not asked.worker or asked.only_worker is not None):
        return _page(await _read(conn, of_worker(asked, h), conditions, limit, beyond), limit)
    return await _pieces(conn, bases, conditions, limit, beyond, _NO_END if below is None else below)


async def _read(conn: AsyncConnection, base: Base, conditions: Conditions, limit: int, beyond: int) -> list[Row]:
    h = t.run_history
    found = sa.select(h).where(*base.conditions, *conditions, h.c.id > beyond)
    statement = found.order_by(*base.oldest_first(h.c.id)).limit(limit)
    return [dict(row) for row in (await conn.execute(statement)).mappings()]


def _page(rows: list[Row], limit: int) -> Found:
    return Found(rows, rows[-1]["id"] if len(rows) == limit else None)


async def _pieces(
    conn: AsyncConnection, bases: Sequence[Base], conditions: Conditions, limit: int, beyond: int, end: int
) -> Found:
    """Look through the oldest rows of `bases` beyond an id, until `limit` fit, or the window or the rows are over."""
    key = t.run_history.c.id
    rows: list[Row] = []
    piece, left = search.FIRST_PIECE, search.WINDOW_ROWS
    while left > 0:
        piece = min(piece, left)
        bound = min([await _bound(conn, base, beyond, piece) for base in bases])
        found: list[Row] = []
        for base in bases:
            found += await _read(conn, base, [key <= bound, *conditions], limit - len(rows), beyond)
        rows += sorted(found, key=itemgetter("id"))[: limit - len(rows)]
        if len(rows) >= limit:
            return Found(rows, rows[-1]["id"])
        if bound >= end:
            return Found(rows, None)
        beyond, left, piece = bound, left - piece, piece * search.PIECES_GROW
    return Found(rows, beyond, search.WINDOW_ROWS)


async def _bound(conn: AsyncConnection, base: Base, beyond: int, piece: int) -> int:
    """Return the id up to which a base has `piece` rows; `_NO_END` where it has no more."""
    key = t.run_history.c.id
    rows = sa.select(key).where(key > beyond, *base.conditions).order_by(*base.oldest_first(key))
    return (await conn.execute(rows.limit(1).offset(piece - 1))).scalar() or _NO_END


async def _by_time(
    conn: AsyncConnection,
    conditions: Conditions,
    since: datetime,
    until: datetime | None,
    limit: int,
    after: int | None,
) -> Found:
    """Look through the rows between two times, in the order of their ends and ids."""
    h = t.run_history
    times = [] if until is None else [h.c.finished_at <= until]
    order = (h.c.finished_at, h.c.id)
    place: tuple[datetime, int] = (since, 0)
    if after is not None:  # or, if it was pruned meanwhile, the next that is left
        last = sa.select(*order).where(h.c.id >= after).order_by(h.c.id).limit(1)
        found = (await conn.execute(last)).first()
        if found is None:
            return Found([], None)
        place = (max(since, found.finished_at), found.id if found.id == after else found.id - 1)
    if not conditions:
        return _page(await _read_by_time(conn, [*_after(place), *times], limit), limit)
    rows: list[Row] = []
    piece, left = search.FIRST_PIECE, search.WINDOW_ROWS
    while left > 0:
        piece = min(piece, left)
        beyond = _after(place)
        last = sa.select(*order).where(*beyond).order_by(*order).limit(1).offset(piece - 1)
        bound = (await conn.execute(last)).first()
        up_to = [] if bound is None else [h.c.finished_at <= bound.finished_at, _up_to(bound.finished_at, bound.id)]
        rows += await _read_by_time(conn, [*beyond, *up_to, *times, *conditions], limit - len(rows))
        if len(rows) >= limit:
            return Found(rows, rows[-1]["id"])
        if bound is None or (until is not None and bound.finished_at > until):
            return Found(rows, None)
        place, left, piece = (bound.finished_at, bound.id), left - piece, piece * search.PIECES_GROW
    return Found(rows, place[1], search.WINDOW_ROWS)


async def _read_by_time(conn: AsyncConnection, conditions: Conditions, limit: int) -> list[Row]:
    h = t.run_history
    statement = sa.select(h).where(*conditions).order_by(h.c.finished_at, h.c.id).limit(limit)
    return [dict(row) for row in (await conn.execute(statement)).mappings()]


def _after(place: tuple[datetime, int]) -> list[sa.ColumnElement[bool]]:
    """Return the conditions of what lies beyond a row: a range of the index, then what is beyond at the same time."""
    h = t.run_history
    at, row_id = place
    return [h.c.finished_at >= at, sa.or_(h.c.finished_at > at, h.c.id > row_id)]


def _up_to(at: datetime, row_id: int) -> sa.ColumnElement[bool]:
    h = t.run_history
    return sa.or_(h.c.finished_at < at, h.c.id <= row_id)

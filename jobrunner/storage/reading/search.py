"""Finding history, live runs and dead letters by a filter (`policy.filters`), however many there are.

What has an index is looked up along it: a run, a worker, what did not succeed, a time. Whatever else is asked (a field
of the payload, a part of an error) is looked for among the newest rows only, `WINDOW_ROWS` of them, piece by piece,
until enough are found. The answer names how far it looked: `Found.after` goes on from there, so that all there is can
be gone through a page at a time, and no page costs more than another.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.errors import UsageError
from jobrunner.model.run import USES_UP_AN_ATTEMPT, OutcomeKind
from jobrunner.policy.filters import ENDS_ASKED_FOR, Filter
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.claims import is_active
from jobrunner.storage.tables.matching import contains, field_text, is_one_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    Row = dict[str, Any]
    Conditions = list[sa.ColumnElement[bool]]
    Columns = Sequence[str]

WINDOW_ROWS = 50_000
"""So many of the newest rows are looked through for what has no index."""
_FIRST_PIECE, _PIECES_GROW = 1000, 4
_CLOCKS = timedelta(minutes=5)
"""By so much may the times of two nodes lie apart: ids are in the order of the writes, not of the clocks."""


@dataclass(frozen=True, slots=True)
class Found:
    """Rows, the newest first; `after` is the id from which to go on, None at the end of all there is.

    `searched` is how many rows were looked through where that ended the search, so that older rows may fit, too.
    """

    rows: list[Row]
    after: int | None
    searched: int | None = None


async def search_history(conn: AsyncConnection, asked: Filter, limit: int, after: int | None = None) -> Found:
    """Return the newest rows of history that fit, at most `limit`; with `after` those of smaller ids only."""
    h = t.run_history
    conditions = _of_all(asked, h) + _of_history(asked)
    if asked.run:
        return _page(await _read(conn, h, [h.c.run_id.in_(asked.run), *conditions], limit, after), limit)
    after, last = await _span(conn, asked, after)
    conditions += [h.c.id >= last] if last is not None else []
    kinds = _kinds(asked)
    has_index = not (asked.payload or asked.error or asked.node or asked.trigger or asked.attempt)
    if has_index and not kinds and (not asked.worker or asked.only_worker is not None):
        return _page(await _read(conn, h, conditions, limit, after), limit)
    if kinds and not set(kinds) & {str(OutcomeKind.SUCCEEDED)}:
        bases = [_rare(kind) for kind in kinds]
    else:
        bases = [[h.c.worker == asked.only_worker]] if asked.only_worker is not None else [[]]
        if kinds:
            conditions.append(h.c.outcome.in_(kinds))
    return await _pieces(conn, h, bases, conditions, limit, after)


async def search_letters(
    conn: AsyncConnection, asked: Filter, limit: int, after: int | None = None, columns: Columns = ()
) -> Found:
    """Return the newest dead letters that fit, as `search_history` does; without `status` of every one.

    With `columns`, the id among them, the rows have no others.
    """
    d = t.dead_letters
    conditions = _of_all(asked, d)
    if asked.id:
        return _page(await _read(conn, d, [d.c.id.in_(asked.id), *conditions], limit, after, columns), limit)
    if asked.key:
        conditions.append(d.c.key.in_(asked.key))
    bases: list[Conditions] = [[]]
    if asked.only_worker is not None:
        bases = [[d.c.worker == asked.only_worker]]
    elif asked.status:
        bases = [[d.c.status == status] for status in asked.status]
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
    conditions = _of_all(asked, r)
    for column, values in ((r.c.state, asked.state), (r.c.node_id, asked.node), (r.c.key, asked.key)):
        if values:
            conditions.append(column.in_(values))
    for column, numbers in ((r.c.priority, asked.priority), (r.c.attempt, asked.attempt)):
        if numbers:
            conditions.append(column.in_(numbers))
    if asked.node or (asked.state and "pending" not in asked.state):
        return _page(await _read(conn, r, [is_active(), *conditions], limit, after, columns), limit)
    return await _pieces(conn, r, [[]], conditions, limit, after, columns)


def _kinds(asked: Filter) -> tuple[str, ...]:
    """Return the outcomes of attempts that may be meant; a run that ended so ends with one that uses up an attempt."""
    kinds = {each for each in asked.outcome if each not in set(map(str, ENDS_ASKED_FOR))}
    if len(kinds) < len(asked.outcome):
        kinds |= set(map(str, USES_UP_AN_ATTEMPT))
    return tuple(sorted(kinds))


def _rare(kind: str) -> Conditions:
    """Return the condition of an outcome in the words of its partial index: a bound value would hide it."""
    h = t.run_history
    literal = sa.literal(kind, literal_execute=True)
    return [h.c.outcome == literal, sa.literal_column("run_history.outcome <> 'succeeded'")]


def _of_history(asked: Filter) -> Conditions:
    h = t.run_history
    conditions: Conditions = []
    ends = [each for each in asked.outcome if each in set(map(str, ENDS_ASKED_FOR))]
    if ends:
        others = [each for each in asked.outcome if each not in ends]
        conditions.append(sa.or_(h.c.ends_run.in_(ends), h.c.outcome.in_(others)))
    if asked.node:
        conditions.append(sa.or_(*(h.c.node_id.startswith(node, autoescape=True) for node in asked.node)))
    if asked.attempt:
        conditions.append(h.c.attempt.in_(asked.attempt))
    return conditions


def _of_all(asked: Filter, table: sa.Table) -> Conditions:
    """Return the conditions that all three kinds know."""
    c = table.c
    time = c.finished_at if "finished_at" in c else c.died_at if "died_at" in c else c.created_at
    conditions: Conditions = []
    if asked.since is not None:
        conditions.append(time >= asked.since)
    if asked.until is not None:
        conditions.append(time <= asked.until)
    if asked.worker:
        conditions.append(is_one_of(c.worker, asked.worker))
    if asked.is_of_known:
        conditions.append(c.worker.in_(sa.select(t.workers.c.name)))
    if asked.trigger:
        conditions.append(c.trigger.in_(asked.trigger))
    if asked.error is not None:
        said: sa.ColumnElement[str] = sa.func.coalesce(c.error_type, "") + ": " + sa.func.coalesce(c.error, "")
        if "reason" in c:
            said = said + " " + sa.func.coalesce(c.reason, "")
        conditions.append(contains(said, asked.error))
    for path, value in asked.payload:
        if any('"' in step for step in path):
            raise UsageError("a field of the payload with a quote in its name cannot be filtered by")
        conditions.append(field_text(c.payload, path) == value)
    return conditions


async def _span(conn: AsyncConnection, asked: Filter, after: int | None) -> tuple[int | None, int | None]:
    """Return the ids of history between which the times asked for lie: below the first, from the second on.

    They bound the search only: the times themselves are compared, too (see `_CLOCKS`).
    """
    key, time, last = t.run_history.c.id, t.run_history.c.finished_at, None
    if asked.since is not None:
        first = sa.select(key).where(time >= asked.since - _CLOCKS).order_by(time).limit(1)
        last = (await conn.execute(first)).scalar() or 2**62
    if asked.until is not None:
        newest = sa.select(key).where(time <= asked.until + _CLOCKS).order_by(time.desc()).limit(1)
        found = (await conn.execute(newest)).scalar() or 0
        after = found + 1 if after is None else min(after, found + 1)
    return after, last


async def _read(
    conn: AsyncConnection,
    table: sa.Table,
    conditions: Conditions,
    limit: int,
    after: int | None,
    columns: Columns = (),
) -> list[Row]:
    below = [] if after is None else [table.c.id < after]
    shown = [table.c[name] for name in columns] or table.c
    statement = sa.select(*shown).where(*conditions, *below).order_by(table.c.id.desc()).limit(limit)
    return [dict(row) for row in (await conn.execute(statement)).mappings()]


def _page(rows: list[Row], limit: int) -> Found:
    return Found(rows, rows[-1]["id"] if len(rows) == limit else None)


async def _pieces(
    conn: AsyncConnection,
    table: sa.Table,
    bases: Sequence[Conditions],
    conditions: Conditions,
    limit: int,
    after: int | None,
    columns: Columns = (),
) -> Found:
    """Look through the newest rows of `bases`, each of which has an index, until `limit` fit or the window is over."""
    key = table.c.id
    if after is None:
        after = ((await conn.execute(sa.select(sa.func.max(key)))).scalar() or 0) + 1
    rows: list[Row] = []
    piece, left = _FIRST_PIECE, WINDOW_ROWS
    while left > 0:
        piece = min(piece, left)
        bound = await _bound(conn, key, bases, after, piece)
        found: list[Row] = []
        for base in bases:  # each along its index; of a condition that says all of them a database makes a scan
            found += await _read(conn, table, [key >= bound, *base, *conditions], limit - len(rows), after, columns)
        rows += sorted(found, key=itemgetter("id"), reverse=True)[: limit - len(rows)]
        if len(rows) >= limit:
            return Found(rows, rows[-1]["id"])
        if bound <= 0:
            return Found(rows, None)
        after, left, piece = bound, left - piece, piece * _PIECES_GROW
    return Found(rows, after, WINDOW_ROWS)


async def _bound(
    conn: AsyncConnection, key: sa.ColumnElement[int], bases: Sequence[Conditions], after: int, piece: int
) -> int:
    """Return the id down to which no base has more than `piece` rows below `after`; 0 where that is all there are."""
    bounds = []
    for base in bases:
        there = sa.select(key).where(key < after, *base).order_by(key.desc()).limit(1).offset(piece - 1)
        bounds.append((await conn.execute(there)).scalar() or 0)
    return max(bounds)

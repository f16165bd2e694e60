"""Finding history, live runs and dead letters by a filter (`policy.filters`), and decisions, however many there are.

What has an index is looked up along it: a run, a worker, what did not succeed, a time. Whatever else is asked (a field
of the payload, a part of an error) is looked for among the newest rows only, `WINDOW_ROWS` of them, piece by piece,
until enough are found. The answer names how far it looked: `Found.after` goes on from there, so that all there is can
be gone through a page at a time, and no page costs more than another.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.errors import UsageError
from jobrunner.model.run import USES_UP_AN_ATTEMPT, OutcomeKind
from jobrunner.policy.filters import ENDS_ASKED_FOR, Filter
from jobrunner.storage.database.rowsets import same
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.claims import is_active
from jobrunner.storage.tables.matching import contains, field_text, is_one_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    Row = dict[str, Any]
    Conditions = list[sa.ColumnElement[bool]]
    Columns = Sequence[str]

WINDOW_ROWS = 50_000
"""So many of the newest rows are looked through for what has no index."""
_FIRST_PIECE, _PIECES_GROW = 1000, 4
_WRITTEN_LATE = timedelta(hours=1)
"""So long after its time may a row be written: clocks lie apart, and ends are kept through an outage of the database.

Ids are in the order of the writes.
"""


@dataclass(frozen=True, slots=True)
class _Base:
    """Rows that an index has in the order of `column`, if there is one, and of the ids.

    `conditions` on that column are ranges, and it is named in the order (see `rowsets.same`).
    """

    conditions: Conditions = field(default_factory=list)
    column: sa.ColumnElement[Any] | None = None

    def newest_first(self, key: sa.ColumnElement[int]) -> list[sa.ColumnElement[Any]]:
        """Return the order of that index, backwards."""
        return [key.desc()] if self.column is None else [self.column.desc(), key.desc()]


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
        return _page(await _read(conn, h, _Base([h.c.run_id.in_(asked.run)]), conditions, limit, after), limit)
    after, last = await _span(conn, asked, after)
    conditions += [h.c.id >= last] if last is not None else []
    kinds = _kinds(asked)
    # Beside `until` there may be an hour of later rows to pass by.
    has_index = not (asked.until or asked.payload or asked.error or asked.node or asked.trigger or asked.attempt)
    if has_index and not kinds and (not asked.worker or asked.only_worker is not None):
        return _page(await _read(conn, h, _of_worker(asked, h), conditions, limit, after), limit)
    if kinds and not set(kinds) & {str(OutcomeKind.SUCCEEDED)}:
        bases = [_rare(kind) for kind in kinds]
    else:
        bases = [_of_worker(asked, h)]
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
        return _page(await _read(conn, d, _Base([d.c.id.in_(asked.id)]), conditions, limit, after, columns), limit)
    if asked.key:
        conditions.append(d.c.key.in_(asked.key))
    bases = [_of_worker(asked, d)]
    if asked.only_worker is None and asked.status:
        bases = [_Base([d.c.status == status]) for status in asked.status]
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
        return _page(await _read(conn, r, _Base([is_active()]), conditions, limit, after, columns), limit)
    return await _pieces(conn, r, [_Base()], conditions, limit, after, columns)


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
    base = _Base() if worker is None else _Base([same(a.c.worker, sa.literal(worker))], a.c.worker)
    conditions: Conditions = [] if since is None else [a.c.at >= since]
    if actions:
        conditions.append(a.c.action.in_(actions))
    if actor is not None:
        conditions.append(sa.or_(a.c.actor == actor, a.c.actor.startswith(f"{actor}@", autoescape=True)))
    oldest = None if since is None else (a.c.at, since - _WRITTEN_LATE)
    return await _pieces(conn, a, [base], conditions, limit, after, oldest=oldest)


def _kinds(asked: Filter) -> tuple[str, ...]:
    """Return the outcomes of attempts that may be meant; a run that ended so ends with one that uses up an attempt."""
    kinds = {each for each in asked.outcome if each not in set(map(str, ENDS_ASKED_FOR))}
    if len(kinds) < len(asked.outcome):
        kinds |= set(map(str, USES_UP_AN_ATTEMPT))
    return tuple(sorted(kinds))


def _of_worker(asked: Filter, table: sa.Table) -> _Base:
    """Return the rows of the one worker that is asked for; without one, all."""
    if asked.only_worker is None:
        return _Base()
    return _Base([same(table.c.worker, sa.literal(asked.only_worker))], table.c.worker)


def _rare(kind: str) -> _Base:
    """Return the condition of an outcome in the words of its partial index: a bound value would hide it."""
    h = t.run_history
    literal = sa.literal(kind, literal_execute=True)
    return _Base([h.c.outcome == literal, sa.literal_column("run_history.outcome <> 'succeeded'")])


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
    conditions = _of_times(asked, c)
    if asked.only_worker is not None:
        conditions.append(same(c.worker, sa.literal(asked.only_worker)))
    elif asked.worker:
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


def _of_times(asked: Filter, c: sa.ColumnCollection[str, sa.Column[Any]]) -> Conditions:
    time = c["finished_at" if "finished_at" in c else "died_at" if "died_at" in c else "created_at"]
    since = [] if asked.since is None else [time >= asked.since]
    return since if asked.until is None else [*since, time <= asked.until]


async def _span(conn: AsyncConnection, asked: Filter, after: int | None) -> tuple[int | None, int | None]:
    """Return the ids of history between which the times asked for lie: below the first, from the second on.

    They bound the search only: the times themselves are compared, too. Both are ids of rows outside of what is asked
    for, so far that whatever is inside was written after the one and before the other (see `_WRITTEN_LATE`).
    """
    key, time, last = t.run_history.c.id, t.run_history.c.finished_at, None
    if asked.since is not None:
        older = sa.select(key).where(time < asked.since - _WRITTEN_LATE).order_by(time.desc()).limit(1)
        last = (await conn.execute(older)).scalar()
    if asked.until is not None:
        newer = sa.select(key).where(time > asked.until + _WRITTEN_LATE).order_by(time).limit(1)
        found = (await conn.execute(newer)).scalar()
        after = min((each for each in (after, found) if each is not None), default=None)
    return after, last


async def _read(
    conn: AsyncConnection,
    table: sa.Table,
    base: _Base,
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
    bases: Sequence[_Base],
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
    piece, left = _FIRST_PIECE, WINDOW_ROWS
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
        after, left, piece = bound, left - piece, piece * _PIECES_GROW
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
    conn: AsyncConnection, key: sa.ColumnElement[int], bases: Sequence[_Base], after: int, piece: int
) -> int:
    """Return the id down to which no base has more than `piece` rows below `after`; 0 where that is all there are."""
    bounds = []
    for base in bases:
        rows = sa.select(key).where(key < after, *base.conditions).order_by(*base.newest_first(key))
        there = rows.limit(1).offset(piece - 1)
        bounds.append((await conn.execute(there)).scalar() or 0)
    return max(bounds)

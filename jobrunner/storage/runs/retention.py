"""Pruning: deleting what is old enough, in small transactions, by one node at a time.

A batch is a page of rows in the order of an index, read without a lock; the page decides where the next one begins,
so that rows that stay (failures between the two ages, rows of live runs) are read once and never again. Only what may
go is deleted, under a lock that is tried, not waited for: who does not get it stops, since another is at work. After
each transaction it rests as long as that took: on SQLite a writer that never rests keeps all others waiting.

Never deleted: open dead letters, and the history of a run that is still live. When a success goes, its worker's
`streak_since_id` moves up to it, so that the failure streak can still be recomputed from what is left.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.model.run import EndsRun
from jobrunner.policy.retention import Limits, limits, may_go
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.alert_tables import IS_WAITING
from jobrunner.storage.tables.claims import is_active
from jobrunner.storage.tables.rows import to_json
from jobrunner.storage.tables.types import UtcDateTime

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.database.database import Database
    from jobrunner.storage.database.dialect import Dialect

BATCH = 500
_BEGINNING = datetime(1, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many rows of each table went; `is_complete` is False if another node was pruning and this one stopped."""

    run_history: int = 0
    dead_letters: int = 0
    nodes: int = 0
    audit_log: int = 0
    alerts: int = 0
    batches: int = 0
    run_after: int = 0
    is_complete: bool = True


class _Busy(Exception):
    """Another node holds the lock."""


async def _no_rest(_seconds: float) -> None:
    """Go on at once."""


async def prune(
    db: Database,
    now: datetime,
    history_days: float,
    failure_days: float,
    rest: Callable[[float], Awaitable[None]] = _no_rest,
    batch: int = BATCH,
) -> Pruned:
    """Delete what is older than it is to be kept; `batch` rows are looked at in one transaction.

    Args:
        db: the database.
        now: the time now, UTC.
        history_days: how long history rows are kept.
        failure_days: how long failed attempts and resolved dead letters are kept.
        rest: waits after each transaction, for as many seconds as it is given.
        batch: the number of rows of one transaction.
    """
    limit = limits(now, history_days, failure_days)
    pruned = Pruned()
    parts: list[tuple[str, Callable[[Database, Limits, int], Any]]] = [
        ("run_history", _prune_history),
        ("dead_letters", _prune_letters),
        ("nodes", _prune_nodes),
        ("audit_log", _prune_audit),
        ("alerts", _prune_alerts),
        ("batches", _prune_batches),
        ("run_after", _prune_edges),
    ]
    for table, prune_table in parts:
        try:
            began = time.monotonic()
            async for count in prune_table(db, limit, batch):
                pruned = dataclasses.replace(pruned, **{table: getattr(pruned, table) + count})
                await rest(time.monotonic() - began)
                began = time.monotonic()
        except _Busy:
            return dataclasses.replace(pruned, is_complete=False)
    return pruned


async def _locked(db: Database, conn: AsyncConnection) -> None:
    if not await db.dialect.try_prune_lock(conn):
        raise _Busy


@dataclass(frozen=True)
class _Statements:
    history_page: sa.Select[Any]
    delete_history: sa.sql.Executable
    raise_streak: sa.Update
    letters_page: sa.Select[Any]
    delete_letters: sa.sql.Executable
    audit_page: sa.Select[Any]
    delete_audit: sa.sql.Executable


@functools.cache
def statements(dialect: Dialect) -> _Statements:
    """Build the pruning statements once for each database."""
    h, r, s, d, a = t.run_history, t.runs, t.worker_state, t.dead_letters, t.audit_log
    given = dialect.rows("ids", id=sa.BigInteger())
    ids = sa.select(given.c.id)
    after_id = sa.bindparam("after_id", type_=sa.BigInteger())
    size = sa.bindparam("size", type_=sa.Integer())
    from_time = sa.bindparam("from_time", type_=UtcDateTime())
    # A page of the index on finished_at: strictly after (from_time, after_id), said so that the index can be used.
    history_page = (
        sa.select(h.c.id, h.c.finished_at, h.c.outcome, h.c.ends_run)
        .where(h.c.finished_at >= from_time, sa.or_(h.c.finished_at > from_time, h.c.id > after_id))
        .where(h.c.finished_at < sa.bindparam("until", type_=UtcDateTime()))
        .order_by(h.c.finished_at, h.c.id)
        .limit(size)
    )
    is_live = sa.exists().where(r.c.id == h.c.run_id)
    delete_history = sa.delete(h).where(h.c.id.in_(ids), sa.not_(is_live)).returning(h.c.id, h.c.worker, h.c.ends_run)
    since = sa.bindparam("since_id", type_=sa.BigInteger())
    raise_streak = (
        sa.update(s)
        .where(s.c.worker == sa.bindparam("key_worker"), s.c.streak_since_id < since)
        .values(streak_since_id=since)
    )
    is_resolved: sa.ColumnElement[bool] = sa.literal_column("dead_letters.status <> 'open'")
    letters_page = (
        sa.select(d.c.id, d.c.resolved_at.label("at"))
        .where(is_resolved, d.c.id > after_id)
        .order_by(d.c.id)
        .limit(size)
    )
    delete_letters = sa.delete(d).where(d.c.id.in_(ids), is_resolved).returning(d.c.id)
    audit_page = sa.select(a.c.id, a.c.at).where(a.c.id > after_id).order_by(a.c.id).limit(size)
    delete_audit = sa.delete(a).where(a.c.id.in_(ids)).returning(a.c.id)
    return _Statements(
        history_page, delete_history, raise_streak, letters_page, delete_letters, audit_page, delete_audit
    )


async def _prune_history(db: Database, limit: Limits, batch: int) -> Any:
    prepared = statements(db.dialect)
    place = {"from_time": _BEGINNING, "after_id": 0, "until": limit.newest, "size": batch}
    while True:
        async with db.read(is_long=True, is_of_state=False) as conn:
            page = (await conn.execute(prepared.history_page, place)).all()
        old = [row.id for row in page if may_go(row.outcome, row.ends_run, row.finished_at, limit)]
        if old:
            async with db.write(is_long=True) as conn:
                await _locked(db, conn)
                gone = (await conn.execute(prepared.delete_history, _ids(old))).all()
                await _raise_streaks(conn, prepared, gone)
            yield len(gone)
        if len(page) < batch:
            return
        place |= {"from_time": page[-1].finished_at, "after_id": page[-1].id}


async def _raise_streaks(conn: AsyncConnection, prepared: _Statements, gone: Sequence[Any]) -> None:
    """Note, for workers whose successes went, that the streak counts from there on; in the order of names."""
    newest: dict[str, int] = {}
    for row in gone:
        if row.ends_run == EndsRun.SUCCEEDED:
            newest[row.worker] = max(row.id, newest.get(row.worker, 0))
    if newest:
        marks = [{"key_worker": name, "since_id": newest[name]} for name in sorted(newest)]
        await conn.execute(prepared.raise_streak, marks)


async def _prune_letters(db: Database, limit: Limits, batch: int) -> Any:
    prepared = statements(db.dialect)
    after_id = 0
    while True:
        async with db.read(is_long=True, is_of_state=False) as conn:
            page = (await conn.execute(prepared.letters_page, {"after_id": after_id, "size": batch})).all()
        old = [row.id for row in page if row.at < limit.letters]
        if old:
            yield await _delete(db, prepared.delete_letters, old)
        if len(page) < batch:
            return
        after_id = page[-1].id


async def _prune_audit(db: Database, limit: Limits, batch: int) -> Any:
    """Go through the log from its beginning; it is in the order of time, so the first young row ends it."""
    prepared = statements(db.dialect)
    after_id = 0
    while True:
        async with db.read(is_long=True, is_of_state=False) as conn:
            page = (await conn.execute(prepared.audit_page, {"after_id": after_id, "size": batch})).all()
        old = [row.id for row in page if row.at < limit.audit]
        if old:
            yield await _delete(db, prepared.delete_audit, old)
        if len(old) < len(page) or len(page) < batch:
            return
        after_id = page[-1].id


async def _delete(db: Database, statement: sa.sql.Executable, old: list[int]) -> int:
    async with db.write(is_long=True) as conn:
        await _locked(db, conn)
        return len((await conn.execute(statement, _ids(old))).all())


async def _prune_nodes(db: Database, limit: Limits, batch: int) -> Any:
    """Delete the rows of nodes that are gone and hold no runs; there are few of them."""
    n, r, h = t.nodes, t.runs, t.node_handlers
    holds_runs = sa.exists().where(r.c.node_id == n.c.id, is_active())
    is_gone: sa.ColumnElement[bool] = sa.literal_column("nodes.state IN ('stopped', 'lost')")
    old = sa.select(n.c.id).where(is_gone, n.c.heartbeat_at < limit.nodes, sa.not_(holds_runs)).limit(batch)
    while True:
        async with db.write(is_long=True) as conn:
            await _locked(db, conn)
            ids = (await conn.execute(old)).scalars().all()
            await conn.execute(sa.delete(h).where(h.c.node_id.in_(ids)))
            await conn.execute(sa.delete(n).where(n.c.id.in_(ids)))
        yield len(ids)
        if len(ids) < batch:
            return


async def _prune_alerts(db: Database, limit: Limits, batch: int) -> Any:
    """Delete incidents that closed long ago, with their messages, unless one of these still waits to be sent."""
    a, d = t.alerts, t.alert_deliveries
    waits = sa.exists().where(d.c.alert_id == a.c.id, sa.literal_column(IS_WAITING))
    old = sa.select(a.c.id).where(a.c.closed_at < limit.failures, sa.not_(waits)).order_by(a.c.closed_at).limit(batch)
    while True:
        async with db.write(is_long=True) as conn:
            await _locked(db, conn)
            ids = (await conn.execute(old)).scalars().all()
            await conn.execute(sa.delete(d).where(d.c.alert_id.in_(ids)))
            await conn.execute(sa.delete(a).where(a.c.id.in_(ids)))
        yield len(ids)
        if len(ids) < batch:
            return


async def _prune_batches(db: Database, limit: Limits, batch: int) -> Any:
    """Delete batches that finished long ago; letters of their members are replayed without them."""
    b, given = t.batches, db.dialect.rows("ids", id=sa.BigInteger())
    is_finished = b.c.finished_at.is_not(None)
    gone = sa.delete(b).where(b.c.id.in_(sa.select(given.c.id)), is_finished).returning(b.c.id)
    after_id = 0
    while True:
        page = sa.select(b.c.id, b.c.finished_at).where(b.c.id > after_id).order_by(b.c.id).limit(batch)
        async with db.read(is_long=True, is_of_state=False) as conn:
            rows = (await conn.execute(page)).all()
        old = [row.id for row in rows if row.finished_at is not None and row.finished_at < limit.failures]
        if old:
            yield await _delete(db, gone, old)
        if len(rows) < batch:
            return
        after_id = rows[-1].id


async def _prune_edges(db: Database, _limit: Limits, batch: int) -> Any:
    """Delete the edges of steps that are neither live nor in the history any more; what comes later is younger."""
    e, r, h = t.run_after, t.runs, t.run_history
    given = db.dialect.rows("ids", id=sa.BigInteger())
    is_known = sa.or_(sa.exists().where(r.c.id == e.c.run_id), sa.exists().where(h.c.run_id == e.c.run_id))
    gone = sa.delete(e).where(e.c.run_id.in_(sa.select(given.c.id)), sa.not_(is_known)).returning(e.c.run_id)
    after_id = 0
    while True:
        page = sa.select(e.c.run_id).where(e.c.run_id > after_id).distinct().order_by(e.c.run_id).limit(batch)
        async with db.read(is_long=True, is_of_state=False) as conn:
            ids = list((await conn.execute(page)).scalars())
        count = await _delete(db, gone, ids) if ids else 0
        yield count
        if not count or len(ids) < batch:
            return
        after_id = ids[-1]


def _ids(ids: Sequence[int]) -> dict[str, str]:
    return {"ids": to_json({"id": number} for number in ids)}

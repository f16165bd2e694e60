"""Batches: runs that are counted together, and the runs that are made when all of them have ended.

A batch is *open* until it is sealed: members may be added. It is *finished* when it is sealed and none of its members
is live. Nothing counts members: what is live is looked for, through an index of live members.

The protocol of a probe, in a transaction of its own, after the one that ended members has committed:

1. Without a lock, see whether there is anything to do: most ends of members change nothing.
2. Lock the batches' rows in the order of ids. Whoever adds a member shares that lock until he commits; a batch whose
   row is held is left to whoever holds it, or to the sweep.
3. In a statement that begins after that, and so sees all that was committed before: is a member live, has one failed?
4. Decide (`policy.batches.move`); note it in the row, and add the runs that are called, once, in this transaction.

Of two that end the last two members, the one that commits later finds none live. A crash between that commit and the
probe leaves a batch that is sealed and has no live member, and the sweep of any node probes it.

Members never end by a turn of the fast path (`policy.fast_path.is_waited_for`), so that nothing of this is asked of
runs that are in no batch.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.errors import BatchNotFound, Refused, WorkerNotFound
from jobrunner.policy.batches import ON_FAILURE, ON_FINISH, ON_SUCCESS, BatchFacts, BatchMoves, callback_payload, move
from jobrunner.storage.database.rowsets import built_once
from jobrunner.storage.runs.enqueue import Request, enqueue
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.rows import to_json
from jobrunner.storage.workers.relations import existing_names

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.database.database import Database
    from jobrunner.storage.database.dialect import Dialect

SWEPT_AT_ONCE = 200
_LOOKED_BACK = 500
"""So many of the last attempts that did not succeed, of each kind, does a sweep look through for failed members."""
_CALLED = {ON_SUCCESS: "success_run_id", ON_FAILURE: "failure_run_id", ON_FINISH: "finish_run_id"}
_OPEN: sa.ColumnElement[bool] = sa.literal_column("batches.finished_at IS NULL")


@dataclass(frozen=True, slots=True)
class NewBatch:
    """What is called, if anything, and with which payload (None: each worker's own)."""

    on_success: str | None = None
    on_failure: str | None = None
    on_finish: str | None = None
    payload: dict[str, Any] | None = None
    created_by: str | None = None

    @property
    def callbacks(self) -> tuple[str, ...]:
        """The workers it names."""
        return tuple(name for name in (self.on_success, self.on_failure, self.on_finish) if name is not None)


async def begin(conn: AsyncConnection, dialect: Dialect, batch: NewBatch) -> int:
    """Add an open batch and return its id. It names only what a role may say that can do no more than trigger.

    Raises:
        WorkerNotFound: the database does not know a worker that is to be called.
    """
    known = await existing_names(conn, dialect, batch.callbacks)
    for name in batch.callbacks:
        if name not in known:
            raise WorkerNotFound(name)
    values = {
        "on_success": batch.on_success,
        "on_failure": batch.on_failure,
        "on_finish": batch.on_finish,
        "payload": batch.payload or {},
        "created_by": batch.created_by,
    }
    b = t.batches
    return int((await conn.execute(sa.insert(b).values(values).returning(b.c.id))).scalar_one())


async def require_open(conn: AsyncConnection, batch_id: int) -> None:
    """Pass a batch that members can be added to.

    Raises:
        BatchNotFound: there is none of that id.
        Refused: it has finished.
    """
    b = t.batches
    row = (await conn.execute(sa.select(b.c.finished_at).where(b.c.id == batch_id))).first()
    if row is None:
        raise BatchNotFound(batch_id)
    if row.finished_at is not None:
        raise Refused(f"batch {batch_id} has finished; begin another")


async def seal(db: Database, batch_id: int, now: datetime) -> None:
    """Seal a batch, and finish it if nothing of it is live; one that is sealed already stays as it is."""
    b = t.batches
    async with db.write() as conn:
        await conn.execute(sa.update(b).where(b.c.id == batch_id, b.c.sealed_at.is_(None)).values(sealed_at=now))
    with suppress(Exception):  # who may only trigger may not look at runs: then the sweep of a node finishes it
        await probe(db, {batch_id: False}, now)


@dataclass(frozen=True)
class _Statements:
    ripe: sa.Select[Any]
    lock: sa.Select[Any]
    judge: sa.Select[Any]


def _live() -> sa.ColumnElement[bool]:
    return sa.exists().where(t.runs.c.batch_id == t.batches.c.id)


def _failed() -> sa.ColumnElement[bool]:
    h = t.run_history
    return sa.exists().where(h.c.batch_id == t.batches.c.id, h.c.ends_run.is_not(None), h.c.ends_run != "succeeded")


@built_once
def _statements(dialect: Dialect) -> _Statements:
    b = t.batches
    given = dialect.rows("ids", id=sa.BigInteger())
    these = b.c.id.in_(sa.select(given.c.id))
    ripe = sa.select(b.c.id).where(these, _OPEN, b.c.sealed_at.is_not(None), sa.not_(_live()))
    lock = sa.select(b.c.id).where(these, _OPEN).order_by(b.c.id).with_for_update(of=b, skip_locked=True)
    has_live = _live()
    # Failed members are looked for once, when nothing is live any more: until then whoever ends one says so.
    has_failed = sa.case((sa.or_(has_live, b.c.failed_at.is_not(None)), sa.false()), else_=_failed())
    judge = sa.select(
        b.c.id,
        b.c.sealed_at,
        b.c.failed_at,
        b.c.payload,
        *(b.c[each] for each in _CALLED),
        has_live.label("has_live"),
        has_failed.label("has_failed"),
    ).where(these)
    return _Statements(ripe, lock, judge.order_by(b.c.id))


async def probe(db: Database, ended: Mapping[int, bool], now: datetime) -> None:
    """See whether batches have failed or finished, and make what they call.

    Args:
        db: the database.
        ended: the batches, of which members have ended, and whether one of these is known to have failed.
        now: the time now, UTC.
    """
    failed = {batch_id for batch_id, has_failed in ended.items() if has_failed}
    async with db.peek() as conn:
        ripe = (await conn.execute(_statements(db.dialect).ripe, _ids(ended))).scalars().all()
    ids = sorted({*ripe, *failed})
    if not ids:
        return
    async with db.write() as conn:
        locked = (await conn.execute(_statements(db.dialect).lock, _ids(ids))).scalars().all()
        if not locked:
            return
        rows = (await conn.execute(_statements(db.dialect).judge, _ids(locked))).all()
        await _move(conn, db.dialect, rows, failed, now)


def _ids(batch_ids: Collection[int]) -> dict[str, str]:
    return {"ids": to_json({"id": batch_id} for batch_id in batch_ids)}


async def _move(conn: AsyncConnection, dialect: Dialect, rows: Sequence[Any], failed: set[int], now: datetime) -> None:
    moves = []
    for row in rows:
        has_failed = bool(row.has_failed) or row.id in failed
        moves.append((row, move(BatchFacts(row.sealed_at, row.failed_at, bool(row.has_live), has_failed))))
    wanted = {getattr(row, call) for row, moved in moves for call in moved.calls} - {None}
    called = await _workers(conn, dialect, wanted)
    for row, moved in moves:
        if not moved.fails and not moved.finishes:
            continue
        # A worker that was removed meanwhile: the batch stays as it is until there is one of that name again.
        if all(getattr(row, call) is None or getattr(row, call) in called for call in moved.calls):
            await _write(conn, dialect, row, moved, called, now)


async def _workers(conn: AsyncConnection, dialect: Dialect, names: Collection[str]) -> dict[str, Any]:
    if not names:
        return {}
    w = t.workers
    given = dialect.rows("names", name=sa.Text())
    statement = sa.select(w.c.name, w.c.payload, w.c.payload_schema).where(w.c.name.in_(sa.select(given.c.name)))
    rows = await conn.execute(statement, {"names": to_json({"name": name} for name in sorted(names))})
    return {row.name: row for row in rows}


async def _write(
    conn: AsyncConnection, dialect: Dialect, row: Any, moved: BatchMoves, called: Mapping[str, Any], now: datetime
) -> None:
    values: dict[str, Any] = {}
    if moved.fails:
        values["failed_at"] = now
    if moved.finishes:
        values["finished_at"] = max(now, row.sealed_at)
    for call in moved.calls:
        worker = getattr(row, call)
        if worker is not None:
            its = called[worker]
            payload = callback_payload(row.id, _object(row.payload), _object(its.payload), _object(its.payload_schema))
            values[_CALLED[call]] = await enqueue(conn, dialect, Request(worker, payload), now)
    b = t.batches
    await conn.execute(sa.update(b).where(b.c.id == row.id).values(values))


def _object(value: object) -> dict[str, Any]:
    """Return a JSON object; what cannot be read is an empty one."""
    return value if isinstance(value, dict) else {}


async def sweep(db: Database, after_id: int, now: datetime) -> int:
    """Probe the next open batches after the id `after_id`; return the id to go on after, 0 to begin again.

    For what a crash has left between the end of a member and the probe. Where no batch is open it is one cheap read.
    """
    b = t.batches
    page = sa.select(b.c.id, b.c.on_failure, b.c.failed_at).where(_OPEN, b.c.id > after_id)
    async with db.peek() as conn:
        rows = (await conn.execute(page.order_by(b.c.id).limit(SWEPT_AT_ONCE))).all()
        if not rows:
            return 0
        failing = {row.id for row in rows if row.on_failure is not None and row.failed_at is None}
        failed = set((await conn.execute(_lately_failed())).scalars()) & failing if failing else set()
    await probe(db, {row.id: row.id in failed for row in rows}, now)
    return int(rows[-1].id) if len(rows) == SWEPT_AT_ONCE else 0


def _lately_failed() -> sa.Select[Any]:
    """The batches of members that failed of late. One that is older is found when its batch has nothing live."""
    h = t.run_history
    parts = []
    for outcome in ("failed", "timed_out", "lost", "cancelled"):
        newest = (
            sa.select(h.c.batch_id, h.c.ends_run)
            .where(sa.literal_column(f"run_history.outcome = '{outcome}' AND run_history.outcome <> 'succeeded'"))
            .order_by(h.c.id.desc())
            .limit(_LOOKED_BACK)
            .subquery()
        )
        parts.append(sa.select(newest.c.batch_id).where(newest.c.ends_run.is_not(None)))
    found = sa.union(*parts).subquery()
    return sa.select(found.c.batch_id).where(found.c.batch_id.is_not(None))

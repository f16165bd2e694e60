"""Flows: runs that wait for others, written together and released, or cancelled, by whoever ends what they wait for.

Terms. An *edge* is a row of `run_after`: a step, and one before it. A step that waits is *held*: `due_at` is
`HELD_UNTIL`, so that it is in no queue, until the transaction that ends the last of those before it sets its time.
Edges are written where their runs are added, and never change; database triggers hold the steps.

The protocol of a release, inside the transaction that ends a run:

1. Read which steps wait for what has just ended: those directly after it, and where it did not succeed, all below them.
2. Lock their rows in the order of ids. Steps have higher ids than those before them, so that all lock in one order;
   nobody waits for `worker_state` while he holds them.
3. In statements that begin after the locks are held, and so see all that was committed before: read which of those
   before them are live, and how the others ended. Of two transactions that end the last two, the one that gets the lock
   later sees what the other has written: one of the two releases the step, never neither.
4. Decide (`policy.flows.follow`) and write. A cancelled step has a history row that says why, and no other trace: it
   has never started, so that its worker's state stays as it is.

A crash before the commit leaves the ended run live, and what waits for it waiting; there is nothing to sweep.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.model.flow import Before
from jobrunner.model.run import HELD_UNTIL, EndsRun, Outcome, OutcomeKind, Run
from jobrunner.policy.flows import Edge, follow
from jobrunner.storage.database.rowsets import built_once
from jobrunner.storage.records.history import ended_row, storable
from jobrunner.storage.runs.enqueue import Request, enqueue
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.rows import RUN_COLUMNS, run_of, to_json
from jobrunner.storage.tables.types import UtcDateTime

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.database.dialect import Dialect

MOST_PARENTS = 1000
_HELD: sa.ColumnElement[bool] = sa.literal_column("runs.state = 'pending' AND runs.first_started_at IS NULL")


@dataclass(frozen=True, slots=True)
class Planned:
    """A step to be written: its request, and the names of those before it."""

    name: str
    request: Request
    after: tuple[str, ...] = ()
    if_failed: str = "cancel"


@dataclass(frozen=True, slots=True)
class Moved:
    """The steps that were released, and those that were cancelled."""

    released: tuple[int, ...] = ()
    cancelled: tuple[Run, ...] = ()


async def add_flow(
    conn: AsyncConnection,
    dialect: Dialect,
    steps: Sequence[Planned],
    now: datetime,
    trace_context: str | None = None,
) -> dict[str, int]:
    """Add the runs of a flow in the caller's transaction; return their ids by the names of the steps.

    `steps` are such that each comes after those it waits for (`policy.flows.in_order`). They have in common a
    `flow_id`, the id of the first.

    Raises:
        WorkerNotFound: the database knows no such worker.
    """
    ids: dict[str, int] = {}
    edges: list[dict[str, Any]] = []
    for step in steps:
        flow_id = next(iter(ids.values()), None)
        request = replace(step.request, flow_id=flow_id, step=step.name, trace_context=trace_context)
        ids[step.name] = await enqueue(conn, dialect, request, now)
        edges += [
            {"run_id": ids[step.name], "after_run_id": ids[name], "if_failed": step.if_failed}
            for name in dict.fromkeys(step.after)
        ]
    if edges:
        await conn.execute(sa.insert(t.run_after), edges)
    first = ids[steps[0].name]
    if not any(edge["after_run_id"] == first for edge in edges):  # else the edge's trigger has
        r = t.runs
        await conn.execute(sa.update(r).where(r.c.id == first).values(flow_id=first))
    return ids


@dataclass(frozen=True)
class _Statements:
    directly_after: sa.Select[Any]
    all_after: sa.Select[Any]
    lock: sa.Select[Any]
    edges: sa.Select[Any]
    live: sa.Select[Any]
    ends: sa.Select[Any]
    release: sa.Update
    cancel: sa.UpdateBase


@built_once
def _statements(dialect: Dialect) -> _Statements:
    r, e, h = t.runs, t.run_after, t.run_history
    given = dialect.rows("ids", id=sa.BigInteger())
    ids = sa.select(given.c.id)
    directly = sa.select(e.c.run_id).where(e.c.after_run_id.in_(ids)).distinct()
    below = sa.select(e.c.run_id).where(e.c.after_run_id.in_(ids)).cte("below", recursive=True)
    below = below.union(sa.select(e.c.run_id).join(below, e.c.after_run_id == below.c.run_id))
    lock = sa.select(*RUN_COLUMNS).where(r.c.id.in_(ids), _HELD).order_by(r.c.id).with_for_update(of=r)
    # One table each, and history run by run: of a join, a planner that knows little of them would read all of it.
    edges = sa.select(e.c.run_id, e.c.after_run_id, e.c.if_failed).where(e.c.run_id.in_(ids))
    live = sa.select(r.c.id).where(r.c.id.in_(ids))
    is_end = sa.and_(h.c.run_id == given.c.id, h.c.ends_run.is_not(None))
    ends = sa.select(
        given.c.id.label("run_id"),
        sa.select(h.c.ends_run).where(is_end).limit(1).scalar_subquery().label("ends_run"),
        sa.select(sa.func.coalesce(h.c.step, h.c.worker)).where(is_end).limit(1).scalar_subquery().label("name"),
    )
    now = sa.bindparam("now", type_=UtcDateTime())
    is_later = r.c.scheduled_for > now
    release = (
        sa.update(r)
        .values(
            due_at=sa.case((is_later, r.c.scheduled_for), else_=now),
            waits_since=sa.case((is_later, sa.null()), else_=now),  # a time of its own is not counted from now
        )
        .where(r.c.id.in_(ids), _HELD, r.c.due_at >= sa.bindparam("held", type_=UtcDateTime()))
    )
    cancel = sa.delete(r).where(r.c.id.in_(ids), _HELD).returning(r.c.id)
    return _Statements(directly, sa.select(below.c.run_id), lock, edges, live, ends, release, cancel)


async def follow_ends(
    conn: AsyncConnection, dialect: Dialect, ended: Sequence[tuple[Run, EndsRun]], now: datetime
) -> Moved:
    """Release or cancel what waited for runs that this transaction has ended; their history rows are written."""
    have_succeeded = all(ends_run is EndsRun.SUCCEEDED for _, ends_run in ended)
    ids = [run.id for run, _ in ended if run.flow_id is not None]
    if not ids:
        return Moved()
    prepared = _statements(dialect)
    statement = prepared.directly_after if have_succeeded else prepared.all_after
    after = (await conn.execute(statement, _ids(ids))).scalars().all()
    if not after:
        return Moved()
    waiting = {run.id: run for run in map(run_of, await conn.execute(prepared.lock, _ids(sorted(after))))}
    if not waiting:
        return Moved()
    edges = await _read_edges(conn, prepared, waiting)
    followed = follow(edges, {run.id: run.step or run.worker for run in waiting.values()})
    if followed.released:
        await conn.execute(prepared.release, {**_ids(followed.released), "now": now, "held": HELD_UNTIL})
    cancelled = [(waiting[run_id], why) for run_id, why in followed.cancelled.items()]
    await _cancel(conn, dialect, cancelled, now)
    moved = Moved(followed.released, tuple(run for run, _ in cancelled))
    if not (have_succeeded and cancelled):
        return moved
    # A failure that is older than its edges, which can be only where somebody has changed rows: what is below, too.
    below = await follow_ends(conn, dialect, [(run, EndsRun.CANCELLED) for run, _ in cancelled], now)
    return Moved(moved.released + below.released, moved.cancelled + below.cancelled)


def _ids(run_ids: Collection[int]) -> dict[str, str]:
    return {"ids": to_json({"id": run_id} for run_id in run_ids)}


async def _read_edges(conn: AsyncConnection, prepared: _Statements, waiting: Collection[int]) -> list[Edge]:
    """Read what these wait for. What is live comes first: a run that is not live any more has ended in history."""
    rows = (await conn.execute(prepared.edges, _ids(waiting))).all()
    before = _ids({row.after_run_id for row in rows})
    live = set((await conn.execute(prepared.live, before)).scalars())
    ends = {row.run_id: row for row in await conn.execute(prepared.ends, before) if row.ends_run is not None}
    return [_edge(row, row.after_run_id in live, ends.get(row.after_run_id)) for row in rows]


def _edge(row: Any, is_live: bool, end: Any | None) -> Edge:
    ends_run = None if end is None else EndsRun(end.ends_run)
    return Edge(row.run_id, row.after_run_id, row.if_failed, is_live, ends_run, "" if end is None else end.name)


async def _cancel(conn: AsyncConnection, dialect: Dialect, steps: Sequence[tuple[Run, str]], now: datetime) -> None:
    if not steps:
        return
    await conn.execute(_statements(dialect).cancel, _ids([run.id for run, _ in steps]))
    rows = [
        ended_row(run, Outcome(OutcomeKind.CANCELLED, now, reason=storable(why)), EndsRun.CANCELLED)
        for run, why in steps
    ]
    await conn.execute(sa.insert(t.run_history), rows)


async def read_before(conn: AsyncConnection, run_id: int) -> Before:
    """Return what the runs before a step have returned, those that succeeded, and how each ended."""
    e, h = t.run_after, t.run_history
    before = sa.select(e.c.after_run_id).where(e.c.run_id == run_id).order_by(e.c.after_run_id).limit(MOST_PARENTS)
    ids = (await conn.execute(before)).scalars().all()
    name = sa.func.coalesce(h.c.step, h.c.worker).label("name")
    ends = sa.select(name, h.c.ends_run, h.c.result).where(h.c.run_id.in_(ids), h.c.ends_run.is_not(None))
    rows = (await conn.execute(ends.order_by(h.c.run_id))).all()
    results = {row.name: row.result for row in rows if row.ends_run == EndsRun.SUCCEEDED}
    return Before(results, {row.name: row.ends_run for row in rows})

"""Nodes: joining, heartbeating, leaving, and taking over from one that is gone.

Terms. A node's *beat* is a counter in its row that the node alone raises, every sixth of the lease. Nobody compares
wall clocks: another node that has seen the same beat for a whole lease on its own monotonic clock, while its own beats
were being written, declares the node lost (`runtime.heartbeat` watches, this module writes). A database that is away
stops everybody's beats and makes nobody lost.

Declaring a node lost is a guarded UPDATE: state `active` or `draining`, and still the beat that was watched. It and the
rescue of the runs are separate transactions; the rescue is repeated by any node until no run names a lost node, so a
crash between the two loses nothing. A rescued run ends its attempt as `lost` under its fence, like any other outcome,
and a late outcome of the lost node finds its fence gone.

With the beat the node reads all that its heartbeat looks at: the others' beats, whether there is anything to rescue or
to compare, and the schema's revision. On PostgreSQL that is one statement, so that an idle node costs one round trip.

A node that stops in good order deletes nothing but its list of handlers; its row stays, `stopped`, until pruned.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.errors import DatabaseError
from jobrunner.model.limits import MAX_BIG_COUNT
from jobrunner.model.run import Outcome, OutcomeKind, Run
from jobrunner.storage.database import wakeups
from jobrunner.storage.database.dialect import first_line
from jobrunner.storage.database.rowsets import built_once
from jobrunner.storage.records.alerts import arise, node_lost
from jobrunner.storage.records.audit import audit_row, write_audits
from jobrunner.storage.runs.finishes import Ended, Finished, finish_within, probe_after
from jobrunner.storage.schema.revisions import versions
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.claims import is_active
from jobrunner.storage.tables.rows import RUN_COLUMNS, run_of, to_json

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.policy.transitions import Finish
    from jobrunner.storage.database.database import Database
    from jobrunner.storage.database.dialect import Dialect

_LIVE: sa.ColumnElement[bool] = sa.literal_column("nodes.state IN ('active', 'draining')")
_ONE: sa.ColumnElement[int] = sa.literal_column("1")
RESCUED_AT_ONCE = 500
_SEEN = ("id", "hostname", "pid", "boot_id", "process_started_at", "beat", "start_ticks")


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """Who a node is: one start of one operating-system process."""

    id: str
    hostname: str
    pid: int
    boot_id: str
    process_started_at: datetime
    version: str
    max_concurrent: int
    allows_commands: bool = False
    start_ticks: int | None = None
    lease_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class SeenNode:
    """Another node as the table shows it."""

    id: str
    hostname: str
    pid: int
    boot_id: str
    process_started_at: datetime
    beat: int
    start_ticks: int | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """What a node sees with its beat."""

    state: str
    others: tuple[SeenNode, ...]
    """The other nodes that are, by their rows, alive."""
    has_orphans: bool
    """There are runs for `rescue`."""
    has_claims: bool
    """There are runs that the node holds by the table."""
    revision: str | None
    """The schema's."""


async def join(
    conn: AsyncConnection, dialect: Dialect, node: NodeIdentity, handlers: Collection[str], now: datetime
) -> None:
    """Write the node's row and the workers it has code for."""
    await conn.execute(
        sa.insert(t.nodes),
        {
            "id": node.id,
            "hostname": node.hostname,
            "pid": node.pid,
            "boot_id": node.boot_id,
            "process_started_at": node.process_started_at,
            "state": "active",
            "beat": 0,
            "started_at": now,
            "heartbeat_at": now,
            "max_concurrent": node.max_concurrent,
            "version": node.version,
            "allows_commands": node.allows_commands,
            "start_ticks": node.start_ticks,
            "lease_seconds": node.lease_seconds,
        },
    )
    if handlers:
        given = dialect.rows("handlers", worker=sa.Text())
        rows = sa.select(given.c.worker, sa.bindparam("node_id", type_=sa.Text()))
        await conn.execute(
            sa.insert(t.node_handlers).from_select(["worker", "node_id"], rows),
            {"handlers": to_json({"worker": name} for name in sorted(handlers)), "node_id": node.id},
        )


@dataclass(frozen=True)
class _Beating:
    beat: sa.Update | None
    look: sa.Select[Any]


@built_once
def _beating(dialect: Dialect) -> _Beating:
    """Raise :node_id's beat and look around, in one statement where that can be."""
    n, r = t.nodes, t.runs
    node_id = sa.bindparam("node_id", type_=sa.Text())
    moment = n.c.heartbeat_at.type
    beat = (
        sa.update(n)
        .where(n.c.id == node_id)
        .values(
            # Others ask only whether it differs.
            beat=(n.c.beat + sa.literal_column("1")) % sa.literal_column(str(MAX_BIG_COUNT)),
            heartbeat_at=sa.bindparam("now", type_=moment),
            last_tick_at=sa.bindparam("ticked_at", type_=moment),
        )
    )
    other = n.alias("other")
    live = sa.and_(sa.literal_column("other.state IN ('active', 'draining')"), other.c.id != node_id)
    claim = sa.select(r.c.id).where(r.c.node_id == node_id, is_active()).limit(_ONE).scalar_subquery()
    orphan, left = (
        found.with_only_columns(r.c.id).limit(_ONE).scalar_subquery() for found in (_orphans(), _left_behind())
    )
    more = (sa.func.coalesce(orphan, left), claim, sa.select(versions.c.version_num).scalar_subquery())
    # Outside the snapshot of its own statement, so taken from what it returns.
    me: Any = beat.returning(n.c.state).cte("me") if dialect.has_writing_ctes else n.alias("me")
    look = sa.select(me.c.state, *more, *(other.c[name] for name in _SEEN)).select_from(me.outerjoin(other, live))
    return _Beating(None, look) if dialect.has_writing_ctes else _Beating(beat, look.where(me.c.id == node_id))


async def beat(
    conn: AsyncConnection,
    dialect: Dialect,
    node_id: str,
    now: datetime,
    last_tick_at: datetime | None,
    before: datetime,
) -> Seen | None:
    """Raise the node's beat and return what it sees, or None if its row is gone; `before` as for `rescue`.

    On PostgreSQL that is one statement, and needs no transaction around it.
    """
    beating = _beating(dialect)
    parameters = {"node_id": node_id, "now": now, "ticked_at": last_tick_at, **_moments(now, before)}
    if beating.beat is not None:
        await conn.execute(beating.beat, parameters)
    rows = (await conn.execute(beating.look, parameters)).all()
    if not rows:
        return None
    state, orphan, claim, revision = rows[0][:4]
    others = tuple(SeenNode(*row[4:]) for row in rows if row[4] is not None)
    return Seen(state, others, orphan is not None, claim is not None, revision)


async def set_state(conn: AsyncConnection, node_id: str, state: str, now: datetime) -> None:
    """Note that a node is `draining` or `stopped`; a node that was declared lost stays lost."""
    n = t.nodes
    await conn.execute(sa.update(n).where(n.c.id == node_id, _LIVE).values(state=state, heartbeat_at=now))
    if state == "stopped":
        await conn.execute(sa.delete(t.node_handlers).where(t.node_handlers.c.node_id == node_id))


async def others(conn: AsyncConnection, node_id: str) -> list[SeenNode]:
    """Return the other nodes that are, by their rows, alive."""
    n = t.nodes
    statement = sa.select(*(n.c[name] for name in _SEEN)).where(_LIVE, n.c.id != node_id)
    return [SeenNode(*row) for row in await conn.execute(statement)]


async def declare_lost(conn: AsyncConnection, dialect: Dialect, node: SeenNode, now: datetime, reason: str) -> bool:
    """Declare `node` lost if it is still alive by its row and has not beaten since; say whether that was so."""
    n = t.nodes
    statement = (
        sa.update(n).where(n.c.id == node.id, n.c.beat == node.beat, _LIVE).values(state="lost").returning(n.c.id)
    )
    if (await conn.execute(statement)).first() is None:
        return False
    await conn.execute(sa.delete(t.node_handlers).where(t.node_handlers.c.node_id == node.id))
    detail = {"node_id": node.id, "hostname": node.hostname, "pid": node.pid, "reason": reason}
    await write_audits(conn, [audit_row("node_lost", None, detail, now)])
    await arise(conn, dialect, [node_lost(node.id, node.hostname, node.pid, now, reason)])
    return True


@functools.cache
def _orphans() -> sa.Select[Any]:
    """Claims whose node is not alive by its row, or has none. A stopped node's are taken after a grace."""
    r, n = t.runs, t.nodes
    alive = sa.exists().where(
        n.c.id == r.c.node_id, sa.literal_column("nodes.state IN ('active', 'draining', 'stopped')")
    )
    seen_at = sa.select(n.c.heartbeat_at).where(n.c.id == r.c.node_id).scalar_subquery()
    return sa.select(seen_at, r.c.output, *RUN_COLUMNS).where(is_active(), sa.not_(alive)).limit(RESCUED_AT_ONCE)


@functools.cache
def _left_behind() -> sa.Select[Any]:
    """Claims of a node that has stopped, at least since :before: its code did not end in time.

    Or that has stopped after :ahead, when its clock was wrong: nobody is to wait until that time has come.
    """
    r, n = t.runs, t.nodes
    moment = n.c.heartbeat_at.type
    stopped = sa.exists().where(
        n.c.id == r.c.node_id,
        n.c.state == sa.literal_column("'stopped'"),
        sa.or_(
            n.c.heartbeat_at <= sa.bindparam("before", type_=moment),
            n.c.heartbeat_at > sa.bindparam("ahead", type_=moment),
        ),
    )
    return sa.select(r.c.output, *RUN_COLUMNS).where(is_active(), stopped).limit(RESCUED_AT_ONCE)


def _moments(now: datetime, before: datetime) -> dict[str, datetime]:
    return {"before": before, "ahead": now + (now - before)}


async def rescue(db: Database, now: datetime, before: datetime) -> Finished:
    """End, as `lost`, the attempts whose node is gone; as `interrupted`, those a stopped node left behind.

    Args:
        db: the database.
        now: the time now, UTC.
        before: nodes that stopped at or before this time are past their grace.

    Any number of nodes may do this at once: each attempt is ended by the one whose guarded write finds its fence.
    """
    async with db.peek() as conn:
        lost = [(run_of(row), output, seen_at) for seen_at, output, *row in await conn.execute(_orphans())]
        rows = await conn.execute(_left_behind(), _moments(now, before))
        left = [(run_of(row), output) for output, *row in rows]
    if not lost and not left:
        return Finished((), ())
    ended = [_gone(run, output, OutcomeKind.LOST, now, "its node died", seen_at) for run, output, seen_at in lost]
    why = "its node stopped before its code had ended"
    ended += [_gone(run, output, OutcomeKind.INTERRUPTED, now, why) for run, output in left]
    try:
        return await _end_all(db, ended)
    except DatabaseError:
        raise
    except Exception:  # noqa: BLE001 - one row that cannot be written must not keep the others' runs
        return await _end_each(db, ended)


async def _end_all(db: Database, ended: Sequence[Ended]) -> Finished:
    async with db.write() as conn:
        finished = await finish_within(conn, db.dialect, ended)
        await wakeups.notify(db, conn)
    await probe_after(db, finished, ended)
    return finished


async def _end_each(db: Database, ended: Sequence[Ended]) -> Finished:
    """End each alone; what cannot be ended stays as it is, for somebody to mend its rows."""
    written: list[tuple[Run, Finish]] = []
    problems = []
    for item in ended:
        try:
            written += (await _end_all(db, [item])).written
        except DatabaseError:
            raise
        except Exception as error:  # noqa: BLE001 - see there
            problems.append(f"run {item.run.id} of {item.run.worker} cannot be rescued: {first_line(error)}")
    return Finished(tuple(written), (), tuple(problems))


def _gone(
    run: Run, output: str | None, kind: OutcomeKind, now: datetime, why: str, seen_at: datetime | None = None
) -> Ended:
    """End an attempt for its node; `seen_at`: when that node last beat, by its own clock.

    What it has said until a moment before is all that is known of its output.

    The retry delay counts from the node's last sign of life, its last beat or the run's start. A clock that was ahead
    makes nobody wait longer than the delay from now on.
    """
    signs = [at for at in (seen_at, run.started_at) if at is not None and at <= now]
    duration = None if run.started_at is None else max(0, round((now - run.started_at).total_seconds() * 1000))
    node = (run.node_id or "?")[:8]
    error = f"{why} (node {node}); whether the work was done is not known" if kind is OutcomeKind.LOST else None
    outcome = Outcome(
        kind,
        now,
        duration_ms=duration,
        error_type="NodeLost" if kind is OutcomeKind.LOST else None,
        error=error,
        reason=f"{why} (node {node})",
        output=output,
        retry_from=max(signs, default=None) if kind is OutcomeKind.LOST else None,
    )
    return Ended(run, outcome)

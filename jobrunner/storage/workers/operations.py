"""What operators do to workers. Each is one transaction: the change and its `audit_log` row, or neither.

Every function takes the row lock of the worker's state before it decides, as claims and finishes do; so no claim
commits after a disable has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.errors import InvalidWorker, Refused
from jobrunner.model.unreadable import Unreadable
from jobrunner.policy import definitions
from jobrunner.policy.near import did_you_mean
from jobrunner.policy.words import counted
from jobrunner.storage.database import wakeups
from jobrunner.storage.records.audit import audit_row, write_audits
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.rows import state_values, write_state_statement
from jobrunner.storage.workers import definitions as workers
from jobrunner.storage.workers import switching
from jobrunner.storage.workers.switching import switch_one

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.model.worker import WorkerConfig, WorkerState
    from jobrunner.storage.database.database import Database


async def enable(db: Database, name: str, now: datetime, actor: str, reason: str | None = None) -> WorkerState:
    """Enable a worker, zero its streak, close its circuit. Raises `WorkerNotFound`."""
    return await switch_one(db, name, now, actor, switching.enabling(reason))


async def disable(db: Database, name: str, now: datetime, actor: str, reason: str | None) -> WorkerState:
    """Disable a worker; what was missed so far is recorded. Raises `WorkerNotFound`."""
    return await switch_one(db, name, now, actor, switching.disabling(reason))


async def pause(
    db: Database,
    name: str,
    now: datetime,
    actor: str,
    until: datetime,
    reason: str | None,
    *,
    is_length: bool = False,
) -> WorkerState:
    """Pause a worker as `switching.pausing` says. Raises `WorkerNotFound`."""
    return await switch_one(db, name, now, actor, switching.pausing(until, reason, is_length=is_length))


async def resume(db: Database, name: str, now: datetime, actor: str, reason: str | None = None) -> WorkerState:
    """End a worker's pause now. Raises `WorkerNotFound`."""
    return await switch_one(db, name, now, actor, switching.resuming(reason))


async def _write_state(conn: AsyncConnection, state: WorkerState) -> None:
    await conn.execute(write_state_statement(), [state_values(state)])


@dataclass(frozen=True, slots=True)
class Redefined:
    """A worker's definition before and after overrides of it have changed."""

    before: WorkerConfig
    after: WorkerConfig


async def set_values(db: Database, name: str, values: Mapping[str, Any], now: datetime, actor: str) -> Redefined:
    """Lay `values` over a worker's definition; deploys do not undo them.

    Raises:
        WorkerNotFound: there is no such worker.
        InvalidWorker: a field cannot be set, or the result does not hold together; nothing was changed.
    """
    async with db.write() as conn:
        stored = await workers.read_one(conn, db.dialect, name, lock=True)
        _check_fields(name, values)
        _refuse_unreadable(stored)
        overrides = {**stored.overrides, **values}
        if values.get("interval_seconds") is not None:
            overrides.pop("cron", None)
        if values.get("cron") is not None:
            overrides.pop("interval_seconds", None)
        changed = Redefined(stored.config, await workers.write_overrides(conn, stored, overrides, now))
        fields = definitions.with_replaced(changed.before, changed.after, values)
        old = {field: _plain(getattr(changed.before, field)) for field in fields}
        new = {field: _plain(getattr(changed.after, field)) for field in fields}
        await write_audits(conn, [audit_row("set", name, {"old": old, "new": new}, now, actor)])
        await wakeups.notify(db, conn)
        return changed


async def unset_values(db: Database, name: str, fields: Sequence[str], now: datetime, actor: str) -> Redefined:
    """Take overrides away, so that what code said holds again. Raises as `set_values`, and `Refused` if none is set."""
    async with db.write() as conn:
        stored = await workers.read_one(conn, db.dialect, name, lock=True)
        _check_fields(name, dict.fromkeys(fields))
        _refuse_unreadable(stored)
        missing = [field for field in fields if field not in stored.overrides]
        if missing:
            raise Refused(f"worker {name!r} has no override of {', '.join(missing)}; `jobrunner admin show {name}`")
        overrides = {field: value for field, value in stored.overrides.items() if field not in fields}
        changed = Redefined(stored.config, await workers.write_overrides(conn, stored, overrides, now))
        old = {field: stored.overrides[field] for field in fields}
        said = definitions.with_replaced(changed.before, changed.after, fields)
        old |= {field: _plain(getattr(changed.before, field)) for field in said if field not in fields}
        new = {field: _plain(getattr(changed.after, field)) for field in said}
        await write_audits(conn, [audit_row("unset", name, {"old": old, "new": new}, now, actor)])
        await wakeups.notify(db, conn)
        return changed


def _check_fields(name: str, values: Mapping[str, Any]) -> None:
    if values.get("interval_seconds") is not None and values.get("cron") is not None:
        raise InvalidWorker(name, "is given both interval_seconds and cron; keep one")
    for field in values:
        if field not in definitions.OVERRIDABLE:
            raise InvalidWorker(name, f"{field!r} cannot be set; {did_you_mean(field, definitions.OVERRIDABLE)}")


def _refuse_unreadable(stored: workers.Stored) -> None:
    """Refuse to write over overrides that cannot be read: they would be lost."""
    if isinstance(stored.overrides, Unreadable):
        name = stored.config.name
        problem = stored.overrides.problem
        raise Refused(f"the overrides of worker {name!r} cannot be read: {problem}; mend its row in `workers` first")


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str | dict) else str(value)


async def remove(db: Database, name: str, now: datetime, actor: str) -> None:
    """Remove a worker's definition and state; its history and dead letters stay.

    Raises:
        WorkerNotFound: there is no such worker.
        Refused: runs of it are live, a live node has its code, or other workers depend on it or block it.
    """
    async with db.write() as conn:
        await db.dialect.lock_for_migration(conn)  # as registering does: both change relations, in other orders
        await workers.read_one(conn, db.dialect, name, lock=True)
        # Enqueuers hold a key lock on this row: wait for those under way, so that their runs are counted.
        await conn.execute(sa.select(t.workers.c.name).where(t.workers.c.name == name).with_for_update())
        await _refuse_removal(conn, name)
        d, b = t.worker_dependencies, t.worker_blocks
        await conn.execute(sa.delete(d).where(d.c.worker == name))
        await conn.execute(sa.delete(b).where(b.c.worker == name))
        await conn.execute(sa.delete(t.worker_limits).where(t.worker_limits.c.worker == name))
        await conn.execute(sa.delete(t.worker_state).where(t.worker_state.c.worker == name))
        await conn.execute(sa.delete(t.workers).where(t.workers.c.name == name))
        await write_audits(conn, [audit_row("remove", name, {}, now, actor)])
        await wakeups.notify(db, conn)


async def _refuse_removal(conn: AsyncConnection, name: str) -> None:
    r, h, d, b = t.runs, t.node_handlers, t.worker_dependencies, t.worker_blocks
    live = (await conn.execute(sa.select(sa.func.count()).select_from(r).where(r.c.worker == name))).scalar_one()
    if live:
        raise Refused(f"worker {name!r} has {counted(live, 'live run')}; cancel or let end, then remove it")
    node = (
        await conn.execute(
            sa.select(t.nodes.c.hostname, t.nodes.c.pid)
            .join(h, h.c.node_id == t.nodes.c.id)
            .where(h.c.worker == name, t.nodes.c.state.in_(("active", "draining")))
        )
    ).first()
    if node is not None:
        raise Refused(f"a node ({node.hostname}, pid {node.pid}) has the code of {name!r}; stop it, then remove it")
    tied = (await conn.execute(sa.select(d.c.worker).where(d.c.depends_on == name))).scalars().all()
    tied = [*tied, *(await conn.execute(sa.select(b.c.worker).where(b.c.blocks == name))).scalars().all()]
    if tied:
        raise Refused(f"{', '.join(sorted(set(tied)))} depends on {name!r} or blocks it; remove or change that first")

"""Live runs, apart from claiming and finishing: cancellation, `stopping`, progress, and whether work is left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.policy.gates import decide_starts
from jobrunner.storage import facts as reading
from jobrunner.storage import tables as t
from jobrunner.storage.rows import names_json

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.model.run import ClaimKey, Run
    from jobrunner.storage.dialect import Dialect

_ACTIVE: sa.ColumnElement[bool] = sa.literal_column("runs.state <> 'pending'")


async def cancel_requested(conn: AsyncConnection, node_id: str) -> list[ClaimKey]:
    """Return the node's claims that an operator has asked to cancel."""
    r = t.runs
    statement = sa.select(r.c.id, r.c.fence).where(
        r.c.node_id == node_id, _ACTIVE, r.c.cancel_requested_at.is_not(None)
    )
    return [(run_id, fence) for run_id, fence in await conn.execute(statement)]


async def set_stopping(conn: AsyncConnection, run: Run) -> bool:
    """Show a claim as `stopping`; say whether it was still that claim."""
    r = t.runs
    statement = (
        sa.update(r).where(r.c.id == run.id, r.c.fence == run.fence, _ACTIVE).values(state="stopping").returning(r.c.id)
    )
    return (await conn.execute(statement)).first() is not None


async def set_progress(conn: AsyncConnection, run: Run, progress: dict[str, Any]) -> None:
    """Write how far a claim's work is; nothing happens if it is no longer that claim."""
    r = t.runs
    await conn.execute(sa.update(r).where(r.c.id == run.id, r.c.fence == run.fence, _ACTIVE).values(progress=progress))


async def has_work(conn: AsyncConnection, dialect: Dialect, now: datetime, here: reading.Here) -> bool:
    """Say whether a worker that `here` can run has a run active anywhere, one that could start, or a retry to come."""
    r, s, w = t.runs, t.worker_state, t.workers
    given = dialect.rows("names", name=sa.Text())
    mine: sa.Select[Any] | sa.CompoundSelect[Any] = sa.select(given.c.name)
    if here.allows_commands:
        mine = sa.union(mine, sa.select(w.c.name).where(w.c.isolation == sa.literal_column("'command'")))
    parameters = {"names": names_json(here.handlers or ())}
    active = sa.select(r.c.id).where(_ACTIVE, r.c.worker.in_(mine)).limit(1)
    if (await conn.execute(active, parameters)).first() is not None:
        return True
    retry = (
        sa.select(r.c.id)
        .join(s, s.c.worker == r.c.worker)
        .where(sa.literal_column("runs.state = 'pending' AND runs.attempt > 1"), r.c.worker.in_(mine))
        .where(sa.or_(s.c.is_enabled, r.c.is_forced), sa.or_(s.c.paused_until.is_(None), s.c.paused_until <= now))
        .limit(1)
    )
    if (await conn.execute(retry, parameters)).first() is not None:
        return True
    names, _ = await reading.due_names(conn, dialect, now, 1000)
    if not names:
        return False
    edges = await reading.read_edges(conn, dialect, names)
    facts = await reading.read_facts(conn, dialect, now, names, edges, here, 1)
    return bool(decide_starts(facts))

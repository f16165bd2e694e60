"""Live runs, apart from claiming and finishing: cancelling, `stopping`, what their code says, whether work is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.policy.gates import decide_starts
from jobrunner.storage.database.rowsets import built_once
from jobrunner.storage.runs import facts as reading
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.claims import claims, is_active
from jobrunner.storage.tables.rows import RUN_COLUMNS, names_json, run_of, to_json
from jobrunner.storage.tables.types import Json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.model.run import ClaimKey, Run
    from jobrunner.storage.database.dialect import Dialect

_ACTIVE: sa.ColumnElement[bool] = sa.literal_column("runs.state <> 'pending'")


async def cancel_requested(conn: AsyncConnection, node_id: str) -> list[tuple[ClaimKey, str | None]]:
    """Return the node's claims that an operator has asked to cancel, and why."""
    r = t.runs
    statement = sa.select(r.c.id, r.c.fence, r.c.cancel_reason).where(
        r.c.node_id == node_id, is_active(), r.c.cancel_requested_at.is_not(None)
    )
    return [((run_id, fence), reason) for run_id, fence, reason in await conn.execute(statement)]


async def read_claims(conn: AsyncConnection, node_id: str) -> list[Run]:
    """Return every run the table says `node_id` holds."""
    r = t.runs
    rows = await conn.execute(sa.select(*RUN_COLUMNS).where(r.c.node_id == node_id, is_active()))
    return [run_of(row) for row in rows]


async def set_stopping(conn: AsyncConnection, run: Run) -> bool:
    """Show a claim as `stopping`; say whether it was still that claim."""
    r = t.runs
    statement = (
        sa.update(r).where(r.c.id == run.id, r.c.fence == run.fence, _ACTIVE).values(state="stopping").returning(r.c.id)
    )
    return (await conn.execute(statement)).first() is not None


@dataclass(frozen=True, slots=True)
class News:
    """What a claim's code has said since the last time: how far it is, or its output (None: nothing new)."""

    claim: ClaimKey
    progress: dict[str, Any] | None = None
    output: str | None = None
    output_lines: int | None = None


@built_once
def _show_statement(dialect: Dialect) -> sa.Update:
    r = t.runs
    fields: dict[str, sa.types.TypeEngine[Any]] = {
        "id": sa.BigInteger(),
        "fence": sa.BigInteger(),
        "progress": Json,
        "output": sa.Text(),
        "output_lines": sa.Integer(),
    }
    given, again = dialect.rows("news", **fields), dialect.rows("news", **fields).alias("again")
    # A row that somebody else holds waits for the next time: it is being ended, by a statement that locks many.
    free = (
        sa.select(r.c.id)
        .join(again, again.c.id == r.c.id)
        .where(_ACTIVE)
        .with_for_update(key_share=True, of=r, skip_locked=True)
    )
    said = {name: sa.func.coalesce(given.c[name], r.c[name]) for name in ("progress", "output", "output_lines")}
    return (
        sa.update(r)
        .values(said)
        .where(r.c.id == given.c.id, r.c.fence == given.c.fence, _ACTIVE, r.c.id.in_(free))
        .returning(r.c.id, r.c.fence)
    )


async def show_news(conn: AsyncConnection, dialect: Dialect, news: Sequence[News]) -> set[ClaimKey]:
    """Write what claims say, in one statement; return those written: no longer a claim, or just being ended, is not."""
    rows = [
        {
            "id": each.claim[0],
            "fence": each.claim[1],
            "progress": each.progress,
            "output": each.output,
            "output_lines": each.output_lines,
        }
        for each in news
    ]
    written = await conn.execute(_show_statement(dialect), {"news": to_json(rows)})
    return {(run_id, fence) for run_id, fence in written}


async def read_output(conn: AsyncConnection, run_id: int) -> tuple[int, str | None] | None:
    """Return the fence of an active run and what its attempt has said so far."""
    r = t.runs
    row = (await conn.execute(sa.select(r.c.fence, r.c.output).where(r.c.id == run_id, _ACTIVE))).first()
    return None if row is None else (row.fence, row.output)


async def has_work(conn: AsyncConnection, dialect: Dialect, now: datetime, here: reading.Here) -> bool:
    """Say whether a worker that `here` can run has a run active anywhere, one that could start, or a retry to come."""
    r, s, w = t.runs, t.worker_state, t.workers
    given = dialect.rows("names", name=sa.Text())
    mine: sa.Select[Any] | sa.CompoundSelect[Any] = sa.select(given.c.name)
    if here.allows_commands:
        mine = sa.union(mine, sa.select(w.c.name).where(w.c.isolation == sa.literal_column("'command'")))
    parameters = {"names": names_json(here.handlers or ())}
    active = sa.select(claims.c.run_id).where(claims.c.worker.in_(mine)).limit(1)
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
    names = (await reading.read_due(conn, dialect, now, 1000)).names
    if not names:
        return False
    facts, _ = await reading.read_around(conn, dialect, now, names, here, 1)
    return bool(decide_starts(facts))

"""Cancelling a run: one transaction, with its row in `audit_log`, under the lock of the worker's state.

A step of a flow that waits takes those after it along, as any other end does (`flows.py`).
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import sqlalchemy as sa

from jobrunner.errors import RunNotFound
from jobrunner.model.run import EndsRun, Outcome, OutcomeKind, Run, RunState
from jobrunner.policy.transitions import decide_finish
from jobrunner.storage.database import wakeups
from jobrunner.storage.records.audit import audit_row, write_audits
from jobrunner.storage.records.history import attempt_row, storable, storable_outcome
from jobrunner.storage.runs.batches import probe
from jobrunner.storage.runs.finishes import members_of
from jobrunner.storage.runs.flows import follow_ends
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.rows import RUN_COLUMNS, run_of, state_values, write_state_statement
from jobrunner.storage.workers import definitions as workers

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.database.database import Database


async def cancel(db: Database, run_id: int, now: datetime, actor: str, reason: str | None = None) -> RunState:
    """Cancel a run: one that waits ends at once, one that runs is asked to stop. Returns the state it was in.

    Raises:
        RunNotFound: no such run is live.
    """
    over: list[tuple[Run, EndsRun]] = []
    async with db.write() as conn:
        run = await _lock_run(conn, db, run_id)
        reason = storable(reason)
        said = reason or storable(f"cancelled by {actor}")
        detail = {"run_id": run_id, "state": str(run.state), "reason": reason}
        if run.state is RunState.PENDING:
            over = await _end_waiting(conn, db, run, now, said)
        else:
            r = t.runs
            asked = sa.update(r).where(r.c.id == run_id).values(cancel_requested_at=now, cancel_reason=said)
            await conn.execute(asked)
        await write_audits(conn, [audit_row("cancel", run.worker, detail, now, actor)])
        await wakeups.notify(db, conn)
    if members := members_of(over):
        with suppress(Exception):  # the sweep of any node does it: the run is cancelled
            await probe(db, members, now)
    return run.state


async def _lock_run(conn: AsyncConnection, db: Database, run_id: int) -> Run:
    """Lock the run's worker, then read the run: in that order, as everyone does."""
    r = t.runs
    name = (await conn.execute(sa.select(r.c.worker).where(r.c.id == run_id))).scalar()
    if name is None:
        raise RunNotFound(run_id)
    await workers.read_one(conn, db.dialect, name, lock=True)
    row = (await conn.execute(sa.select(*RUN_COLUMNS).where(r.c.id == run_id))).first()
    if row is None:
        raise RunNotFound(run_id)
    return run_of(row)


async def _end_waiting(
    conn: AsyncConnection, db: Database, run: Run, now: datetime, reason: str | None
) -> list[tuple[Run, EndsRun]]:
    """End a run that waits, and the steps of its flow that then never can start; return them all."""
    stored = await workers.read_one(conn, db.dialect, run.worker)
    outcome = Outcome(OutcomeKind.CANCELLED, now, reason=reason)
    decided = decide_finish(run, storable_outcome(outcome), stored.config, stored.config, stored.state, 0.0)
    r = t.runs
    gone = await conn.execute(
        sa.delete(r).where(r.c.id == run.id, sa.literal_column("runs.state = 'pending'")).returning(r.c.id)
    )
    if gone.first() is None:
        raise RunNotFound(run.id)
    await conn.execute(sa.insert(t.run_history), [attempt_row(run, decided)])
    await conn.execute(write_state_statement(), [state_values(decided.state)])
    over = [(run, EndsRun.CANCELLED)]
    moved = await follow_ends(conn, db.dialect, over, now)
    return over + [(step, EndsRun.CANCELLED) for step in moved.cancelled]

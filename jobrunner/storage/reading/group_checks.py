"""What `db verify` checks of batches and flows: promise 1, nothing accepted waits for what does not come."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import sqlalchemy as sa

from jobrunner.model.run import HELD_UNTIL
from jobrunner.storage.reading.findings import Scope, Violation, stream
from jobrunner.storage.tables import define as t

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncConnection

_SURELY_SWEPT = timedelta(minutes=1)


async def check_batches(conn: AsyncConnection, scope: Scope) -> AsyncIterator[Violation]:
    """A batch that has finished has no live member and has called; one that could finish does so within a minute."""
    b, r, h = t.batches, t.runs, t.run_history
    live = sa.select(sa.func.min(r.c.id)).where(r.c.batch_id == b.c.id).scalar_subquery()
    finished = sa.select(b.c.id, live.label("run_id")).where(b.c.finished_at.is_not(None), live.is_not(None))
    async for row in stream(conn, finished):
        problem = f"batch {row.id} has finished, but run {row.run_id} of it is live"
        yield Violation(1, problem, (f"batches.id={row.id}", f"runs.id={row.run_id}"))
    uncalled = sa.or_(
        sa.and_(b.c.on_finish.is_not(None), b.c.finish_run_id.is_(None)),
        sa.and_(b.c.failed_at.is_(None), b.c.on_success.is_not(None), b.c.success_run_id.is_(None)),
        sa.and_(b.c.failed_at.is_not(None), b.c.on_failure.is_not(None), b.c.failure_run_id.is_(None)),
    )
    async for row in stream(conn, sa.select(b.c.id).where(b.c.finished_at.is_not(None), uncalled)):
        yield Violation(1, f"batch {row.id} has finished, and not called what it should", (f"batches.id={row.id}",))
    since = scope.now - _SURELY_SWEPT
    last = sa.select(h.c.finished_at).where(h.c.batch_id == b.c.id).order_by(h.c.id.desc()).limit(1).scalar_subquery()
    called = (b.c.on_success, b.c.on_failure, b.c.on_finish)
    all_known = sa.and_(*(sa.or_(name.is_(None), sa.exists().where(t.workers.c.name == name)) for name in called))
    could_finish = sa.and_(b.c.finished_at.is_(None), b.c.sealed_at < since, live.is_(None), all_known)
    late = sa.select(b.c.id).where(could_finish, sa.or_(last.is_(None), last < since))
    async for row in stream(conn, late):
        problem = f"batch {row.id} is sealed and has no live member, and has not finished"
        yield Violation(1, problem, (f"batches.id={row.id}",))


async def check_held(conn: AsyncConnection, _scope: Scope) -> AsyncIterator[Violation]:
    """A step that is held waits for a run that is live."""
    r, e = t.runs, t.run_after
    before = r.alias("before")
    waits = sa.exists().where(e.c.run_id == r.c.id, before.c.id == e.c.after_run_id)
    held = sa.select(r.c.id, r.c.worker).where(r.c.flow_id.is_not(None), r.c.due_at >= HELD_UNTIL, sa.not_(waits))
    async for row in stream(conn, held):
        problem = f"run {row.id} of {row.worker} is held, but no run that it waits for is live: it never starts"
        yield Violation(1, problem, (f"runs.id={row.id}", f"run_after.run_id={row.id}"))


CHECKS = (check_batches, check_held)

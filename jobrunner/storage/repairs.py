"""Next times that cannot be right, found when a node starts and computed again."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import sqlalchemy as sa

from jobrunner.policy import schedule as schedules
from jobrunner.policy.transitions import next_time
from jobrunner.storage import tables as t
from jobrunner.storage.rows import state_values, write_state_statement
from jobrunner.storage.workers import has_loop_run, read_stored

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.database import Database
    from jobrunner.storage.dialect import Dialect
    from jobrunner.storage.workers import Stored


async def repair_schedules(db: Database, now: datetime) -> int:
    """Compute again the next times that cannot be right; return how many were.

    Too far ahead (the clock went back), or missing although the worker is enabled and no run of its schedule is live.
    """
    async with db.write() as conn:
        names = await _doubtful(conn, db.dialect, now)
        stored = await read_stored(conn, db.dialect, names, lock=True) if names else {}
        repaired = []
        for name, worker in stored.items():
            state = worker.state
            if not state.is_enabled:  # disabled since the names were read
                continue
            is_missing = state.next_run_at is None and not await has_loop_run(conn, name)
            if is_missing or _is_too_far(worker, now):
                repaired.append(replace(state, next_run_at=next_time(worker.config, state, now)))
        repaired = [state for state in repaired if state.next_run_at is not None]
        if repaired:
            await conn.execute(write_state_statement(), [state_values(state) for state in repaired])
        return len(repaired)


async def _doubtful(conn: AsyncConnection, dialect: Dialect, now: datetime) -> list[str]:
    w, s = t.workers, t.worker_state
    missing = (
        sa.select(s.c.worker)
        .join(w, w.c.name == s.c.worker)
        .where(s.c.is_enabled, s.c.next_run_at.is_(None), w.c.execution_mode != "triggered")
    )
    # Whether it is too far is for `_is_too_far` to say; an interval's next time is hardly ever more than one ahead.
    latest = sa.literal(now + schedules.CLOCK_TOLERANCE, s.c.next_run_at.type)
    ahead = (
        sa.select(s.c.worker)
        .join(w, w.c.name == s.c.worker)
        .where(s.c.is_enabled, s.c.next_run_at.is_not(None), s.c.next_run_at > latest)
        .where(
            sa.or_(
                w.c.cron.is_not(None),
                dialect.epoch(s.c.next_run_at) - dialect.epoch(latest) > w.c.interval_seconds - 1,
            )
        )
    )
    names = (await conn.execute(missing)).scalars().all()
    return [*names, *(await conn.execute(ahead)).scalars().all()]


def _is_too_far(worker: Stored, now: datetime) -> bool:
    state = worker.state
    if state.next_run_at is None:
        return False
    start = max(now, state.paused_until or now)
    schedule = schedules.usable_schedule(worker.config)
    if schedule is None:
        pause = timedelta(seconds=max(worker.config.interval_seconds or 0.0, worker.config.retry_max_delay_seconds))
        return state.next_run_at > start + pause + schedules.CLOCK_TOLERANCE
    return schedules.is_too_far_ahead(schedule, state.next_run_at, start)

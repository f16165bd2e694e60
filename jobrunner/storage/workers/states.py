"""The `worker_state` row that goes with each row of `workers`: made together with it, and mended where one is alone.

The two are made and removed in one transaction, and the database refuses to delete a worker that has a state. What
somebody did all the same (deleted a state; or a worker, past that refusal) must keep no node from its start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from jobrunner.policy import clocks
from jobrunner.policy.firing import first_time
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.rows import CONFIG_COLUMNS, config_or_problem, names_json

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.model.worker import WorkerConfig
    from jobrunner.storage.database.dialect import Dialect


async def make(conn: AsyncConnection, dialect: Dialect, configs: Sequence[WorkerConfig], now: datetime) -> None:
    """Write the states of workers that have none."""
    states = [
        {
            "worker": config.name,
            "priority": int(config.priority),
            "next_run_at": first_time(config, now),
            "reach_seconds": clocks.reach_seconds(config),
        }
        for config in configs
    ]
    await conn.execute(*dialect.new_rows(t.worker_state, states))
    await _go_on_from_history(conn, dialect, [config.name for config in configs])


async def _go_on_from_history(conn: AsyncConnection, dialect: Dialect, names: Collection[str]) -> None:
    """Let workers that were removed and are new again draw greater fences, and count their streak from here on."""
    s, h = t.worker_state, t.run_history
    given = dialect.rows("names", name=sa.Text())
    mine = h.c.worker == s.c.worker
    statement = (
        sa.update(s)
        .where(s.c.worker.in_(sa.select(given.c.name)), sa.exists().where(mine))
        .values(
            streak_since_id=sa.select(sa.func.max(h.c.id)).where(mine).scalar_subquery(),
            last_fence=sa.select(sa.func.coalesce(sa.func.max(h.c.fence), 0)).where(mine).scalar_subquery(),
        )
    )
    await conn.execute(statement, {"names": names_json(names)})


def without_worker() -> sa.Select[tuple[str]]:
    """Build the search for states whose worker is gone."""
    w, s = t.workers, t.worker_state.alias("s")
    return sa.select(s.c.worker).where(sa.not_(sa.exists().where(w.c.name == s.c.worker)))


def workers_without() -> sa.Select[tuple[str]]:
    """Build the search for workers whose state is gone."""
    w, s = t.workers.alias("w"), t.worker_state
    return sa.select(w.c.name).where(sa.not_(sa.exists().where(s.c.worker == w.c.name)))


async def mend(conn: AsyncConnection, dialect: Dialect, now: datetime) -> None:
    """Delete states whose worker is gone, and give workers without a state a new one."""
    s = t.worker_state
    await conn.execute(sa.delete(s).where(s.c.worker.in_(without_worker())))
    alone = sa.select(*CONFIG_COLUMNS).where(t.workers.c.name.in_(workers_without()))
    configs = [config_or_problem(row)[0] for row in (await conn.execute(alone)).all()]
    if configs:
        await make(conn, dialect, configs, now)

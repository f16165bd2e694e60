"""Reading what fires next of every worker, a few times of each, for a screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from jobrunner.policy.upcoming import Few, few_of_each
from jobrunner.storage.reading.status import planned_run
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.rows import CONFIG_COLUMNS, STATE_COLUMNS, config_or_problem, state_of

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

_MOST_PLANNED = 1000  # of the runs that wait for their time, the first so many are looked at
_PENDING: sa.ColumnElement[bool] = sa.literal_column("runs.state = 'pending'")


async def read_few(conn: AsyncConnection, now: datetime, until: datetime, limit: int) -> Few:
    """Return the next times of every worker up to `until`, as `few_of_each` chooses them."""
    w, s, r = t.workers, t.worker_state, t.runs
    scheduled = (
        sa.select(*CONFIG_COLUMNS, *STATE_COLUMNS)
        .select_from(w.join(s, s.c.worker == w.c.name))
        .where(w.c.execution_mode == "scheduled")
    )
    planned = (
        sa.select(r.c.id, r.c.worker, r.c.due_at, r.c.trigger, r.c.attempt)
        .where(_PENDING, r.c.due_at > now, r.c.due_at <= until)
        .order_by(r.c.due_at, r.c.id)
        .limit(_MOST_PLANNED)
    )
    split = len(CONFIG_COLUMNS)
    rows = (await conn.execute(scheduled)).all()
    workers = [(config_or_problem(row[:split])[0], state_of(row[split:])) for row in rows]
    waiting = [planned_run(dict(row)) for row in (await conn.execute(planned)).mappings()]
    return few_of_each(workers, waiting, now, until, limit)

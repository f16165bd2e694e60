"""Reading what fires next of every worker, a few times of each, for a screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from jobrunner.policy.upcoming import Few, few_of_each
from jobrunner.storage.reading.status import NOTHING_MOVED, planned_run, read_schedules
from jobrunner.storage.tables import define as t

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

_MOST_PLANNED = 1000  # of the runs that wait for their time, the first so many are looked at
_PENDING: sa.ColumnElement[bool] = sa.literal_column("runs.state = 'pending'")


async def read_few(
    conn: AsyncConnection, now: datetime, until: datetime, limit: int, begins: Mapping[str, datetime] = NOTHING_MOVED
) -> Few:
    """Return the next times of every worker up to `until`, as `few_of_each` chooses; `begins` as `read_schedules`."""
    r = t.runs
    planned = (
        sa.select(r.c.id, r.c.worker, r.c.due_at, r.c.trigger, r.c.attempt)
        .where(_PENDING, r.c.due_at > now, r.c.due_at <= until)
        .order_by(r.c.due_at, r.c.id)
        .limit(_MOST_PLANNED)
    )
    waiting = [planned_run(dict(row)) for row in (await conn.execute(planned)).mappings()]
    return few_of_each(await read_schedules(conn, most=limit + 1, begins=begins), waiting, now, until, limit)

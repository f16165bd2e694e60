"""Since when some live node can run a worker, and until when some other could: read where times were passed over.

A node that is gone has left no list of its handlers: it counts as one that had the code, so that nobody is told of a
want of nodes where there may have been one. Whether it ran commands is in its row. A node that has not beaten for
`SILENT` counts as gone since its last beat, if nobody has found it lost yet.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.model.worker import Isolation
from jobrunner.policy.missed import Gap
from jobrunner.storage.database.rowsets import built_once
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.rows import to_json
from jobrunner.storage.tables.types import UtcDateTime

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.model.worker import WorkerConfig
    from jobrunner.storage.database.dialect import Dialect

SILENT = timedelta(minutes=10)


@built_once
def _statement(dialect: Dialect) -> sa.Select[Any]:
    """For each of :names, when the first live node that can run it started, and the last sign of those before it."""
    n, h = t.nodes.alias("n"), t.node_handlers
    given = dialect.rows("names", name=sa.Text(), is_command=sa.Boolean())
    heard = sa.bindparam("heard", type_=UtcDateTime())
    me = sa.bindparam("me", type_=sa.Text())
    is_live = sa.and_(
        sa.literal_column("n.state IN ('active', 'draining')"), sa.or_(n.c.heartbeat_at >= heard, n.c.id == me)
    )
    has_code = sa.or_(
        sa.and_(given.c.is_command, n.c.allows_commands),
        sa.exists().where(h.c.worker == given.c.name, h.c.node_id == n.c.id),
    )
    since = (
        sa.select(given.c.name, given.c.is_command, sa.func.min(n.c.started_at).label("since"))
        .select_from(given.outerjoin(n, sa.and_(is_live, has_code)))
        .group_by(given.c.name, given.c.is_command)
        .subquery("since")
    )
    until = sa.select(sa.func.max(n.c.heartbeat_at)).where(
        sa.not_(is_live),
        sa.or_(since.c.since.is_(None), n.c.started_at < since.c.since),
        sa.or_(sa.not_(since.c.is_command), n.c.allows_commands),
    )
    return sa.select(since.c.name, since.c.since, until.scalar_subquery())


async def read_gaps(
    conn: AsyncConnection, dialect: Dialect, configs: Collection[WorkerConfig], now: datetime, me: str | None = None
) -> dict[str, Gap]:
    """Return, by worker, when no live node could run it last; `me` is the node that asks, and lives."""
    rows = to_json({"name": each.name, "is_command": each.isolation is Isolation.COMMAND} for each in configs)
    found = await conn.execute(_statement(dialect), {"names": rows, "heard": now - SILENT, "me": me or ""})
    return {name: Gap(until, since) for name, since, until in found if until is None or since is None or until < since}

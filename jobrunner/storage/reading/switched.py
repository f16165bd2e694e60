"""When workers were disabled or paused, and when their circuits opened: the audit log knows, their rows do not all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from jobrunner.storage.tables import define as t

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

MOST_SEARCHED = 5_000
"""So many of the newest decisions are looked through."""
_SWITCHES = ("disable", "pause", "trip")


async def read_switched(conn: AsyncConnection, names: Collection[str]) -> dict[str, datetime]:
    """Return when each of the workers was switched off last, as far as that was among the newest decisions."""
    if not names:
        return {}
    a = t.audit_log
    newest = sa.select(a.c.worker, a.c.action, a.c.at).order_by(a.c.id.desc()).limit(MOST_SEARCHED).subquery()
    last = (
        sa.select(newest.c.worker, sa.func.max(newest.c.at, type_=newest.c.at.type).label("at"))
        .where(newest.c.action.in_(_SWITCHES), newest.c.worker.in_(list(names)))
        .group_by(newest.c.worker)
    )
    return {row.worker: row.at for row in await conn.execute(last)}

"""The audit log: who decided what, written in the transaction of the decision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.storage.tables import define as t

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

SYSTEM = "jobrunner"


def audit_row(
    action: str, worker: str | None, detail: dict[str, Any], at: datetime, actor: str = SYSTEM
) -> dict[str, Any]:
    """Build one `audit_log` row."""
    return {"at": at, "actor": actor, "action": action, "worker": worker, "detail": detail}


async def write_audits(conn: AsyncConnection, rows: Sequence[dict[str, Any]]) -> None:
    """Insert audit rows into the caller's transaction."""
    if rows:
        await conn.execute(sa.insert(t.audit_log), list(rows))


async def read_audits(
    conn: AsyncConnection,
    worker: str | None,
    limit: int,
    before_id: int | None = None,
    *,
    since: datetime | None = None,
    actions: Collection[str] = (),
    actor: str | None = None,
) -> list[dict[str, Any]]:
    """Return the newest decisions first (of those before `before_id`), at most `limit`, narrowed by what is given.

    `actor`: as it stands in the log, or without the host.
    """
    a = t.audit_log
    statement = sa.select(a).order_by(a.c.id.desc()).limit(limit)
    if worker is not None:
        statement = statement.where(a.c.worker == worker)
    if since is not None:
        statement = statement.where(a.c.at >= since)
    if actions:
        statement = statement.where(a.c.action.in_(actions))
    if actor is not None:
        statement = statement.where(sa.or_(a.c.actor == actor, a.c.actor.startswith(f"{actor}@", autoescape=True)))
    if before_id is not None:
        statement = statement.where(a.c.id < before_id)
    return [dict(row) for row in (await conn.execute(statement)).mappings()]

"""The audit log: who decided what, written in the transaction of the decision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.storage.tables import define as t

if TYPE_CHECKING:
    from collections.abc import Sequence
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

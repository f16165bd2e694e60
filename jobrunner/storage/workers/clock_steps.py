"""When a node's wall clock was set: noted in the audit log, and read by whoever judges times of history.

A clock that is set back goes through some time twice, one that is set forward leaves some out. What history says of
that time is in no order that could be relied on.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import sqlalchemy as sa

from jobrunner.storage.records.audit import audit_row, write_audits
from jobrunner.storage.tables import define as t

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.database.database import Database

_SETTLED = timedelta(minutes=1)
"""So long after, no attempt that began under the other time is taken for the last one any more."""


@dataclass(frozen=True, slots=True)
class ClockStep:
    """A wall clock was set: at the time `was` it said `said`."""

    was: datetime
    said: datetime


async def note_steps(db: Database, node_id: str, steps: Sequence[ClockStep]) -> None:
    """Write that a node's clock was set, each step a row of the audit log."""
    rows = [
        audit_row(
            "clock",
            None,
            {
                "node_id": node_id,
                "was": step.was.isoformat(),
                "said": step.said.isoformat(),
                "seconds": round((step.said - step.was).total_seconds(), 3),
            },
            step.said,
        )
        for step in steps
    ]
    async with db.write() as conn:
        await write_audits(conn, rows)


async def doubtful_times(conn: AsyncConnection) -> list[tuple[datetime, datetime]]:
    """Return the times, from and to, at which some node's clock cannot be relied on."""
    a = t.audit_log
    noted = sa.select(a.c.detail).where(sa.literal_column("audit_log.action = 'clock'"))
    times = []
    for detail in (await conn.execute(noted)).scalars():
        with suppress(KeyError, TypeError, ValueError, OverflowError):  # written by hand
            ends = [datetime.fromisoformat(detail[name]).astimezone(UTC) for name in ("was", "said")]
            times.append((min(ends), max(ends) + _SETTLED))
    return times

"""stand-in"""

from __future__ import annotations
from dataclasses import dataclass, field
from datetime import timedelta
import sqlalchemy as sa
from jobrunner.storage.tables import define as t


@dataclass(frozen=True, slots=True)
class Minute:
    at: object
    counts: dict
    is_known: bool = True
    is_capped: bool = False


class Minutes:
    async def look(self, conn, now):
        h = t.run_history
        first = now.replace(second=0, microsecond=0) - timedelta(minutes=59)
        found = {}
        for r in await conn.execute(sa.select(h.c.finished_at, h.c.outcome).where(h.c.finished_at >= first)):
            m = r.finished_at.replace(second=0, microsecond=0)
            d = found.setdefault(m, {})
            d[r.outcome] = d.get(r.outcome, 0) + 1
        return [Minute(first + timedelta(minutes=i), found.get(first + timedelta(minutes=i), {})) for i in range(60)]

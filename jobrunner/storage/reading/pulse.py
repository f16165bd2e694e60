"""stand-in"""

from __future__ import annotations
from dataclasses import dataclass
import sqlalchemy as sa
from jobrunner.storage.tables import define as t


@dataclass(frozen=True, slots=True)
class Pulse:
    parts: tuple


async def read_pulse(conn):
    cols = [sa.select(sa.func.max(x.c.id)).scalar_subquery() for x in (t.run_history, t.runs, t.audit_log)]
    return Pulse(tuple((await conn.execute(sa.select(*cols))).one()))

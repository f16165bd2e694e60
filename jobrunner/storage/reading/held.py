"""Which runs the nodes hold: the active ones, by node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.claims import is_active

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

MOST_HELD = 2000
"""So many active runs are read at most."""


@dataclass(frozen=True, slots=True)
class HeldRun:
    """A run that a node holds."""

    id: int
    worker: str
    started_at: datetime


@dataclass(frozen=True, slots=True)
class Held:
    """The active runs of each node, by start; `is_cut`: there are more than were read."""

    runs: dict[str, list[HeldRun]]
    is_cut: bool


async def read_held(conn: AsyncConnection, nodes: Collection[str], most: int = MOST_HELD) -> Held:
    """Return the active runs of the nodes of these ids, at most `most` in all."""
    r = t.runs
    columns = (r.c.node_id, r.c.id, r.c.worker, r.c.started_at)
    statement = sa.select(*columns).where(is_active(), r.c.node_id.in_(nodes)).limit(most + 1)
    rows = (await conn.execute(statement)).all()
    found: dict[str, list[HeldRun]] = {}
    for row in sorted(rows[:most], key=lambda row: (row.started_at, row.id)):
        found.setdefault(row.node_id, []).append(HeldRun(row.id, row.worker, row.started_at))
    return Held(found, len(rows) > most)

"""How the last attempts of some workers ended, and how long they took: a strip beside each worker of a list.

One statement, of `_NEWEST` rows of history for each; so it is for one page of a list, and not for all workers.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.model.run import OutcomeKind
from jobrunner.policy.ranks import nearest_rank
from jobrunner.storage.database.rowsets import built_once
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.rows import names_json

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.database.dialect import Dialect

MOST_SHOWN = 20
_NEWEST = 50


@dataclass(frozen=True, slots=True)
class End:
    """How an attempt ended, or that times were missed."""

    outcome: str
    finished_at: datetime
    duration_ms: int | None


@dataclass(frozen=True, slots=True)
class Strip:
    """The last attempts of a worker, the oldest first, at most `MOST_SHOWN`.

    `p95_ms` is of those of its last 50 that succeeded, which are `counted`; None of none.
    """

    ends: tuple[End, ...]
    p95_ms: int | None
    counted: int


@built_once
def _newest(dialect: Dialect) -> sa.Select[Any]:
    h = t.run_history
    return dialect.newest_ends("names", [h.c.worker, h.c.id, h.c.outcome, h.c.finished_at, h.c.duration_ms], _NEWEST)


async def read_strips(conn: AsyncConnection, dialect: Dialect, names: Collection[str]) -> dict[str, Strip]:
    """Return the strip of each of these workers that has a history."""
    if not names:
        return {}
    rows: defaultdict[str, list[Any]] = defaultdict(list)
    for row in await conn.execute(_newest(dialect), {"names": names_json(names)}):
        rows[row.worker].append(row)
    return {name: _strip(sorted(found, key=lambda row: row.id)) for name, found in rows.items()}


def _strip(rows: list[Any]) -> Strip:
    took = [row.duration_ms for row in rows if row.outcome == OutcomeKind.SUCCEEDED and row.duration_ms is not None]
    ends = tuple(End(row.outcome, row.finished_at, row.duration_ms) for row in rows[-MOST_SHOWN:])
    return Strip(ends, nearest_rank(took, 0.95), len(took))

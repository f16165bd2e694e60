"""What really ran: the attempts of workers that ended a short while ago, to be drawn beside what is to come."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.storage.database.rowsets import same
from jobrunner.storage.tables import define as t

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    from sqlalchemy.ext.asyncio import AsyncConnection

MOST_WORKERS, MOST_SPANS = 40, 200


@dataclass(frozen=True, slots=True)
class Span:
    """An attempt, from its start to its end."""

    started_at: datetime
    finished_at: datetime
    outcome: str
    run_id: int


@functools.cache
def _newest(workers: int) -> sa.CompoundSelect[Any]:
    """Select the newest rows of so many workers, each along the index, that ended since a time.

    Built once for each number: to build it takes longer than to carry it out.
    """
    h = t.run_history
    parts = []
    for place in range(workers):
        of_whom: sa.ColumnElement[int] = sa.literal_column(str(place))
        rows = sa.select(of_whom.label("place"), h.c.started_at, h.c.finished_at, h.c.outcome, h.c.run_id).where(
            same(h.c.worker, sa.bindparam(f"w{place}"))
        )
        newest = rows.order_by(h.c.worker.desc(), h.c.id.desc()).limit(sa.literal_column(str(MOST_SPANS))).subquery()
        since = sa.bindparam("since", type_=t.run_history.c.finished_at.type)
        parts.append(sa.select(newest).where(newest.c.finished_at >= since, newest.c.started_at.is_not(None)))
    return sa.union_all(*parts)


async def read_lanes(
    conn: AsyncConnection, now: datetime, past: timedelta, names: Sequence[str]
) -> dict[str, list[Span]]:
    """Return for each of the first `MOST_WORKERS` names the attempts that ended within the last `past`, by start.

    Of each worker at most the newest `MOST_SPANS`; what never started is none of them.
    """
    asked = list(dict.fromkeys(names))[:MOST_WORKERS]
    lanes: dict[str, list[Span]] = {name: [] for name in asked}
    if not asked:
        return lanes
    given = {f"w{place}": name for place, name in enumerate(asked)}
    for place, started, finished, outcome, run_id in await conn.execute(
        _newest(len(asked)), {"since": now - past, **given}
    ):
        lanes[asked[place]].append(Span(started, finished, outcome, run_id))
    for spans in lanes.values():
        spans.sort(key=lambda span: (span.started_at, span.run_id))
    return lanes

"""How long a worker's attempts took, day by day (UTC), and how they ended.

Computed here, of the newest `MOST_ROWS` rows of its history: where it has more in those days, the answer says so, and
the first of the days is not whole.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, timedelta
from typing import TYPE_CHECKING

import sqlalchemy as sa

from jobrunner.model.run import OutcomeKind
from jobrunner.policy.ranks import nearest_rank
from jobrunner.storage.database.rowsets import same
from jobrunner.storage.tables import define as t

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date, datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

MOST_ROWS = 5_000
_BAD = frozenset({OutcomeKind.FAILED, OutcomeKind.TIMED_OUT, OutcomeKind.LOST})


@dataclass(frozen=True, slots=True)
class Day:
    """The attempts that ended on a day: how many, and the percentiles of those that succeeded, in milliseconds."""

    date: date
    succeeded: int = 0
    failed: int = 0
    others: int = 0
    p50_ms: int | None = None
    p95_ms: int | None = None

    @property
    def ended(self) -> int:
        """How many ended on it."""
        return self.succeeded + self.failed + self.others


@dataclass(frozen=True, slots=True)
class Days:
    """The days, the oldest first, today the last; `looked_at` rows were read.

    `whole_since`: the attempts of earlier days were not all read; None: those of all days were.
    """

    days: tuple[Day, ...]
    looked_at: int
    whole_since: datetime | None = None

    @property
    def is_empty(self) -> bool:
        """Has nothing ended in all of the days?"""
        return not any(day.ended for day in self.days)


async def read_days(conn: AsyncConnection, worker: str, now: datetime, days: int = 14) -> Days:
    """Return the last `days` days of a worker; times that were missed are no attempts."""
    h = t.run_history
    newest = (
        sa.select(h.c.outcome, h.c.finished_at, h.c.duration_ms)
        .where(same(h.c.worker, sa.literal(worker)))
        .order_by(h.c.worker.desc(), h.c.id.desc())
        .limit(MOST_ROWS)
    )
    rows = [tuple(row) for row in await conn.execute(newest)]
    today = now.astimezone(UTC).date()
    wanted = [today - timedelta(days=back) for back in reversed(range(days))]
    counts: defaultdict[date, list[int]] = defaultdict(lambda: [0, 0, 0])
    took: defaultdict[date, list[int]] = defaultdict(list)
    for outcome, finished_at, duration_ms in rows:
        if outcome == OutcomeKind.MISSED:
            continue
        day = finished_at.date()
        if outcome == OutcomeKind.SUCCEEDED:
            counts[day][0] += 1
            if duration_ms is not None:
                took[day].append(duration_ms)
        else:
            counts[day][1 if outcome in _BAD else 2] += 1
    oldest = min((row[1] for row in rows), default=now)
    is_cut = len(rows) == MOST_ROWS and oldest.date() >= wanted[0]
    return Days(
        tuple(_day(day, counts[day], took[day]) for day in wanted),
        len(rows),
        oldest if is_cut else None,
    )


def _day(day: date, counts: Sequence[int], took: Sequence[int]) -> Day:
    succeeded, failed, others = counts
    return Day(day, succeeded, failed, others, nearest_rank(took, 0.5), nearest_rank(took, 0.95))

"""How long a worker's attempts took, and how they ended, day by day: of its newest `MOST_ROWS` rows of history."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, timedelta
from typing import TYPE_CHECKING

import sqlalchemy as sa

from jobrunner.model.run import USES_UP_AN_ATTEMPT, OutcomeKind
from jobrunner.storage.database.rowsets import same
from jobrunner.storage.tables import define as t

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date, datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

MOST_ROWS = 5_000


@dataclass(frozen=True, slots=True)
class Day:
    """A day in UTC: percentiles of how long attempts took that succeeded, in milliseconds, None where none did.

    `n` attempts ended, `failed` of them failed, timed out or were lost. `counts` is by outcome; a row about times that
    were missed counts as one `missed` there, and not in `n`.
    """

    date: date
    p50_ms: int | None
    p95_ms: int | None
    n: int
    failed: int
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Days:
    """The oldest day first, days without any row among them.

    `searched` is how many rows were looked at, if there may be more in these days: the oldest that has any is not
    whole then, and those before it are not known.
    """

    days: list[Day]
    searched: int | None


async def read_days(conn: AsyncConnection, worker: str, now: datetime, days: int = 14) -> Days:
    """Return the last `days` days, today the last."""
    today = now.astimezone(UTC).date()
    h = t.run_history
    newest = sa.select(h.c.finished_at, h.c.outcome, h.c.duration_ms).where(same(h.c.worker, sa.literal(worker)))
    newest = newest.order_by(h.c.worker.desc(), h.c.id.desc()).limit(MOST_ROWS + 1)
    counts: defaultdict[date, Counter[str]] = defaultdict(Counter)
    took: defaultdict[date, list[int]] = defaultdict(list)
    rows = (await conn.execute(newest)).all()
    for finished_at, outcome, duration_ms in rows[:MOST_ROWS]:
        day = finished_at.astimezone(UTC).date()
        counts[day][outcome] += 1
        if outcome == OutcomeKind.SUCCEEDED and duration_ms is not None:
            took[day].append(duration_ms)
    wanted = [today - timedelta(days=ago) for ago in reversed(range(days))]
    is_cut = len(rows) > MOST_ROWS and rows[-1].finished_at.astimezone(UTC).date() >= wanted[0]
    return Days([_day(each, counts[each], sorted(took[each])) for each in wanted], MOST_ROWS if is_cut else None)


def _day(day: date, counts: Counter[str], took: Sequence[int]) -> Day:
    return Day(
        date=day,
        p50_ms=_percentile(took, 50),
        p95_ms=_percentile(took, 95),
        n=counts.total() - counts[OutcomeKind.MISSED],
        failed=sum(counts[kind] for kind in USES_UP_AN_ATTEMPT),
        counts=dict(counts),
    )


def _percentile(took: Sequence[int], percent: int) -> int | None:
    """Return the least of these, in their order, that so many percent are not above."""
    return took[math.ceil(len(took) * percent / 100) - 1] if took else None

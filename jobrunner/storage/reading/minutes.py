"""How many attempts ended in each minute of the last hour, by outcome, however many that are.

A minute that is over does not change any more, so it is counted once and kept. The last ones are counted anew at each
look, since an end may be written late. A first look counts older minutes too, the newest first, until it has seen
`_MOST_ROWS` rows; the looks that follow go on from there.

Of a minute with more than `_MOST_OF_ONE` rows only those are counted, the outcomes' shares are taken from them, and the
whole from how far the ids went in that minute: they are given in order.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import sqlalchemy as sa

from jobrunner.storage.tables import define as t

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

MINUTES = 60
_OPEN_MINUTES = 2
"""So many of the newest may still change."""
_MOST_ROWS, _MOST_OF_ONE = 30_000, 10_000
_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Minute:
    """The attempts that ended in the minute from `at` on, by outcome; times that were missed are told as `missed`.

    `is_known`: it has been counted. `is_estimated`: there were too many to count each.
    """

    at: datetime
    counts: dict[str, int] = field(default_factory=dict)
    is_known: bool = True
    is_estimated: bool = False


class Minutes:
    """Keeps what was counted, in the memory of one process."""

    def __init__(self) -> None:
        self._kept: dict[datetime, Minute] = {}

    async def look(self, conn: AsyncConnection, now: datetime) -> list[Minute]:
        """Return the last 60 minutes, the oldest first; the last of them is not over."""
        this = now.replace(second=0, microsecond=0)
        wanted = [this - _MINUTE * place for place in range(MINUTES)]  # the newest first
        closed = set(wanted[_OPEN_MINUTES:])
        kept = {at: minute for at, minute in self._kept.items() if at in closed}
        missing = [at for at in wanted if at not in kept]
        found: dict[datetime, Minute] = {}
        seen = 0
        while missing and seen < _MOST_ROWS:
            # Few at first: at a high rate they have as many rows as a look may count.
            piece, missing = missing[: max(len(found), _OPEN_MINUTES)], missing[max(len(found), _OPEN_MINUTES) :]
            for minute, rows in await _count(conn, piece):
                found[minute.at] = minute
                seen += rows if minute.at in closed else 0
        self._kept = kept | {at: minute for at, minute in found.items() if at in closed}
        known = kept | found
        return [known.get(at) or Minute(at, is_known=False) for at in reversed(wanted)]


async def _count(conn: AsyncConnection, minutes: Sequence[datetime]) -> list[tuple[Minute, int]]:
    """Count the ends in minutes; return each with how many rows were looked at."""
    counts: defaultdict[int, dict[str, int]] = defaultdict(dict)
    for row in await conn.execute(sa.union_all(*(_ends(place, at) for place, at in enumerate(minutes)))):
        counts[row.place][row.outcome] = row.n
    counted = []
    for place, at in enumerate(minutes):
        rows = sum(counts[place].values())
        if rows < _MOST_OF_ONE:
            counted.append((Minute(at, counts[place]), rows))
            continue
        whole = max(await _ids_in(conn, at), rows)
        shares = {outcome: round(number * whole / rows) for outcome, number in counts[place].items()}
        counted.append((Minute(at, shares, is_estimated=True), rows))
    return counted


def _ends(place: int, at: datetime) -> sa.Select[tuple[int, str, int]]:
    h = t.run_history
    is_in = sa.and_(h.c.finished_at >= at, h.c.finished_at < at + _MINUTE)
    rows = sa.select(h.c.outcome).where(is_in).limit(_MOST_OF_ONE).subquery()
    return sa.select(sa.literal(place).label("place"), rows.c.outcome, sa.func.count().label("n")).group_by(
        rows.c.outcome
    )


async def _ids_in(conn: AsyncConnection, at: datetime) -> int:
    """Return how many ids were given from a minute's first end to the first after it."""
    h = t.run_history

    def first(since: datetime) -> sa.ScalarSelect[int]:
        return sa.select(h.c.id).where(h.c.finished_at >= since).order_by(h.c.finished_at).limit(1).scalar_subquery()

    newest = sa.select(sa.func.max(h.c.id) + 1).scalar_subquery()
    edges = sa.select(first(at), sa.func.coalesce(first(at + _MINUTE), newest))
    begin, end = (await conn.execute(edges)).one()
    return int(end - begin)

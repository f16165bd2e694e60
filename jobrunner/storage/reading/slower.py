"""Which workers became slower since a time: how long their newest runs took, and the newest before that time.

Bounded: of each worker `_NEWEST` rows of history on either side, of at most `MOST_ASKED` workers in the order of names.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.model.run import OutcomeKind
from jobrunner.policy.slower import Slower, judge
from jobrunner.storage.database.rowsets import built_once
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.matching import is_one_of
from jobrunner.storage.tables.rows import names_json

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.database.dialect import Dialect

MOST_ASKED = 5000
_NEWEST = 30
_AT_ONCE = 500
_LAST_ID = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Became:
    """Who became slower, the one that did most first; `asked` is how many workers were looked at, if there are more.

    `knows_before`: there is history from before that time.
    """

    slower: list[Slower]
    asked: int | None
    knows_before: bool


@built_once
def _lengths(dialect: Dialect) -> sa.Select[Any]:
    h = t.run_history
    beyond, up_to = (sa.bindparam(name, type_=sa.BigInteger()) for name in ("beyond", "up_to"))
    between = [h.c.id > beyond, h.c.id <= up_to]
    return dialect.newest_ends("names", [h.c.worker, h.c.outcome, h.c.duration_ms], _NEWEST, between)


async def read_slower(
    conn: AsyncConnection, dialect: Dialect, since: datetime, patterns: Collection[str] = ()
) -> Became:
    """Compare each worker's newest runs with its newest before `since`; of workers that fit `patterns`, if any."""
    h, w = t.run_history, t.workers
    last = sa.select(h.c.id).where(h.c.finished_at < since).order_by(h.c.finished_at.desc()).limit(1)
    before_id = (await conn.execute(last)).scalar()
    if before_id is None:
        return Became([], None, knows_before=False)
    wanted = [is_one_of(w.c.name, tuple(patterns))] if patterns else []
    names = sa.select(w.c.name).where(*wanted).order_by(w.c.name).limit(MOST_ASKED + 1)
    known = list((await conn.execute(names)).scalars())
    found: list[Slower] = []
    for place in range(0, min(len(known), MOST_ASKED), _AT_ONCE):
        some = known[place : place + _AT_ONCE]
        before = await _read_lengths(conn, dialect, some, 0, before_id)
        now = await _read_lengths(conn, dialect, list(before), before_id, _LAST_ID)
        found += [each for name in before if (each := judge(name, before[name], now.get(name, ()))) is not None]
    found.sort(key=lambda each: (-each.ratio, each.worker))
    return Became(found, MOST_ASKED if len(known) > MOST_ASKED else None, knows_before=True)


async def _read_lengths(
    conn: AsyncConnection, dialect: Dialect, names: Sequence[str], beyond: int, up_to: int
) -> dict[str, list[int]]:
    """Return how long the successes among the newest rows between two ids took, of those workers that have any."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for row in await conn.execute(_lengths(dialect), {"names": names_json(names), "beyond": beyond, "up_to": up_to}):
        if row.outcome == OutcomeKind.SUCCEEDED and row.duration_ms is not None:
            found[row.worker].append(row.duration_ms)
    return dict(found)

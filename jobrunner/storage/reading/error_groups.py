"""Open dead letters by what they died of: one line for each error, however many letters it has left.

Only the newest `MOST_LETTERS` are looked at, without what may be large in them, so that no number of letters makes the
answer late. What they have in common is said by `policy.error_groups`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.policy.error_groups import begins_so, filter_of, normalised
from jobrunner.storage.database.rowsets import same
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.kept_tables import LETTER_IS_OPEN

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

MOST_LETTERS = 2_000
_BEGINNING = 1_000
"""So many characters of an error are read; the first line is told."""


@dataclass(frozen=True, slots=True)
class Group:
    """Letters of a worker with one error. `error` is what they share, with a gap for what differs.

    `is_capped`: there may be more than `count` among letters that were not looked at. `filter` finds the letters.
    """

    worker: str
    error_type: str | None
    error: str
    count: int
    is_capped: bool
    newest_id: int
    newest_at: datetime
    oldest_at: datetime
    filter: str


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups, the largest first. `searched`: only so many of the newest letters were looked at; None: all."""

    groups: list[Group]
    searched: int | None = None
    is_cut: bool = False


async def group_letters(conn: AsyncConnection, *, worker: str | None = None, most: int = 50) -> Groups:
    """Return the groups of the newest open letters, of all workers or of one; at most `most`, the largest first."""
    d = t.dead_letters
    columns = (d.c.id, d.c.worker, d.c.error_type, sa.func.substr(d.c.error, 1, _BEGINNING).label("error"), d.c.died_at)
    statement = sa.select(*columns).limit(MOST_LETTERS + 1)
    if worker is None:
        statement = statement.where(sa.literal_column("dead_letters.status = 'open'")).order_by(d.c.id.desc())
    else:
        is_open: sa.ColumnElement[bool] = sa.literal_column(LETTER_IS_OPEN)
        statement = statement.where(same(d.c.worker, sa.literal(worker)), is_open)
        statement = statement.order_by(d.c.worker.desc(), d.c.id.desc())
    rows = (await conn.execute(statement)).all()
    is_capped = len(rows) > MOST_LETTERS
    groups = _grouped(rows[:MOST_LETTERS], is_capped=is_capped)
    return Groups(groups[:most], MOST_LETTERS if is_capped else None, len(groups) > most)


def _grouped(rows: Iterable[Any], *, is_capped: bool) -> list[Group]:
    """Group letters, the newest of which come first."""
    found: dict[tuple[str, str | None, str], list[Any]] = {}
    for row in rows:
        found.setdefault((row.worker, row.error_type, normalised(row.error)), []).append(row)
    groups = [
        Group(
            worker=worker,
            error_type=error_type,
            error=error,
            count=len(letters),
            is_capped=is_capped,
            newest_id=letters[0].id,
            newest_at=max(letter.died_at for letter in letters),
            oldest_at=min(letter.died_at for letter in letters),
            filter=filter_of(
                worker,
                error_type,
                error,
                starts_so=all(begins_so(letter.error, error) for letter in letters),
            ),
        )
        for (worker, error_type, error), letters in found.items()
    ]
    return sorted(groups, key=lambda group: (-group.count, -group.newest_id))

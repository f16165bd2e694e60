"""The open dead letters by error: a thousand runs that failed alike are one line.

Only the newest `MOST_SEARCHED` letters are looked at, and of those only how their errors begin. Which errors are alike
says `policy.error_groups`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.policy.error_groups import GAP, LONGEST_READ, LONGEST_SHOWN, filter_of, normalise
from jobrunner.storage.database.rowsets import same
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.kept_tables import LETTER_IS_OPEN

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

MOST_SEARCHED = 2_000


@dataclass(frozen=True, slots=True)
class Group:
    """Open letters of one worker with one error, in which `…` stands for what differs.

    `is_capped`: there may be more of them among the letters that were not looked at. `filter` finds them
    (`policy.filters`), and perhaps a few others.
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
    """The largest groups first; `left_out` more were found than asked for.

    `searched` is how many letters were looked at, if there are more.
    """

    groups: list[Group]
    searched: int | None
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Cause:
    """Open letters with one error, of whichever workers; as in a `Group`."""

    workers: tuple[str, ...]
    error_type: str | None
    error: str
    count: int
    is_capped: bool
    newest_id: int
    newest_at: datetime
    oldest_at: datetime
    filter: str


def by_cause(groups: Iterable[Group]) -> list[Cause]:
    """Return the groups of the same error as one, whosever letters they are, the largest first."""
    found: dict[tuple[str | None, str], list[Group]] = {}
    for group in groups:
        found.setdefault((group.error_type, group.error), []).append(group)
    causes = [_cause(same_error) for same_error in found.values()]
    return sorted(causes, key=lambda cause: (-cause.count, -cause.newest_id))


def _cause(groups: Sequence[Group]) -> Cause:
    newest = max(groups, key=lambda group: group.newest_id)
    workers = tuple(group.worker for group in sorted(groups, key=lambda group: (-group.count, group.worker)))
    return Cause(
        workers=workers,
        error_type=newest.error_type,
        error=newest.error,
        count=sum(group.count for group in groups),
        is_capped=newest.is_capped,
        newest_id=newest.newest_id,
        newest_at=max(group.newest_at for group in groups),
        oldest_at=min(group.oldest_at for group in groups),
        filter=filter_of(workers, newest.error_type, newest.error),
    )


def _newest(worker: str | None) -> sa.Select[Any]:
    d = t.dead_letters
    columns = (
        d.c.id,
        d.c.worker,
        sa.func.substr(d.c.error_type, 1, LONGEST_SHOWN + 1).label("error_type"),
        sa.func.substr(d.c.error, 1, LONGEST_READ).label("error"),
        d.c.died_at,
    )
    if worker is None:
        statement = sa.select(*columns).where(same(d.c.status, sa.literal_column("'open'")))
        statement = statement.order_by(d.c.status.desc(), d.c.id.desc())
    else:
        statement = sa.select(*columns).where(sa.literal_column(LETTER_IS_OPEN), same(d.c.worker, sa.literal(worker)))
        statement = statement.order_by(d.c.worker.desc(), d.c.id.desc())
    return statement.limit(MOST_SEARCHED + 1)


async def group_letters(conn: AsyncConnection, *, worker: str | None = None, most: int = 50) -> Groups:
    """Return the `most` largest groups of open letters, of one worker or of all."""
    rows = (await conn.execute(_newest(worker))).all()
    is_cut = len(rows) > MOST_SEARCHED
    found: dict[tuple[str, str | None, str], list[sa.Row[Any]]] = {}
    for row in rows[:MOST_SEARCHED]:
        error_type = row.error_type
        if error_type is not None and len(error_type) > LONGEST_SHOWN:
            error_type = error_type[:LONGEST_SHOWN] + GAP
        found.setdefault((row.worker, error_type, normalise(row.error)), []).append(row)
    groups = [
        Group(
            worker=key[0],
            error_type=key[1],
            error=key[2],
            count=len(letters),
            is_capped=is_cut,
            newest_id=letters[0].id,
            newest_at=letters[0].died_at,
            oldest_at=letters[-1].died_at,
            filter=filter_of([key[0]], key[1], key[2]),
        )
        for key, letters in found.items()
    ]
    groups.sort(key=lambda group: (-group.count, -group.newest_id))
    return Groups(groups[:most], MOST_SEARCHED if is_cut else None, len(groups[most:]))

"""Since when workers are in trouble (`policy.trouble`): what history, audit log and nodes tell of it.

Bounded: of each worker the newest `_NEWEST` rows of history, of the audit log the newest `switched.MOST_SEARCHED`, and
`_AT_ONCE` workers a statement.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.model.run import USES_UP_AN_ATTEMPT, OutcomeKind
from jobrunner.model.worker import Isolation, WorkerConfig
from jobrunner.policy.filters import TROUBLE
from jobrunner.policy.trouble import Traces, since_when
from jobrunner.storage.database.rowsets import built_once
from jobrunner.storage.reading.standing import read_standing
from jobrunner.storage.reading.switched import read_switched
from jobrunner.storage.records.gaps import read_gaps
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.rows import names_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.database.dialect import Dialect

    Row = dict[str, Any]

_NEWEST = 200  # as many as the view looks at for who is degraded
_AT_ONCE = 500


@built_once
def _failures(dialect: Dialect) -> sa.Select[Any]:
    """Of each of :names, the first failures among its newest rows: of all of them, and since its last success.

    The latter is NULL where more rows may belong to the streak than were looked at.
    """
    h, s = t.run_history, t.worker_state
    newest = dialect.newest_ends("names", [h.c.worker, h.c.id, h.c.outcome, h.c.finished_at], _NEWEST).subquery()
    ended_well = sa.case((newest.c.outcome == str(OutcomeKind.SUCCEEDED), newest.c.id))
    rows = sa.select(
        *newest.c,
        sa.func.max(ended_well).over(partition_by=newest.c.worker).label("last_success"),
        sa.func.count().over(partition_by=newest.c.worker).label("n"),
        sa.func.min(newest.c.id).over(partition_by=newest.c.worker).label("first"),
    ).subquery()
    counts_from = sa.func.coalesce(s.c.streak_since_id, 0)
    is_whole = sa.or_(rows.c.last_success.is_not(None), rows.c.n < _NEWEST, counts_from >= rows.c.first)
    is_of_streak = sa.and_(is_whole, rows.c.id > counts_from, rows.c.id > sa.func.coalesce(rows.c.last_success, 0))
    time = rows.c.finished_at
    return (
        sa.select(
            rows.c.worker,
            sa.func.min(time, type_=time.type).label("failed_at"),
            sa.func.min(sa.case((is_of_streak, time)), type_=time.type).label("streak_at"),
        )
        .select_from(rows.outerjoin(s, s.c.worker == rows.c.worker))
        .where(rows.c.outcome.in_(sorted(map(str, USES_UP_AN_ATTEMPT))))
        .group_by(rows.c.worker)
    )


async def read_since(
    conn: AsyncConnection, dialect: Dialect, now: datetime, rows: Sequence[Mapping[str, Any]]
) -> dict[str, datetime | None]:
    """Return since when each worker is in trouble, of rows of `read_standing`; those in none are not in it."""
    bad = [row for row in rows if row["health"] in TROUBLE]
    found: dict[str, datetime | None] = {}
    for place in range(0, len(bad), _AT_ONCE):
        some = bad[place : place + _AT_ONCE]
        traces = await _read_traces(conn, dialect, now, some)
        found |= {row["name"]: since_when(row, traces[row["name"]], now) for row in some}
    return found


async def read_told(
    conn: AsyncConnection, dialect: Dialect, now: datetime, name: str | None = None, names: Sequence[str] | None = None
) -> list[Row]:
    """Return the rows of `read_standing` with `since`: since when a worker is in trouble, None of those in none.

    Raises:
        WorkerNotFound: there is no worker of that name.
    """
    return await with_since(conn, dialect, now, await read_standing(conn, dialect, now, name, names))


async def with_since(conn: AsyncConnection, dialect: Dialect, now: datetime, rows: Sequence[Row]) -> list[Row]:
    """Return the rows of `read_standing` with `since`, as `read_told` does."""
    since = await read_since(conn, dialect, now, rows)
    return [{**row, "since": since.get(row["name"])} for row in rows]


async def _read_traces(
    conn: AsyncConnection, dialect: Dialect, now: datetime, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Traces]:
    switched = await read_switched(conn, [row["name"] for row in rows if row["health"] in {"disabled", "paused"}])
    failing = [row["name"] for row in rows if row["health"] in {"disabled", "failing", "degraded"}]
    failures = (await conn.execute(_failures(dialect), {"names": names_json(failing)})).all() if failing else []
    failed = {row.worker: row for row in failures}
    left = await _read_left(conn, dialect, now, [row for row in rows if row["health"] == "no_node"])
    return {
        name: Traces(
            switched.get(name),
            failed[name].streak_at if name in failed else None,
            failed[name].failed_at if name in failed else None,
            left.get(name),
        )
        for name in (row["name"] for row in rows)
    }


async def _read_left(
    conn: AsyncConnection, dialect: Dialect, now: datetime, rows: Sequence[Mapping[str, Any]]
) -> dict[str, datetime]:
    """Return when the last node that may have had the code of a worker was heard of, not before the worker was made."""
    if not rows:
        return {}
    configs = [WorkerConfig(row["name"], isolation=Isolation(row["isolation"])) for row in rows]
    gaps = await read_gaps(conn, dialect, configs, now)
    made = {row["name"]: row["created_at"] for row in rows}
    return {name: max(gap.after or made[name], made[name]) for name, gap in gaps.items()}

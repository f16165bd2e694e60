"""Attempts as intervals, read for the two walks of `policy.sweep`, a page at a time.

Both walks follow an index (the primary key, the one on `finished_at`) along which the rows lie nearly as in the table:
nothing is sorted, and a page costs the same however long history is. Times stay what the database gives: on SQLite
texts, which compare as the times do and need no reading. The pages are read from the driver itself, written by hand:
measured on ten million rows, SQLAlchemy's part would double the time.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.policy.sweep import Attempt, Glance, Rule, Sweep
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.claims import is_active
from jobrunner.storage.tables.types import UtcDateTime, from_text, to_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Sequence
    from datetime import timedelta

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.database.database import Database

PAGE_ROWS = 10_000
_NOT_YET = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_MOST_WAITING = 10_000
_LARGEST_ID = 2**63 - 1
_RUNS_NOW: sa.ColumnElement[bool] = is_active()
_WAITS_AGAIN: sa.ColumnElement[bool] = sa.literal_column("runs.state = 'pending' AND runs.attempt > 1")
_BY_ID = """
    SELECT worker, started_at, {end}, id, fence FROM {p}run_history WHERE id < $1 ORDER BY id DESC LIMIT {rows}"""
_BY_END = """
    SELECT worker, run_id, started_at, {end}, id, attempt, outcome, ends_run, is_forced, finished_at
    FROM {p}run_history
    WHERE finished_at <= $1 AND (finished_at < $1 OR id < $2) AND run_id IS NOT NULL AND {among}
    ORDER BY finished_at DESC, id DESC LIMIT {rows}"""


def moment(value: Any) -> datetime:
    """Read a time of an attempt."""
    return from_text(value) if isinstance(value, str) else value


class Intervals:
    """The attempts of one snapshot.

    Args:
        db: the database.
        conn: the snapshot.
        tolerance: by how much two intervals may overlap: each is taken to have ended that much earlier.
    """

    def __init__(self, db: Database, conn: AsyncConnection, tolerance: timedelta) -> None:
        self._db = db
        self._conn = conn
        self._never = self._own(_NOT_YET)
        end, seconds = "finished_at", f"{tolerance.total_seconds():.6f}"
        if tolerance:
            end = f"finished_at - interval '{seconds} seconds'"
            if db.is_sqlite:
                end = f"strftime('%Y-%m-%d %H:%M:%f', finished_at, '-{seconds} seconds') || '000'"
        # The plus keeps SQLite on the index that gives the order; along the one on workers it would sort for each page.
        among = "+worker IN (SELECT value FROM json_each($3))" if db.is_sqlite else "worker = ANY($3)"
        values = {"p": db.schema_prefix, "end": end, "among": among, "rows": PAGE_ROWS}
        self._by_id, self._by_end = _BY_ID.format(**values), _BY_END.format(**values)

    async def glance(self) -> Glance:
        """Begin the quick walk, over the workers as they are defined now."""
        glance = Glance(await self._rules(), self._never)
        glance.add([(row.worker, row.started, row.end) for row in await self._active()])
        return glance

    async def sweep(self, unsure: Collection[str], kept_since: datetime) -> tuple[Sweep, list[Attempt]]:
        """Begin the exact walk; return it with its first attempts, what runs now."""
        b, d, r = t.worker_blocks.c, t.worker_dependencies.c, t.runs.c
        blocks = await self._rows(sa.select(b.worker, b.blocks))
        dependencies = await self._rows(sa.select(d.worker, d.depends_on))
        sweep = Sweep(await self._rules(), unsure, blocks, dependencies, self._own(kept_since))
        waits = sa.select(r.worker, r.id).where(_WAITS_AGAIN, r.worker.in_(sa.select(d.depends_on)))
        for row in await self._rows(waits.limit(_MOST_WAITING)):
            sweep.will_try_again(row.worker, row.id, self._never)
        return sweep, await self._active()

    async def by_id(self) -> AsyncIterator[list[Sequence[Any]]]:
        """Read history from its newest row on: worker, start, end, id, fence."""
        last = _LARGEST_ID
        while rows := await self._db.fetch(self._conn, self._by_id, last):
            yield rows
            last = rows[-1][3]

    async def by_end(self, workers: Collection[str]) -> AsyncIterator[list[Attempt]]:
        """Read the attempts of some workers from their newest end on."""
        names: Any = json.dumps(sorted(workers)) if self._db.is_sqlite else sorted(workers)
        at, last = self._never, _LARGEST_ID
        while workers and (rows := await self._db.fetch(self._conn, self._by_end, at, last, names)):
            yield [Attempt(*row[:9]) for row in rows]
            at, last = rows[-1][9], rows[-1][4]

    async def active_at(self, worker: str, at: Any, count: int) -> list[int]:
        """Return the ids of the first few runs of a worker that were active at a moment."""
        h, r = t.run_history.c, t.runs.c
        start, end = self._raw(h.started_at), self._raw(h.finished_at)
        ended = sa.select(h.run_id).where(h.worker == worker, start <= at, end > at)
        active = sa.select(r.id).where(r.worker == worker, _RUNS_NOW, self._raw(r.started_at) <= at)
        return [run_id for (run_id,) in await self._rows(sa.union_all(ended, active).limit(count))]

    async def _rules(self) -> list[Rule]:
        w = t.workers.c
        columns = sa.select(w.name, w.max_running, self._raw(w.updated_at), self._raw(w.created_at))
        return [Rule(*row) for row in await self._rows(columns)]

    async def _active(self) -> list[Attempt]:
        r = t.runs.c
        active = sa.select(r.worker, r.id, self._raw(r.started_at), r.attempt, r.is_forced).where(_RUNS_NOW)
        return [
            Attempt(worker, run_id, started, self._never, -run_id, attempt, "", None, is_forced)
            for worker, run_id, started, attempt, is_forced in await self._rows(active)
        ]

    async def _rows(self, statement: Any) -> list[Any]:
        return list((await self._conn.execute(statement)).all())

    def _raw(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """The time as the driver gives it."""
        return sa.type_coerce(column, sa.Text() if self._db.is_sqlite else UtcDateTime())

    def _own(self, value: datetime) -> Any:
        return to_text(value) if self._db.is_sqlite else value

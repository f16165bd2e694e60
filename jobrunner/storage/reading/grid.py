"""The last runs of a worker, live and ended, each with its attempts: for the grid on the worker's page.

Bounded by `MOST_ROWS` rows of its history, found along its index, and by the runs that are active; nothing large is
read of a row. A run that waits and has not been tried yet is none of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.model.run import OutcomeKind
from jobrunner.storage.database.rowsets import same
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.claims import claims

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

MOST_RUNS = 50
MOST_ROWS = 400
RUNNING = "running"
_OF_ENDS = (
    *("id", "run_id", "worker", "trigger", "attempt", "outcome", "ends_run", "started_at", "finished_at"),
    *("duration_ms", "error_type", "error", "reason", "occurrences"),
)


@dataclass(frozen=True, slots=True)
class Tried:
    """One attempt. `outcome` is `running` while it has not ended; `started_at` is None of one that never started."""

    number: int
    outcome: str
    started_at: datetime | None
    finished_at: datetime | None = None
    duration_ms: int | None = None


@dataclass(frozen=True, slots=True)
class GridRun:
    """A run with its attempts, the first one first; or times that were missed, which have neither.

    Args:
        run_id: None of times that were missed.
        at: when it was first started, or ended if it never was; of missed times the last of them.
        state: that of a live run, how it ended, or `missed`.
        attempts: those that were read.
        occurrences: how many times were missed.
        is_cut: it was tried before the first of `attempts`, too.
    """

    run_id: int | None
    at: datetime
    state: str
    attempts: tuple[Tried, ...] = ()
    occurrences: int | None = None
    is_cut: bool = False


async def read_grid(conn: AsyncConnection, worker: str, most_runs: int = MOST_RUNS) -> list[GridRun]:
    """Return the last runs of a worker that have begun, at most `most_runs`, the oldest first."""
    h = t.run_history
    columns = (h.c.id, h.c.run_id, h.c.attempt, h.c.outcome, h.c.ends_run, h.c.due_at, h.c.started_at)
    newest = (
        sa.select(*columns, h.c.finished_at, h.c.duration_ms, h.c.occurrences)
        .where(same(h.c.worker, sa.literal(worker)))
        .order_by(h.c.worker.desc(), h.c.id.desc())
        .limit(MOST_ROWS)
    )
    rows = (await conn.execute(newest)).all()
    ended: dict[int, list[Any]] = {}
    missed = []
    for row in rows:
        if row.run_id is None:
            missed.append(row)
        else:
            ended.setdefault(row.run_id, []).append(row)
    live = await _live(conn, worker, [run_id for run_id, each in ended.items() if each[0].ends_run is None], most_runs)
    runs = [_run(run_id, ended.get(run_id, []), live.get(run_id)) for run_id in {**ended, **live}]
    runs += [GridRun(None, row.due_at or row.finished_at, "missed", (), row.occurrences) for row in missed]
    return sorted((run for run in runs if run is not None), key=lambda run: (run.at, run.run_id or 0))[-most_runs:]


async def _live(conn: AsyncConnection, worker: str, tried: Sequence[int], most: int) -> dict[int, Any]:
    """Read the newest active runs, and those of `tried` that have not ended."""
    r = t.runs
    columns = (r.c.id, r.c.state, r.c.attempt, r.c.started_at)
    active = sa.select(claims.c.run_id).where(claims.c.worker == worker).order_by(claims.c.run_id.desc()).limit(most)
    ids = {*(await conn.execute(active)).scalars(), *tried[:most]}
    found = await conn.execute(sa.select(*columns).where(r.c.id.in_(ids))) if ids else ()
    return {row.id: row for row in found}


def _run(run_id: int, ended: Sequence[Any], live: Any | None) -> GridRun | None:
    """Return a run of its rows of history, the newest first, and its live row; None if it has not begun."""
    tried = [
        Tried(row.attempt or 1, row.outcome, row.started_at, row.finished_at, row.duration_ms)
        for row in reversed(ended)
    ]
    if live is not None and live.started_at is not None:
        tried.append(Tried(live.attempt, RUNNING, live.started_at))
    state = live.state if live is not None else (ended[0].ends_run or str(OutcomeKind.INTERRUPTED))
    begun = (tried[0].started_at or tried[0].finished_at) if tried else None
    if begun is None:
        return None
    return GridRun(run_id, begun, str(state), tuple(tried), is_cut=tried[0].number > 1)


async def read_last_ends(conn: AsyncConnection, worker: str, limit: int) -> list[dict[str, Any]]:
    """Return the newest rows of a worker's history, at most `limit`, without what may be large but for the error."""
    h = t.run_history
    newest = (
        sa.select(*(h.c[name] for name in _OF_ENDS))
        .where(same(h.c.worker, sa.literal(worker)))
        .order_by(h.c.worker.desc(), h.c.id.desc())
        .limit(limit)
    )
    return [dict(row) for row in (await conn.execute(newest)).mappings()]

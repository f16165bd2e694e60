"""The newest runs of a worker, each with its attempts: what a grid of runs and their attempts is drawn from.

A run is as new as what last happened to it: active runs come first, then those whose attempts ended last. A run that
waits for its first attempt has nothing to show yet and is none of them; of a worker with a long queue they would be
all. Only `MOST_ROWS` rows of history are looked at, so the first attempts of a run that was often tried may be missing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.model.run import OutcomeKind
from jobrunner.storage.database.rowsets import same
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.claims import is_active

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

MOST_ROWS = 400
RUNNING = "running"


@dataclass(frozen=True, slots=True)
class GridAttempt:
    """An attempt: how it ended, or that it is `running`; then it has no end, no duration and no row of history.

    Of times that were missed `attempt`, `started_at`, `duration_ms` and `fence` are None.
    """

    attempt: int | None
    outcome: str
    started_at: datetime | None
    finished_at: datetime | None
    duration_ms: int | None
    fence: int | None
    history_id: int | None


@dataclass(frozen=True, slots=True)
class GridRun:
    """A run and its attempts, the first one first.

    `state` is that of a live run, else how it ended (`run_history.ends_run`). A row of history about times that were
    missed is one, too, without `run_id`, in the state `missed`.
    """

    run_id: int | None
    state: str
    scheduled_for: datetime | None
    due_at: datetime | None
    attempts: list[GridAttempt]


_Key = tuple[int | None, int]
"""A run's id; or None, and the id of a row about missed times."""


async def read_grid(conn: AsyncConnection, worker: str, most_runs: int = 50) -> list[GridRun]:
    """Return the newest runs of a worker, at most `most_runs`, in the order of their times: the newest last."""
    live = {row.id: row for row in await conn.execute(_live(worker, is_active()))}
    found: dict[_Key, GridRun] = {(row.id, 0): _of_live(row) for row in _latest(live.values())[:most_runs]}
    ended = (await conn.execute(_ended(worker))).all()
    for row in ended:  # the newest first
        key = (row.run_id, 0 if row.run_id is not None else row.id)
        if key in found:
            found[key].attempts.append(_attempt(row))
        elif len(found) < most_runs:
            found[key] = GridRun(
                row.run_id, row.ends_run or row.outcome, row.scheduled_for, row.due_at, [_attempt(row)]
            )
    tried = [run_id for run_id, _ in found if run_id is not None and run_id not in live]
    waiting = {row.id: row for row in await conn.execute(_live(worker, t.runs.c.id.in_(tried)))}
    runs = []
    for (run_id, _), run in found.items():
        row = waiting.get(run_id) if run_id is not None else None
        state, due_at = (run.state, run.due_at) if row is None else (row.state, row.due_at)
        runs.append(replace(run, state=state, due_at=due_at, attempts=sorted(run.attempts, key=_place)))
    return sorted(runs, key=_time)


def _live(worker: str, condition: sa.ColumnElement[bool]) -> sa.Select[Any]:
    r = t.runs
    columns = (r.c.id, r.c.state, r.c.scheduled_for, r.c.due_at, r.c.attempt, r.c.started_at, r.c.fence)
    return sa.select(*columns).where(condition, r.c.worker == worker)


def _ended(worker: str) -> sa.Select[Any]:
    """Select the newest rows; on SQLite all of these columns lie before the large ones."""
    h = t.run_history
    columns = (h.c.id, h.c.run_id, h.c.fence, h.c.attempt, h.c.outcome, h.c.ends_run)
    times = (h.c.scheduled_for, h.c.due_at, h.c.started_at, h.c.finished_at, h.c.duration_ms)
    newest = sa.select(*columns, *times).where(same(h.c.worker, sa.literal(worker)))
    return newest.order_by(h.c.worker.desc(), h.c.id.desc()).limit(MOST_ROWS)


def _latest(active: Iterable[sa.Row[Any]]) -> Sequence[sa.Row[Any]]:
    return sorted(active, key=lambda row: (row.started_at, row.id), reverse=True)


def _of_live(row: sa.Row[Any]) -> GridRun:
    running = GridAttempt(row.attempt, RUNNING, row.started_at, None, None, row.fence, None)
    return GridRun(row.id, row.state, row.scheduled_for, row.due_at, [running])


def _attempt(row: sa.Row[Any]) -> GridAttempt:
    is_missed = row.outcome == OutcomeKind.MISSED
    return GridAttempt(
        attempt=None if is_missed else row.attempt,
        outcome=row.outcome,
        started_at=row.started_at,
        finished_at=row.finished_at,
        duration_ms=row.duration_ms,
        fence=row.fence,
        history_id=row.id,
    )


def _place(attempt: GridAttempt) -> tuple[bool, int]:
    """Order the attempts of a run: as their ends were written, and what runs is the last."""
    return attempt.history_id is None, attempt.history_id or 0


def _time(run: GridRun) -> tuple[float, bool, int]:
    """Order runs by the time they were for: a retry does not move them."""
    last = run.attempts[-1]
    moment = run.scheduled_for or run.due_at or last.finished_at or last.started_at
    place = last.history_id if run.run_id is None else run.run_id
    return 0.0 if moment is None else moment.timestamp(), run.run_id is None, place or 0

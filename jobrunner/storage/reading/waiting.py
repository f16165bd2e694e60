"""Reading what waits, for those who ask why: when a worker's next run is due, and what failed of it before.

The facts of a tick hold only what is due. This is read beside them, and never by a tick.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.model.facts import MOST_LATER, Candidate, Later
from jobrunner.model.run import Trigger
from jobrunner.storage.database.rowsets import built_once
from jobrunner.storage.runs.fact_statements import PRIORITIES
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.rows import names_json

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.database.dialect import Dialect

_COUNTED = MOST_LATER + 1
_MOST_NAMED = 3
_OF_SCHEDULES = frozenset({Trigger.SCHEDULE, Trigger.CONTINUOUS})
_COLUMNS = ("id", "worker", "trigger", "priority", "due_at", "attempt", "is_forced", "first_started_at", "limit_key")


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits of a worker: when the first is due, be it past or to come, and what waits for its time.

    `holds_schedule` says that the run of its schedule waits: the schedule does not fire before that has ended.
    """

    next_at: datetime
    holds_schedule: bool
    later: Later | None


@dataclass(frozen=True)
class _Statements:
    first: sa.Select[Any]
    later: sa.Select[Any]
    errors: sa.Select[Any]


@built_once
def _statements(dialect: Dialect) -> _Statements:
    one: sa.ColumnElement[int] = sa.literal_column("1")
    most: sa.ColumnElement[int] = sa.literal_column(str(_COUNTED))
    columns = [t.runs.c[name] for name in _COLUMNS]
    given = dialect.rows("tried", id=sa.BigInteger())
    h = t.run_history
    error = sa.case((h.c.error_type.is_(None), h.c.error), else_=h.c.error_type + ": " + h.c.error)
    said = sa.func.coalesce(error, h.c.reason, h.c.outcome)
    last = sa.select(said).where(h.c.run_id == given.c.id).order_by(h.c.fence.desc()).limit(1)
    return _Statements(
        dialect.first_waiting("names", one, PRIORITIES, columns, is_due=None),
        dialect.first_waiting("names", most, PRIORITIES, columns, is_due=False),
        sa.select(given.c.id, last.correlate(given).scalar_subquery()),
    )


async def read_waiting(
    conn: AsyncConnection, dialect: Dialect, now: datetime, names: Collection[str]
) -> dict[str, Waiting]:
    """Read what comes next of each of `names` that has anything waiting: of each priority the first run."""
    runs, holding = await _read_runs(conn, _statements(dialect).first, now, names)
    later = await _later(
        conn, dialect, {name: [run for run in each if run.due_at > now] for name, each in runs.items()}
    )
    return {name: Waiting(each[0].due_at, name in holding, later.get(name)) for name, each in runs.items()}


async def read_later(conn: AsyncConnection, dialect: Dialect, now: datetime, name: str) -> Later | None:
    """Read what of `name` waits for its time; None if nothing does."""
    runs, _ = await _read_runs(conn, _statements(dialect).later, now, [name])
    return (await _later(conn, dialect, runs)).get(name)


async def _read_runs(
    conn: AsyncConnection, statement: sa.Select[Any], now: datetime, names: Collection[str]
) -> tuple[dict[str, list[Candidate]], set[str]]:
    """Read the waiting runs by worker, in the order of time; and of which workers the schedule's run is among them."""
    found: defaultdict[str, list[Candidate]] = defaultdict(list)
    holding: set[str] = set()
    rows = (await conn.execute(statement, {"names": names_json(names), "now": now})).all() if names else []
    for row in rows:
        state = (row.attempt, bool(row.is_forced), row.first_started_at is not None)
        run = Candidate(row.worker, row.id, row.priority, row.due_at, *state, row.limit_key)
        found[row.worker].append(run)
        if row.trigger in _OF_SCHEDULES:
            holding.add(row.worker)
    for runs in found.values():
        runs.sort(key=lambda run: (run.due_at, run.id))
    return found, holding


async def _later(conn: AsyncConnection, dialect: Dialect, runs: Mapping[str, Sequence[Candidate]]) -> dict[str, Later]:
    """Return what waits for its time of the workers that have such runs, with how they ended before."""
    first = {name: tuple(each[:_MOST_NAMED]) for name, each in runs.items() if each}
    tried = [run.id for each in first.values() for run in each if run.has_started_before and run.id is not None]
    errors = await _read_errors(conn, dialect, tried)
    later = {}
    for name, named in first.items():
        said = {run.id: errors[run.id] for run in named if run.id is not None and errors.get(run.id)}
        later[name] = Later(named, min(len(runs[name]), _COUNTED), said)
    return later


async def _read_errors(conn: AsyncConnection, dialect: Dialect, tried: Collection[int]) -> dict[int, str]:
    """Read how the last attempt of each of these runs ended: its error, else its reason, else its outcome."""
    if not tried:
        return {}
    parameters = {"tried": json.dumps([{"id": run_id} for run_id in tried])}
    return {row[0]: row[1] for row in await conn.execute(_statements(dialect).errors, parameters)}

"""Reading how things stand, for people: the workers, the live runs, what will fire. Nothing here writes."""

from __future__ import annotations

import functools
import heapq
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.errors import NoWorkerFits, WorkerNotFound
from jobrunner.policy.filters import check_pattern
from jobrunner.policy.upcoming import Upcoming, firings, first_of
from jobrunner.storage.database.rowsets import same
from jobrunner.storage.runs.fact_statements import PRIORITIES
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.claims import claims, is_active
from jobrunner.storage.tables.matching import is_one_of
from jobrunner.storage.tables.rows import (
    CONFIG_COLUMNS,
    STATE_COLUMNS,
    STATE_FIELDS,
    config_or_problem,
    names_json,
    state_of,
)
from jobrunner.storage.workers.relations import existing_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.model.worker import WorkerConfig, WorkerState
    from jobrunner.storage.database.dialect import Dialect

_NOT_IN_THE_VIEW = frozenset(
    {"payload", "payload_schema", "hidden_fields", "definition", "overrides", "definition_hash", "revision"}
)
_OURS = frozenset(
    {
        "worker",
        "priority",
        "streak_since_id",
        "last_ended_at",
        "paused_at",
        "reach_seconds",
        "revision",
        "missed_from",
    }
)
_PENDING: sa.ColumnElement[bool] = sa.literal_column("runs.state = 'pending'")


NOTHING_MOVED: Mapping[str, datetime] = MappingProxyType({})


@functools.cache
def worker_status() -> sa.Table:
    """The view of that name, with the types of the columns it shows; not part of what migrations compare."""
    shown = [column for column in t.workers.columns if column.name not in _NOT_IN_THE_VIEW]
    shown += [column for column in t.worker_state.columns if column.name not in _OURS]
    return sa.Table(
        "worker_status",
        sa.MetaData(),
        *(sa.Column(column.name, column.type) for column in shown),
        sa.Column("is_running", sa.Boolean),
        sa.Column("running_runs", sa.BigInteger),
        sa.Column("pending_runs", sa.BigInteger),
        sa.Column("health", sa.Text),
        schema=t.SCHEMA_TOKEN,
    )


@dataclass(frozen=True, slots=True)
class Totals:
    """How many workers there are, and how many runs; of those that wait no more than `MOST_COUNTED` + 1 are counted."""

    workers: int
    running: int
    waiting: int


MOST_COUNTED = 10_000


async def read_totals(conn: AsyncConnection) -> Totals:
    """Count, along indexes."""
    some = sa.select(sa.literal_column("1")).select_from(t.runs).where(_PENDING).limit(MOST_COUNTED + 1).subquery()
    counts = [sa.select(sa.func.count()).select_from(each).scalar_subquery() for each in (t.workers, claims, some)]
    return Totals(*(await conn.execute(sa.select(*counts))).one())


async def count_live(conn: AsyncConnection, dialect: Dialect, names: Sequence[str]) -> int:
    """Count the live runs of workers, up to `MOST_COUNTED` + 1."""
    given = dialect.rows("names", name=sa.Text())
    mine = sa.select(given.c.name)
    waiting = sa.select(t.runs.c.id).where(_PENDING, t.runs.c.worker.in_(mine)).limit(MOST_COUNTED + 1).subquery()
    active = sa.select(claims.c.run_id).where(claims.c.worker.in_(mine)).subquery()
    counts = [sa.select(sa.func.count()).select_from(each).scalar_subquery() for each in (waiting, active)]
    return sum((await conn.execute(sa.select(*counts), {"names": names_json(names)})).one())


async def read_status(
    conn: AsyncConnection, name: str | None = None, names: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Return a row of `worker_status` for every worker, for those of `names`, or for the one of `name`.

    Raises:
        WorkerNotFound: there is no worker of that name.
    """
    view = worker_status()
    statement = sa.select(view).order_by(view.c.name)
    if name is not None:
        statement = statement.where(view.c.name == name)
    if names is not None:
        statement = statement.where(view.c.name.in_(names))
    rows = [dict(row) for row in (await conn.execute(statement)).mappings()]
    if name is not None and not rows:
        raise WorkerNotFound(name)
    return rows


def state_in(row: Mapping[str, Any]) -> WorkerState | None:
    """Return the state that a row of `worker_status` shows; None where the worker has none."""
    if row["is_enabled"] is None:
        return None
    return state_of({**row, "worker": row["name"]}.get(field) for field in STATE_FIELDS)


async def read_runs(
    conn: AsyncConnection, *, worker: str | None = None, limit: int = 50, has_output: bool = True
) -> list[dict[str, Any]]:
    """Return the live runs: the active ones by start, then the waiting ones by due time, at most `limit`.

    Without `has_output` the rows lack what the runs have said so far, up to 64 KiB each.

    Raises:
        WorkerNotFound: there is no worker of that name.
    """
    r = t.runs
    columns = [column for column in r.c if has_output or column.name != "output"]
    first = (await read_active(conn, worker))[:limit]
    found = {
        row["id"]: dict(row) for row in (await conn.execute(sa.select(*columns).where(r.c.id.in_(first)))).mappings()
    }
    rows = [found[run_id] for run_id in first if run_id in found]
    if len(rows) < limit:
        waiting = [dict(row) for row in (await conn.execute(_waiting(columns, worker, limit - len(rows)))).mappings()]
        rows += sorted(waiting, key=lambda row: (row["due_at"], row["id"]))[: limit - len(rows)]
    return rows


async def read_active(conn: AsyncConnection, worker: str | None) -> list[int]:
    """Return the ids of the runs that are active, by start. Raises `WorkerNotFound`."""
    r = t.runs
    active = sa.select(r.c.started_at, r.c.id).where(is_active())
    if worker is not None:
        if (await conn.execute(sa.select(t.workers.c.name).where(t.workers.c.name == worker))).first() is None:
            raise WorkerNotFound(worker)
        active = active.where(r.c.worker == worker)
    return [run_id for _, run_id in sorted(map(tuple, await conn.execute(active)))]


def _waiting(columns: Sequence[sa.Column[Any]], worker: str | None, limit: int) -> sa.Select[Any]:
    """Select the waiting runs that are due first, and a worker's of each priority, in the order of an index.

    `due_at` alone has an index: in the order of `id`, too, all that fell due at one time would be read, maybe all runs.
    """
    r = t.runs
    if worker is None:
        return sa.select(*columns).where(_PENDING).order_by(r.c.due_at).limit(limit)
    first = [
        sa.select(r.c.id)
        .where(_PENDING, r.c.worker == worker, same(r.c.priority, sa.literal(priority)))
        .order_by(r.c.priority, r.c.due_at, r.c.id)
        .limit(limit)
        .subquery()
        for priority in PRIORITIES
    ]
    return sa.select(*columns).where(r.c.id.in_(sa.union_all(*(sa.select(part.c.id) for part in first))))


async def read_worker(conn: AsyncConnection, name: str) -> dict[str, Any]:
    """Return all there is about one worker: its `worker_status` row, definition, overrides, edges and nodes.

    Raises:
        WorkerNotFound: there is no worker of that name.
    """
    found = (await read_status(conn, name))[0]
    w, b, h, n = t.workers, t.worker_blocks, t.node_handlers, t.nodes
    layers = sa.select(w.c.payload, w.c.payload_schema, w.c.hidden_fields, w.c.definition, w.c.overrides).where(
        w.c.name == name
    )
    found |= dict((await conn.execute(layers)).mappings().one())
    d = t.worker_dependencies
    edges = sa.select(d.c.depends_on, d.c.condition, d.c.max_age_seconds).where(d.c.worker == name)
    found["depends_on"] = [dict(row) for row in (await conn.execute(edges.order_by(d.c.depends_on))).mappings()]
    blocks = sa.select(b.c.blocks).where(b.c.worker == name).order_by(b.c.blocks)
    found["blocks"] = list((await conn.execute(blocks)).scalars())
    blocked_by = sa.select(b.c.worker).where(b.c.blocks == name).order_by(b.c.worker)
    found["blocked_by"] = list((await conn.execute(blocked_by)).scalars())
    nodes = sa.select(h.c.node_id).join(n, n.c.id == h.c.node_id).where(h.c.worker == name, n.c.state == "active")
    found["nodes"] = list((await conn.execute(nodes.order_by(h.c.node_id))).scalars())
    return found


async def require_trace(conn: AsyncConnection, name: str) -> None:
    """Return if there is a worker of that name, or was one that left history or dead letters behind.

    Raises:
        WorkerNotFound: there is no trace of it.
    """
    w, h, d = t.workers, t.run_history, t.dead_letters
    for column in (w.c.name, h.c.worker, d.c.worker):
        if (await conn.execute(sa.select(column).where(column == name).limit(1))).first() is not None:
            return
    raise WorkerNotFound(name)


async def all_names(conn: AsyncConnection) -> list[str]:
    """Return the names of all workers, in their order."""
    return list((await conn.execute(sa.select(t.workers.c.name).order_by(t.workers.c.name))).scalars())


async def chosen_names(conn: AsyncConnection, dialect: Dialect, given: Sequence[str]) -> list[str]:
    """Return the names that are given, and those that fit the patterns among them (with `*`), each once, in order.

    Raises:
        UsageError: a pattern cannot be read.
        WorkerNotFound: there is no worker of a name.
        NoWorkerFits: there is none that fits a pattern.
    """
    patterns = [check_pattern(each) for each in given if "*" in each]
    plain = [each for each in given if "*" not in each]
    await require_workers(conn, dialect, plain)
    names = set(plain)
    w = t.workers
    for pattern in patterns:
        fitting = (await conn.execute(sa.select(w.c.name).where(is_one_of(w.c.name, [pattern])))).scalars().all()
        if not fitting:
            raise NoWorkerFits(pattern)
        names.update(fitting)
    return sorted(names)


async def require_workers(conn: AsyncConnection, dialect: Dialect, names: Sequence[str]) -> None:
    """Return if the database knows all of `names`. Raises `WorkerNotFound` for the first it does not."""
    known = await existing_names(conn, dialect, names)
    for name in names:
        if name not in known:
            raise WorkerNotFound(name)


async def read_firings(
    conn: AsyncConnection,
    now: datetime,
    until: datetime,
    worker: str | None = None,
    most: int | None = None,
    begins: Mapping[str, datetime] = NOTHING_MOVED,
    *,
    has_standing: bool = True,
) -> Iterator[Upcoming]:
    """Return the firings of the schedules up to `until`, made as they are asked for; of `worker` only, if given.

    With `most` no more than the first so many are right. `begins` and `has_standing` as for `read_schedules`.
    """
    return firings(await read_schedules(conn, worker, most, begins, has_standing=has_standing), now, until)


async def read_schedules(
    conn: AsyncConnection,
    worker: str | None = None,
    most: int | None = None,
    begins: Mapping[str, datetime] = NOTHING_MOVED,
    *,
    has_standing: bool = True,
) -> list[tuple[WorkerConfig, WorkerState]]:
    """Return the scheduled workers with their states, or `worker` alone if it is one.

    With `most` no more than so many, the next to fire: each fires once at least before any that is left out; and
    without `has_standing` none that has no next time, for which all workers may have to be looked through.
    `begins`: next times that are known to come later than the states say (`Forecast.begins`).
    """
    w, s = t.workers, t.worker_state
    scheduled = (
        sa.select(*CONFIG_COLUMNS, *STATE_COLUMNS)
        .select_from(w.join(s, s.c.worker == w.c.name))
        .where(w.c.execution_mode == "scheduled")
    )
    if worker is not None:
        scheduled = scheduled.where(w.c.name == worker)
    split = len(CONFIG_COLUMNS)
    if most is None:
        rows = (await conn.execute(scheduled)).all()
    else:
        # By name only, along the index on the next time: SQLite would begin a join with all workers.
        is_scheduled = sa.exists().where(w.c.name == s.c.worker, w.c.execution_mode == "scheduled")
        first = sa.select(s.c.worker).where(s.c.next_run_at.is_not(None), is_scheduled)
        if worker is not None:
            first = first.where(s.c.worker == worker)
        first = first.order_by(s.c.next_run_at, s.c.worker).limit(most)
        fires = scheduled.where(w.c.name.in_(first)).order_by(s.c.next_run_at, w.c.name)
        rows = (await conn.execute(fires)).all()
        if has_standing and len(rows) < most:  # those that have no next time come last
            standing = scheduled.where(s.c.next_run_at.is_(None)).order_by(w.c.name)
            rows = [*rows, *(await conn.execute(standing.limit(most - len(rows)))).all()]
    found = [(config_or_problem(row[:split])[0], state_of(row[split:])) for row in rows]
    return [(config, replace(state, next_run_at=begins.get(config.name, state.next_run_at))) for config, state in found]


def planned_run(row: Mapping[str, Any]) -> Upcoming:
    """Return a run that waits for its time as a row of the listing."""
    note = f"run {row['id']}, {'retry' if row['attempt'] > 1 else row['trigger']}"
    return Upcoming(row["worker"], row["due_at"], "UTC", note, row["id"])


async def read_upcoming(
    conn: AsyncConnection,
    now: datetime,
    until: datetime,
    limit: int,
    worker: str | None = None,
    begins: Mapping[str, datetime] = NOTHING_MOVED,
    *,
    has_standing: bool = True,
) -> tuple[list[Upcoming], bool]:
    """Return what will fire up to `until`, at most `limit` rows in the order of time, and whether there is more.

    These are the times of the schedules, and the waiting runs that somebody triggered for later; of `worker` only, if
    it is given. `begins` and `has_standing` as for `read_schedules`.
    """
    r = t.runs
    ahead = await read_firings(conn, now, until, worker, limit + 1, begins, has_standing=has_standing)
    planned = (
        sa.select(r.c.id, r.c.worker, r.c.due_at, r.c.trigger, r.c.attempt)
        .where(_PENDING, r.c.due_at > now, r.c.due_at <= until)
        .order_by(r.c.due_at, r.c.id)
        .limit(limit + 1)
    )
    if worker is not None:
        planned = planned.where(r.c.worker == worker)
    waiting = [planned_run(dict(row)) for row in (await conn.execute(planned)).mappings()]
    return first_of(heapq.merge(ahead, waiting, key=lambda row: row.order), limit)


async def read_progress(conn: AsyncConnection) -> dict[str, list[dict[str, Any]]]:
    """Return what the active runs say of their progress, by worker."""
    r = t.runs
    told = sa.select(r.c.id, r.c.worker, r.c.progress).where(is_active(), r.c.progress.is_not(None))
    rows = (await conn.execute(told)).all()
    found: dict[str, list[dict[str, Any]]] = {}
    for _, name, progress in sorted(rows, key=lambda row: row.id):
        found.setdefault(name, []).append(progress)
    return found


async def read_holder(conn: AsyncConnection, run_id: int) -> dict[str, Any] | None:
    """Return where an active run's code runs: `hostname` and `pid` of its node, and its worker's `isolation`."""
    r, w, n = t.runs, t.workers, t.nodes
    held = sa.select(n.c.hostname, n.c.pid, w.c.isolation).select_from(
        r.join(w, w.c.name == r.c.worker).join(n, n.c.id == r.c.node_id)
    )
    row = (await conn.execute(held.where(r.c.id == run_id, r.c.slot.is_not(None)))).mappings().first()
    return None if row is None else dict(row)


async def read_live(conn: AsyncConnection, run_id: int) -> dict[str, Any] | None:
    """Return the run's row while it waits or runs."""
    row = (await conn.execute(sa.select(t.runs).where(t.runs.c.id == run_id))).mappings().first()
    return None if row is None else dict(row)


async def read_due_time(conn: AsyncConnection, run_id: int) -> tuple[datetime, str] | None:
    """Return when a live run is due, and its worker's time zone."""
    r, w = t.runs, t.workers
    asked = sa.select(r.c.due_at, w.c.timezone).join(w, w.c.name == r.c.worker).where(r.c.id == run_id)
    row = (await conn.execute(asked)).first()
    return None if row is None else (row.due_at, row.timezone)

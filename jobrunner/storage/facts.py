"""Reading what the gates judge: the workers that may be due, and everything they are related to.

Two steps. `due_names` finds which workers may have something due: a loose index scan over the waiting runs (one index
probe a worker, however many runs it has waiting) and, priority by priority, the first due schedules. `read_facts` then
reads those workers, their whole neighbourhood of dependencies and blocks, their active runs, and the first few waiting
runs of each, as many as could start at most. So a worker with a million waiting runs costs what one with ten does.

The same reading serves the tick before it takes a lock, the tick after it has, and `explain`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.model.run import Trigger
from jobrunner.model.worker import Dependency, DependencyCondition, Isolation
from jobrunner.policy.gates import ActiveRun, Candidate, Facts, WorkerFacts
from jobrunner.storage import tables as t
from jobrunner.storage.rows import CONFIG_COLUMNS, STATE_COLUMNS, config_of, names_json, state_of
from jobrunner.storage.rowsets import built_once, same
from jobrunner.storage.types import UtcDateTime

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.dialect import Dialect

PRIORITIES = (3, 2, 1, 0)
_PENDING = sa.literal_column("runs.state = 'pending'")  # a literal: a bound state would defeat the partial indexes
_FORCED_AT_MOST = 1000
_ALL = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Here:
    """The node that judges: the workers it has code for. `handlers` None means any live node (`explain`)."""

    handlers: Collection[str] | None
    allows_commands: bool = False


@dataclass(slots=True)
class Edges:
    """Dependencies and blocks around some workers, in both directions for blocks."""

    depends_on: defaultdict[str, list[Dependency]]
    counterparts: defaultdict[str, set[str]]

    @property
    def is_empty(self) -> bool:
        """Say whether nothing is related to anything."""
        return not self.depends_on and not self.counterparts

    def related(self, names: Iterable[str]) -> set[str]:
        """Return `names` with their dependencies and counterparts: the rows a claim must lock."""
        found = set(names)
        for name in tuple(found):
            found.update(edge.depends_on for edge in self.depends_on.get(name, ()))
            found.update(self.counterparts.get(name, ()))
        return found


@dataclass(frozen=True)
class _Statements:
    due_names: sa.Select[Any]
    edges: sa.Select[Any]
    workers: sa.Select[Any]
    runs: sa.CompoundSelect[Any]
    handlers: sa.Select[Any]
    next_due: sa.Select[Any]


@built_once
def statements(dialect: Dialect) -> _Statements:
    """Build the reading statements once for each database."""
    return _Statements(
        due_names=_due_names(dialect),
        edges=_edges(dialect),
        workers=_workers(dialect),
        runs=_runs(dialect),
        handlers=_handlers(dialect),
        next_due=_next_due(),
    )


def _now() -> sa.BindParameter[datetime]:
    return sa.bindparam("now", type_=UtcDateTime())


def _due_names(dialect: Dialect) -> sa.Select[Any]:
    """Names of workers with a due waiting run (kind 0), or with a due schedule (kind 1, at most :page a priority)."""
    r = t.runs
    first = sa.select(sa.func.min(r.c.worker).label("name")).where(_PENDING)
    waiting = first.cte("waiting", recursive=True)
    following = sa.select(sa.func.min(r.c.worker)).where(_PENDING, r.c.worker > waiting.c.name).scalar_subquery()
    waiting = waiting.union_all(sa.select(following).where(waiting.c.name.is_not(None)))
    # An EXISTS would be shorter, but PostgreSQL then reads all due runs into a hash: 40 ms for 300,000 instead of 1.
    first_due = [
        sa.select(r.c.due_at)
        .where(_PENDING, r.c.worker == waiting.c.name, same(r.c.priority, sa.literal_column(str(p))))
        .order_by(r.c.priority, r.c.due_at)
        .limit(1)
        .scalar_subquery()
        for p in PRIORITIES
    ]
    due = sa.or_(*(due_at <= _now() for due_at in first_due))
    s = t.worker_state
    parts: list[sa.Select[Any]] = [
        sa.select(waiting.c.name, sa.literal_column("0").label("kind")).where(waiting.c.name.is_not(None), due)
    ]
    for priority in PRIORITIES:
        page = (
            sa.select(s.c.worker.label("name"), s.c.next_run_at)
            .where(s.c.next_run_at.is_not(None), same(s.c.priority, sa.literal_column(str(priority))))
            .order_by(s.c.priority, s.c.next_run_at, s.c.worker)
            .limit(sa.bindparam("page", type_=sa.Integer()))
            .subquery()
        )
        kind = sa.literal_column(str(1 + priority)).label("kind")
        parts.append(sa.select(page.c.name, kind).where(page.c.next_run_at <= _now()))
    union = sa.union_all(*parts).subquery()
    return sa.select(union.c.name, union.c.kind)


def _edges(dialect: Dialect) -> sa.Select[Any]:
    """Every edge of the neighbourhood of :names, followed from worker to worker as far as it reaches."""
    d, b = t.worker_dependencies, t.worker_blocks
    given = dialect.rows("names", name=sa.Text())
    step = sa.union_all(
        sa.select(d.c.worker.label("name"), d.c.depends_on.label("other")),
        sa.select(b.c.worker, b.c.blocks),
        sa.select(b.c.blocks, b.c.worker),
    ).subquery("step")
    reach = sa.select(given.c.name.label("name")).cte("reach", recursive=True)
    reach = reach.union(sa.select(step.c.other).where(step.c.name == reach.c.name))
    names = sa.select(reach.c.name)
    none = sa.null()
    union = sa.union_all(
        sa.select(
            sa.literal_column("1").label("is_dependency"),
            d.c.worker.label("name"),
            d.c.depends_on.label("other"),
            d.c.condition.label("condition"),
            d.c.max_age_seconds.label("max_age_seconds"),
        ).where(d.c.worker.in_(names)),
        sa.select(
            sa.literal_column("0"), b.c.worker, b.c.blocks, sa.cast(none, sa.Text), sa.cast(none, sa.Double)
        ).where(b.c.worker.in_(names)),
    ).subquery()
    return sa.select(*union.c)


def _workers(dialect: Dialect) -> sa.Select[Any]:
    given = dialect.rows("names", name=sa.Text())
    return (
        sa.select(*CONFIG_COLUMNS, *STATE_COLUMNS)
        .select_from(given)
        .join(t.workers, t.workers.c.name == given.c.name)
        .join(t.worker_state, t.worker_state.c.worker == given.c.name)
    )


_RUN_COLUMNS = (
    "id",
    "worker",
    "slot",
    "node_id",
    "started_at",
    "trigger",
    "priority",
    "due_at",
    "attempt",
    "is_forced",
    "first_started_at",
)


def _runs(dialect: Dialect) -> sa.CompoundSelect[Any]:
    """Every run the gates look at, by kind: a(ctive), w(aiting and due), s(cheduled), r(etry, the first to be due).

    :names are all workers concerned; :few and :many the same names split by how many of their waiting runs could start
    at most: one, or :limit.
    """
    r = t.runs
    columns = [r.c[name] for name in _RUN_COLUMNS]
    names = dialect.rows("names", name=sa.Text())
    due = [_PENDING, r.c.due_at <= _now()]

    def first(kind: str, order: sa.Column[Any], *conditions: sa.ColumnElement[bool], most: int) -> sa.Select[Any]:
        return dialect.first_runs(names, kind, columns, conditions, order, most)

    state = t.worker_state
    probe = (
        sa.select(sa.literal_column("'w'").label("kind"), *columns)
        .select_from(names.join(state, state.c.worker == names.c.name).join(r, r.c.id == state.c.probe_run_id))
        .where(*due, r.c.worker == names.c.name)
    )
    return sa.union_all(
        first("a", r.c.slot, r.c.slot.is_not(None), most=_ALL),
        first("s", r.c.id, sa.literal_column("runs.trigger IN ('schedule', 'continuous')"), most=1),
        first("w", r.c.due_at, *due, sa.literal_column("runs.is_forced"), most=_FORCED_AT_MOST),
        first("r", r.c.due_at, _PENDING, sa.literal_column("runs.attempt > 1"), most=1),
        probe,
        dialect.first_waiting("few", sa.literal_column("1"), PRIORITIES, columns),
        dialect.first_waiting("many", sa.bindparam("limit", type_=sa.Integer()), PRIORITIES, columns),
    )


def _handlers(dialect: Dialect) -> sa.Select[Any]:
    """Names out of :names that some active node has the code of."""
    given = dialect.rows("names", name=sa.Text())
    h, n = t.node_handlers, t.nodes
    return sa.select(given.c.name).where(
        sa.exists().where(h.c.worker == given.c.name, h.c.node_id == n.c.id, n.c.state == sa.literal_column("'active'"))
    )


def _next_due() -> sa.Select[Any]:
    """The next times after :now at which something becomes due: a waiting run, a schedule, a probe, a pause's end."""
    r, s = t.runs, t.worker_state
    run = sa.select(sa.func.min(r.c.due_at)).where(_PENDING, r.c.due_at > _now()).scalar_subquery()
    schedule = (
        sa.select(sa.func.min(s.c.next_run_at))
        .where(s.c.next_run_at.is_not(None), s.c.next_run_at > _now())
        .scalar_subquery()
    )
    probe = (
        sa.select(sa.func.min(s.c.probe_at)).where(s.c.probe_at.is_not(None), s.c.probe_at > _now()).scalar_subquery()
    )
    pause = (
        sa.select(sa.func.min(s.c.paused_until))
        .where(s.c.paused_until.is_not(None), s.c.paused_until > _now())
        .scalar_subquery()
    )
    return sa.select(run, schedule, probe, pause)


async def due_names(conn: AsyncConnection, dialect: Dialect, now: datetime, page: int) -> tuple[set[str], bool]:
    """Return the workers that may have something due, and whether more schedules are due than `page` a priority."""
    rows = (await conn.execute(statements(dialect).due_names, {"now": now, "page": page})).all()
    counts: defaultdict[int, int] = defaultdict(int)
    for _, kind in rows:
        counts[kind] += 1
    has_more = any(counts[1 + priority] >= page for priority in PRIORITIES)
    return {name for name, _ in rows}, has_more


async def next_due_at(conn: AsyncConnection, dialect: Dialect, now: datetime) -> datetime | None:
    """Return when something becomes due next, after `now`; None when nothing is planned."""
    row = (await conn.execute(statements(dialect).next_due, {"now": now})).one()
    return min((moment for moment in row if moment is not None), default=None)


async def read_edges(conn: AsyncConnection, dialect: Dialect, names: Collection[str]) -> Edges:
    """Read the dependencies and blocks of the whole neighbourhood of `names`."""
    edges = Edges(defaultdict(list), defaultdict(set))
    if not names:
        return edges
    rows = (await conn.execute(statements(dialect).edges, {"names": names_json(names)})).all()
    for is_dependency, name, other, condition, max_age in rows:
        if is_dependency:
            edges.depends_on[name].append(Dependency(other, DependencyCondition(condition), max_age))
        else:
            edges.counterparts[name].add(other)
            edges.counterparts[other].add(name)
    return edges


async def read_facts(
    conn: AsyncConnection,
    dialect: Dialect,
    now: datetime,
    names: Collection[str],
    edges: Edges,
    here: Here,
    free_slots: int,
) -> Facts:
    """Read all that the gates need of `names` and of the workers that `edges` tie to them."""
    if not names:
        return Facts(now, {}, free_slots)
    wanted = _neighbourhood(names, edges)
    known = await _read_workers(conn, dialect, wanted, edges)
    await _add_runs(conn, dialect, now, known, free_slots)
    await _add_handlers(conn, dialect, known, here)
    return Facts(now, known, free_slots)


def _neighbourhood(names: Collection[str], edges: Edges) -> set[str]:
    if edges.is_empty:
        return set(names)
    wanted = set(names)
    while True:
        wider = edges.related(wanted)
        if len(wider) == len(wanted):
            return wanted
        wanted = wider


async def _read_workers(
    conn: AsyncConnection, dialect: Dialect, names: Collection[str], edges: Edges
) -> dict[str, WorkerFacts]:
    rows = (await conn.execute(statements(dialect).workers, {"names": names_json(names)})).all()
    split = len(CONFIG_COLUMNS)
    known = {}
    for row in rows:
        config = config_of(row[:split])
        known[config.name] = WorkerFacts(config, state_of(row[split:]))
    for name, worker in known.items():
        # A worker that was removed since the edges were read took them along: a foreign key sees to that.
        depends_on = tuple(edge for edge in edges.depends_on.get(name, ()) if edge.depends_on in known)
        counterparts = tuple(sorted(other for other in edges.counterparts.get(name, ()) if other in known))
        if depends_on or counterparts:
            config = replace(worker.config, depends_on=depends_on)
            known[name] = replace(worker, config=config, counterparts=counterparts)
    return known


async def _add_runs(
    conn: AsyncConnection, dialect: Dialect, now: datetime, known: dict[str, WorkerFacts], free_slots: int
) -> None:
    many = [name for name, worker in known.items() if worker.config.max_running > 1]
    few = [name for name, worker in known.items() if worker.config.max_running <= 1]
    parameters = {
        "now": now,
        "names": names_json(known),
        "few": names_json(few),
        "many": names_json(many),
        "limit": max(free_slots, 1),
    }
    rows = (await conn.execute(statements(dialect).runs, parameters)).all()
    active: defaultdict[str, list[ActiveRun]] = defaultdict(list)
    waiting: defaultdict[str, dict[int, Candidate]] = defaultdict(dict)
    scheduled: dict[str, int] = {}
    retries: dict[str, datetime] = {}
    for row in rows:
        if row.kind == "a":
            run = ActiveRun(row.id, row.worker, row.slot, row.node_id, row.started_at, Trigger(row.trigger))
            active[row.worker].append(run)
        elif row.kind == "w":
            waiting[row.worker][row.id] = _candidate(row)
        elif row.kind == "s":
            scheduled[row.worker] = row.id
        else:
            retries[row.worker] = row.due_at
            if row.due_at <= now:  # it may start where a new run may not: it has passed `fresh` already
                waiting[row.worker][row.id] = _candidate(row)
    for name in {*active, *waiting, *scheduled, *retries}:
        known[name] = replace(
            known[name],
            active=tuple(active.get(name, ())),
            waiting=tuple(waiting[name].values()) if name in waiting else (),
            scheduled_run=scheduled.get(name),
            waiting_retry=retries.get(name),
        )


def _candidate(row: Any) -> Candidate:
    return Candidate(
        row.worker,
        row.id,
        row.priority,
        row.due_at,
        row.attempt,
        bool(row.is_forced),
        row.first_started_at is not None,
    )


async def _add_handlers(conn: AsyncConnection, dialect: Dialect, known: dict[str, WorkerFacts], here: Here) -> None:
    missing = [name for name, worker in known.items() if not _has_handler(worker, here)]
    if not missing:
        return
    elsewhere = await live_handlers(conn, dialect, missing)
    commands = [name for name in missing if known[name].config.isolation is Isolation.COMMAND]
    if commands and await _some_node_allows_commands(conn):
        elsewhere.update(commands)
    for name in missing:
        is_anywhere = here.handlers is None and name in elsewhere
        known[name] = replace(known[name], has_handler=is_anywhere, has_handler_elsewhere=name in elsewhere)


def _has_handler(worker: WorkerFacts, here: Here) -> bool:
    if here.handlers is None:
        return False
    if worker.config.isolation is Isolation.COMMAND:
        return here.allows_commands
    return worker.config.name in here.handlers


async def live_handlers(conn: AsyncConnection, dialect: Dialect, names: Sequence[str]) -> set[str]:
    """Return those of `names` that some active node has the code of."""
    rows = await conn.execute(statements(dialect).handlers, {"names": names_json(names)})
    return set(rows.scalars())


async def _some_node_allows_commands(conn: AsyncConnection) -> bool:
    n = t.nodes
    found = await conn.execute(
        sa.select(n.c.id).where(n.c.state == sa.literal_column("'active'"), n.c.allows_commands).limit(1)
    )
    return found.first() is not None

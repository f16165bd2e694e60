"""Reading what the gates judge: the workers that may be due, and everything they are related to.

Two steps. `read_due` finds which workers may have something due: a loose index scan over the waiting runs (one index
probe a worker, however many runs it has waiting) and, priority by priority, the first due schedules. `read_around` then
reads those workers, their whole neighbourhood of dependencies and blocks, their active runs, and the first few waiting
runs of each, as many as could start at most. So a worker with a million waiting runs costs what one with ten does.

The same reading serves the tick before it takes a lock, the tick after it has, and `explain`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.model.facts import ActiveRun, Candidate, Facts, WorkerFacts
from jobrunner.model.limits import MAX_BIG_COUNT
from jobrunner.model.run import Trigger
from jobrunner.model.worker import Dependency, DependencyCondition, Isolation
from jobrunner.policy.limit_gates import goes_by_key
from jobrunner.storage.runs import limits
from jobrunner.storage.runs.fact_statements import PRIORITIES, statements
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.rows import CONFIG_COLUMNS, config_or_problem, names_json, state_of
from jobrunner.storage.workers.ahead import ahead_values

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.database.dialect import Dialect


@dataclass(frozen=True, slots=True)
class Here:
    """The node that judges: the workers it has code for. `handlers` None means any live node (`explain`).

    `asks_time`: the time of rates is the database's own, the same for all nodes, and not that which is given.
    """

    handlers: Collection[str] | None
    allows_commands: bool = False
    asks_time: bool = False


@dataclass(slots=True)
class Edges:
    """Dependencies and blocks around some workers, in both directions for blocks."""

    depends_on: defaultdict[str, list[Dependency]]
    counterparts: defaultdict[str, set[str]]

    @classmethod
    def none(cls) -> Edges:
        """Return no edges at all."""
        return cls(defaultdict(list), defaultdict(set))

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


@dataclass(frozen=True, slots=True)
class Due:
    """What may be due: the workers, and whether more schedules are than were asked for a priority.

    With no names, `next_at` says when something becomes due next (None: nothing is planned), and `is_ahead`, if it was
    asked, whether any wait seems to have begun ahead of now.
    """

    names: set[str]
    has_more: bool
    next_at: datetime | None
    is_ahead: bool | None = None


async def read_due(
    conn: AsyncConnection,
    dialect: Dialect,
    now: datetime,
    page: int,
    *,
    is_looking: bool = False,
    settled: Collection[str] = (),
) -> Due:
    """Find the workers that may have something due, of schedules at most `page` a priority.

    Whether any of `settled` has waiting runs that are due is not asked. With `is_looking`, and if there are none, say
    also whether any wait seems to have begun ahead of now.
    """
    asked = {"now": now, "page": page, "is_looking": is_looking, "settled": names_json(settled)}
    parameters = {**asked, **ahead_values(now)}
    rows = (await conn.execute(statements(dialect).due, parameters)).all()
    if rows[0][1] < 0:
        return Due(set(), has_more=False, next_at=_earliest(rows[0][2:6]), is_ahead=rows[0][6])
    counts = Counter(row[1] for row in rows)
    has_more = any(counts[1 + priority] >= page for priority in PRIORITIES)
    return Due({row[0] for row in rows}, has_more, None)


async def next_due_at(conn: AsyncConnection, dialect: Dialect, now: datetime) -> datetime | None:
    """Return when something becomes due next, after `now`; None when nothing is planned."""
    return _earliest((await conn.execute(statements(dialect).next_due, {"now": now})).one())


def _earliest(moments: Iterable[datetime | None]) -> datetime | None:
    return min((moment for moment in moments if moment is not None), default=None)


async def read_edges(conn: AsyncConnection, dialect: Dialect, names: Collection[str]) -> Edges:
    """Read the dependencies and blocks of the whole neighbourhood of `names`."""
    edges = Edges.none()
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


async def read_around(
    conn: AsyncConnection, dialect: Dialect, now: datetime, names: Collection[str], here: Here, free_slots: int
) -> tuple[Facts, Edges]:
    """Read the relations of `names` and all that the gates need, asking for relations only where there are any."""
    no_edges = Edges.none()
    if not names:
        return Facts(now, {}, free_slots), no_edges
    known, entangled, sharing = await _read_workers(conn, dialect, names)
    edges = no_edges
    if entangled:
        edges = await read_edges(conn, dialect, names)
        others = _neighbourhood(names, edges) - known.keys()
        if others:
            more, _, also_sharing = await _read_workers(conn, dialect, others)
            known |= more
            sharing |= also_sharing
        _relate(known, edges)
    await _add_runs(conn, dialect, now, known, free_slots)
    await _add_handlers(conn, dialect, known, here)
    if not sharing and not any(limits.is_limited(worker) for worker in known.values()):
        return Facts(now, known, free_slots), edges
    rated_at = await limits.database_time(conn) if here.asks_time else now
    asked = limits.Reading(conn, dialect, now, rated_at, max(free_slots, 1), _candidate)
    shared = await limits.add_limits(asked, known, sharing)
    return Facts(now, known, free_slots, shared, rated_at), edges


async def with_key_of(conn: AsyncConnection, dialect: Dialect, facts: Facts, run: Candidate) -> Facts:
    """Add what the key of a waiting run holds, which may stand behind all that were read."""
    known = dict(facts.workers)
    asked = limits.Reading(conn, dialect, facts.now, facts.rated_at or facts.now, 1, _candidate)
    await limits.add_key(asked, known, run)
    return replace(facts, workers=known)


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
    conn: AsyncConnection, dialect: Dialect, names: Collection[str]
) -> tuple[dict[str, WorkerFacts], set[str], set[str]]:
    """Read definitions and states, without relations; which of `names` have any, and which share a limit."""
    rows = (await conn.execute(statements(dialect).workers, {"names": names_json(names)})).all()
    split = len(CONFIG_COLUMNS)
    known = {}
    entangled, sharing = set(), set()
    for row in rows:
        config, problem = config_or_problem(row[:split])
        state = state_of(row[split:-3])
        if state.last_fence >= MAX_BIG_COUNT:
            problem = problem or f"its last_fence is {state.last_fence}, and no larger one can be drawn"
        known[config.name] = WorkerFacts(config, state, revision=row[-3], problem=problem)
        if row[-2]:
            entangled.add(config.name)
        if row[-1]:
            sharing.add(config.name)
    return known, entangled, sharing


def _relate(known: dict[str, WorkerFacts], edges: Edges) -> None:
    """Lay the relations over the workers read."""
    for name, worker in known.items():
        # A worker that was removed since the edges were read took them along: a foreign key sees to that.
        depends_on = tuple(edge for edge in edges.depends_on.get(name, ()) if edge.depends_on in known)
        counterparts = tuple(sorted(other for other in edges.counterparts.get(name, ()) if other in known))
        if depends_on or counterparts:
            config = replace(worker.config, depends_on=depends_on)
            known[name] = replace(worker, config=config, counterparts=counterparts)


async def _add_runs(
    conn: AsyncConnection, dialect: Dialect, now: datetime, known: dict[str, WorkerFacts], free_slots: int
) -> None:
    keyed = [name for name, worker in known.items() if goes_by_key(worker.config)]
    others = known.keys() - set(keyed)
    many = [name for name in others if known[name].config.max_running > 1]
    few = [name for name in others if known[name].config.max_running <= 1]
    parameters = {
        "now": now,
        "names": names_json(known),
        "few": names_json(few),
        "many": names_json(many),
        "limit": max(free_slots, 1),
        "keyed": names_json(keyed),
        "keyed_limit": limits.page_of(max(free_slots, 1)),
    }
    rows = (await conn.execute(statements(dialect).runs, parameters)).all()
    probes = [worker.state.probe_run_id for worker in known.values() if worker.state.probe_run_id is not None]
    if probes:
        rows = [*rows, *(await conn.execute(statements(dialect).probes, {"now": now, "probes": probes})).all()]
    active: defaultdict[str, list[ActiveRun]] = defaultdict(list)
    waiting: defaultdict[str, dict[int, Candidate]] = defaultdict(dict)
    scheduled: dict[str, int] = {}
    retries: dict[str, datetime] = {}
    for row in rows:
        if row.kind == "a":
            where = (row.id, row.worker, row.slot, row.node_id, row.started_at, Trigger(row.trigger))
            run = ActiveRun(*where, row.limit_key, row.key_slot)
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
        row.limit_key,
    )


async def _add_handlers(conn: AsyncConnection, dialect: Dialect, known: dict[str, WorkerFacts], here: Here) -> None:
    missing = [name for name, worker in known.items() if not _has_handler(worker, here)]
    if not missing:
        return
    aside = [name for name in missing if known[name].problem is not None]
    known |= {name: replace(known[name], has_handler=False) for name in aside}
    missing = [name for name in missing if known[name].problem is None]
    elsewhere = await live_handlers(conn, dialect, missing)
    commands = [name for name in missing if known[name].config.isolation is Isolation.COMMAND]
    if commands and await _some_node_allows_commands(conn):
        elsewhere.update(commands)
    for name in missing:
        is_anywhere = here.handlers is None and name in elsewhere
        known[name] = replace(known[name], has_handler=is_anywhere, has_handler_elsewhere=name in elsewhere)


def _has_handler(worker: WorkerFacts, here: Here) -> bool:
    if here.handlers is None or worker.problem is not None:
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

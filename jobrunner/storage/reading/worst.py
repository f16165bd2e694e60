"""Choosing the workers that a screen shows of many: the worst first, at the cost of index lookups.

How a worker is (`worker_status.health`) takes a dozen lookups, so it is not asked of 100,000 workers for a page of
them. What is disabled, paused or failing stands in a state of its own, which has an index. Whoever else may be in
trouble is a candidate: what is overdue, what has runs that are due for long, what runs, what failed or started last.
Only where there are more candidates than places is each of them asked. The rest is filled up in the order of names.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.model.run import OutcomeKind
from jobrunner.policy.filters import HEALTH, Filter
from jobrunner.storage.database.rowsets import level
from jobrunner.storage.reading.status import worker_status
from jobrunner.storage.runs.fact_statements import PRIORITIES
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.claims import claims
from jobrunner.storage.tables.matching import is_one_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

MOST_ASKED = 5000
"""So many workers, in the order of names, are asked how they are where nothing else says who fits a filter."""
_PAGE = 500
_FEWEST, _MOST = 50, 1000  # candidates of each kind
_STALLED = timedelta(seconds=60)  # as in the view: nothing is stalled before
_PENDING: sa.ColumnElement[bool] = sa.literal_column("runs.state = 'pending'")
_DISABLED: sa.ColumnElement[bool] = sa.literal_column("NOT worker_state.is_enabled")
_FAILING: sa.ColumnElement[bool] = sa.literal_column("worker_state.consecutive_failures > 0")
_PLACES = {health: place for place, health in enumerate(HEALTH)}


@dataclass(frozen=True, slots=True)
class Worst:
    """The names of workers, none twice; `asked` is how many were asked where that ended the search for more."""

    names: tuple[str, ...]
    asked: int | None = None


async def count_health(conn: AsyncConnection) -> dict[str, int]:
    """Count the workers by how they are: each is asked, so that they should be few."""
    view = worker_status()
    counts = sa.select(view.c.health, sa.func.count().label("n")).group_by(view.c.health)
    return {row.health: row.n for row in await conn.execute(counts)}


def by_harm(health: str, name: str) -> tuple[int, str]:
    """Return what workers are sorted by, the worst first."""
    return _PLACES[health], name


async def read_worst(conn: AsyncConnection, now: datetime, limit: int, wanted: Filter | None = None) -> Worst:
    """Return the names of the worst `limit` workers of those that are `wanted`: all, or what a filter says."""
    wanted = wanted or Filter()
    kinds = frozenset(wanted.health or HEALTH)
    found: dict[str, None] = {}
    for health, states in _of_switches(now).items():
        if health in kinds and len(found) < limit:
            found |= dict.fromkeys(await _names(conn, states, wanted, limit - len(found)))
    free = limit - len(found)
    if free == 0 or kinds <= _of_switches(now).keys():
        return Worst(tuple(found))
    others = [name for name in await _candidates(conn, now, wanted, free) if name not in found]
    if wanted.health or len(others) > free:
        health_of = await _ask(conn, others)
        others = [name for name in others if health_of.get(name) in kinds]
        others = sorted(others, key=lambda name: by_harm(health_of[name], name))[:free]
    found |= dict.fromkeys(others)
    return await _filled(conn, found, limit, wanted)


def _of_switches(now: datetime) -> dict[str, sa.Select[Any]]:
    """Select who is in trouble by its state alone, as the view says it."""
    s = t.worker_state
    is_on = sa.not_(_DISABLED)
    is_paused = sa.and_(s.c.paused_until.is_not(None), s.c.paused_until > now)
    has_failed = sa.and_(_FAILING, s.c.last_run_outcome != "succeeded")
    conditions = {
        "disabled": _DISABLED,
        "paused": sa.and_(is_paused, is_on),
        "failing": sa.and_(has_failed, is_on, sa.or_(s.c.paused_until.is_(None), s.c.paused_until <= now)),
    }
    return {health: sa.select(s.c.worker).where(each).order_by(s.c.worker) for health, each in conditions.items()}


async def _names(conn: AsyncConnection, statement: sa.Select[Any], wanted: Filter, limit: int) -> list[str]:
    """Read the names that a statement selects, of those that are wanted."""
    (name,) = statement.selected_columns
    return list((await conn.execute(statement.where(*_asked_of(name, wanted)).limit(limit))).scalars())


def _asked_of(name: sa.ColumnElement[str], wanted: Filter) -> Iterator[sa.ColumnElement[bool]]:
    w = t.workers.alias("w")
    if wanted.worker:
        yield is_one_of(name, wanted.worker)
    if wanted.mode:
        yield sa.exists().where(w.c.name == name, w.c.execution_mode.in_(wanted.mode))


async def _candidates(conn: AsyncConnection, now: datetime, wanted: Filter, free: int) -> list[str]:
    """Return who may be in trouble, none twice, those first that are so most likely."""
    s, r = t.worker_state, t.runs
    most = min(max(free, _FEWEST), _MOST)
    since = now - _STALLED
    overdue = sa.select(s.c.worker).where(s.c.next_run_at <= since).order_by(s.c.next_run_at)
    due = sa.select(r.c.worker).where(_PENDING, r.c.due_at <= since).order_by(r.c.due_at)
    active = sa.select(claims.c.worker)  # in no order: SQLite would take that of all runs
    statements = [overdue, due, _with_something_due(since), active, *map(_ended, _FAILURES), _ended(None)]
    looks = []
    for place, statement in enumerate(statements):
        # The limit comes before the filter: for what is wanted by few, all of history would be looked through.
        name = statement.limit(most).subquery().c.worker
        looks.append(sa.select(sa.literal(place).label("place"), name.label("worker")).where(*_asked_of(name, wanted)))
    rows = (await conn.execute(sa.union_all(*looks))).all()
    names = dict.fromkeys(row.worker for row in sorted(rows, key=itemgetter(0)))
    return await _existing(conn, list(names))


_FAILURES = (OutcomeKind.FAILED, OutcomeKind.TIMED_OUT, OutcomeKind.LOST)


def _ended(kind: OutcomeKind | None) -> sa.Select[Any]:
    """Select whose attempts ended last, so or anyhow."""
    h = t.run_history
    statement = sa.select(h.c.worker).order_by(h.c.id.desc())
    if kind is None:
        return statement
    # A bound value would hide the partial index, and SQLite wants its condition in so many words.
    is_so = h.c.outcome == sa.literal(str(kind), literal_execute=True)
    return statement.where(is_so, sa.literal_column("run_history.outcome <> 'succeeded'"))


def _with_something_due(since: datetime) -> sa.Select[Any]:
    """Select, in the order of names, of which workers a run is due since then: a step of the index for each worker.

    The runs that are due longest may all be of one worker.
    """
    r = t.runs
    in_order = (r.c.worker, r.c.priority, r.c.due_at, r.c.id)
    first = sa.select(r.c.worker, sa.literal(1).label("place")).where(_PENDING).order_by(*in_order).limit(1)
    walk = sa.select(first.subquery()).cte("walk", recursive=True)
    next_name = sa.select(r.c.worker).where(_PENDING, r.c.worker > walk.c.worker).order_by(*in_order).limit(1)
    walk = walk.union_all(
        sa.select(next_name.correlate(walk).scalar_subquery(), walk.c.place + 1).where(
            walk.c.worker.is_not(None), walk.c.place < _MOST
        )
    )
    levels = [  # as ranges and in order: else PostgreSQL reads all runs where it has seen few workers wait
        sa.select(r.c.due_at)
        .where(_PENDING, level(r.c.worker, walk.c.worker), level(r.c.priority, sa.literal(priority)))
        .order_by(*in_order)
        .limit(1)
        .correlate(walk)
        .scalar_subquery()
        <= since
        for priority in PRIORITIES
    ]
    return sa.select(walk.c.worker).where(walk.c.worker.is_not(None), sa.or_(*levels))


async def _existing(conn: AsyncConnection, names: Sequence[str]) -> list[str]:
    """Return those of the names, in their order, that are workers: history keeps what was removed."""
    w = t.workers
    known = set((await conn.execute(sa.select(w.c.name).where(w.c.name.in_(names)))).scalars()) if names else set()
    return [name for name in names if name in known]


async def _ask(conn: AsyncConnection, names: Iterable[str]) -> dict[str, str]:
    view = worker_status()
    asked = sa.select(view.c.name, view.c.health).where(view.c.name.in_(list(names)))
    return {row.name: row.health for row in await conn.execute(asked)}


async def _filled(conn: AsyncConnection, found: dict[str, None], limit: int, wanted: Filter) -> Worst:
    """Fill the places that are left in the order of names; each worker is asked how it is if the filter does."""
    names, seen, last = dict(found), 0, ""
    w = t.workers
    while len(names) < limit:
        page = limit + 1 if not wanted.health else _PAGE
        statement = sa.select(w.c.name).where(w.c.name > last).order_by(w.c.name)
        some = await _names(conn, statement, wanted, page)
        new = [name for name in some if name not in names]
        if wanted.health:
            health_of = await _ask(conn, new)
            new = [name for name in new if health_of.get(name) in wanted.health]
        names |= dict.fromkeys(new[: limit - len(names)])
        seen += len(some)
        if len(some) < page:
            break
        if wanted.health and seen >= MOST_ASKED and len(names) < limit:
            return Worst(tuple(names), seen)
        last = some[-1]
    return Worst(tuple(names))

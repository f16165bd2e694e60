"""The statements that read what limits hold, built once for each database; `storage.runs.limits` runs them.

Starts in a rate's window are those of the attempts that run and of those that have ended. Each has a row in `runs` or
in `run_history`, at every moment exactly one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.storage.database.rowsets import built_once, level
from jobrunner.storage.runs.fact_statements import PENDING, RUN_COLUMNS
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.claims import among, claims, is_active
from jobrunner.storage.tables.types import UtcDateTime

if TYPE_CHECKING:
    from jobrunner.storage.database.dialect import Dialect

MOST_KEYS = 10_000
_KEYED: sa.ColumnElement[bool] = sa.literal_column("runs.limit_key IS NOT NULL")
_RATED: sa.ColumnElement[bool] = sa.literal_column("run_history.is_rated")


@dataclass(frozen=True)
class LimitStatements:
    """The statements of one database."""

    lock: sa.Select[Any]
    shared: sa.Select[Any]
    holders: sa.Select[Any]
    last_ends: sa.Select[Any]
    worker_windows: sa.Select[Any]
    limit_windows: sa.Select[Any]
    keys: sa.Select[Any]
    heads: sa.Select[Any]
    waiting: sa.Select[Any]


@built_once
def statements(dialect: Dialect) -> LimitStatements:
    """Build the statements once for each database."""
    n, wl = t.limits, t.worker_limits
    names = dialect.rows("names", name=sa.Text())
    of_them = sa.select(wl.c.limit_name).where(wl.c.worker.in_(sa.select(names.c.name)))
    lock = sa.select(n.c.name).where(n.c.name.in_(of_them)).order_by(n.c.name).with_for_update(key_share=True, of=n)
    given = dialect.rows("names", name=sa.Text())
    shared = (
        sa.select(wl.c.worker, n.c.name, n.c.max_running, n.c.rate)
        .select_from(given.join(wl, wl.c.worker == given.c.name).join(n, n.c.name == wl.c.limit_name))
        .order_by(wl.c.worker, n.c.name)
    )
    return LimitStatements(
        lock=lock,
        shared=shared,
        holders=_holders(dialect),
        last_ends=_last_ends(dialect),
        worker_windows=_worker_windows(dialect),
        limit_windows=_limit_windows(dialect),
        keys=_keys(dialect),
        heads=_heads(dialect),
        waiting=_waiting(dialect),
    )


def _holders(dialect: Dialect) -> sa.Select[Any]:
    """The active runs of all workers that name one of :limits, the oldest first."""
    r, wl = t.runs, t.worker_limits
    given = dialect.rows("limits", name=sa.Text())
    columns = (r.c.id, r.c.worker, r.c.slot, r.c.node_id, r.c.started_at, r.c.trigger)
    source = (
        given.join(wl, wl.c.limit_name == given.c.name)
        .join(claims, claims.c.worker == wl.c.worker)
        .join(r, r.c.id == claims.c.run_id)
    )
    return sa.select(given.c.name.label("limit_name"), *columns).select_from(source).order_by(r.c.started_at, r.c.id)


def _last_ends(dialect: Dialect) -> sa.Select[Any]:
    """When a run last ended of the workers that name one of :limits."""
    s, wl = t.worker_state, t.worker_limits
    given = dialect.rows("limits", name=sa.Text())
    last = sa.func.max(s.c.last_ended_at, type_=UtcDateTime())
    source = given.join(wl, wl.c.limit_name == given.c.name).join(s, s.c.worker == wl.c.worker)
    return sa.select(given.c.name, last).select_from(source).group_by(given.c.name)


def _counted(starts: sa.CompoundSelect[Any], most: sa.ColumnElement[int]) -> tuple[Any, Any]:
    """Return how many starts there are, and the one that is the `most`-th, from the newest."""
    each = starts.subquery("starts")
    place = sa.func.row_number().over(order_by=each.c.at.desc()).label("place")
    placed = sa.select(each.c.at, place).subquery("placed")
    last = sa.select(sa.func.max(placed.c.at, type_=UtcDateTime())).where(placed.c.place == most)
    return sa.select(sa.func.count()).select_from(each).scalar_subquery(), last.scalar_subquery()


def _within(at: sa.ColumnElement[Any], given: sa.FromClause) -> tuple[sa.ColumnElement[bool], ...]:
    """Say that a start shares a window with one now: be it ahead, where a clock has gone back since."""
    return at > given.c.since, at < given.c.until


def _worker_windows(dialect: Dialect) -> sa.Select[Any]:
    """Of each of :windows (name, most, since, until) how many rated starts there are, and the oldest that counts."""
    h, r = t.run_history, t.runs
    given = dialect.rows("windows", name=sa.Text(), most=sa.Integer(), since=UtcDateTime(), until=UtcDateTime())
    ended = sa.select(h.c.started_at.label("at")).where(
        _RATED, level(h.c.worker, given.c.name), *_within(h.c.started_at, given)
    )
    running = sa.select(r.c.started_at).where(is_active(given.c.name), *_within(r.c.started_at, given))
    starts = sa.union_all(ended.correlate(given), running.correlate(given))
    return sa.select(given.c.name, *_counted(starts, given.c.most)).select_from(given)


def _limit_windows(dialect: Dialect) -> sa.Select[Any]:
    """The same of limits that workers share: of all workers that name them."""
    h, r, wl = t.run_history, t.runs, t.worker_limits
    given = dialect.rows("windows", name=sa.Text(), most=sa.Integer(), since=UtcDateTime(), until=UtcDateTime())
    ended = (
        sa.select(h.c.started_at.label("at"))
        .select_from(wl.join(h, h.c.worker == wl.c.worker))
        .where(wl.c.limit_name == given.c.name, _RATED, *_within(h.c.started_at, given))
    )
    running = (
        sa.select(r.c.started_at)
        .select_from(wl.join(claims, claims.c.worker == wl.c.worker).join(r, r.c.id == claims.c.run_id))
        .where(wl.c.limit_name == given.c.name, *_within(r.c.started_at, given))
    )
    starts = sa.union_all(ended.correlate(given), running.correlate(given))
    return sa.select(given.c.name, *_counted(starts, given.c.most)).select_from(given)


def _keys(dialect: Dialect) -> sa.Select[Any]:
    """What is known of :keys (name, key, most, since, until): the oldest run in turn, the last start, the window."""
    h, r = t.run_history, t.runs
    times = {"since": UtcDateTime(), "until": UtcDateTime()}
    given = dialect.rows("keys", name=sa.Text(), key=sa.Text(), most=sa.Integer(), **times)
    of_key = (h.c.worker == given.c.name, h.c.limit_key == given.c.key)
    ended = sa.select(h.c.started_at.label("at")).where(*of_key, *_within(h.c.started_at, given))
    running = sa.select(r.c.started_at).where(
        is_active(given.c.name), r.c.limit_key == given.c.key, *_within(r.c.started_at, given)
    )
    starts = sa.union_all(ended.correlate(given), running.correlate(given))
    first = _first_in_turn(given.c.name, given.c.key).correlate(given).scalar_subquery()
    last = sa.select(sa.func.max(h.c.started_at)).where(*of_key).correlate(given).scalar_subquery()
    columns = (first.label("first"), last.label("last"), *_counted(starts, given.c.most))
    return sa.select(given.c.name, given.c.key, *columns).select_from(given)


def _first_in_turn(name: sa.ColumnElement[str], key: sa.ColumnElement[str]) -> sa.Select[Any]:
    r = t.runs
    now = sa.bindparam("now", type_=UtcDateTime())
    is_in_turn = sa.or_(r.c.due_at <= now, r.c.first_started_at.is_not(None))
    found = sa.select(r.c.id).where(PENDING, _KEYED, level(r.c.worker, name), level(r.c.limit_key, key), is_in_turn)
    return found.order_by(r.c.worker, r.c.limit_key, r.c.id).limit(1)


def _heads(dialect: Dialect) -> sa.Select[Any]:
    """Every key that waiting runs of :names have, one step of an index each: what waits first, and the last start.

    Columns: name, key, `first` and `last` as in `_keys`, then id, priority and `due_at` of the oldest run that is due.
    That a younger one of the key has a higher priority is seen only where it is among the first of that priority.
    """
    h, r = t.run_history, t.runs
    given = dialect.rows("names", name=sa.Text())
    least = sa.select(sa.func.min(r.c.limit_key)).where(PENDING, _KEYED)
    begun = least.where(r.c.worker == given.c.name).correlate(given).scalar_subquery()
    known = sa.select(given.c.name.label("name"), begun.label("key")).cte("known", recursive=True)
    further = least.where(r.c.worker == known.c.name, r.c.limit_key > known.c.key).correlate(known).scalar_subquery()
    known = known.union_all(sa.select(known.c.name, further).where(known.c.key.is_not(None)))
    keys = sa.select(known.c.name, known.c.key).where(known.c.key.is_not(None)).limit(MOST_KEYS).subquery("keys")
    now = sa.bindparam("now", type_=UtcDateTime())

    def first_due(column: sa.Column[Any]) -> sa.ScalarSelect[Any]:
        place = level(r.c.worker, keys.c.name), level(r.c.limit_key, keys.c.key)
        found = sa.select(column).where(PENDING, _KEYED, *place, r.c.due_at <= now)
        return found.order_by(r.c.worker, r.c.limit_key, r.c.id).limit(1).correlate(keys).scalar_subquery()

    firsts = [first_due(column) for column in (r.c.id, r.c.priority, r.c.due_at)]
    first = _first_in_turn(keys.c.name, keys.c.key).correlate(keys).scalar_subquery().label("first")
    last = sa.select(sa.func.max(h.c.started_at)).where(h.c.worker == keys.c.name, h.c.limit_key == keys.c.key)
    return sa.select(keys.c.name, keys.c.key, first, last.correlate(keys).scalar_subquery().label("last"), *firsts)


def _waiting(dialect: Dialect) -> sa.Select[Any]:
    """The runs :ids, as kind w. That they wait is not asked here: a planner might look through all that do."""
    given = dialect.rows("ids", id=sa.BigInteger())
    columns = [t.runs.c[name] for name in RUN_COLUMNS]
    kind: sa.ColumnElement[str] = sa.literal_column("'w'")
    return sa.select(kind.label("kind"), *columns).where(among(sa.select(given.c.id).scalar_subquery()))

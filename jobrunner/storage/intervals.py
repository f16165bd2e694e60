"""What history says about time: promises 3 and 4 as single statements, for `verify`.

The database sorts and counts (window functions, which spill to disk), and only violations come back: memory stays
bounded on both databases, however long the history is. Every attempt is an interval from `started_at` to `finished_at`;
one that runs now has no end yet. Intervals that only touch do not overlap; with a tolerance each is taken to have ended
that much earlier.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.storage import tables as t
from jobrunner.storage.types import UtcDateTime

if TYPE_CHECKING:
    from datetime import timedelta

_NOT_YET = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_RUNS_NOW: sa.ColumnElement[bool] = sa.literal_column("runs.state <> 'pending'")
_ENDED: sa.ColumnElement[bool] = sa.literal_column("run_history.ends_run IN ('succeeded', 'exhausted')")
_TRIES_AGAIN: sa.ColumnElement[bool] = sa.literal_column(
    "run_history.ends_run IS NULL"
    " AND (run_history.outcome IN ('failed', 'timed_out', 'lost') OR run_history.attempt > 1)"
)


@dataclass(frozen=True, slots=True)
class Rules:
    """How to read the intervals: by how far two may overlap, and how that is written in the database's SQL."""

    tolerance: timedelta
    is_sqlite: bool

    def end(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """The end of an interval as it counts."""
        if not self.tolerance:
            return column
        if self.is_sqlite:
            shift = f"-{self.tolerance.total_seconds():.3f} seconds"
            text = sa.func.strftime("%Y-%m-%d %H:%M:%f", column, shift).concat("000")
            return sa.type_coerce(text, UtcDateTime())
        earlier = sa.type_coerce(column, sa.DateTime(timezone=True)) - sa.literal(self.tolerance, sa.Interval())
        return sa.type_coerce(earlier, UtcDateTime())


def _never() -> sa.ColumnElement[datetime]:
    return sa.literal(_NOT_YET, UtcDateTime())


def _changed(*workers: Any) -> list[Any]:
    """When each definition involved last changed."""
    return [worker.c.updated_at for worker in workers]


def too_many(rules: Rules) -> sa.Select[Any]:
    """Starts at which more runs of a worker were active than its `max_running`: worker, run_id, at, active, most."""
    h, r, w = t.run_history, t.runs, t.workers
    end = rules.end(h.c.finished_at)
    since = sa.and_(h.c.started_at >= w.c.updated_at, end > h.c.started_at)
    ended = h.join(w, w.c.name == h.c.worker)
    one: sa.Label[int] = sa.literal_column("1").label("change")
    less: sa.Label[int] = sa.literal_column("-1").label("change")
    changes = sa.union_all(
        sa.select(h.c.worker, h.c.run_id, h.c.started_at.label("at"), one).select_from(ended).where(since),
        sa.select(h.c.worker, h.c.run_id, end, less).select_from(ended).where(since),
        sa.select(r.c.worker, r.c.id, r.c.started_at, one)
        .join(w, w.c.name == r.c.worker)
        .where(_RUNS_NOW, r.c.started_at >= w.c.updated_at),
    ).subquery("changes")
    active = sa.func.sum(changes.c.change).over(
        partition_by=changes.c.worker, order_by=(changes.c.at, changes.c.change), rows=(None, 0)
    )
    counted = sa.select(changes, active.label("active")).subquery("counted")
    return (
        sa.select(counted.c.worker, counted.c.run_id, counted.c.at, counted.c.active, w.c.max_running.label("most"))
        .join(w, w.c.name == counted.c.worker)
        .where(counted.c.change == sa.literal_column("1"), counted.c.active > w.c.max_running)
    )


def together(rules: Rules) -> sa.Select[Any]:
    """Starts of a worker while a blocked counterpart ran: worker, run_id, at, other."""
    h, r, b = t.run_history, t.runs, t.worker_blocks
    one, two = t.workers.alias("one"), t.workers.alias("two")
    pairs = b.join(one, one.c.name == b.c.worker).join(two, two.c.name == b.c.blocks)
    pair = [b.c.worker.label("a"), b.c.blocks.label("b")]

    def since(column: Any) -> sa.ColumnElement[bool]:
        return sa.and_(*(column >= changed for changed in _changed(one, two)))

    intervals = sa.union_all(
        sa.select(*pair, h.c.worker, h.c.run_id, h.c.started_at.label("at"), rules.end(h.c.finished_at).label("until"))
        .select_from(pairs.join(h, h.c.worker.in_((b.c.worker, b.c.blocks))))
        .where(since(h.c.started_at)),
        sa.select(*pair, r.c.worker, r.c.id, r.c.started_at, _never())
        .select_from(pairs.join(r, r.c.worker.in_((b.c.worker, b.c.blocks))))
        .where(_RUNS_NOW, since(r.c.started_at)),
    ).subquery("intervals")
    i = intervals.c

    def until(name: Any) -> sa.ColumnElement[Any]:
        """Until when the last of `name` that started before this row ran."""
        return sa.func.max(sa.case((i.worker == name, i.until))).over(
            partition_by=(i.a, i.b), order_by=(i.at, i.run_id), rows=(None, -1)
        )

    seen = sa.select(intervals, until(i.a).label("until_a"), until(i.b).label("until_b")).subquery("seen")
    other = sa.case((seen.c.worker == seen.c.a, seen.c.b), else_=seen.c.a)
    busy = sa.case((seen.c.worker == seen.c.a, seen.c.until_b), else_=seen.c.until_a)
    return sa.select(seen.c.worker, seen.c.run_id, seen.c.at, other.label("other")).where(
        busy > seen.c.at, seen.c.until > seen.c.at
    )


def active_at(worker: str, at: datetime) -> sa.CompoundSelect[Any]:
    """The run ids of a worker that were active at a moment."""
    h, r = t.run_history, t.runs
    return sa.union_all(
        sa.select(h.c.run_id).where(h.c.worker == worker, h.c.started_at <= at, h.c.finished_at > at),
        sa.select(r.c.id).where(r.c.worker == worker, _RUNS_NOW, r.c.started_at <= at),
    )


def out_of_order(rules: Rules, kept_since: datetime) -> sa.Select[Any]:
    """Starts of a worker whose dependency was not met: worker, run_id, at, depends_on, and why.

    `is_busy`: the dependency ran, or a run of it was to be tried again. `has_failed`: its last run that ended had
    failed. Neither: it had never succeeded.

    Args:
        rules: how to read intervals.
        kept_since: what ended from here on has not been pruned.
    """
    events = sa.union_all(*_starts(), *_busy(rules), _ends()).subquery("events")
    e = events.c

    def latest(value: Any) -> sa.ColumnElement[Any]:
        """The greatest value among the rows up to this one; in the same moment, the dependency's come first."""
        return sa.func.max(value).over(
            partition_by=(e.worker, e.depends_on), order_by=(e.at, e.is_start, e.run_id), rows=(None, 0)
        )

    succeeded, failed = e.ends_run == "succeeded", e.ends_run == "exhausted"
    seen = sa.select(
        events,
        latest(e.until).label("busy_until"),
        latest(sa.case((succeeded, e.at))).label("succeeded_at"),
        latest(sa.case((failed, e.at))).label("failed_at"),
        latest(sa.case((succeeded, e.id))).label("succeeded_id"),
        latest(sa.case((failed, e.id))).label("failed_id"),
    ).subquery("seen")
    s, other = seen.c, t.workers
    is_busy = sa.func.coalesce(s.busy_until > s.at, sa.false())
    # By time and by id: of two ends within a moment, the order of the ids is that of their commits.
    is_later = sa.and_(s.failed_at > s.succeeded_at, s.failed_id > s.succeeded_id)
    has_failed = sa.and_(s.failed_at >= kept_since, sa.or_(s.succeeded_at.is_(None), is_later))
    never = sa.and_(s.succeeded_at.is_(None), s.failed_at.is_(None), other.c.created_at >= kept_since)
    return (
        sa.select(s.worker, s.run_id, s.at, s.depends_on, is_busy.label("is_busy"), has_failed.label("has_failed"))
        .join(other, other.c.name == s.depends_on)
        .where(s.is_start == 1, sa.or_(is_busy, has_failed, never))
    )


def _edges() -> tuple[Any, Any]:
    d = t.worker_dependencies
    one, two = t.workers.alias("one"), t.workers.alias("two")
    edges = d.join(one, one.c.name == d.c.worker).join(two, two.c.name == d.c.depends_on)
    return edges, _changed(one, two)


def _event(
    run_id: Any, at: Any, *, is_start: int, until: Any = None, ends_run: Any = None, row: Any = None
) -> list[Any]:
    d, h = t.worker_dependencies, t.run_history
    return [
        d.c.worker.label("worker"),
        d.c.depends_on.label("depends_on"),
        run_id.label("run_id"),
        at.label("at"),
        sa.literal_column(str(is_start)).label("is_start"),
        (sa.cast(sa.null(), h.c.finished_at.type) if until is None else until).label("until"),
        (sa.cast(sa.null(), sa.Text) if ends_run is None else ends_run).label("ends_run"),
        (sa.cast(sa.null(), sa.BigInteger) if row is None else row).label("id"),
    ]


def _starts() -> list[sa.Select[Any]]:
    """The starts of workers that depend on something; forced ones may start at any time."""
    d, h, r = t.worker_dependencies, t.run_history, t.runs
    edges, changed = _edges()
    return [
        sa.select(*_event(h.c.run_id, h.c.started_at, is_start=1))
        .select_from(edges.join(h, h.c.worker == d.c.worker))
        .where(sa.not_(h.c.is_forced), *(h.c.started_at >= moment for moment in changed)),
        sa.select(*_event(r.c.id, r.c.started_at, is_start=1))
        .select_from(edges.join(r, r.c.worker == d.c.worker))
        .where(sa.not_(r.c.is_forced), _RUNS_NOW, *(r.c.started_at >= moment for moment in changed)),
    ]


def _busy(rules: Rules) -> list[sa.Select[Any]]:
    """The times in which a dependency was not idle: it ran, or a run of it waited to be tried again."""
    d, h, r = t.worker_dependencies, t.run_history, t.runs
    edges, changed = _edges()
    n = t.run_history.alias("n")
    # The run's next row: by the unique index on (run_id, fence), since fences grow.
    following = (
        sa.select(sa.func.coalesce(n.c.started_at, n.c.finished_at))
        .where(n.c.run_id == h.c.run_id, n.c.id > h.c.id)
        .order_by(n.c.id)
        .limit(1)
        .correlate(h)
        .scalar_subquery()
    )
    live = (
        sa.select(sa.func.coalesce(r.c.started_at, _never())).where(r.c.id == h.c.run_id).correlate(h).scalar_subquery()
    )
    end = rules.end(h.c.finished_at)
    until = sa.case((_TRIES_AGAIN, sa.func.coalesce(following, live, end)), else_=end)
    return [
        sa.select(*_event(h.c.run_id, h.c.started_at, is_start=0, until=sa.type_coerce(until, UtcDateTime())))
        .select_from(edges.join(h, h.c.worker == d.c.depends_on))
        .where(*(h.c.started_at >= moment for moment in changed)),
        sa.select(*_event(r.c.id, r.c.started_at, is_start=0, until=_never()))
        .select_from(edges.join(r, r.c.worker == d.c.depends_on))
        .where(_RUNS_NOW, *(r.c.started_at >= moment for moment in changed)),
    ]


def _ends() -> sa.Select[Any]:
    """The ends of a dependency's runs that say whether it last succeeded."""
    d, h = t.worker_dependencies, t.run_history
    at = h.c.finished_at
    return (
        sa.select(*_event(h.c.run_id, at, is_start=0, ends_run=h.c.ends_run, row=h.c.id))
        .select_from(d.join(h, h.c.worker == d.c.depends_on))
        .where(_ENDED)
    )

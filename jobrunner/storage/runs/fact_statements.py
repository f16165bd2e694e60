"""The statements that read what the gates judge, built once for each database; `storage.runs.facts` runs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.storage.database.rowsets import built_once, same
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.claims import is_active
from jobrunner.storage.tables.rows import CONFIG_COLUMNS, STATE_COLUMNS
from jobrunner.storage.tables.types import UtcDateTime
from jobrunner.storage.workers.ahead import is_any_ahead

if TYPE_CHECKING:
    from datetime import datetime

    from jobrunner.storage.database.dialect import Dialect

PRIORITIES = (3, 2, 1, 0)
PENDING: sa.ColumnElement[bool] = sa.literal_column(
    "runs.state = 'pending'"
)  # a literal: a bound state would defeat the partial indexes
_FORCED_AT_MOST = 1000
_ALL = 2**31 - 1


@dataclass(frozen=True)
class Statements:
    """The reading statements of one database."""

    due: sa.CompoundSelect[Any]
    edges: sa.Select[Any]
    workers: sa.Select[Any]
    runs: sa.CompoundSelect[Any]
    probes: sa.Select[Any]
    handlers: sa.Select[Any]
    next_due: sa.Select[Any]


@built_once
def statements(dialect: Dialect) -> Statements:
    """Build the reading statements once for each database."""
    return Statements(
        due=_due(dialect),
        edges=_edges(dialect),
        workers=_workers(dialect),
        runs=_runs(dialect),
        probes=_probes(),
        handlers=_handlers(dialect),
        next_due=_next_due(),
    )


def _now() -> sa.BindParameter[datetime]:
    return sa.bindparam("now", type_=UtcDateTime())


def _due(dialect: Dialect) -> sa.CompoundSelect[Any]:
    """Names of workers with a due waiting run (kind 0), or with a due schedule (kind 1, at most :page a priority).

    The waiting runs of :settled are not looked at, nor stepped over: the search goes from name to name between them.
    If there are none, one row of kind -1 with the times of `_next_due`, and with :is_looking whether any wait began
    ahead of now (`storage.workers.ahead`): a tick that finds nothing asks once.
    """
    r = t.runs
    given = dialect.rows("settled", name=sa.Text())
    known = sa.union_all(sa.select(sa.literal_column("''").label("name")), sa.select(given.c.name)).subquery("known")
    before = sa.func.lead(known.c.name).over(order_by=known.c.name).label("before")
    gaps = sa.select(known.c.name, before, sa.literal_column("0").label("is_found"))
    waiting = gaps.cte("waiting", recursive=True)
    further = sa.select(sa.func.min(r.c.worker)).where(PENDING, r.c.worker > waiting.c.name)
    following = sa.case(
        (waiting.c.before.is_(None), further.scalar_subquery()),
        else_=further.where(r.c.worker < waiting.c.before).scalar_subquery(),
    )
    waiting = waiting.union_all(
        sa.select(following, waiting.c.before, sa.literal_column("1")).where(waiting.c.name.is_not(None))
    )
    # An EXISTS would be shorter, but PostgreSQL then reads all due runs into a hash: 40 ms for 300,000 instead of 1.
    first_due = [
        sa.select(r.c.due_at)
        .where(PENDING, r.c.worker == waiting.c.name, same(r.c.priority, sa.literal_column(str(p))))
        .order_by(r.c.priority, r.c.due_at)
        .limit(1)
        .scalar_subquery()
        for p in PRIORITIES
    ]
    is_due = sa.or_(*(due_at <= _now() for due_at in first_due))
    s = t.worker_state
    parts: list[sa.Select[Any]] = [
        sa.select(waiting.c.name, sa.literal_column("0").label("kind")).where(
            waiting.c.is_found == sa.literal_column("1"), waiting.c.name.is_not(None), is_due
        )
    ]
    for priority in PRIORITIES:
        page = (
            sa.select(s.c.worker.label("name"), s.c.next_run_at)
            .where(s.c.next_run_at.is_not(None), same(s.c.priority, sa.literal_column(str(priority))))
            .order_by(s.c.priority, s.c.next_run_at, s.c.worker)
            .limit(sa.bindparam("page", type_=sa.Integer()))
            .subquery()
        )
        kind: sa.Label[Any] = sa.literal_column(str(1 + priority)).label("kind")
        parts.append(sa.select(page.c.name, kind).where(page.c.next_run_at <= _now()))
    due = sa.union_all(*parts).cte("due")
    no_times = [sa.type_coerce(sa.null(), UtcDateTime()) for _ in range(4)]
    look = sa.case((sa.bindparam("is_looking", type_=sa.Boolean()), is_any_ahead()))
    nothing = sa.select(sa.null(), sa.literal_column("-1"), *next_times(), look).where(~sa.exists().select_from(due))
    return sa.select(due.c.name, due.c.kind, *no_times, sa.cast(sa.null(), sa.Boolean)).union_all(nothing)


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


def _revision_and_relations(given: sa.FromClause) -> list[sa.ColumnElement[Any]]:
    d, b = t.worker_dependencies, t.worker_blocks
    is_entangled = sa.or_(
        sa.exists().where(d.c.worker == given.c.name),
        sa.exists().where(b.c.worker == given.c.name),
        sa.exists().where(b.c.blocks == given.c.name),
    )
    is_sharing = sa.exists().where(t.worker_limits.c.worker == given.c.name)
    return [t.workers.c.revision + t.worker_state.c.revision, is_entangled, is_sharing]


def _workers(dialect: Dialect) -> sa.Select[Any]:
    """Definition and state of :names; then the revision, whether the worker has any relation, and any shared limit."""
    given = dialect.rows("names", name=sa.Text())
    return (
        sa.select(*CONFIG_COLUMNS, *STATE_COLUMNS, *_revision_and_relations(given))
        .select_from(given)
        .join(t.workers, t.workers.c.name == given.c.name)
        .join(t.worker_state, t.worker_state.c.worker == given.c.name)
    )


RUN_COLUMNS = (
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
    "limit_key",
    "key_slot",
)


def _runs(dialect: Dialect) -> sa.CompoundSelect[Any]:
    """Every run the gates look at, by kind: a(ctive), w(aiting and due), s(cheduled), r(etry, the first to be due).

    :names are all workers concerned; :few and :many the same names split by how many of their waiting runs could start
    at most: one, or :limit; :keyed those of which :keyed_limit are read, since it matters which key they have.
    """
    r = t.runs
    columns = [r.c[name] for name in RUN_COLUMNS]
    names = dialect.rows("names", name=sa.Text())
    due = [PENDING, r.c.due_at <= _now()]

    def first(kind: str, order: sa.Column[Any], *conditions: sa.ColumnElement[bool], most: int) -> sa.Select[Any]:
        return dialect.first_runs(names, kind, columns, conditions, order, most)

    return sa.union_all(
        first("a", r.c.slot, is_active(names.c.name), most=_ALL),
        first("s", r.c.id, sa.literal_column("runs.trigger IN ('schedule', 'continuous')"), most=1),
        first("w", r.c.due_at, *due, sa.literal_column("runs.is_forced"), most=_FORCED_AT_MOST),
        first("r", r.c.due_at, PENDING, sa.literal_column("runs.attempt > 1"), most=1),
        dialect.first_waiting("few", sa.literal_column("1"), PRIORITIES, columns),
        dialect.first_waiting("many", sa.bindparam("limit", type_=sa.Integer()), PRIORITIES, columns),
        dialect.first_waiting("keyed", sa.bindparam("keyed_limit", type_=sa.Integer()), PRIORITIES, columns),
    )


def _probes() -> sa.Select[Any]:
    """The waiting runs out of the ids :probes, as kind w: a circuit's probe may be anywhere in the queue."""
    r = t.runs
    columns = [r.c[name] for name in RUN_COLUMNS]
    ids = sa.bindparam("probes", expanding=True, type_=sa.BigInteger())
    due = (PENDING, r.c.due_at <= _now())
    return sa.select(sa.literal_column("'w'").label("kind"), *columns).where(r.c.id.in_(ids), *due)


def _handlers(dialect: Dialect) -> sa.Select[Any]:
    """Names out of :names that some active node has the code of."""
    given = dialect.rows("names", name=sa.Text())
    h, n = t.node_handlers, t.nodes
    return sa.select(given.c.name).where(
        sa.exists().where(h.c.worker == given.c.name, h.c.node_id == n.c.id, n.c.state == sa.literal_column("'active'"))
    )


def _next_due() -> sa.Select[Any]:
    return sa.select(*next_times())


def next_times() -> list[sa.ScalarSelect[Any]]:
    """The next times after :now at which something becomes due: a waiting run, a schedule, a probe, a pause's end."""
    r, s = t.runs, t.worker_state
    run = sa.select(sa.func.min(r.c.due_at)).where(PENDING, r.c.due_at > _now()).scalar_subquery()
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
    return [run, schedule, probe, pause]

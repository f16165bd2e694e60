"""Whether anything has changed that a page shows: one statement, at the cost of the edges of a few indexes.

What people do, and what the nodes decide about workers, leaves a row in the audit log; what ends, one in the history;
what starts, one among the claims. So the largest ids tell of nearly everything. Of what only moves (progress, output, a
bulk operation) a sum tells. Whether a worker became late, silent nodes, and new definitions are not told: time alone
changes the former, and whoever looks asks again now and then anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.storage.database.rowsets import same
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.alert_tables import alerts
from jobrunner.storage.tables.bulk_table import bulk_operations
from jobrunner.storage.tables.claims import claims, is_active

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_MOST_ACTIVE = 500
"""Of so many active runs what they say is looked at."""
_MOST_OPEN = 500
"""So many open letters, and so many open incidents, are counted."""

_MOST_ENDED = 100
"""So many ends tell how far the ids of ended runs reach."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a look has seen; two that are equal saw the same. The parts have no meaning by themselves.

    `decided` is what people and nodes decide: the audit log, letters, bulk operations, incidents, who is there. `moved`
    is what runs change by themselves, on a busy database at every look.
    """

    decided: tuple[Any, ...]
    moved: tuple[Any, ...]


def _newest(column: sa.Column[Any], *conditions: sa.ColumnElement[bool]) -> sa.ScalarSelect[Any]:
    """Select the largest value as a value: of one in a row set SQLite reads the whole index."""
    return sa.select(sa.func.max(column)).where(*conditions).scalar_subquery()


def _newest_run() -> sa.ScalarSelect[Any]:
    """Select the largest id of a live run above those that ended last.

    Runs that have ended leave dead entries at the end of the primary key on PostgreSQL, and while a snapshot is held
    they stay: of 100,000, all that were passed by, a look took 8 ms.
    """
    h, r = t.run_history, t.runs
    ended = sa.select(h.c.run_id).order_by(h.c.id.desc()).limit(_MOST_ENDED).subquery()
    last = sa.select(sa.func.coalesce(sa.func.max(ended.c.run_id), 0)).scalar_subquery()
    return _newest(r.c.id, r.c.id > last)


def _decided() -> list[sa.Select[Any]]:
    n, d = t.nodes, t.dead_letters
    is_open = same(d.c.status, sa.literal_column("'open'"))
    newest_letter = sa.select(d.c.id).where(is_open).order_by(d.c.status.desc(), d.c.id.desc()).limit(1)
    letters = sa.select(d.c.id).where(is_open).order_by(d.c.status.desc(), d.c.id.desc()).limit(_MOST_OPEN).subquery()
    opened = sa.select(alerts.c.count).where(sa.literal_column("alerts.closed_at IS NULL")).limit(_MOST_OPEN).subquery()
    is_running: sa.ColumnElement[bool] = sa.literal_column("bulk_operations.state = 'running'")
    live = sa.select(n.c.started_at, n.c.state).where(sa.literal_column("nodes.state IN ('active', 'draining')"))
    standing = live.subquery()
    return [
        sa.select(
            _newest(t.audit_log.c.id),
            _newest(bulk_operations.c.id),
            _newest(alerts.c.id),
            _newest(alerts.c.closed_at, sa.literal_column("alerts.closed_at IS NOT NULL")),
            newest_letter.scalar_subquery(),
        ),
        sa.select(sa.func.count()).select_from(letters),
        sa.select(sa.func.count(), sa.func.sum(opened.c.count)).select_from(opened),
        sa.select(sa.func.count(), sa.func.sum(bulk_operations.c.done + bulk_operations.c.left_out)).where(is_running),
        sa.select(
            sa.func.count(),
            sa.func.max(standing.c.started_at),
            sa.func.count().filter(standing.c.state == "draining"),
        ).select_from(standing),
    ]


def _moved() -> list[sa.Select[Any]]:
    r = t.runs
    active = sa.select(r.c.output_lines, r.c.progress, r.c.cancel_requested_at).where(is_active()).limit(_MOST_ACTIVE)
    said = active.subquery()
    return [
        sa.select(_newest(t.run_history.c.id), _newest_run()),
        sa.select(sa.func.count(), sa.func.max(claims.c.run_id)).select_from(claims),
        sa.select(
            sa.func.sum(said.c.output_lines),
            sa.func.aggregate_strings(sa.cast(said.c.progress, sa.Text), ","),
            sa.func.count(said.c.cancel_requested_at),
        ),
    ]


def _side_by_side(parts: list[sa.Select[Any]]) -> sa.Select[Any]:
    """Select the row sets `parts`, of one row each, as one row."""
    tables = [part.subquery(f"part_{place}") for place, part in enumerate(parts)]
    joined: sa.FromClause = tables[0]
    for each in tables[1:]:
        joined = joined.join(each, sa.true())
    return sa.select(*(column for each in tables for column in each.c)).select_from(joined)


_DECIDED, _MOVED = _decided(), _moved()
_PULSE = _side_by_side(_DECIDED + _MOVED)
_DECIDED_COLUMNS = sum(len(part.selected_columns) for part in _DECIDED)


async def read_pulse(conn: AsyncConnection) -> Pulse:
    """Look once."""
    row = tuple((await conn.execute(_PULSE)).one())
    return Pulse(row[:_DECIDED_COLUMNS], row[_DECIDED_COLUMNS:])

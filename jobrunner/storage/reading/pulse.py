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

from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.alert_tables import alerts
from jobrunner.storage.tables.bulk_table import bulk_operations
from jobrunner.storage.tables.claims import claims, is_active

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_MOST_ACTIVE = 500
"""Of so many active runs what they say is looked at."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a look has seen; two that are equal saw the same. The parts have no meaning by themselves."""

    parts: tuple[Any, ...]


def _newest(column: sa.ColumnElement[Any]) -> sa.Select[Any]:
    return sa.select(sa.func.max(column))


def _statement() -> sa.Select[Any]:
    n, r = t.nodes, t.runs
    active = sa.select(r.c.output_lines, r.c.progress, r.c.cancel_requested_at).where(is_active()).limit(_MOST_ACTIVE)
    said = active.subquery()
    live = sa.select(n.c.started_at, n.c.state).where(sa.literal_column("nodes.state IN ('active', 'draining')"))
    standing = live.subquery()
    is_running = sa.literal_column("bulk_operations.state = 'running'")
    parts = (
        *(_newest(each.c.id) for each in (t.run_history, r, t.audit_log, alerts, bulk_operations)),
        sa.select(sa.func.count(), sa.func.max(claims.c.run_id)).select_from(claims),
        sa.select(
            sa.func.sum(said.c.output_lines),
            sa.func.aggregate_strings(sa.cast(said.c.progress, sa.Text), ","),
            sa.func.count(said.c.cancel_requested_at),
        ),
        _newest(alerts.c.closed_at).where(sa.literal_column("alerts.closed_at IS NOT NULL")),
        sa.select(sa.func.count(), sa.func.sum(bulk_operations.c.done)).where(is_running),
        sa.select(
            sa.func.count(),
            sa.func.max(standing.c.started_at),
            sa.func.count().filter(standing.c.state == "draining"),
        ).select_from(standing),
    )
    tables = [part.subquery(f"part_{place}") for place, part in enumerate(parts)]
    columns = [column for each in tables for column in each.c]
    return sa.select(*columns).select_from(_crossed(tables))


def _crossed(tables: list[Any]) -> Any:
    """Return the tables, of one row each, side by side."""
    joined = tables[0]
    for each in tables[1:]:
        joined = joined.join(each, sa.true())
    return joined


_PULSE = _statement()


async def read_pulse(conn: AsyncConnection) -> Pulse:
    """Look once."""
    return Pulse(tuple((await conn.execute(_PULSE)).one()))

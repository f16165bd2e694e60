"""Which nodes are there, for those who ask: what a row claims counts only as long as its node is heard of.

A node that was killed leaves a row that says `active` until another node, or the next to start, declares it lost. To
nodes that makes no difference: they judge by beats that they see come, or not. Who asks once, from outside, sees only
when the last one came: a node that was silent for longer than its own lease counts as silent, not as live.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.policy.liveness import NodesHeard, silent_seconds
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.claims import is_active

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

_LIVE: sa.ColumnElement[bool] = sa.literal_column("nodes.state IN ('active', 'draining')")


@dataclass(frozen=True, slots=True)
class Room:
    """What a node that takes runs has room for."""

    node_id: str
    free_slots: int
    allows_commands: bool


async def read_nodes_heard(conn: AsyncConnection, now: datetime) -> tuple[NodesHeard, list[Room]]:
    """Read the nodes that are, by their rows, alive, and how many more runs each of those that take runs can take."""
    n, r = t.nodes, t.runs
    held = sa.select(sa.func.count()).where(r.c.node_id == n.c.id, is_active())
    columns = (n.c.id, n.c.state, n.c.heartbeat_at, n.c.lease_seconds, n.c.max_concurrent, n.c.allows_commands)
    statement = sa.select(*columns, held.scalar_subquery().label("held")).order_by(n.c.id)
    rows = (await conn.execute(statement.where(_LIVE))).all()
    silent = {row.id: silent_seconds(row.heartbeat_at, row.lease_seconds, now) for row in rows}
    heard = [row for row in rows if silent[row.id] is None]
    rooms = [
        Room(row.id, max(row.max_concurrent - row.held, 0), bool(row.allows_commands))
        for row in heard
        if row.state == "active"
    ]
    return (
        NodesHeard(
            active=tuple(room.node_id for room in rooms),
            draining=tuple(row.id for row in heard if row.state == "draining"),
            silent={node_id: seconds for node_id, seconds in silent.items() if seconds is not None},
        ),
        rooms,
    )


async def list_nodes(conn: AsyncConnection, now: datetime, *, is_all: bool = False) -> Sequence[dict[str, Any]]:
    """Return the nodes, newest first: those that have not left, or with `is_all` every row that is left.

    `silent_seconds` says for how long a node that has not left was not heard of, if that is longer than its lease.
    """
    n = t.nodes
    statement = sa.select(n).order_by(n.c.started_at.desc(), n.c.id)
    if not is_all:
        statement = statement.where(_LIVE)
    rows = [dict(row) for row in (await conn.execute(statement)).mappings()]
    for row in rows:
        has_left = row["state"] in {"lost", "stopped"}
        silent = None if has_left else silent_seconds(row["heartbeat_at"], row["lease_seconds"], now)
        row["silent_seconds"] = silent
    return rows

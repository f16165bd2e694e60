"""Which nodes lived at a moment that is past, what they could run, and which of their slots were free.

A node's row keeps when it started and when it last beat; its handlers are kept while it is there. Of a node that is
gone its attempts tell what it could run: where it is seen to have run a worker it had the code, else nobody knows. The
row of a node that has left is kept for a day. Before that, attempts tell that a node lived, between the first and the
last that are at hand; where none does, one is taken to have lived, and to have had the handler and a free slot.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.model.worker import Isolation
from jobrunner.policy.liveness import silent_seconds
from jobrunner.policy.retention import NODE_DAYS
from jobrunner.storage.reading.explain import NodeView
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.rows import names_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.model.facts import WorkerFacts
    from jobrunner.storage.database.dialect import Dialect
    from jobrunner.storage.reading.recorded import Recorded

_MOST_NODES = 1000
_MANY_SLOTS = 2**31
SOMEBODY = "unknown"
"""The id of a node that is only taken to have lived."""


@dataclass(frozen=True, slots=True)
class NodesThen:
    """The nodes that lived: `views` as they judged; by node, the workers of which nobody knows whether it had them.

    `forgotten` are those of which there is no row any more: nobody knows how many slots they had.
    """

    views: tuple[NodeView, ...]
    unknown: Mapping[str, frozenset[str]]
    forgotten: frozenset[str] = frozenset()

    def for_worker(self, worker: WorkerFacts) -> tuple[list[NodeView], bool]:
        """Return the nodes that could run a worker; where none surely could, those of which nobody knows, and True."""
        sure = [node for node in self.views if node.has(worker) and not self._is_guess(node, worker)]
        guessed = [node for node in self.views if self._is_guess(node, worker)]
        return (sure, False) if sure else (guessed, bool(guessed))

    def _is_guess(self, node: NodeView, worker: WorkerFacts) -> bool:
        is_command = worker.config.isolation is Isolation.COMMAND
        return not is_command and worker.config.name in self.unknown[node.id]


async def read_nodes_then(
    conn: AsyncConnection,
    dialect: Dialect,
    at: datetime,
    now: datetime,
    workers: Mapping[str, WorkerFacts],
    recorded: Recorded,
) -> NodesThen:
    """Read the nodes that lived at `at`."""
    n, h = t.nodes, t.node_handlers
    columns = (
        n.c.id,
        n.c.state,
        n.c.started_at,
        n.c.heartbeat_at,
        n.c.lease_seconds,
        n.c.max_concurrent,
        n.c.allows_commands,
    )
    known_rows = (
        await conn.execute(sa.select(*columns).order_by(n.c.heartbeat_at.desc(), n.c.id).limit(_MOST_NODES))
    ).all()
    rows = [row for row in known_rows if row.started_at <= at and _lived(row, at)]
    given = dialect.rows("names", name=sa.Text())
    known = sa.select(h.c.node_id, h.c.worker).where(h.c.worker.in_(sa.select(given.c.name)))
    handlers: defaultdict[str, set[str]] = defaultdict(set)
    for node_id, worker in await conn.execute(known, {"names": names_json(workers)}):
        handlers[node_id].add(worker)
    seen = _seen(recorded, handlers)
    unknown = {row.id: frozenset[str]() for row in rows}
    for row in rows:
        if row.state not in {"active", "draining"}:
            unknown[row.id] = frozenset(workers) - handlers[row.id]
            handlers[row.id].update(unknown[row.id])
    held = Counter(each.node_id for each in recorded.held)
    views = [
        NodeView(
            row.id, max(row.max_concurrent - held[row.id], 0), bool(row.allows_commands), frozenset(handlers[row.id])
        )
        for row in rows
    ]
    forgotten = seen.keys() - {row.id for row in known_rows}
    lived = [node_id for node_id in sorted(forgotten) if seen[node_id][0] <= at <= seen[node_id][1]]
    if not views and not lived and now - at > timedelta(days=NODE_DAYS):
        lived = [SOMEBODY]
    for node_id in lived:
        unknown[node_id] = frozenset(workers) - handlers[node_id]
        views.append(NodeView(node_id, _MANY_SLOTS, allows_commands=True, handlers=frozenset(workers)))
    return NodesThen(tuple(views), unknown, frozenset(lived))


def _seen(recorded: Recorded, handlers: defaultdict[str, set[str]]) -> dict[str, tuple[datetime, datetime]]:
    """Note which workers each node ran; return the first and the last sign of each in the attempts at hand."""
    seen: dict[str, tuple[datetime, datetime]] = {}
    for name, past in recorded.pasts.items():
        for spell in (each for spells in past.spells.values() for each in spells):
            if spell.node_id is None or spell.started_at is None:
                continue
            handlers[spell.node_id].add(name)
            first, last = seen.get(spell.node_id, (spell.started_at, spell.started_at))
            last = max(last, spell.finished_at or last)
            seen[spell.node_id] = (min(first, spell.started_at), max(last, spell.started_at))
    return seen


def _lived(row: Any, at: datetime) -> bool:
    if row.state == "stopped":
        return bool(at < row.heartbeat_at)
    return silent_seconds(row.heartbeat_at, row.lease_seconds, at) is None

"""Which nodes lived at a moment that is past, what they could run, and which of their slots were free.

A node's row keeps when it started and when it last beat; its handlers are kept while it is there. Of a node that is
gone its attempts tell what it could run: where it is seen to have run a worker it had the code, else nobody knows.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.model.worker import Isolation
from jobrunner.policy.liveness import silent_seconds
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


@dataclass(frozen=True, slots=True)
class NodesThen:
    """The nodes that lived: `views` as they judged; by node, the workers of which nobody knows whether it had them."""

    views: tuple[NodeView, ...]
    unknown: Mapping[str, frozenset[str]]

    def for_worker(self, worker: WorkerFacts) -> tuple[list[NodeView], bool]:
        """Return the nodes that could run a worker; where none surely could, those of which nobody knows, and True."""
        sure = [node for node in self.views if node.has(worker) and not self._is_guess(node, worker)]
        guessed = [node for node in self.views if self._is_guess(node, worker)]
        return (sure, False) if sure else (guessed, bool(guessed))

    def _is_guess(self, node: NodeView, worker: WorkerFacts) -> bool:
        is_command = worker.config.isolation is Isolation.COMMAND
        return not is_command and worker.config.name in self.unknown[node.id]


async def read_nodes_then(
    conn: AsyncConnection, dialect: Dialect, at: datetime, workers: Mapping[str, WorkerFacts], recorded: Recorded
) -> NodesThen:
    """Read the nodes that lived at `at`."""
    n, h = t.nodes, t.node_handlers
    columns = (n.c.id, n.c.state, n.c.heartbeat_at, n.c.lease_seconds, n.c.max_concurrent, n.c.allows_commands)
    started = sa.select(*columns).where(n.c.started_at <= at).order_by(n.c.heartbeat_at.desc(), n.c.id)
    rows = [row for row in (await conn.execute(started.limit(_MOST_NODES))).all() if _lived(row, at)]
    given = dialect.rows("names", name=sa.Text())
    known = sa.select(h.c.node_id, h.c.worker).where(h.c.worker.in_(sa.select(given.c.name)))
    handlers: defaultdict[str, set[str]] = defaultdict(set)
    for node_id, worker in await conn.execute(known, {"names": names_json(workers)}):
        handlers[node_id].add(worker)
    for name, past in recorded.pasts.items():
        for spells in past.spells.values():
            for spell in spells:
                if spell.node_id is not None:
                    handlers[spell.node_id].add(name)
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
    return NodesThen(tuple(views), unknown)


def _lived(row: Any, at: datetime) -> bool:
    if row.state == "stopped":
        return bool(at < row.heartbeat_at)
    return silent_seconds(row.heartbeat_at, row.lease_seconds, at) is None

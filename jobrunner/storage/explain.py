"""Why a worker does not start, or that it does: what `jobrunner explain` shows.

The gates are judged by `policy.gates`, which the tick uses too, on facts read as the tick reads them: everything that
is due, and everything it is related to. A node starts only what it has code for and has slots for, so the question is
asked for each live node that has the handler, with that node's handlers and free slots, and the answer shown is that
of the node where the run comes furthest.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.errors import WorkerNotFound
from jobrunner.model.facts import Candidate, Facts, Gate, Verdict, WorkerFacts
from jobrunner.model.worker import Isolation
from jobrunner.policy import gates
from jobrunner.storage import facts as reading
from jobrunner.storage import tables as t

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.database import Database

_PAGE = 1000  # due schedules looked at, for each priority


@dataclass(frozen=True, slots=True)
class _Node:
    """A live node as it judges: what it can run, and how much more of it."""

    id: str
    free_slots: int
    allows_commands: bool
    handlers: frozenset[str]

    def has(self, worker: WorkerFacts) -> bool:
        """Say whether the node can run this worker."""
        if worker.config.isolation is Isolation.COMMAND:
            return self.allows_commands
        return worker.config.name in self.handlers


@dataclass(frozen=True, slots=True)
class _Answer:
    node_id: str | None
    candidate: Candidate | None
    verdicts: Sequence[Verdict]

    @property
    def first_shut(self) -> int:
        """The place of the first shut gate; past the last when all are open."""
        shut = (place for place, verdict in enumerate(self.verdicts) if not verdict.is_open)
        return next(shut, len(self.verdicts))


async def explain(db: Database, name: str, now: datetime) -> dict[str, Any]:
    """Judge every gate for the run of `name` that would start first.

    Args:
        db: the database.
        name: the worker.
        now: the time now, UTC.

    Returns:
        `worker`, `starts` (all gates are open on some node), `node_id` (that node, or the one where it comes furthest),
        `candidate` (None when nothing is waiting and no time is set) and `gates`: objects of `gate`, `open`, `forced`
        and `reason`, in order.

    Raises:
        WorkerNotFound: there is no such worker.
    """
    async with db.read() as conn:
        due = await reading.read_due(conn, db.dialect, now, _PAGE)
        names = due.names | {name}
        edges = await reading.read_edges(conn, db.dialect, names)
        nodes = await _read_nodes(conn)
        most_free = max((node.free_slots for node in nodes), default=0)
        anywhere = reading.Here(handlers=None)
        facts = await reading.read_facts(conn, db.dialect, now, names, edges, anywhere, most_free)
    if name not in facts.workers:
        raise WorkerNotFound(name)
    answers = [_judge(facts, node, name) for node in nodes if node.has(facts.workers[name])]
    best = max(answers, key=lambda answer: answer.first_shut, default=None) or _nowhere(facts, name, bool(nodes))
    return _document(name, best)


async def _read_nodes(conn: AsyncConnection) -> list[_Node]:
    n, h, r = t.nodes, t.node_handlers, t.runs
    is_active: sa.ColumnElement[bool] = sa.literal_column("nodes.state = 'active'")
    held = sa.select(sa.func.count()).where(r.c.node_id == n.c.id, sa.literal_column("runs.state <> 'pending'"))
    rows = await conn.execute(
        sa.select(n.c.id, n.c.max_concurrent, n.c.allows_commands, held.scalar_subquery().label("held"))
        .where(is_active)
        .order_by(n.c.id)
    )
    found = rows.all()
    handlers: defaultdict[str, set[str]] = defaultdict(set)
    for row in await conn.execute(sa.select(h.c.node_id, h.c.worker).join(n, n.c.id == h.c.node_id).where(is_active)):
        handlers[row.node_id].add(row.worker)
    return [
        _Node(row.id, max(row.max_concurrent - row.held, 0), bool(row.allows_commands), frozenset(handlers[row.id]))
        for row in found
    ]


def _judge(facts: Facts, node: _Node, name: str) -> _Answer:
    """Ask as `node` would ask itself; `has_handler` of `facts` says what any node has."""
    seen = {
        other: worker if node.has(worker) else replace(worker, has_handler=False)
        for other, worker in facts.workers.items()
    }
    candidate, verdicts = gates.explain(Facts(facts.now, seen, node.free_slots), name)
    return _Answer(node.id, candidate, verdicts)


def _nowhere(facts: Facts, name: str, is_any_node: bool) -> _Answer:
    """Answer when no live node has the handler: the handler and the slot are shut, the rest is judged all the same."""
    candidate, verdicts = gates.explain(replace(facts, free_slots=1), name)
    said = "no live node has the handler" if is_any_node else "no node is running; `jobrunner run MODULE` starts one"
    if facts.workers[name].config.isolation is Isolation.COMMAND:
        said = "a command: only nodes started with --allow-commands run it, and none of these is live"
    shut = {Gate.HANDLER, Gate.SLOT}
    judged = [replace(v, is_open=False, reason=said) if v.gate in shut else v for v in verdicts]
    return _Answer(None, candidate, judged)


def _document(name: str, answer: _Answer) -> dict[str, Any]:
    candidate = answer.candidate
    return {
        "worker": name,
        "starts": candidate is not None and all(verdict.is_open for verdict in answer.verdicts),
        "node_id": answer.node_id,
        "candidate": candidate
        and {
            "run_id": candidate.id,
            "priority": candidate.priority,
            "due_at": candidate.due_at,
            "attempt": candidate.attempt,
            "is_forced": candidate.is_forced,
        },
        "gates": [
            {"gate": str(v.gate), "open": v.is_open, "forced": v.is_forced, "reason": v.reason} for v in answer.verdicts
        ],
    }

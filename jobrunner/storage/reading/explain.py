"""Why a worker does not start, or that it does: what `jobrunner explain` shows.

The gates are judged by `policy.gates`, which the tick uses too, on facts read as the tick reads them: everything that
is due, and everything it is related to; beside it is read what waits for its time. A node starts only what it has code
for and has slots for, so the question is asked for each live node that has the handler, with that node's handlers and
free slots, and the answer shown is that of the node where the run comes furthest.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.errors import WorkerNotFound
from jobrunner.model.facts import Candidate, Facts, Gate, Verdict, WorkerFacts
from jobrunner.model.worker import Isolation
from jobrunner.policy import verdicts as judging
from jobrunner.policy.gates import GATES, show_problem
from jobrunner.storage.reading.nodes_heard import read_nodes_heard
from jobrunner.storage.reading.waiting import read_later
from jobrunner.storage.runs import facts as reading
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.rows import names_json

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.policy.liveness import NodesHeard
    from jobrunner.storage.database.database import Database
    from jobrunner.storage.database.dialect import Dialect

_PAGE = 1000  # due schedules looked at, for each priority
_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class NodeView:
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
class Answer:
    """What one node makes of it; `node_id` None: no node has the handler."""

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
        `candidate` (None when nothing is waiting and no time is set), `why` (what the shut gate that matters says, None
        when it starts), `running` (the first of its runs that are active: `run_id`, `node_id`, `started_at`) and
        `gates`: objects of `gate`, `open`, `forced` and `reason`, in order.

    Raises:
        WorkerNotFound: there is no such worker.
    """
    async with db.read() as conn:
        due = await reading.read_due(conn, db.dialect, now, _PAGE)
        heard, nodes, facts = await _read_all(conn, db.dialect, now, due.names | {name})
        if name not in facts.workers:
            raise WorkerNotFound(name)
        later = await read_later(conn, db.dialect, now, name)
    worker = replace(facts.workers[name], later=later)
    facts = replace(facts, workers={**facts.workers, name: worker})
    answers = [judge(facts, node, name) for node in nodes if node.has(facts.workers[name])]
    best = max(answers, key=lambda answer: answer.first_shut, default=None) or nowhere(
        facts, name, _no_handler(facts.workers[name], heard)
    )
    return document(worker, best)


async def why_waits(db: Database, run_id: int, now: datetime) -> str | None:
    """Say why this run does not start now (a run for later: at its time): what the shut gate that matters says.

    None if all gates are open, or it waits no more. Unlike `explain` it looks only at the run's worker and at what that
    is related to, so that it costs the same however much else is due; the slots that others may take are left out.
    """
    found = await _read_waiting(db, run_id, now)
    if found is None:
        return None
    run, heard, nodes, facts = found
    worker = facts.workers[run.worker]
    shut = [judging.why_not(_as_seen_by(facts, node), run) for node in nodes if node.has(worker)]
    if None in shut:
        return None
    if shut:
        places = [gate for gate, _ in GATES]
        return max(filter(None, shut), key=lambda verdict: places.index(verdict.gate)).reason
    anywhere = judging.why_not(replace(facts, free_slots=1), run)
    if anywhere is None or anywhere.gate is Gate.HANDLER or not anywhere.is_lasting:
        return _no_handler(worker, heard)
    return anywhere.reason


async def explain_waiting(db: Database, run_id: int, now: datetime) -> dict[str, Any] | None:
    """Judge every gate for this very run: `why` and `gates` as in `explain`; None if it waits no more.

    It looks no further than `why_waits` does.
    """
    found = await _read_waiting(db, run_id, now)
    if found is None:
        return None
    run, heard, nodes, facts = found
    worker = facts.workers[run.worker]
    each = [judging.explain_run(_as_seen_by(facts, node), run) for node in nodes if node.has(worker)]
    answers = [Answer(None, run, verdicts) for verdicts in each]
    if not answers:
        verdicts = judging.explain_run(replace(facts, free_slots=1), run)
        answers = [Answer(None, run, without_node(verdicts, _no_handler(worker, heard)))]
    best = max(answers, key=lambda answer: answer.first_shut)
    shut = judging.headline(best.verdicts)
    return {"why": shut and shut.reason, "gates": show_gates(best.verdicts)}


async def _read_waiting(
    db: Database, run_id: int, now: datetime
) -> tuple[Candidate, NodesHeard, list[NodeView], Facts] | None:
    """Read a waiting run with what its gates need; None if it waits no more."""
    r = t.runs
    columns = (r.c.worker, r.c.id, r.c.priority, r.c.due_at, r.c.attempt, r.c.is_forced, r.c.limit_key)
    is_waiting: sa.ColumnElement[bool] = sa.literal_column("runs.state = 'pending'")
    waiting = sa.select(*columns, r.c.first_started_at).where(r.c.id == run_id, is_waiting)
    async with db.read() as conn:
        row = (await conn.execute(waiting)).first()
        if row is None:
            return None
        heard, nodes, facts = await _read_all(conn, db.dialect, now, {row.worker})
    run = Candidate(*row[:5], bool(row.is_forced), row.first_started_at is not None, row.limit_key)
    return run, heard, nodes, facts


async def why_due_waits(
    conn: AsyncConnection, dialect: Dialect, now: datetime, names: Collection[str]
) -> dict[str, str]:
    """Say why these workers, of which something is due, do not start: what the shut gate that matters says.

    Like `why_waits` it looks only at them and what they are related to. A worker of which all gates are open is left
    out. Nodes with the same handlers are judged as one, with the slots of that with the most.
    """
    heard, nodes, facts = await _read_all(conn, dialect, now, names)
    known = [name for name in names if name in facts.workers]
    alike = {(node.handlers, node.allows_commands): node for node in sorted(nodes, key=lambda node: node.free_slots)}
    answers: defaultdict[str, list[Answer]] = defaultdict(list)
    for node in alike.values():
        mine = [name for name in known if node.has(facts.workers[name])]
        for name, verdicts in judging.explain_due(_as_seen_by(facts, node), mine).items():
            answers[name].append(Answer(node.id, None, verdicts))
    homeless = [name for name in known if not any(node.has(facts.workers[name]) for node in nodes)]
    for name, verdicts in judging.explain_due(replace(facts, free_slots=1), homeless).items():
        answers[name].append(Answer(None, None, without_node(verdicts, _no_handler(facts.workers[name], heard))))
    best = {name: max(each, key=lambda answer: answer.first_shut) for name, each in answers.items()}
    shut = {name: judging.headline(answer.verdicts) for name, answer in best.items()}
    return {name: verdict.reason for name, verdict in shut.items() if verdict is not None}


async def _read_all(
    conn: AsyncConnection, dialect: Dialect, now: datetime, names: Collection[str]
) -> tuple[NodesHeard, list[NodeView], Facts]:
    """Read what nodes there are, those that take runs, and the facts about `names` and what these are related to."""
    h = t.node_handlers
    heard, rooms = await read_nodes_heard(conn, now)
    most = max((room.free_slots for room in rooms), default=0)
    facts, _ = await reading.read_around(conn, dialect, now, names, reading.Here(handlers=None), most)
    given = dialect.rows("names", name=sa.Text())
    known = sa.select(h.c.node_id, h.c.worker).where(h.c.worker.in_(sa.select(given.c.name)))
    handlers: defaultdict[str, set[str]] = defaultdict(set)
    for node_id, worker in await conn.execute(known, {"names": names_json(facts.workers)}):
        handlers[node_id].add(worker)
    nodes = [
        NodeView(room.node_id, room.free_slots, room.allows_commands, frozenset(handlers[room.node_id]))
        for room in rooms
    ]
    return heard, nodes, facts


def _as_seen_by(facts: Facts, node: NodeView) -> Facts:
    """Return the facts as `node` has them itself; `has_handler` of `facts` says what any node has."""
    seen = {
        other: worker if node.has(worker) else replace(worker, has_handler=False)
        for other, worker in facts.workers.items()
    }
    return replace(facts, workers=seen, free_slots=node.free_slots)


def judge(facts: Facts, node: NodeView, name: str) -> Answer:
    """Judge every gate as `node` does."""
    candidate, verdicts = judging.explain(_as_seen_by(facts, node), name)
    return Answer(node.id, candidate, verdicts)


def nowhere(facts: Facts, name: str, said: str) -> Answer:
    """Judge where no live node has the handler: `said` says so, for the gates handler and slot."""
    candidate, verdicts = judging.explain(replace(facts, free_slots=1), name)
    return Answer(None, candidate, without_node(verdicts, said))


def without_node(verdicts: Sequence[Verdict], said: str) -> list[Verdict]:
    """Return the verdicts where no live node has the handler: handler and slot are shut, the rest is as judged."""
    shut = {Gate.HANDLER: True, Gate.SLOT: False}
    return [replace(v, is_open=False, reason=said, is_lasting=shut[v.gate]) if v.gate in shut else v for v in verdicts]


def _no_handler(worker: WorkerFacts, heard: NodesHeard) -> str:
    if worker.problem is not None:
        return show_problem(worker.problem)
    if worker.config.isolation is Isolation.COMMAND and heard.active:
        said = "a command: only nodes started with --allow-commands run it, and none of these is live"
        return "; ".join(filter(None, [said, heard.show_silent()]))
    return heard.why_no_handler()


def document(worker: WorkerFacts, answer: Answer) -> dict[str, Any]:
    """Return the answer as `explain` says it is."""
    candidate = answer.candidate
    shut = judging.headline(answer.verdicts)
    return {
        "worker": worker.config.name,
        "starts": candidate is not None and shut is None,
        "node_id": answer.node_id,
        "candidate": candidate
        and {
            "run_id": candidate.id,
            "priority": candidate.priority,
            "due_at": candidate.due_at,
            "attempt": candidate.attempt,
            "is_forced": candidate.is_forced,
        },
        "why": shut and shut.reason,
        "running": [
            {"run_id": run.id, "node_id": run.node_id, "started_at": run.started_at}
            for run in worker.active[:_MOST_NAMED]
        ],
        "gates": show_gates(answer.verdicts),
    }


def show_gates(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Return the gates as documents show them."""
    return [{"gate": str(v.gate), "open": v.is_open, "forced": v.is_forced, "reason": v.reason} for v in verdicts]

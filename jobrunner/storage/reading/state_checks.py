"""What `db verify` checks of workers' states and of claims: what the gates and the next claim rest on.

Promise 1 rests on each worker having a state and each run a worker; 2 on claims that a living node holds, with fences
that go on; 4 on what ended last; 5 is the streak; 6 on switches and circuit that say the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.storage.reading.findings import Scope, Violation, stream
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.claims import claims, is_active
from jobrunner.storage.workers import states

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncConnection


async def check_pairs(conn: AsyncConnection, _scope: Scope) -> AsyncIterator[Violation]:
    """Promise 1 rests on it: each worker has a state, or its runs would wait for ever; each state has a worker."""
    mended = "the next start of a node with its code mends that"
    async for row in stream(conn, states.workers_without()):
        yield Violation(1, f"{row.name} has no state: nothing of it starts; {mended}", (f"workers.name={row.name}",))
    async for row in stream(conn, states.without_worker()):
        problem = f"there is a state of {row.worker}, but no such worker; {mended}"
        yield Violation(1, problem, (f"worker_state.worker={row.worker}",))


async def check_named(conn: AsyncConnection, _scope: Scope) -> AsyncIterator[Violation]:
    """Promise 1: every live run, and every relation, is of workers that there are."""
    w, r = t.workers, t.runs
    runs = (
        sa.select(r.c.worker, sa.func.min(r.c.id).label("first"), sa.func.count().label("runs"))
        .where(sa.not_(sa.exists().where(w.c.name == r.c.worker)))
        .group_by(r.c.worker)
    )
    async for row in stream(conn, runs):
        problem = f"there is no worker {row.worker}, but live runs of it: {row.runs}, the first is run {row.first}"
        yield Violation(1, problem, (f"runs.worker={row.worker}",))
    for table, other in ((t.worker_dependencies, "depends_on"), (t.worker_blocks, "blocks")):
        for column in (table.c.worker, table.c[other]):
            edges = sa.select(table.c.worker, table.c[other].label("other"), column.label("missing"))
            async for row in stream(conn, edges.where(sa.not_(sa.exists().where(w.c.name == column)))):
                problem = f"{row.worker} {other.replace('_', ' ')} {row.other}, but there is no worker {row.missing}"
                yield Violation(1, problem, (f"{table.name}.worker={row.worker}",))


async def check_streaks(conn: AsyncConnection, _scope: Scope) -> AsyncIterator[Violation]:
    """Promise 5: the stored streak is the one recomputed from history, since the last success or enable."""
    h, s = t.run_history, t.worker_state
    success = (
        sa.select(sa.func.coalesce(sa.func.max(h.c.id), 0))
        .where(h.c.worker == s.c.worker, sa.literal_column("run_history.ends_run = 'succeeded'"))
        .scalar_subquery()
    )
    since = sa.case((success > s.c.streak_since_id, success), else_=s.c.streak_since_id)
    marks = sa.select(s.c.worker, s.c.consecutive_failures, since.label("since")).subquery("marks")
    counted = (
        sa.select(sa.func.count())
        .select_from(h)
        .where(h.c.worker == marks.c.worker, h.c.id > marks.c.since)
        .where(sa.literal_column("run_history.ends_run = 'exhausted'"))
        .scalar_subquery()
    )
    both = sa.select(marks.c.worker, marks.c.consecutive_failures, marks.c.since, counted.label("counted")).subquery()
    # A streak longer than failures are kept counts fewer in history; more than stored is wrong in any case.
    oldest = (await conn.execute(sa.select(sa.func.min(h.c.id)))).scalar() or 0
    statement = sa.select(both).where(both.c.consecutive_failures != both.c.counted)
    async for row in stream(conn, statement):
        if row.counted < row.consecutive_failures and oldest > row.since + 1:
            continue
        problem = f"{row.worker}: the stored streak is {row.consecutive_failures}, history counts {row.counted}"
        yield Violation(5, problem, (f"worker_state.worker={row.worker}", f"run_history.id>{row.since}"))


async def check_last_ends(conn: AsyncConnection, _scope: Scope) -> AsyncIterator[Violation]:
    """Promise 4 rests on it: what a worker's state says has ended last is what history says."""
    h, s = t.run_history, t.worker_state
    last = (
        sa.select(h.c.outcome)
        .where(h.c.worker == s.c.worker, h.c.id > s.c.streak_since_id)
        .where(sa.literal_column("run_history.ends_run IN ('succeeded', 'exhausted')"))
        .order_by(h.c.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    both = sa.select(s.c.worker, s.c.last_run_outcome.label("stored"), last.label("last")).subquery()
    async for row in stream(conn, sa.select(both).where(both.c.stored != both.c.last)):
        problem = f"{row.worker}: its state says its last run {row.stored}, history says {row.last}"
        yield Violation(4, problem, (f"worker_state.worker={row.worker}",))


def _circuit_problem(row: Any) -> str | None:
    """Say what of a worker's switches and circuit cannot be, or None."""
    if row.paused_reason is not None and row.paused_until is None:
        return "has a reason of a pause, but is not paused"
    if row.circuit_state == "closed":
        if row.disabled_by == "circuit":
            return "is disabled by its circuit, which is closed"
        if row.probe_run_id is not None or row.probe_at is not None:
            return "has a probe, but its circuit is closed"
        return None
    if row.is_enabled or row.disabled_by != "circuit":
        who = "is enabled" if row.is_enabled else f"is disabled by {row.disabled_by}"
        return f"{who}, but its circuit is {row.circuit_state.replace('_', ' ')}"
    if row.circuit_state == "open":
        return None if row.probe_run_id is None else f"has a probe, run {row.probe_run_id}, but its circuit is open"
    return None if row.has_probe else f"is half open, but its probe, run {row.probe_run_id}, is no live run of it"


async def check_circuits(conn: AsyncConnection, _scope: Scope) -> AsyncIterator[Violation]:
    """Promise 6 rests on it: the switches and the circuit of a worker go together, and a probe is a live run."""
    s, r = t.worker_state, t.runs
    probe = sa.exists().where(r.c.id == s.c.probe_run_id, r.c.worker == s.c.worker)
    columns = (s.c.worker, s.c.is_enabled, s.c.disabled_by, s.c.circuit_state, s.c.probe_run_id, s.c.probe_at)
    named = sa.select(*columns, s.c.paused_until, s.c.paused_reason, probe.label("has_probe"))
    odd: sa.ColumnElement[bool] = sa.literal_column(
        "worker_state.circuit_state <> 'closed' OR worker_state.disabled_by = 'circuit'"
    )
    unusual = named.where(sa.or_(odd, s.c.probe_run_id.is_not(None), s.c.probe_at.is_not(None), _is_reasoned()))
    async for row in stream(conn, unusual):
        problem = _circuit_problem(row)
        if problem is not None:
            yield Violation(6, f"{row.worker} {problem}", (f"worker_state.worker={row.worker}",))


def _is_reasoned() -> sa.ColumnElement[bool]:
    return t.worker_state.c.paused_reason.is_not(None)


async def check_claims(conn: AsyncConnection, _scope: Scope) -> AsyncIterator[Violation]:
    """Promise 2: every claim is some node's."""
    r, n = t.runs, t.nodes
    nobodys = sa.select(r.c.id, r.c.node_id).where(is_active(), sa.not_(sa.exists().where(n.c.id == r.c.node_id)))
    async for row in stream(conn, nobodys):
        problem = f"run {row.id} is claimed by node {row.node_id}, which does not exist"
        yield Violation(2, problem, (f"runs.id={row.id}",))


async def check_slots(conn: AsyncConnection, _scope: Scope) -> AsyncIterator[Violation]:
    """Promise 2: `claims`, through which active runs are found, has those and no others."""
    r, c = t.runs, claims
    is_same = sa.and_(c.c.run_id == r.c.id, c.c.worker == r.c.worker, c.c.slot == r.c.slot)
    unfound = sa.select(r.c.id).where(r.c.slot.is_not(None), sa.not_(sa.exists().where(is_same)))
    async for row in stream(conn, unfound):
        problem = f"run {row.id} is active, but not in claims: when its node dies, nobody ends it"
        yield Violation(2, problem, (f"runs.id={row.id}",))
    async for row in stream(conn, sa.select(c).where(sa.not_(sa.exists().where(is_same)))):
        problem = f"claims has run {row.run_id} in slot {row.slot} of {row.worker}, and it is not: the slot is lost"
        yield Violation(2, problem, (f"claims.worker={row.worker} AND slot={row.slot}",))


def stopped_claims() -> sa.Select[Any]:
    """Build the search for claims whose node has stopped: run, fence, node, and when that was last heard of."""
    r, n = t.runs, t.nodes
    return (
        sa.select(r.c.id, r.c.fence, r.c.node_id, n.c.heartbeat_at)
        .join(n, n.c.id == r.c.node_id)
        .where(is_active(), sa.literal_column("nodes.state = 'stopped'"))
    )


CHECKS = (check_pairs, check_named, check_streaks, check_last_ends, check_circuits, check_claims, check_slots)

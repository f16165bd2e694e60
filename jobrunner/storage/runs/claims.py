"""Claiming: a node's right to one run.

Terms. A *claim* is the run's row in state `running` (or `stopping`) with a node, a slot and a *fence*: a number drawn
from `worker_state.last_fence`, which only grows. The fence is the claim's identity: whoever ends an attempt must name
it, and a run that was taken away and claimed again carries another.

The protocol, one transaction per tick:

1. Peek, outside the transaction: read the facts and decide. Nothing to start: nothing is locked.
2. Lock the `worker_state` rows involved, in the order of their names: each worker to be started, its counterparts, its
   dependencies. Rows with relations are waited for; a worker without any is skipped if another node holds it, since
   that node is deciding the same question. Enabling, disabling and the circuit write the same rows, so whatever they
   commit before this point is seen, and what comes later waits. On SQLite `BEGIN IMMEDIATE` is the lock. A node that
   was declared lost, and may not know it yet, gets no lock: others rescue at once whatever is claimed in its name.
   Then the rows of `limits` that they share, in the order of names: whoever starts a run under one holds its row.
3. Read the facts again, in statements that begin after the lock is held and so see all that was committed, and decide
   again, for the locked workers only. `started_at` is read after the lock is held.
4. Write: waiting runs become `running`, firings are inserted as `running`, `worker_state` takes the new fence and next
   time, what was passed over becomes a `missed` row. Commit.

Under load most passes take the fast path to the same end: `storage.turns.turn`.

What stands behind it, should any of this be wrong: the unique indexes on (worker, slot), on live scheduled runs, and on
keys. A violation rolls the whole tick back; the next tick decides afresh.

Failure. Before the commit: nothing has happened. A commit whose answer is lost: the claims stand in this node's name
while it runs nothing of them; its next heartbeat finds claims without code and gives them back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import sqlalchemy as sa

from jobrunner.model.facts import Facts, Start, WorkerFacts
from jobrunner.model.record import record
from jobrunner.model.run import FROM_SCHEDULE, Run
from jobrunner.model.worker import WorkerConfig, WorkerState
from jobrunner.policy.fast_path import Eligible, Planned, find_planned, simple_under
from jobrunner.policy.firing import Fired, after_starts
from jobrunner.policy.gates import decide_starts
from jobrunner.policy.limit_gates import is_rated
from jobrunner.policy.missed import end_pause
from jobrunner.storage.database.rowsets import built_once
from jobrunner.storage.records.audit import audit_row, write_audits
from jobrunner.storage.records.history import missed_row, write_missed
from jobrunner.storage.runs import facts as reading
from jobrunner.storage.runs import firings, limits
from jobrunner.storage.runs.looks import SMALLEST_PAGE, look
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.rows import (
    RUN_COLUMNS,
    names_json,
    run_of,
    state_values,
    to_json,
    write_state_statement,
)
from jobrunner.storage.tables.types import Flag, UtcDateTime

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.database.database import Database
    from jobrunner.storage.database.dialect import Dialect
    from jobrunner.storage.runs.looks import Claimer, Look


@record
class Claim:
    """A run that is this node's, with the definition it was claimed under.

    `simple_under`: the worker's revision under which a success is simple (`policy.fast_path`); None if it never is.
    """

    run: Run
    config: WorkerConfig
    simple_under: int | None = None


@dataclass(frozen=True, slots=True)
class Claimed:
    """Claims were made; more may be due. `eligible` and `planned` may take the fast path from here."""

    claims: tuple[Claim, ...]
    eligible: Eligible | None = None
    planned: tuple[Planned, ...] = ()


@dataclass(frozen=True, slots=True)
class Passed:
    """Due work was left: the slots ran out, a row was locked, or a time passed without a run. Look again soon."""

    eligible: Eligible | None = None
    claims: ClassVar[tuple[Claim, ...]] = ()


@dataclass(frozen=True, slots=True)
class Nothing:
    """Nothing may start now. `next_due_at`: when something becomes due next; None: nothing is planned.

    `is_ahead`: whether any wait seems to have begun ahead of now; None: it was not asked.
    """

    next_due_at: datetime | None
    eligible: Eligible | None = None
    is_ahead: bool | None = None
    claims: ClassVar[tuple[Claim, ...]] = ()


@dataclass(frozen=True)
class _Statements:
    lock: sa.Select[Any]
    lock_or_skip: sa.Select[Any]
    start_waiting: sa.UpdateBase
    insert_firings: sa.UpdateBase
    write_state: sa.Update


@built_once
def statements(dialect: Dialect) -> _Statements:
    """Build the claiming statements once for each database."""
    s, r = t.worker_state, t.runs
    given = dialect.rows("names", name=sa.Text())
    node_id = sa.bindparam("node_id", type_=sa.Text())
    has_left = sa.exists().where(t.nodes.c.id == node_id, sa.literal_column(t.HAS_LEFT))
    named = sa.select(s.c.worker).where(s.c.worker.in_(sa.select(given.c.name)), sa.not_(has_left)).order_by(s.c.worker)
    lock = named.with_for_update(key_share=True, of=s)
    lock_or_skip = named.with_for_update(key_share=True, of=s, skip_locked=True)
    claim = dialect.rows(
        "claims",
        id=sa.BigInteger(),
        slot=sa.Integer(),
        fence=sa.BigInteger(),
        at=UtcDateTime(),
        key_slot=sa.Integer(),
        is_rated=Flag(),
    )
    start_waiting = (
        sa.update(r)
        .values(
            state=sa.literal_column("'running'"),
            slot=claim.c.slot,
            fence=claim.c.fence,
            node_id=node_id,
            started_at=claim.c.at,
            key_slot=claim.c.key_slot,
            is_rated=claim.c.is_rated,
            first_started_at=sa.func.coalesce(r.c.first_started_at, claim.c.at),
        )
        .where(r.c.id == claim.c.id, sa.literal_column("runs.state = 'pending'"))
        .returning(*RUN_COLUMNS)
    )
    insert_firings = sa.insert(r).returning(*RUN_COLUMNS)
    return _Statements(lock, lock_or_skip, start_waiting, insert_firings, write_state_statement())


async def warm_up(db: Database, claimer: Claimer, now: datetime) -> None:
    """Run the statements of a tick once with nothing in them, so that they are compiled and prepared.

    Without this the first run after a node's start waits some 50 ms longer than all others.
    """
    nobody = {""}
    async with db.peek() as conn:
        await reading.read_due(conn, db.dialect, now, SMALLEST_PAGE)
        await reading.next_due_at(conn, db.dialect, now)
        await reading.read_around(conn, db.dialect, now, nobody, claimer.here, 1)
    async with db.write() as conn:
        await _lock(conn, db.dialect, nobody, reading.Edges.none(), claimer.node_id)
        await reading.read_around(conn, db.dialect, now, nobody, claimer.here, 1)
        await conn.execute(statements(db.dialect).start_waiting, {"claims": "[]", "node_id": claimer.node_id})


async def claim_due(
    db: Database,
    claimer: Claimer,
    free_slots: int,
    clock: Callable[[], datetime],
    seen: Look | None = None,
    aside: Collection[str] = (),
    only: str | None = None,
) -> Claimed | Passed | Nothing:
    """Run one tick the long way: decide what is due, claim what may start, at most `free_slots` runs.

    Args:
        db: the database.
        claimer: the node and its handlers.
        free_slots: how many runs the node can take.
        clock: returns the time now, UTC; asked again once the locks are held.
        seen: what a look has just found.
        aside: workers of which nothing is claimed.
        only: claim of this worker alone.

    Raises:
        DatabaseUnavailable: the database went away; nothing is known to have been claimed.
    """
    while True:
        if seen is None:
            seen = await look(db, claimer, free_slots, clock(), aside=aside, only=only)
        if not seen.has_slots:
            return Passed()
        if seen.wanted:
            taken = await _claim(db, claimer, seen, free_slots, clock)
            if taken is not None:
                return taken
        elif not seen.has_more:
            return Nothing(seen.next_due_at, seen.eligible, seen.is_ahead)
        # The first page of due schedules is stuck: look behind it.
        seen = await look(db, claimer, free_slots, clock(), page=seen.page * 4, aside=aside, only=only)


async def _claim(
    db: Database, claimer: Claimer, seen: Look, free_slots: int, clock: Callable[[], datetime]
) -> Claimed | Passed | None:
    """Claim of those that a look found; None if nothing came of it and there are more to look at."""
    try:
        claims, has_locked, planned = await _claim_locked(db, claimer, seen, free_slots, clock)
    except sa.exc.IntegrityError as error:
        if not db.dialect.is_unique_violation(error):
            raise
        # The constraints had the last word: someone wrote around our locks. The next tick decides afresh.
        return Passed(seen.eligible)
    if claims:
        return Claimed(claims, seen.eligible, planned)
    # Even without a claim: what was due a moment ago was passed over, locked, or taken. Look again.
    return Passed(seen.eligible) if has_locked or not seen.has_more else None


async def _claim_locked(
    db: Database,
    claimer: Claimer,
    seen: Look,
    free_slots: int,
    clock: Callable[[], datetime],
) -> tuple[tuple[Claim, ...], bool, tuple[Planned, ...]]:
    """Lock, decide again and write; return the claims, whether a row was locked, and who was fired and is eligible."""
    wanted = set(seen.wanted)
    async with db.write() as conn:
        locked = await _lock(conn, db.dialect, wanted, seen.edges, claimer.node_id)
        wanted &= locked
        if not wanted:
            return (), True, ()
        if seen.has_shared:
            await limits.lock(conn, db.dialect, wanted)
        now = clock()
        facts, edges_now = await reading.read_around(conn, db.dialect, now, wanted, claimer.here, free_slots)
        if facts.limits and not seen.has_shared:  # named since the look: the next one locks it
            wanted = {name for name in wanted if not facts.workers[name].config.limits}
        # An edge to a worker that is not there (a bare SQLite shell can write one) ties to nothing.
        wanted = {name for name in wanted if edges_now.related({name}) & facts.workers.keys() <= locked}
        chosen = [start for start in decide_starts(facts) if start.worker in wanted]
        claims, states = await _write(conn, db.dialect, claimer, facts, chosen)
        return claims, len(wanted) < len(seen.wanted), find_planned(facts, states)


async def _lock(
    conn: AsyncConnection, dialect: Dialect, wanted: set[str], edges: reading.Edges, node_id: str
) -> set[str]:
    """Lock the rows involved in the order of names; return the workers whose rows are held: none for a lost node."""
    locked: set[str] = set()
    related = {name for name in wanted if len(edges.related({name})) > 1}
    if related:
        involved = edges.related(related)
        parameters = {"names": names_json(involved), "node_id": node_id}
        locked.update((await conn.execute(statements(dialect).lock, parameters)).scalars())
    alone = wanted - locked
    if alone:
        # Never waits, so it cannot close a circle of waiting, whatever its place in the order.
        parameters = {"names": names_json(alone), "node_id": node_id}
        locked.update((await conn.execute(statements(dialect).lock_or_skip, parameters)).scalars())
    return locked


@dataclass(slots=True)
class _Batch:
    """What one tick writes."""

    fired: dict[str, Fired]
    states: dict[str, WorkerState] = field(default_factory=dict)
    fences: dict[str, int] = field(default_factory=dict)  # the last one given out, by worker
    waiting: list[dict[str, Any]] = field(default_factory=list)
    firings: list[dict[str, Any]] = field(default_factory=list)
    missed: list[dict[str, Any]] = field(default_factory=list)
    probes: dict[str, int | None] = field(default_factory=dict)  # worker -> the waiting run, None: its firing


async def _write(
    conn: AsyncConnection, dialect: Dialect, claimer: Claimer, facts: Facts, starts: list[Start]
) -> tuple[tuple[Claim, ...], Mapping[str, WorkerState]]:
    batch = _Batch(await firings.decide(conn, dialect, facts, starts, claimer.node_id))
    for start in starts:
        _add(batch, facts, start, claimer.node_id)
    prepared = statements(dialect)
    rows: list[Any] = []
    if batch.waiting:
        parameters = {"claims": to_json(batch.waiting), "node_id": claimer.node_id}
        rows += (await conn.execute(prepared.start_waiting, parameters)).all()
    if batch.firings:
        rows += (await conn.execute(prepared.insert_firings, batch.firings)).all()
    runs = [run_of(row) for row in rows]
    await _write_states(conn, batch, facts, runs)
    await write_missed(conn, batch.missed)
    return tuple(_claim_of(run, facts.workers[run.worker]) for run in runs), batch.states


def _claim_of(run: Run, worker: WorkerFacts) -> Claim:
    return Claim(run, worker.config, simple_under(worker.config, worker.state.circuit_state, worker.revision))


def _add(batch: _Batch, facts: Facts, start: Start, node_id: str) -> None:
    name = start.worker
    worker = facts.workers[name]
    if name not in batch.states:
        _settle(batch, facts, worker)
    fence = batch.fences.get(name, worker.state.last_fence) + 1
    batch.fences[name] = fence
    if start.is_probe:
        batch.probes[name] = start.run_id
    rated = is_rated(worker.config, facts.limits)
    at = _start_time(facts, worker, facts.rated_at if rated and facts.rated_at is not None else facts.now)
    claim: dict[str, Any] = {"slot": start.slot, "fence": fence, "key_slot": start.key_slot, "is_rated": rated}
    if start.run_id is not None:
        batch.waiting.append({**claim, "id": start.run_id, "at": at})
    else:
        claim |= {"node_id": node_id, "started_at": at, "first_started_at": at, "limit_key": start.limit_key}
        row = firings.run_row(worker.config, batch.fired[name], facts.now, claim)
        batch.firings += [] if row is None else [row]


def _settle(batch: _Batch, facts: Facts, worker: WorkerFacts) -> None:
    """Note what comes of a worker's schedule, or of a pause that has ended, before its first start of this tick."""
    name = worker.config.name
    fired = batch.fired.get(name)
    if fired is None:
        batch.states[name], missed = end_pause(worker.state, worker.config, facts.now)
    else:
        batch.states[name], missed = fired.state, fired.missed
    batch.missed += [missed_row(name, each, facts.now) for each in missed]


def _start_time(facts: Facts, worker: WorkerFacts, now: datetime) -> datetime:
    """Return `now`, but no time before the last end it waited for: the clock of whoever wrote that may be ahead."""
    ends = [worker.state.last_ended_at, *(facts.workers[name].state.last_ended_at for name in worker.counterparts)]
    ends += [facts.limits[name].last_ended_at for name in worker.config.limits if name in facts.limits]
    return max([now, *(end for end in ends if end is not None)])


async def _write_states(conn: AsyncConnection, batch: _Batch, facts: Facts, runs: list[Run]) -> None:
    """Write each worker's state once, in the order of names, with what its started runs change."""
    audits = []
    first_started = {run.worker: run.started_at for run in runs if run.first_started_at == run.started_at}
    for name, state in batch.states.items():
        probe = _probe_of(batch, name, runs)
        probe_id = None if probe is None else probe.id
        if probe_id is not None:
            audits.append(audit_row("probe", name, {"run_id": probe_id}, facts.now))
        batch.states[name] = after_starts(state, batch.fences[name], first_started.get(name), probe_id)
    if batch.states:
        values = [state_values(batch.states[name]) for name in sorted(batch.states)]
        await conn.execute(write_state_statement(), values)
    await write_audits(conn, audits)


def _probe_of(batch: _Batch, name: str, runs: list[Run]) -> Run | None:
    """Return the run that was started as the worker's probe, if any was."""
    if name not in batch.probes:
        return None
    wanted = batch.probes[name]
    for run in runs:
        if run.worker == name and (run.id == wanted or (wanted is None and run.trigger in FROM_SCHEDULE)):
            return run
    return None

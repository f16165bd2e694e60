"""Finishing: ending attempts, all that are at hand in one transaction.

The protocol:

1. Lock the `worker_state` rows of the workers concerned, in the order of their names.
2. In statements that begin after the locks are held, and so see all that was committed before: read the workers'
   definitions and state, and which of the claims still stand: (id, fence) in `runs`, not `pending`. Whatever is not
   there is no longer this node's: it was rescued, or its end was written before. Nothing is written for it.
3. Decide each end in the order of run ids (`policy.transitions.decide_finish`), each on the state that the one before
   left.
4. Write: ended runs are deleted and waiting ones set back to `pending`, both by (id, fence), and the counts must agree
   with what step 2 found, else everything is rolled back; history and dead letters are inserted; each worker's state
   is written once. Commit.

5. What waits for runs that have ended is released or cancelled in the same transaction (`flows.py`); batches of which
   members have ended are probed after it (`batches.py`).

Whoever claims, enables, disables or rescues takes the same row locks first, so between 1 and the commit nothing that
the decision rests on can change.

Failure. Before the commit: nothing has happened, and the caller tries again with the same outcomes. A commit whose
answer is lost: the caller tries again; if the first one was written, step 2 finds the claim gone and `settled` finds
its history row, so the outcome counts as written.
"""

from __future__ import annotations

import random
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.errors import DatabaseUnavailable
from jobrunner.model.record import record
from jobrunner.model.run import USES_UP_AN_ATTEMPT, EndsRun, Run
from jobrunner.policy.transitions import Finish, decide_finish
from jobrunner.storage.database import wakeups
from jobrunner.storage.database.rowsets import built_once
from jobrunner.storage.records.alerts import arise, happened_at_ends
from jobrunner.storage.records.audit import audit_row, write_audits
from jobrunner.storage.records.history import attempt_row, missed_row, outcome_error, storable_outcome
from jobrunner.storage.runs.batches import probe
from jobrunner.storage.runs.flows import follow_ends
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.rows import (
    CONFIG_COLUMNS,
    STATE_COLUMNS,
    config_or_problem,
    names_json,
    state_of,
    state_values,
    to_json,
    write_state_statement,
)
from jobrunner.storage.tables.types import UtcDateTime
from jobrunner.storage.tables.types import to_json as time_to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.model.run import Outcome
    from jobrunner.model.worker import WorkerConfig, WorkerState
    from jobrunner.storage.database.database import Database
    from jobrunner.storage.database.dialect import Dialect
    from jobrunner.telemetry.tracing import TraceIds


@record
class Ended:
    """An attempt that ended: the run as claimed, the definition it was claimed with, and how it ended.

    `simple_under`: see `Claim`. `trace`: what its node's tracing knows it by; nothing of it is written.
    """

    run: Run
    outcome: Outcome
    rules: WorkerConfig | None = None  # None: the definition as it is now (a rescued run)
    simple_under: int | None = None
    trace: TraceIds | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """What became of the ended attempts: decided and written, or no longer ours (nothing written)."""

    written: tuple[tuple[Run, Finish], ...]
    stale: tuple[Run, ...]
    problems: tuple[str, ...] = ()  # of a rescue: what could not be written, and why
    members: Mapping[int, bool] = field(default_factory=dict)
    """The batches of which members have ended, and whether one of these has failed: to be probed after the commit."""
    has_released: bool = False
    """Steps of flows may start now."""


@dataclass(frozen=True)
class _Statements:
    lock: sa.Select[Any]
    workers: sa.Select[Any]
    owned: sa.Select[Any]
    delete: sa.UpdateBase
    set_back: sa.UpdateBase
    settled: sa.Select[Any]
    past_errors: sa.Select[Any]


@built_once
def statements(dialect: Dialect) -> _Statements:
    """Build the finishing statements once for each database."""
    r, h, s = t.runs, t.run_history, t.worker_state
    given = dialect.rows("names", name=sa.Text())
    lock = (
        sa.select(s.c.worker)
        .where(s.c.worker.in_(sa.select(given.c.name)))
        .order_by(s.c.worker)
        .with_for_update(key_share=True, of=s)
    )
    read = (
        sa.select(*CONFIG_COLUMNS, *STATE_COLUMNS)
        .select_from(s.join(t.workers, t.workers.c.name == s.c.worker))
        .where(s.c.worker.in_(sa.select(given.c.name)))
    )
    claim = dialect.rows("claims", id=sa.BigInteger(), fence=sa.BigInteger())
    owned = sa.select(r.c.id, r.c.fence, r.c.cancel_requested_at, r.c.cancel_reason).select_from(
        claim.join(r, sa.and_(r.c.id == claim.c.id, r.c.fence == claim.c.fence))
    )
    ended = dialect.rows("claims", id=sa.BigInteger(), fence=sa.BigInteger())
    delete = (
        sa.delete(r).where(sa.tuple_(r.c.id, r.c.fence).in_(sa.select(ended.c.id, ended.c.fence))).returning(r.c.id)
    )
    retry = dialect.rows(
        "retries",
        id=sa.BigInteger(),
        fence=sa.BigInteger(),
        attempt=sa.Integer(),
        due_at=UtcDateTime(),
        lost_in_a_row=sa.Integer(),
        waits_since=UtcDateTime(),
    )
    set_back = (
        sa.update(r)
        .values(
            state=sa.literal_column("'pending'"),
            slot=sa.null(),
            fence=sa.null(),
            node_id=sa.null(),
            started_at=sa.null(),
            progress=sa.null(),
            output=sa.null(),
            output_lines=sa.null(),
            key_slot=sa.null(),
            is_rated=sa.false(),
            attempt=retry.c.attempt,
            due_at=retry.c.due_at,
            lost_in_a_row=retry.c.lost_in_a_row,
            waits_since=retry.c.waits_since,
        )
        .where(r.c.id == retry.c.id, r.c.fence == retry.c.fence)
        .returning(r.c.id)
    )
    gone = dialect.rows("claims", id=sa.BigInteger(), fence=sa.BigInteger())
    settled = sa.select(h.c.run_id, h.c.fence, h.c.outcome).select_from(
        gone.join(h, sa.and_(h.c.run_id == gone.c.id, h.c.fence == gone.c.fence))
    )
    dead = dialect.rows("claims", id=sa.BigInteger())
    past_errors = (
        sa.select(h.c.run_id, h.c.attempt, h.c.outcome, h.c.error_type, h.c.error, h.c.finished_at)
        .where(h.c.run_id.in_(sa.select(dead.c.id)))
        .order_by(h.c.id)
    )
    return _Statements(lock, read, owned, delete, set_back, settled, past_errors)


@dataclass(slots=True)
class _Batch:
    """What one finishing transaction writes."""

    written: list[tuple[Run, Finish]] = field(default_factory=list)
    states: dict[str, WorkerState] = field(default_factory=dict)
    missed: list[dict[str, Any]] = field(default_factory=list)
    audits: list[dict[str, Any]] = field(default_factory=list)


async def finish(db: Database, ended: Sequence[Ended], draw: Callable[[], float] | None = None) -> Finished:
    """Write the ends of attempts in one transaction.

    Args:
        db: the database.
        ended: the attempts that ended; one claim at most once.
        draw: returns the jitter of a retry delay, -0.1 to 0.1.

    Raises:
        DatabaseUnavailable: nothing is known to have been written; call again with the same attempts.
    """
    async with db.write() as conn:
        finished = await finish_within(conn, db.dialect, ended, draw or _draw)
        if finished.has_released:
            await wakeups.notify(db, conn)
    await probe_after(db, finished, ended)
    return finished


async def probe_after(db: Database, finished: Finished, ended: Sequence[Ended]) -> None:
    """Probe the batches of what has ended, after the commit. What goes wrong is left to the sweep: the ends stand."""
    if finished.members:
        with suppress(Exception):  # a database that is away, or another's rows: it must not undo what is written
            await probe(db, finished.members, max(item.outcome.finished_at for item in ended))


def _draw() -> float:
    return random.uniform(-0.1, 0.1)  # noqa: S311 - spreads load, guards nothing


async def finish_within(
    conn: AsyncConnection, dialect: Dialect, ended: Sequence[Ended], draw: Callable[[], float] = _draw
) -> Finished:
    """Do what `finish` does inside the caller's transaction."""
    prepared = statements(dialect)
    names = names_json({item.run.worker for item in ended})
    await conn.execute(prepared.lock, {"names": names})
    rows = (await conn.execute(prepared.workers, {"names": names})).all()
    split = len(CONFIG_COLUMNS)
    current = {config.name: config for config in (config_or_problem(row[:split])[0] for row in rows)}
    states = {state.worker: state for state in (state_of(row[split:]) for row in rows)}
    claims = to_json({"id": item.run.id, "fence": item.run.fence} for item in ended)
    rows = (await conn.execute(prepared.owned, {"claims": claims})).all()
    owned = {(row.id, row.fence): (row.cancel_requested_at, row.cancel_reason) for row in rows}
    batch = _Batch()
    stale = []
    for item in sorted(ended, key=lambda item: item.run.id):
        name = item.run.worker
        if item.run.claim_key not in owned or name not in states:
            stale.append(item)
            continue
        stored = _as_stored(item, *owned[item.run.claim_key])
        _decide(batch, stored, current[name], states, draw())
    await _write(conn, dialect, batch)
    lost = await _not_settled(conn, dialect, stale)
    members, has_released = await _follow(conn, dialect, batch)
    return Finished(tuple(batch.written), tuple(lost), members=members, has_released=has_released)


async def _follow(conn: AsyncConnection, dialect: Dialect, batch: _Batch) -> tuple[dict[int, bool], bool]:
    """Go on with the flows of what has ended; return the batches to probe, and whether steps were released."""
    over = [(run, decided.ends_run) for run, decided in batch.written if decided.ends_run is not None]
    steps = [(run, ends_run) for run, ends_run in over if run.flow_id is not None]
    has_released = False
    if steps:
        now = max(decided.outcome.finished_at for _, decided in batch.written)
        moved = await follow_ends(conn, dialect, steps, now)
        has_released = bool(moved.released)
        over += [(run, EndsRun.CANCELLED) for run in moved.cancelled]
    return members_of(over), has_released


def members_of(over: Sequence[tuple[Run, EndsRun]]) -> dict[int, bool]:
    """Return the batches of runs that have ended, and whether one of them has failed."""
    members: dict[int, bool] = {}
    for run, ends_run in over:
        if run.batch_id is not None:
            members[run.batch_id] = members.get(run.batch_id, False) or ends_run is not EndsRun.SUCCEEDED
    return members


def _as_stored(item: Ended, cancel_requested_at: datetime | None, cancel_reason: str | None) -> Ended:
    """Take the run with what was asked of it since, and of the outcome only what both databases can store."""
    run = replace(item.run, cancel_requested_at=cancel_requested_at, cancel_reason=cancel_reason)
    return replace(item, run=run, outcome=storable_outcome(item.outcome))


def _decide(batch: _Batch, item: Ended, current: WorkerConfig, states: dict[str, WorkerState], jitter: float) -> None:
    name = item.run.worker
    decided = decide_finish(item.run, item.outcome, item.rules or current, current, states[name], jitter)
    states[name] = batch.states[name] = decided.state
    batch.written.append((item.run, decided))
    at = item.outcome.finished_at
    batch.missed += [missed_row(name, each, at) for each in decided.missed]
    batch.audits += [audit_row(audit.action, name, audit.detail, at) for audit in decided.audits]


async def _write(conn: AsyncConnection, dialect: Dialect, batch: _Batch) -> None:
    if not batch.written:
        return
    prepared = statements(dialect)
    ended = [{"id": run.id, "fence": run.fence} for run, decided in batch.written if decided.retry is None]
    if ended:
        deleted = (await conn.execute(prepared.delete, {"claims": to_json(ended)})).all()
        _agree(len(deleted), len(ended))
    retries = [_retry_row(run, decided) for run, decided in batch.written if decided.retry is not None]
    if retries:
        updated = (await conn.execute(prepared.set_back, {"retries": to_json(retries)})).all()
        _agree(len(updated), len(retries))
    letters = await _letters(conn, dialect, batch)
    history = [attempt_row(run, decided) for run, decided in batch.written]
    # The claims were ours a statement ago. A row that has their place all the same, somebody else has written: it keeps
    # no run from ending, and `db verify` tells of it.
    await conn.execute(dialect.insert(t.run_history).on_conflict_do_nothing(), history + batch.missed)
    if letters:
        await conn.execute(dialect.insert(t.dead_letters).on_conflict_do_nothing(), letters)
    await conn.execute(write_state_statement(), [state_values(batch.states[name]) for name in sorted(batch.states)])
    await write_audits(conn, batch.audits)
    await arise(conn, dialect, happened_at_ends(batch.written))


def _agree(found: int, expected: int) -> None:
    """Refuse to go on when a guarded write missed a row that was ours a statement ago."""
    if found != expected:
        raise DatabaseUnavailable(
            f"{expected - found} of {expected} runs were changed by another program while they were being finished; "
            "nothing was written, it is tried again"
        )


def _retry_row(run: Run, decided: Finish) -> dict[str, Any]:
    retry = decided.retry
    assert retry is not None  # noqa: S101 - the caller chose the rows that have one
    return {
        "id": run.id,
        "fence": run.fence,
        "attempt": retry.attempt,
        "due_at": retry.due_at,
        "lost_in_a_row": retry.lost_in_a_row,
        "waits_since": retry.since,
    }


async def _letters(conn: AsyncConnection, dialect: Dialect, batch: _Batch) -> list[dict[str, Any]]:
    """Build the dead letters of this batch, each with the error of every attempt, the earlier ones from history."""
    dead = [(run, decided) for run, decided in batch.written if decided.has_letter]
    if not dead:
        return []
    past: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    if any(run.attempt > 1 for run, _ in dead):
        claims = to_json({"id": run.id} for run, _ in dead)
        for row in await conn.execute(statements(dialect).past_errors, {"claims": claims}):
            if row.outcome not in USES_UP_AN_ATTEMPT:  # not in SQL: a planner may look through all failures there are
                continue
            past[row.run_id].append(
                {
                    "attempt": row.attempt,
                    "outcome": row.outcome,
                    "error_type": row.error_type,
                    "error": row.error,
                    "finished_at": time_to_json(row.finished_at),
                }
            )
    return [_letter(run, decided, past[run.id]) for run, decided in dead]


def _letter(run: Run, decided: Finish, past: list[dict[str, Any]]) -> dict[str, Any]:
    outcome = decided.outcome
    return {
        "run_id": run.id,
        "worker": run.worker,
        "trigger": str(run.trigger),
        "priority": run.priority,
        "key": run.key,
        "limit_key": run.limit_key,
        "batch_id": run.batch_id,
        "scheduled_for": run.scheduled_for,
        "payload": run.payload,
        "attempts": run.attempt,
        "error_type": outcome.error_type,
        "error": outcome.error,
        "traceback": outcome.traceback,
        "errors": [*past, outcome_error(outcome, run)],
        "died_at": outcome.finished_at,
    }


async def _not_settled(conn: AsyncConnection, dialect: Dialect, stale: Sequence[Ended]) -> list[Run]:
    """Return the runs that were lost, leaving out those whose end was written by a commit we had no answer to."""
    if not stale:
        return []
    claims = to_json({"id": item.run.id, "fence": item.run.fence} for item in stale)
    rows = await conn.execute(statements(dialect).settled, {"claims": claims})
    ours = {((row.run_id, row.fence), row.outcome) for row in rows}
    return [item.run for item in stale if (item.run.claim_key, str(item.outcome.kind)) not in ours]

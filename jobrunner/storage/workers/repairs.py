"""Waits that began under a clock that was wrong, found and set right: `policy.clocks` says what is wrong and why.

Two depths. A *look*, once a tick interval, asks the database one question (`ahead`) and reads what that finds: what
other machines and hands have written. A *sweep*, at a node's start and when its clock was seen to go back, goes through
everything that lies ahead, in pages; it also gives a next time to enabled workers that have lost theirs.

While a node that lives says by its heartbeat that it is later than here, nobody knows whose clock is right, and what
one of the two computes again, the other would fire again. So nothing is touched until the clocks agree.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.errors import InvalidSchedule
from jobrunner.policy import clocks
from jobrunner.policy.transitions import next_time
from jobrunner.storage.database import wakeups
from jobrunner.storage.database.rowsets import built_once
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.rows import names_json, state_values, to_json, write_state_statement
from jobrunner.storage.tables.types import UtcDateTime
from jobrunner.storage.workers.ahead import (
    LOOKED_THROUGH,
    ahead_values,
    is_any_ahead,
    is_worker_ahead,
    waiting_ahead,
    waits_from,
)
from jobrunner.storage.workers.definitions import has_loop_run, read_stored

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.model.worker import WorkerState
    from jobrunner.storage.database.database import Database
    from jobrunner.storage.database.dialect import Dialect
    from jobrunner.storage.workers.definitions import Stored

PAGE = 500


@dataclass(slots=True)
class Repaired:
    """What was set right: the names of workers, and how many runs."""

    schedules: list[str] = field(default_factory=list)
    pauses: list[str] = field(default_factory=list)
    cooldowns: list[str] = field(default_factory=list)
    runs: int = 0

    @property
    def is_nothing(self) -> bool:
        """Say whether nothing was wrong."""
        return not (self.schedules or self.pauses or self.cooldowns or self.runs)

    def note(self, before: WorkerState, after: WorkerState) -> None:
        """Note what has changed of a worker."""
        if before.paused_until != after.paused_until:
            self.pauses.append(after.worker)
        elif before.probe_at != after.probe_at:
            self.cooldowns.append(after.worker)
        elif before.next_run_at != after.next_run_at:
            self.schedules.append(after.worker)


@dataclass(frozen=True)
class _Statements:
    question: sa.Select[Any]
    found: sa.Select[Any]
    all_ahead: sa.Select[Any]
    move_runs: sa.Update


@built_once
def _statements(dialect: Dialect) -> _Statements:
    w, s, r = t.workers, t.worker_state, t.runs
    page: sa.ColumnElement[int] = sa.literal_column(str(PAGE))
    found = sa.select(s.c.worker).where(is_worker_ahead()).order_by(waits_from().desc()).limit(page)
    ahead = sa.bindparam("ahead", type_=UtcDateTime())
    is_doubtful = sa.or_(
        is_worker_ahead(),
        sa.and_(s.c.next_run_at > ahead, w.c.cron.is_not(None)),
        sa.and_(s.c.next_run_at.is_(None), s.c.is_enabled, w.c.execution_mode != "triggered"),
        *(s.c[name] > ahead for name in clocks.MARKS),
    )
    all_ahead = (
        sa.select(s.c.worker)
        .join(w, w.c.name == s.c.worker)
        .where(s.c.worker > sa.bindparam("after", type_=sa.Text()), is_doubtful)
        .order_by(s.c.worker)
        .limit(page)
    )
    moved = dialect.rows("moved", id=sa.BigInteger(), was=UtcDateTime(), due_at=UtcDateTime())
    move_runs = (
        sa.update(r)
        .values(due_at=moved.c.due_at, waits_since=sa.bindparam("since", type_=UtcDateTime()))
        .where(r.c.id == moved.c.id, r.c.due_at == moved.c.was, sa.literal_column("runs.state = 'pending'"))
    )
    return _Statements(sa.select(is_any_ahead()), found, all_ahead, move_runs)


async def find_ahead(db: Database, now: datetime) -> bool:
    """Ask the one question of a look: whether any wait seems to have begun ahead of `now`."""
    async with db.peek() as conn:
        return bool((await conn.execute(_statements(db.dialect).question, ahead_values(now))).scalar_one())


async def later_node(db: Database, now: datetime, node_id: str) -> tuple[str, float] | None:
    """Return the host of another node that lives by a clock ahead of `now`, and by how many seconds; None: no node."""
    n = t.nodes
    latest = (
        sa.select(n.c.hostname, n.c.heartbeat_at)
        .where(sa.literal_column("nodes.state IN ('active', 'draining')"), n.c.id != node_id)
        .order_by(n.c.heartbeat_at.desc())
        .limit(1)
    )
    async with db.peek() as conn:
        row = (await conn.execute(latest)).first()
    if row is None or not clocks.is_ahead(row.heartbeat_at, now):
        return None
    return row.hostname, (row.heartbeat_at - now).total_seconds()


async def repair(db: Database, now: datetime) -> Repaired:
    """Set right what a look has found: the worst page of it."""
    repaired = Repaired()
    async with db.peek() as conn:
        names = (await conn.execute(_statements(db.dialect).found, ahead_values(now))).scalars().all()
    await _repair_workers(db, names, now, repaired)
    await _move_runs(db, now, LOOKED_THROUGH, repaired)
    return repaired


async def sweep(db: Database, now: datetime) -> Repaired:
    """Set right all that began ahead of now, and give lost next times anew."""
    repaired = Repaired()
    after = ""
    while True:
        async with db.peek() as conn:
            parameters = {"after": after, **ahead_values(now)}
            names = (await conn.execute(_statements(db.dialect).all_ahead, parameters)).scalars().all()
        await _repair_workers(db, names, now, repaired)
        if len(names) < PAGE:
            break
        after = names[-1]
    while await _move_runs(db, now, None, repaired):
        pass
    return repaired


async def _repair_workers(db: Database, names: Any, now: datetime, repaired: Repaired) -> None:
    """Judge some workers, and lock and write those that need it."""
    if not names:
        return
    async with db.peek() as conn:
        stored = await read_stored(conn, db.dialect, names)
        wrong = [name for name, worker in stored.items() if await _judge(conn, worker, now) != worker.state]
    await _learn(db, {name: worker for name, worker in stored.items() if name not in wrong})
    if not wrong:
        return
    async with db.write() as conn:
        stored = await read_stored(conn, db.dialect, wrong, lock=True)
        changed = []
        for worker in stored.values():
            after = await _judge(conn, worker, now)
            if after != worker.state:
                changed.append(after)
                repaired.note(worker.state, after)
        if changed:
            await conn.execute(write_state_statement(), [state_values(state) for state in changed])
        await wakeups.notify(db, conn)


async def _judge(conn: AsyncConnection, worker: Stored, now: datetime) -> WorkerState:
    state = worker.state
    if state.is_enabled and state.next_run_at is None and not await has_loop_run(conn, state.worker):
        with suppress(InvalidSchedule, OverflowError):  # written by hand; it has no next time
            state = replace(state, next_run_at=next_time(worker.config, state, now))
    return clocks.set_right(worker.config, state, now)


async def _learn(db: Database, right: dict[str, Stored]) -> None:
    """Note how far ahead a next time may lie that was found for nothing, so that it is not found again."""
    if not right:
        return
    s = t.worker_state
    async with db.peek() as conn:
        given = db.dialect.rows("names", name=sa.Text())
        known = sa.select(s.c.worker, s.c.reach_seconds).where(s.c.worker.in_(sa.select(given.c.name)))
        rows = (await conn.execute(known, {"names": names_json(right)})).all()
    reaches = {row.worker: row.reach_seconds for row in rows}
    needed = {name: clocks.longer_reach(right[name].config, right[name].state) for name in reaches}
    longer = [
        {"key_worker": name, "new_reach": needed[name]} for name in sorted(needed) if needed[name] > reaches[name]
    ]
    if longer:
        statement = sa.update(s).where(s.c.worker == sa.bindparam("key_worker"))
        async with db.write() as conn:
            await conn.execute(statement.values(reach_seconds=sa.bindparam("new_reach")), longer)


async def _move_runs(db: Database, now: datetime, most: int | None, repaired: Repaired) -> bool:
    """Let waits of runs that began ahead of now begin now; say whether there were any."""
    async with db.peek() as conn:
        rows = (await conn.execute(waiting_ahead(most).limit(PAGE), ahead_values(now))).all()
    if not rows:
        return False
    moved = [{"id": row.id, "was": row.due_at, "due_at": clocks.shifted(now, row.due_at - row.began)} for row in rows]
    async with db.write() as conn:
        parameters = {"moved": to_json(moved), "since": now}
        repaired.runs += (await conn.execute(_statements(db.dialect).move_runs, parameters)).rowcount
        await wakeups.notify(db, conn)
    return True

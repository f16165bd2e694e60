"""`jobrunner db verify`: promises 1 to 5 of the design, checked on live data.

All checks see one snapshot. The database does the grouping and sorting and only violations come back, so memory is
bounded however long the history is. What pruning may have taken away is not missed: a run is asked for its end only
while its rows are younger than history is kept. Promises 3 and 4 rest on definitions, so they are checked on attempts
that started after the definitions involved last changed.

Clocks: `started_at` and `finished_at` are written by the node that ran the attempt. Between nodes of different machines
they are as good as the machines' clocks; `tolerance` (seconds) says by how much two intervals may touch.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.policy.sweep import Fault, Together, TooMany
from jobrunner.policy.words import counted
from jobrunner.storage import states
from jobrunner.storage import tables as t
from jobrunner.storage.intervals import Intervals, moment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.database import Database

    Progress = Callable[[int], None]

_SHOWN_ROWS = 10
_USED_UP: sa.ColumnElement[bool] = sa.literal_column("run_history.outcome IN ('failed', 'timed_out', 'lost')")
_ENDED_BADLY: sa.ColumnElement[bool] = sa.literal_column("run_history.ends_run IN ('exhausted', 'discarded')")


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise: its number in the design, what is wrong, and the rows that show it."""

    promise: int
    problem: str
    rows: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Scope:
    """What to check: from when on ends must still be there, and how far intervals may touch."""

    now: datetime
    history_days: float
    failure_days: float
    tolerance: timedelta = timedelta(0)

    @property
    def ends_kept_since(self) -> datetime:
        """Rows younger than this have lost nothing to pruning; a day's grace, since pruning takes its time."""
        days = min(self.history_days, self.failure_days)
        return self.now - timedelta(days=max(days - 1, 0) if days >= 1 else 0)


async def verify(db: Database, scope: Scope, progress: Progress = lambda _: None) -> AsyncIterator[Violation]:
    """Yield every violation of promises 1 to 5.

    Args:
        db: the database.
        scope: what to check.
        progress: told, in the longest part of the work, how many rows of history are done.
    """
    async with db.read(is_long=True) as conn:
        for check in (_paired, _ended_once, _not_lost, _letters, _fences, _attempts, _streaks):
            async for violation in check(conn, scope):
                yield violation
        async for violation in _times(db, conn, scope, progress):
            yield violation


async def _stream(conn: AsyncConnection, statement: Any) -> AsyncIterator[Any]:
    result = await conn.stream(statement.execution_options(yield_per=1000))
    async for row in result:
        yield row


async def _paired(conn: AsyncConnection, _scope: Scope) -> AsyncIterator[Violation]:
    """Promise 1 rests on it: each worker has a state, or its runs would wait for ever; each state has a worker."""
    mended = "the next start of a node with its code mends that"
    async for row in _stream(conn, states.workers_without()):
        yield Violation(1, f"{row.name} has no state: nothing of it starts; {mended}", (f"workers.name={row.name}",))
    async for row in _stream(conn, states.without_worker()):
        problem = f"there is a state of {row.worker}, but no such worker; {mended}"
        yield Violation(1, problem, (f"worker_state.worker={row.worker}",))


async def _ended_once(conn: AsyncConnection, _scope: Scope) -> AsyncIterator[Violation]:
    """Promise 1: a run ends once, and what has ended is not live."""
    h, r = t.run_history, t.runs
    n = h.alias("n")
    # Most runs have one row; which have more, the index on (run_id, fence) says alone.
    several = sa.select(n.c.run_id).where(n.c.run_id.is_not(None)).group_by(n.c.run_id).having(sa.func.count() > 1)
    twice = (
        sa.select(h.c.run_id, sa.func.count().label("ends"))
        .where(h.c.ends_run.is_not(None), h.c.run_id.in_(several))
        .group_by(h.c.run_id)
        .having(sa.func.count() > 1)
    )
    async for row in _stream(conn, twice):
        yield Violation(1, f"run {row.run_id} has ended {row.ends} times", (f"run_history.run_id={row.run_id}",))
    both = sa.select(h.c.run_id, h.c.id, h.c.ends_run).join(r, r.c.id == h.c.run_id).where(h.c.ends_run.is_not(None))
    async for row in _stream(conn, both):
        where = (f"runs.id={row.run_id}", f"run_history.id={row.id}")
        yield Violation(1, f"run {row.run_id} has ended ({row.ends_run}) and is live too", where)


async def _not_lost(conn: AsyncConnection, scope: Scope) -> AsyncIterator[Violation]:
    """Promise 1: a run that is not live has an end."""
    h, r = t.run_history, t.runs
    e = h.alias("e")
    lost = (
        sa.select(h.c.run_id, sa.func.max(h.c.id).label("last"))
        .where(h.c.ends_run.is_(None), h.c.run_id.is_not(None), h.c.finished_at >= scope.ends_kept_since)
        .where(sa.not_(sa.exists().where(e.c.run_id == h.c.run_id, e.c.ends_run.is_not(None))))
        .where(sa.not_(sa.exists().where(r.c.id == h.c.run_id)))
        .group_by(h.c.run_id)
    )
    async for row in _stream(conn, lost):
        yield Violation(1, f"run {row.run_id} is gone without an end", (f"run_history.id={row.last}",))


async def _letters(conn: AsyncConnection, scope: Scope) -> AsyncIterator[Violation]:
    """Promise 1: exhausted and discarded runs have a dead letter, and nothing else has."""
    h, d, r = t.run_history, t.dead_letters, t.runs
    without = sa.select(h.c.id, h.c.run_id, h.c.ends_run).where(
        _ENDED_BADLY, h.c.finished_at >= scope.ends_kept_since, sa.not_(sa.exists().where(d.c.run_id == h.c.run_id))
    )
    async for row in _stream(conn, without):
        problem = f"run {row.run_id} was {row.ends_run}, but has no dead letter"
        yield Violation(1, problem, (f"run_history.id={row.id}",))
    live = sa.select(d.c.id, d.c.run_id).where(sa.exists().where(r.c.id == d.c.run_id))
    async for row in _stream(conn, live):
        yield Violation(1, f"run {row.run_id} has a dead letter and is live", (f"dead_letters.id={row.id}",))
    other = (
        sa.select(d.c.id, d.c.run_id, h.c.ends_run)
        .join(h, h.c.run_id == d.c.run_id)
        .where(sa.literal_column("run_history.ends_run IN ('succeeded', 'cancelled')"))
    )
    async for row in _stream(conn, other):
        yield Violation(1, f"run {row.run_id} {row.ends_run}, but has a dead letter", (f"dead_letters.id={row.id}",))


async def _fences(conn: AsyncConnection, _scope: Scope) -> AsyncIterator[Violation]:
    """Promise 2: a claim that has ended is not live; that it ends once, a constraint holds."""
    h, r = t.run_history, t.runs
    live = sa.select(h.c.id, h.c.run_id, h.c.fence).join(r, sa.and_(r.c.id == h.c.run_id, r.c.fence == h.c.fence))
    async for row in _stream(conn, live):
        problem = f"claim {row.fence} of run {row.run_id} has ended and is live"
        yield Violation(2, problem, (f"runs.id={row.run_id}", f"run_history.id={row.id}"))


async def _attempts(conn: AsyncConnection, scope: Scope) -> AsyncIterator[Violation]:
    """Promise 2: the attempts of a run that used up a try are numbered 1, 2, 3 … without gap or repeat."""
    h = t.run_history
    first, last = sa.func.min(h.c.attempt), sa.func.max(h.c.attempt)
    distinct = sa.func.count(h.c.attempt.distinct())
    began = sa.func.min(h.c.finished_at)
    wrong = (
        sa.select(h.c.run_id, first.label("first"), last.label("last"), sa.func.count().label("rows"))
        .where(_USED_UP, h.c.run_id.is_not(None))
        .group_by(h.c.run_id)
        .having(
            sa.or_(
                sa.func.count() != distinct,
                distinct != last - first + 1,
                sa.and_(first != 1, began >= scope.ends_kept_since),
            )
        )
    )
    async for row in _stream(conn, wrong):
        problem = f"the attempts of run {row.run_id} are {counted(row.rows, 'row')} numbered {row.first} to {row.last}"
        yield Violation(2, problem, (f"run_history.run_id={row.run_id}",))


async def _streaks(conn: AsyncConnection, _scope: Scope) -> AsyncIterator[Violation]:
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
    async for row in _stream(conn, statement):
        if row.counted < row.consecutive_failures and row.since == 0 and oldest > 1:
            continue
        problem = f"{row.worker}: the stored streak is {row.consecutive_failures}, history counts {row.counted}"
        yield Violation(5, problem, (f"worker_state.worker={row.worker}", f"run_history.id>{row.since}"))


async def _times(db: Database, conn: AsyncConnection, scope: Scope, progress: Progress) -> AsyncIterator[Violation]:
    """Promises 3 and 4: never too many, never together, never before what a run depends on."""
    intervals = Intervals(db, conn, scope.tolerance)
    glance = await intervals.glance()
    done = 0
    async for rows in intervals.by_id():
        glance.add(rows)
        done += len(rows)
        progress(done)
    glance.close()
    sweep, active = await intervals.sweep(glance.unsure, scope.ends_kept_since)
    for attempt in active:
        for fault in sweep.add(attempt):
            yield await _told(fault, intervals)
    async for attempts in intervals.by_end(sweep.workers):
        for attempt in attempts:
            for fault in sweep.add(attempt):
                yield await _told(fault, intervals)
        done += len(attempts)
        progress(done)
    for fault in sweep.close():
        yield await _told(fault, intervals)


async def _told(fault: Fault, intervals: Intervals) -> Violation:
    """Say what is wrong, with the rows that show it."""
    at = moment(fault.at)
    if isinstance(fault, TooMany):
        problem = f"{fault.worker}: {fault.active} runs at once at {at}, the most is {fault.most}"
        return Violation(3, problem, await _active(intervals, fault.worker, fault.at))
    run = f"{fault.worker} (run {fault.run_id}) started at {at}"
    where = f"run_history.run_id={fault.run_id}"
    if isinstance(fault, Together):
        rows = await _active(intervals, fault.other, fault.at)
        return Violation(3, f"{run} while {fault.other} ran, which it blocks", (where, *rows))
    if fault.is_busy:
        why = f"while {fault.depends_on} ran or was to be tried again"
    else:
        why = f"although {fault.depends_on} had {'last failed' if fault.has_failed else 'never succeeded'}"
    return Violation(4, f"{run} {why}", (where,))


async def _active(intervals: Intervals, worker: str, at: Any) -> tuple[str, ...]:
    """Name the runs of a worker that were active at a moment, the first few."""
    return tuple(f"run_history.run_id={run_id}" for run_id in await intervals.active_at(worker, at, _SHOWN_ROWS))

"""`jobrunner db verify`: promises 1 to 5 of the design, checked on live data.

All checks see one snapshot. The database does the grouping and sorting; rows come to us one at a time, so memory is
bounded however long the history is. What pruning may have taken away is not missed: a run is asked for its end only
while its rows are younger than history is kept. Promises 3 and 4 rest on definitions, so they are checked on attempts
that started after the definitions involved last changed.

Clocks: `started_at` and `finished_at` are written by the node that ran the attempt. Between nodes of different machines
they are as good as the machines' clocks; `tolerance` (seconds) says by how much two intervals may touch.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.storage import tables as t

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.database import Database

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


async def verify(db: Database, scope: Scope) -> AsyncIterator[Violation]:
    """Yield every violation of promises 1 to 5."""
    async with db.read() as conn:
        for check in (_ended_once, _not_lost, _letters, _fences, _attempts, _streaks):
            async for violation in check(conn, scope):
                yield violation
        async for violation in _limits(conn, scope):
            yield violation
        async for violation in _blocks(conn, scope):
            yield violation
        async for violation in _dependencies(conn, scope):
            yield violation


async def _stream(conn: AsyncConnection, statement: Any) -> AsyncIterator[Any]:
    result = await conn.stream(statement.execution_options(yield_per=1000))
    async for row in result:
        yield row


async def _ended_once(conn: AsyncConnection, _scope: Scope) -> AsyncIterator[Violation]:
    """Promise 1: a run ends once, and what has ended is not live."""
    h, r = t.run_history, t.runs
    twice = (
        sa.select(h.c.run_id, sa.func.count().label("ends"))
        .where(h.c.ends_run.is_not(None))
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
    lost = (
        sa.select(h.c.run_id, sa.func.max(h.c.id).label("last"))
        .where(h.c.run_id.is_not(None), sa.not_(sa.exists().where(r.c.id == h.c.run_id)))
        .group_by(h.c.run_id)
        .having(sa.func.count(h.c.ends_run) == 0, sa.func.max(h.c.finished_at) >= scope.ends_kept_since)
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
        problem = f"the attempts of run {row.run_id} are {row.rows} rows numbered {row.first} to {row.last}"
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


def _intervals(names: list[str], since: datetime) -> Any:
    """Every interval in which code of `names` ran, from history and from what runs now, by start."""
    h, r = t.run_history, t.runs
    ended = sa.select(
        h.c.worker, h.c.started_at, h.c.finished_at, h.c.run_id, h.c.ends_run, h.c.outcome, h.c.is_forced
    ).where(h.c.worker.in_(names), h.c.started_at >= since)
    running = sa.select(
        r.c.worker,
        r.c.started_at,
        sa.cast(sa.null(), h.c.finished_at.type),
        r.c.id,
        sa.cast(sa.null(), sa.Text),
        sa.cast(sa.null(), sa.Text),
        r.c.is_forced,
    ).where(r.c.worker.in_(names), r.c.started_at >= since)
    both = sa.union_all(ended, running).subquery()
    return sa.select(both).order_by(both.c.started_at, both.c.run_id)


async def _limits(conn: AsyncConnection, scope: Scope) -> AsyncIterator[Violation]:
    """Promise 3: no more than `max_running` runs of one worker at a time."""
    w = t.workers
    for worker in (await conn.execute(sa.select(w.c.name, w.c.max_running, w.c.updated_at).order_by(w.c.name))).all():
        ends: list[datetime] = []
        async for row in _stream(conn, _intervals([worker.name], worker.updated_at)):
            while ends and ends[0] <= row.started_at + scope.tolerance:
                heapq.heappop(ends)
            heapq.heappush(ends, row.finished_at or scope.now + timedelta(days=36500))
            if len(ends) > worker.max_running:
                problem = (
                    f"{worker.name}: {len(ends)} runs at once at {row.started_at}, the most is {worker.max_running}"
                )
                yield Violation(3, problem, (f"run_history.run_id={row.run_id}",))


async def _blocks(conn: AsyncConnection, scope: Scope) -> AsyncIterator[Violation]:
    """Promise 3: blocked counterparts never overlap."""
    b = t.worker_blocks
    for pair in (await conn.execute(sa.select(b.c.worker, b.c.blocks))).all():
        since = await _changed_at(conn, [pair.worker, pair.blocks])
        latest: dict[str, Any] = {}
        async for row in _stream(conn, _intervals([pair.worker, pair.blocks], since)):
            other = pair.blocks if row.worker == pair.worker else pair.worker
            seen = latest.get(other)
            if seen is not None and (seen.finished_at is None or seen.finished_at > row.started_at + scope.tolerance):
                problem = f"{row.worker} (run {row.run_id}) and {other} (run {seen.run_id}) ran at the same time"
                yield Violation(3, problem, (f"run_history.run_id={row.run_id}", f"run_history.run_id={seen.run_id}"))
            mine = latest.get(row.worker)
            if mine is None or (mine.finished_at is not None and _ends_later(row, mine)):
                latest[row.worker] = row


def _ends_later(row: Any, other: Any) -> bool:
    return row.finished_at is None or row.finished_at > other.finished_at


async def _changed_at(conn: AsyncConnection, names: list[str]) -> datetime:
    w = t.workers
    changed_at: datetime = (
        await conn.execute(sa.select(sa.func.max(w.c.updated_at)).where(w.c.name.in_(names)))
    ).scalar_one()
    return changed_at


async def _dependencies(conn: AsyncConnection, scope: Scope) -> AsyncIterator[Violation]:
    """Promise 4: a dependent never started while what it depends on ran, or had last ended without success."""
    d = t.worker_dependencies
    for edge in (await conn.execute(sa.select(d.c.worker, d.c.depends_on))).all():
        since = await _changed_at(conn, [edge.worker, edge.depends_on])
        # The ends of A that have not been reached yet, by time; the latest one reached; when A is idle again.
        ends: list[tuple[datetime, int, str]] = []
        last: str | None = None
        busy_until: datetime | None = None
        async for row in _stream(conn, _intervals([edge.worker, edge.depends_on], since)):
            while ends and ends[0][0] <= row.started_at:
                last = heapq.heappop(ends)[2]
            if row.worker == edge.depends_on:
                until = row.finished_at or scope.now + timedelta(days=36500)
                busy_until = until if busy_until is None else max(busy_until, until)
                if row.ends_run in {"succeeded", "exhausted"}:
                    heapq.heappush(ends, (row.finished_at, row.run_id, row.ends_run))
            elif not row.is_forced:
                where = (f"run_history.run_id={row.run_id}",)
                if busy_until is not None and busy_until > row.started_at + scope.tolerance:
                    yield Violation(4, f"{edge.worker} started at {row.started_at} while {edge.depends_on} ran", where)
                elif last == "exhausted":
                    problem = f"{edge.worker} started at {row.started_at} although {edge.depends_on} had last failed"
                    yield Violation(4, problem, where)

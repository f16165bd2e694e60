"""`jobrunner db verify`: promises 1 to 6 of README.md, checked on live data.

All checks see one snapshot. The database does the grouping and sorting and only violations come back, so memory is
bounded however long the history is. What pruning may have taken away is not missed: a run is asked for its end only
while its rows are younger than history is kept. What rests on definitions (promises 3 and 4, the number of tries) is
checked on attempts that started after the definitions involved last changed.

Only what cannot be is told. A node that stops may leave code behind, whose claims others take some seconds later: such
claims are looked at again after that time, in a second snapshot, and told if they are still there.

Clocks: `started_at` and `finished_at` are written by the node that ran the attempt. Between nodes of different machines
they are as good as the machines' clocks; `tolerance` (seconds) says by how much two intervals may touch. What rests on
a time through which some clock went twice, or not at all, since it was set (`storage.workers.clock_steps`), is counted
only.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.policy.fences import DrawnTwice, Fences
from jobrunner.policy.sweep import Together, TooMany
from jobrunner.storage.reading import group_checks, run_checks, state_checks
from jobrunner.storage.reading.findings import Scope, Violation
from jobrunner.storage.reading.intervals import Intervals, moment
from jobrunner.storage.reading.limit_checks import check_limits
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.claims import is_active
from jobrunner.storage.workers.clock_steps import doubtful_times

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.policy.fences import FenceFault
    from jobrunner.policy.sweep import Attempt, Fault, Sweep
    from jobrunner.storage.database.database import Database

    Progress = Callable[[int], None]

_SHOWN_ROWS = 10
LEFT_BEHIND_SECONDS = 20.0
"""So long after a node has stopped, others have taken what it left behind."""
_SURELY_LEFT = timedelta(minutes=5)


async def _no_rest(_seconds: float) -> None:
    """Go on at once."""


async def verify(
    db: Database,
    scope: Scope,
    progress: Progress = lambda _: None,
    rest: Callable[[float], Awaitable[None]] = _no_rest,
    doubt: Callable[[], None] = lambda: None,
) -> AsyncIterator[Violation]:
    """Yield every violation of promises 1 to 6.

    Args:
        db: the database.
        scope: what to check.
        progress: told, in the longest part of the work, how many rows of history are done.
        rest: waits so many seconds, if there are claims of nodes that have just stopped.
        doubt: called for each thing that may be a violation or the work of a clock that was set.
    """
    async with db.read(is_long=True) as conn:
        for check in (*state_checks.CHECKS, *run_checks.CHECKS, *group_checks.CHECKS):
            async for violation in check(conn, scope):
                yield violation
        async for violation in _times(db, conn, scope, progress, doubt):
            yield violation
        left = {(row.id, row.fence): row for row in await conn.execute(state_checks.stopped_claims())}
    if any(abs(scope.now - row.heartbeat_at) < _SURELY_LEFT for row in left.values()):
        await rest(LEFT_BEHIND_SECONDS)
    if left:
        async with db.read() as conn:
            still = [row for row in await conn.execute(state_checks.stopped_claims()) if (row.id, row.fence) in left]
        for row in still:
            problem = f"run {row.id} is claimed by node {row.node_id}, which has stopped"
            yield Violation(2, problem, (f"runs.id={row.id}", f"nodes.id={row.node_id}"))


async def _times(
    db: Database, conn: AsyncConnection, scope: Scope, progress: Progress, doubt: Callable[[], None]
) -> AsyncIterator[Violation]:
    """Promises 3 and 4: never too many, never together, no limit passed, never before what a run depends on."""
    doubtful = await doubtful_times(conn)
    intervals = Intervals(db, conn, scope.tolerance)
    glance = await intervals.glance()
    fences = await _fences(conn)
    for fence_fault in fences.add(await _live_fences(conn)):
        yield _drawn(fence_fault)
    done = 0
    async for rows in intervals.by_id():
        glance.add(rows)
        for fence_fault in fences.add(rows):
            yield _drawn(fence_fault)
        done += len(rows)
        progress(done)
    glance.close()
    async for fault in _faults(intervals, await intervals.sweep(glance.unsure, scope.ends_kept_since), done, progress):
        at = moment(fault.at)
        if any(start <= at <= end for start, end in doubtful):
            doubt()
        else:
            yield await _told(fault, intervals)
    async for passed_at, violation in check_limits(conn, scope):
        if any(start <= passed_at <= end for start, end in doubtful):
            doubt()
        else:
            yield violation


async def _faults(
    intervals: Intervals, begun: tuple[Sweep, list[Attempt]], done: int, progress: Progress
) -> AsyncIterator[Fault]:
    sweep, active = begun
    for attempt in active:
        for fault in sweep.add(attempt):
            yield fault
    async for attempts in intervals.by_end(sweep.workers):
        for attempt in attempts:
            for fault in sweep.add(attempt):
                yield fault
        done += len(attempts)
        progress(done)
    for fault in sweep.close():
        yield fault


async def _fences(conn: AsyncConnection) -> Fences:
    """Promise 2: each fence of a worker is drawn once."""
    s = t.worker_state
    return Fences({row.worker: row.last_fence for row in await conn.execute(sa.select(s.c.worker, s.c.last_fence))})


async def _live_fences(conn: AsyncConnection) -> list[tuple[Any, ...]]:
    """Return the claims there are as `Fences` takes them, the newest first; without those told as ended and live."""
    h, r = t.run_history, t.runs
    has_ended = sa.exists().where(h.c.run_id == r.c.id, h.c.fence == r.c.fence)
    claims = sa.select(r.c.worker, r.c.fence).where(is_active(), sa.not_(has_ended))
    rows = sorted(await conn.execute(claims), key=lambda row: -row.fence)
    return [(row.worker, None, None, None, row.fence) for row in rows]


def _drawn(fault: FenceFault) -> Violation:
    where = f"worker={fault.worker} AND fence={fault.fence}"
    if isinstance(fault, DrawnTwice):
        return Violation(2, f"{fault.worker}: two claims have the fence {fault.fence}", (f"run_history: {where}",))
    problem = (
        f"{fault.worker}: a claim has the fence {fault.fence}, but the last one drawn is {fault.last}: it went back"
    )
    return Violation(2, problem, (f"worker_state.worker={fault.worker}", f"run_history: {where}"))


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

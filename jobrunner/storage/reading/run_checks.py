"""What `db verify` checks of runs: their rows in history, their place among the live ones, their letters.

Promise 1: each run is live, or has ended once, as its last attempt allows; and who exhausted it left one letter.
Promise 2: its claims and its attempts are numbered in order. What pruning may have taken is not missed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.policy.ends import MAY_END
from jobrunner.storage.reading.findings import Scope, Violation, stream
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.types import JsonLength

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

_USED_UP = "{alias}.outcome IN ('failed', 'timed_out', 'lost')"
_ENDED_BADLY: sa.ColumnElement[bool] = sa.literal_column("run_history.ends_run IN ('exhausted', 'discarded')")
_SHOWN_ATTEMPTS = 12


def _used_up(alias: str = "run_history") -> sa.ColumnElement[bool]:
    return sa.literal_column(_USED_UP.format(alias=alias))


def _may_be() -> str:
    """Write `policy.ends.MAY_END` as a condition on a row of history; CASE, since SQLite evaluates all of an OR."""
    cases = []
    for outcome, ends in MAY_END.items():
        named = " OR ".join(f"coalesce(run_history.ends_run, '') = '{end or ''}'" for end in sorted(ends, key=str))
        cases.append(f"WHEN '{outcome}' THEN {named}")
    return f"CASE run_history.outcome {' '.join(cases)} ELSE false END"


async def check_ends(conn: AsyncConnection, _scope: Scope) -> AsyncIterator[Violation]:
    """Promise 1: how an attempt ended and what that did to its run go together."""
    h = t.run_history
    wrong = sa.select(h.c.id, h.c.run_id, h.c.outcome, h.c.ends_run).where(sa.not_(sa.literal_column(_may_be())))
    async for row in stream(conn, wrong):
        ended = "goes on" if row.ends_run is None else f"ended as {row.ends_run}"
        problem = f"run {row.run_id} {ended} with an attempt that was {row.outcome}"
        yield Violation(1, problem, (f"run_history.id={row.id}",))


async def check_sequence(conn: AsyncConnection, scope: Scope) -> AsyncIterator[Violation]:
    """Promises 1 and 2, on runs of several rows: nothing after the end, fences that grow, attempts without gap."""
    h = t.run_history
    n = h.alias("n")
    # Most runs have one row; which have more, the index on (run_id, fence) says alone.
    several = sa.select(n.c.run_id).where(n.c.run_id.is_not(None)).group_by(n.c.run_id).having(sa.func.count() > 1)
    order: dict[str, Any] = {"partition_by": h.c.run_id, "order_by": h.c.id}
    before: dict[str, Any] = {**order, "rows": (None, -1)}
    rows = (
        sa.select(h.c.run_id, h.c.id, h.c.worker, h.c.fence, h.c.attempt, h.c.ends_run, _from(h).label("since"))
        .add_columns(
            sa.func.max(h.c.fence).over(**before).label("fence_before"),
            sa.func.min(h.c.worker).over(**before).label("worker_before"),
            sa.func.count(h.c.ends_run).over(**before).label("ends_before"),
            sa.func.count(sa.case((_used_up(), 1))).over(**before).label("used_before"),
        )
        .where(h.c.run_id.in_(several))
        .subquery("steps")
    )
    c = rows.c
    is_kept = sa.and_(c.since >= scope.ends_kept_since, c.attempt > c.used_before + 1)
    wrong = sa.select(rows).where(
        sa.or_(
            c.ends_before > 0,
            c.fence <= c.fence_before,
            c.worker != c.worker_before,
            sa.or_(c.attempt.is_(None), c.attempt <= c.used_before, is_kept),
        )
    )
    told = None
    async for row in stream(conn, wrong.order_by(c.run_id, c.id)):
        if row.run_id == told:  # the first of a run's rows says enough
            continue
        told = row.run_id
        yield await _told(conn, row)


async def _told(conn: AsyncConnection, row: Any) -> Violation:
    run, where = f"run {row.run_id}", (f"run_history.run_id={row.run_id}",)
    if row.ends_before and row.ends_run is not None:
        return Violation(1, f"{run} has ended {row.ends_before + 1} times", where)
    if row.ends_before:
        return Violation(1, f"{run} has an attempt after its end", (f"run_history.id={row.id}",))
    if row.fence_before is not None and row.fence is not None and row.fence <= row.fence_before:
        return Violation(2, f"{run}: its fence went back from {row.fence_before} to {row.fence}", where)
    if row.worker_before is not None and row.worker != row.worker_before:
        return Violation(1, f"{run} is of {row.worker} and of {row.worker_before}", where)
    return Violation(2, await _misnumbered(conn, row.run_id), where)


async def check_single(conn: AsyncConnection, scope: Scope) -> AsyncIterator[Violation]:
    """Promise 2, on runs of one row: its attempt is the first."""
    h = t.run_history
    e = h.alias("e")
    alone = sa.not_(sa.exists().where(e.c.run_id == h.c.run_id, e.c.id != h.c.id))
    wrong = sa.select(h.c.run_id).where(
        h.c.run_id.is_not(None),
        sa.or_(h.c.attempt.is_(None), sa.and_(h.c.attempt != 1, _from(h) >= scope.ends_kept_since)),
        alone,
    )
    async for row in stream(conn, wrong):
        yield Violation(2, await _misnumbered(conn, row.run_id), (f"run_history.run_id={row.run_id}",))


def _from(h: Any) -> sa.ColumnElement[datetime]:
    """No attempt of its run ended before this time."""
    return sa.func.coalesce(h.c.scheduled_for, h.c.started_at, h.c.finished_at)


async def _misnumbered(conn: AsyncConnection, run_id: int) -> str:
    h = t.run_history
    rows = await conn.execute(
        sa.select(h.c.attempt, h.c.outcome).where(h.c.run_id == run_id).order_by(h.c.id).limit(_SHOWN_ATTEMPTS)
    )
    shown = ", ".join(f"{row.attempt} ({row.outcome})" for row in rows)
    return f"the attempts of run {run_id} are numbered {shown}; each must be one more than what was used up before"


async def check_tries(conn: AsyncConnection, _scope: Scope) -> AsyncIterator[Violation]:
    """Promise 2: no run is tried more often than its worker allows, as it has been defined since the attempt."""
    h, w = t.run_history, t.workers
    wrong = (
        sa.select(h.c.id, h.c.run_id, h.c.attempt, h.c.outcome, w.c.max_retries)
        .join(w, w.c.name == h.c.worker)
        .where(_used_up(), sa.literal_column("run_history.outcome <> 'succeeded'"), h.c.ends_run.is_(None))
        .where(h.c.attempt > w.c.max_retries, sa.func.coalesce(h.c.started_at, h.c.finished_at) >= w.c.updated_at)
    )
    async for row in stream(conn, wrong):
        most = row.max_retries + 1
        problem = f"run {row.run_id} goes on after attempt {row.attempt} {row.outcome}, of {most} at most"
        yield Violation(2, problem, (f"run_history.id={row.id}",))


async def check_live(conn: AsyncConnection, _scope: Scope) -> AsyncIterator[Violation]:
    """Promises 1 and 2: what is live has not ended, and goes on where its rows in history leave off."""
    h, r = t.run_history, t.runs
    both = (
        sa.select(h.c.run_id, h.c.id, h.c.ends_run, h.c.fence, r.c.fence.label("live_fence"), h.c.attempt)
        .add_columns(r.c.attempt.label("live_attempt"), h.c.worker, r.c.worker.label("live_worker"))
        .join(r, r.c.id == h.c.run_id)
        .where(
            sa.or_(
                h.c.ends_run.is_not(None),
                h.c.fence >= r.c.fence,
                h.c.worker != r.c.worker,
                sa.and_(_used_up(), h.c.attempt >= r.c.attempt),
            )
        )
    )
    async for row in stream(conn, both):
        run, where = f"run {row.run_id}", (f"runs.id={row.run_id}", f"run_history.id={row.id}")
        if row.ends_run is not None:
            yield Violation(1, f"{run} has ended ({row.ends_run}) and is live too", where)
        elif row.live_fence is not None and row.fence == row.live_fence:
            yield Violation(2, f"claim {row.fence} of {run} has ended and is live", where)
        elif row.live_fence is not None and row.fence is not None and row.fence > row.live_fence:
            yield Violation(2, f"{run}: its fence went back from {row.fence} to {row.live_fence}", where)
        elif row.worker != row.live_worker:
            yield Violation(1, f"{run} is of {row.live_worker} and, in history, of {row.worker}", where)
        else:
            problem = f"{run} is at attempt {row.live_attempt}, but has used up attempt {row.attempt}"
            yield Violation(2, problem, where)
    used = sa.select(sa.func.count()).where(h.c.run_id == r.c.id, _used_up()).scalar_subquery()
    ahead = sa.select(r.c.id, r.c.attempt, used.label("used")).where(r.c.attempt > 1, r.c.attempt > used + 1)
    async for row in stream(conn, ahead):
        problem = f"run {row.id} is at attempt {row.attempt}, but has used up {row.used}"
        yield Violation(2, problem, (f"runs.id={row.id}",))


async def check_lost(conn: AsyncConnection, scope: Scope) -> AsyncIterator[Violation]:
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
    async for row in stream(conn, lost):
        yield Violation(1, f"run {row.run_id} is gone without an end", (f"run_history.id={row.last}",))


async def check_letters(conn: AsyncConnection, scope: Scope) -> AsyncIterator[Violation]:
    """Promise 1: exhausted and discarded runs have a dead letter that says what history says, and nothing else has."""
    h, d, r = t.run_history, t.dead_letters, t.runs
    without = sa.select(h.c.id, h.c.run_id, h.c.ends_run).where(
        _ENDED_BADLY, h.c.finished_at >= scope.ends_kept_since, sa.not_(sa.exists().where(d.c.run_id == h.c.run_id))
    )
    async for row in stream(conn, without):
        problem = f"run {row.run_id} was {row.ends_run}, but has no dead letter"
        yield Violation(1, problem, (f"run_history.id={row.id}",))
    is_live = sa.exists().where(r.c.id == d.c.run_id)
    async for row in stream(conn, sa.select(d.c.id, d.c.run_id).where(is_live)):
        yield Violation(1, f"run {row.run_id} has a dead letter and is live", (f"dead_letters.id={row.id}",))
    has_ended = sa.exists().where(h.c.run_id == d.c.run_id, h.c.ends_run.is_not(None))
    alone = sa.select(d.c.id, d.c.run_id).where(
        d.c.died_at >= scope.failures_kept_since, sa.not_(has_ended), sa.not_(is_live)
    )
    async for row in stream(conn, alone):
        problem = f"run {row.run_id} has a dead letter, but no end in history"
        yield Violation(1, problem, (f"dead_letters.id={row.id}",))
    async for violation in _letters_against_history(conn):
        yield violation


async def _letters_against_history(conn: AsyncConnection) -> AsyncIterator[Violation]:
    h, d = t.run_history, t.dead_letters
    told = JsonLength(d.c.errors)
    ended = (
        sa.select(d.c.id, d.c.run_id, d.c.worker, d.c.attempts, h.c.ends_run, h.c.attempt, told.label("told"))
        .add_columns(h.c.worker.label("other"))
        .join(h, h.c.run_id == d.c.run_id)
        .where(h.c.ends_run.is_not(None))
        .where(
            sa.or_(
                sa.literal_column("run_history.ends_run IN ('succeeded', 'cancelled')"),
                h.c.worker != d.c.worker,
                h.c.attempt != d.c.attempts,
                sa.and_(told > 0, told != d.c.attempts),  # none at all: written by hand
            )
        )
    )
    async for row in stream(conn, ended):
        letter = (f"dead_letters.id={row.id}",)
        if row.ends_run in {"succeeded", "cancelled"}:
            yield Violation(1, f"run {row.run_id} {row.ends_run}, but has a dead letter", letter)
        elif row.worker != row.other:
            yield Violation(1, f"letter {row.id} is of {row.worker}, its run {row.run_id} of {row.other}", letter)
        elif row.attempt != row.attempts:
            problem = f"letter {row.id} counts {row.attempts} attempts, run {row.run_id} ended at attempt {row.attempt}"
            yield Violation(1, problem, letter)
        else:
            yield Violation(1, f"letter {row.id} counts {row.attempts} attempts, but has {row.told} errors", letter)


async def check_replays(conn: AsyncConnection, scope: Scope) -> AsyncIterator[Violation]:
    """Promise 1: a replayed letter's run is somewhere, and a live replay's letter names it."""
    h, d, r = t.run_history, t.dead_letters, t.runs
    lost = sa.select(d.c.id, d.c.replay_run_id).where(
        sa.literal_column("dead_letters.status = 'replayed'"),
        d.c.resolved_at >= scope.ends_kept_since,
        sa.not_(sa.exists().where(r.c.id == d.c.replay_run_id)),
        sa.not_(sa.exists().where(h.c.run_id == d.c.replay_run_id)),
    )
    async for row in stream(conn, lost):
        problem = f"letter {row.id} was replayed as run {row.replay_run_id}, which is nowhere"
        yield Violation(1, problem, (f"dead_letters.id={row.id}",))
    other = (
        sa.select(r.c.id, d.c.id.label("letter"))
        .join(d, d.c.id == r.c.replay_of)
        .where(d.c.replay_run_id.is_distinct_from(r.c.id))
    )
    async for row in stream(conn, other):
        problem = f"run {row.id} replays letter {row.letter}, which does not name it"
        yield Violation(1, problem, (f"runs.id={row.id}", f"dead_letters.id={row.letter}"))


CHECKS = (
    check_ends,
    check_sequence,
    check_single,
    check_tries,
    check_live,
    check_lost,
    check_letters,
    check_replays,
)

"""History: one row for each ended attempt and each time that was missed. Insert-only; pruned by age."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.model.run import OutcomeKind, Run, Trigger
from jobrunner.storage import tables as t
from jobrunner.storage.types import to_json as time_to_json

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.model.run import Outcome
    from jobrunner.model.schedule import Missed
    from jobrunner.policy.transitions import Finish

MAX_TRACEBACK_BYTES = 64 * 1024


def missed_row(worker: str, missed: Missed, now: datetime) -> dict[str, Any]:
    """Build the history row of times that passed without a run."""
    return {
        **_NOTHING,
        "worker": worker,
        "trigger": str(Trigger.SCHEDULE),
        "outcome": str(OutcomeKind.MISSED),
        "scheduled_for": missed.first,
        "due_at": missed.last,
        "finished_at": now,
        "reason": missed.reason,
        "occurrences": missed.occurrences,
    }


async def write_missed(conn: AsyncConnection, rows: list[dict[str, Any]]) -> None:
    """Write rows of `missed_row`; there may be none."""
    if rows:
        await conn.execute(sa.insert(t.run_history), rows)


def attempt_row(run: Run, finish: Finish) -> dict[str, Any]:
    """Build the history row of an ended attempt."""
    outcome = finish.outcome
    return {
        "run_id": run.id,
        "fence": run.fence,
        "worker": run.worker,
        "trigger": str(run.trigger),
        "attempt": run.attempt,
        "outcome": str(outcome.kind),
        "ends_run": None if finish.ends_run is None else str(finish.ends_run),
        "is_forced": run.is_forced,
        "scheduled_for": run.scheduled_for,
        "due_at": run.due_at,
        "started_at": run.started_at,
        "finished_at": outcome.finished_at,
        "duration_ms": outcome.duration_ms,
        "error_type": outcome.error_type,
        "error": outcome.error,
        "traceback": outcome.traceback,
        "reason": outcome.reason,
        "payload": run.payload,
        "result": outcome.result,
        "output": outcome.output,
        "occurrences": None,
        "node_id": run.node_id,
    }


_NOTHING: dict[str, Any] = {
    "run_id": None,
    "fence": None,
    "attempt": None,
    "ends_run": None,
    "is_forced": False,
    "started_at": None,
    "duration_ms": None,
    "error_type": None,
    "error": None,
    "traceback": None,
    "payload": None,
    "result": None,
    "output": None,
    "node_id": None,
}


def storable_outcome(outcome: Outcome) -> Outcome:
    """Return the outcome with texts that both databases take, capped, before anything is decided or written from it."""
    if {outcome.error_type, outcome.error, outcome.traceback, outcome.reason, outcome.output} == {None}:
        return outcome  # most are: nothing to look at
    return replace(
        outcome,
        error_type=storable(outcome.error_type, MAX_TRACEBACK_BYTES),
        error=storable(outcome.error, MAX_TRACEBACK_BYTES),
        traceback=tail(outcome.traceback),
        reason=storable(outcome.reason, MAX_TRACEBACK_BYTES),
        output=storable(outcome.output),
    )


def storable(text: str | None, most: int | None = None) -> str | None:
    """Return text that both databases take: no NUL, no lone surrogate, at most `most` bytes (cut at the end)."""
    if text is None:
        return None
    clean = text.replace("\0", "\\0").encode("utf-8", "replace")
    if most is not None and len(clean) > most:
        clean = clean[: most - 3] + b"..."
    return clean.decode("utf-8", "ignore")


def tail(text: str | None, most: int = MAX_TRACEBACK_BYTES) -> str | None:
    """Return the last `most` bytes: of a traceback, the end says most."""
    clean = storable(text)
    if clean is None or len(clean.encode()) <= most:
        return clean
    return "...\n" + clean.encode()[-(most - 4) :].decode("utf-8", "ignore")


async def read_history(
    conn: AsyncConnection,
    *,
    worker: str | None = None,
    outcome: str | None = None,
    since: datetime | None = None,
    run_id: int | None = None,
    ids: Collection[int] | None = None,
    limit: int = 50,
    before: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Return the newest attempts first, at most `limit`, narrowed by what is given; `before`: after that row."""
    h = t.run_history
    statement = sa.select(h).order_by(h.c.id.desc()).limit(limit)
    if worker is not None:
        statement = statement.where(h.c.worker == worker)
    if outcome is not None:
        given = sa.literal(outcome, literal_execute=True)  # a bound value would hide the partial index
        statement = statement.where(h.c.outcome == given)
        if (
            outcome != OutcomeKind.SUCCEEDED
        ):  # SQLite takes a partial index only if its condition is there in so many words
            statement = statement.where(sa.literal_column("run_history.outcome <> 'succeeded'"))
    if since is not None:
        statement = statement.where(h.c.finished_at >= since)
    if since is not None and worker is None and outcome is None:
        # In the order of ids, all of history would be looked through for few.
        statement = statement.order_by(None).order_by(h.c.finished_at.desc(), h.c.id.desc())
        if before is not None:
            at, last = before["finished_at"], before["id"]
            statement = statement.where(h.c.finished_at <= at, sa.or_(h.c.finished_at < at, h.c.id < last))
    elif before is not None:
        statement = statement.where(h.c.id < before["id"])
    if run_id is not None:
        statement = statement.where(h.c.run_id == run_id)
    if ids is not None:
        statement = statement.where(h.c.id.in_(ids))
    return [dict(row) for row in (await conn.execute(statement)).mappings()]


async def newest_ids(conn: AsyncConnection, worker: str | None, limit: int) -> set[int]:
    """Return the ids of the newest rows, of all workers or of one."""
    h = t.run_history
    statement = sa.select(h.c.id).order_by(h.c.id.desc()).limit(limit)
    if worker is not None:
        statement = statement.where(h.c.worker == worker)
    return set((await conn.execute(statement)).scalars())


def outcome_error(outcome: Outcome, run: Run) -> dict[str, Any]:
    """Describe one failed attempt as an element of `dead_letters.errors`."""
    return {
        "attempt": run.attempt,
        "outcome": str(outcome.kind),
        "error_type": outcome.error_type,
        "error": outcome.error,
        "finished_at": time_to_json(outcome.finished_at),
    }

"""History: one row for each ended attempt and each time that was missed. Insert-only; pruned by age."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.model.run import HELD_UNTIL, USES_UP_AN_ATTEMPT, EndsRun, OutcomeKind, Run, Trigger
from jobrunner.policy.filters import ENDS_ASKED_FOR
from jobrunner.storage.database.rowsets import same
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.types import to_json as time_to_json

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
    return ended_row(run, finish.outcome, finish.ends_run)


def ended_row(run: Run, outcome: Outcome, ends_run: EndsRun | None) -> dict[str, Any]:
    """Do the same from how it ended. A step that was held until others had ended was due when it was meant to be."""
    return {
        "run_id": run.id,
        "fence": run.fence,
        "worker": run.worker,
        "trigger": str(run.trigger),
        "attempt": run.attempt,
        "outcome": str(outcome.kind),
        "ends_run": None if ends_run is None else str(ends_run),
        "is_forced": run.is_forced,
        "scheduled_for": run.scheduled_for,
        "due_at": run.scheduled_for if run.due_at >= HELD_UNTIL else run.due_at,
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
        "trace_context": run.trace_context,
        "limit_key": run.limit_key,
        "batch_id": run.batch_id,
        "flow_id": run.flow_id,
        "step": run.step,
        "is_rated": run.is_rated,
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
    "trace_context": None,
    "limit_key": None,
    "batch_id": None,
    "flow_id": None,
    "step": None,
    "is_rated": False,
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
    outcome: str | Collection[str] | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    run_id: int | None = None,
    ids: Collection[int] | None = None,
    limit: int = 50,
    before: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Return the newest attempts first, at most `limit`, narrowed by what is given; `before`: after that row.

    `outcome`: one of `OUTCOMES` (`exhausted` and `discarded`: so the run ended, too), or several of them.
    """
    h = t.run_history
    conditions: list[sa.ColumnElement[bool]] = []
    if worker is not None:
        conditions.append(same(h.c.worker, sa.literal(worker)))
    if since is not None:
        conditions.append(h.c.finished_at >= since)
    if until is not None:
        conditions.append(h.c.finished_at <= until)
    if run_id is not None:
        conditions.append(h.c.run_id == run_id)
    if ids is not None:
        conditions.append(h.c.id.in_(ids))
    # In the order of ids, all of history would be looked through for the few of a time.
    is_by_time = not outcome and worker is None and (since is not None or until is not None)
    statement = sa.select(h).where(*conditions).limit(limit)
    if worker is not None and not outcome:
        statement = statement.order_by(h.c.worker.desc())
    statement = _after(statement, before, is_by_time=is_by_time)
    if outcome:
        statement = _ended_as({outcome} if isinstance(outcome, str) else outcome, statement)
    return [dict(row) for row in (await conn.execute(statement)).mappings()]


def _after(statement: sa.Select[Any], before: Mapping[str, Any] | None, *, is_by_time: bool) -> sa.Select[Any]:
    """Order the statement, the newest first, and let it begin after the row `before`."""
    h = t.run_history
    if not is_by_time:
        statement = statement.order_by(h.c.id.desc())
        return statement if before is None else statement.where(h.c.id < before["id"])
    statement = statement.order_by(h.c.finished_at.desc(), h.c.id.desc())
    if before is None:
        return statement
    at, last = before["finished_at"], before["id"]
    return statement.where(h.c.finished_at <= at, sa.or_(h.c.finished_at < at, h.c.id < last))


def _ended_as(outcomes: Collection[str], statement: sa.Select[Any]) -> sa.Select[Any]:
    """Narrow the statement, which is in the order of ids, to these outcomes of attempts and ends of runs."""
    h = t.run_history
    ends = sorted(str(end) for end in ENDS_ASKED_FOR if end in outcomes)
    parts = []
    for kind in OutcomeKind:
        if kind not in outcomes and not (ends and kind in USES_UP_AN_ATTEMPT):
            continue
        # A bound value would hide the partial index.
        part = statement.where(h.c.outcome == sa.literal(str(kind), literal_execute=True))
        if kind is not OutcomeKind.SUCCEEDED:  # SQLite wants that index's condition in so many words
            part = part.where(sa.literal_column("run_history.outcome <> 'succeeded'"))
        parts.append(part if kind in outcomes else part.where(h.c.ends_run.in_(ends)))
    if len(parts) == 1:
        return parts[0]
    # Each along that index: in the order of ids, all that has succeeded would be looked through.
    found = sa.union_all(*(sa.select(part.with_only_columns(h.c.id).subquery().c.id) for part in parts))
    return statement.where(h.c.id.in_(found))


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

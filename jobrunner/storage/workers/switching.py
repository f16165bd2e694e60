"""What an operator's switches write: enable, disable, pause, resume, of one worker or of many.

A transaction holds the changes and their `audit_log` rows, one a worker, or nothing. It first takes the row locks of
the workers' states, in the order of names, as claims and finishes do: no claim commits after a disable has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.errors import WorkerNotFound
from jobrunner.model.worker import CircuitState
from jobrunner.policy import switches
from jobrunner.storage.database import wakeups
from jobrunner.storage.records.alerts import arise, circuit_closed
from jobrunner.storage.records.audit import audit_row, write_audits
from jobrunner.storage.records.gaps import read_gaps
from jobrunner.storage.records.history import missed_row, storable, write_missed
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.rows import names_json, state_values, write_state_statement
from jobrunner.storage.tables.types import to_json as time_to_json
from jobrunner.storage.workers import definitions as workers

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.model.schedule import Missed
    from jobrunner.model.worker import WorkerState
    from jobrunner.policy.missed import Gap
    from jobrunner.storage.database.database import Database
    from jobrunner.storage.database.dialect import Dialect

MOST_AT_ONCE = 200
"""So many workers are switched in a transaction: while it lasts, nothing of them starts or ends."""


@dataclass(frozen=True, slots=True)
class Before:
    """What is known of a worker when it is switched."""

    stored: workers.Stored
    now: datetime
    actor: str | None
    gap: Gap | None
    has_loop_run: bool


@dataclass(frozen=True, slots=True)
class Switch:
    """A turn of a switch: what the audit log calls it, and what it makes of a worker (with the audit's `detail`)."""

    action: str
    turn: Callable[[Before], tuple[switches.Switched, dict[str, Any]]]


def enabling(reason: str | None = None) -> Switch:
    """Enable, zero the streak, close the circuit."""

    def turn(before: Before) -> tuple[switches.Switched, dict[str, Any]]:
        state, config = before.stored.state, before.stored.config
        detail = {"was_enabled": state.is_enabled, "consecutive_failures": state.consecutive_failures}
        return switches.enable(state, config, before.now, has_loop_run=before.has_loop_run), _said(detail, reason)

    return Switch("enable", turn)


def disabling(reason: str | None) -> Switch:
    """Disable; what was missed so far is recorded."""
    reason = storable(reason)

    def turn(before: Before) -> tuple[switches.Switched, dict[str, Any]]:
        state, config = before.stored.state, before.stored.config
        switched = switches.disable(state, config, before.now, reason, before.actor, before.gap)
        return switched, {"reason": switched[0].disabled_reason}

    return Switch("disable", turn)


def pausing(until: datetime, reason: str | None, *, is_length: bool = False) -> Switch:
    """Pause until `until`, and note why; `is_length`: that is so long from now, no time that was named."""
    reason = storable(reason)

    def turn(before: Before) -> tuple[switches.Switched, dict[str, Any]]:
        state, config = before.stored.state, before.stored.config
        switched = switches.pause(
            state, config, before.now, until, reason, is_length=is_length, actor=before.actor, gap=before.gap
        )
        return switched, {"until": time_to_json(until), "reason": reason}

    return Switch("pause", turn)


def resuming(reason: str | None = None) -> Switch:
    """End a pause now."""

    def turn(before: Before) -> tuple[switches.Switched, dict[str, Any]]:
        state, config = before.stored.state, before.stored.config
        was = state.paused_until
        detail = {"was_paused_until": None if was is None else time_to_json(was)}
        return switches.resume(state, config, before.now, has_loop_run=before.has_loop_run), _said(detail, reason)

    return Switch("resume", turn)


def _said(detail: dict[str, Any], reason: str | None) -> dict[str, Any]:
    """Return what the audit log keeps, with the reason if one was given: the state that is switched on has none."""
    said = storable(reason)
    return {**detail, "reason": said} if said else detail


async def switch_one(db: Database, name: str, now: datetime, actor: str, switch: Switch) -> WorkerState:
    """Turn a switch of one worker, and return its state then. Raises `WorkerNotFound`."""
    switched = await switch_some(db, [name], now, actor, switch)
    if name not in switched:
        raise WorkerNotFound(name)
    return switched[name]


async def switch_some(
    db: Database, names: Collection[str], now: datetime, actor: str, switch: Switch
) -> dict[str, WorkerState]:
    """Turn the same switch of several workers in one transaction; return the states of those there are.

    At most `MOST_AT_ONCE`, so that others do not wait for long.
    """
    async with db.write() as conn:
        found = await workers.read_stored(conn, db.dialect, names, lock=True)
        if not found:
            return {}
        gaps, loops = await _gaps(conn, db.dialect, list(found.values()), now), await _loops(conn, db.dialect, found)
        after: dict[str, WorkerState] = {}
        missed: list[tuple[str, Missed]] = []
        audits = []
        for name, stored in found.items():
            before = Before(stored, now, storable(actor), gaps.get(name), name in loops)
            (after[name], passed), detail = switch.turn(before)
            missed += [(name, each) for each in passed]
            audits.append(audit_row(switch.action, name, detail, now, actor))
        await conn.execute(write_state_statement(), [state_values(state) for state in after.values()])
        await write_missed(conn, [missed_row(name, each, now) for name, each in missed])
        await write_audits(conn, audits)
        if switch.action == "enable":
            await _mark_streaks(conn, db.dialect, found)
            open_ones = [name for name, each in found.items() if each.state.circuit_state is not CircuitState.CLOSED]
            await arise(conn, db.dialect, [circuit_closed(name, actor, now) for name in open_ones])
        await wakeups.notify(db, conn)
        return after


async def _gaps(
    conn: AsyncConnection, dialect: Dialect, stored: Sequence[workers.Stored], now: datetime
) -> dict[str, Gap]:
    """Return when no live node could run those workers that have something due."""
    due = [each.config for each in stored if each.state.next_run_at is not None and each.state.next_run_at <= now]
    return await read_gaps(conn, dialect, due, now) if due else {}


async def _loops(conn: AsyncConnection, dialect: Dialect, names: Collection[str]) -> set[str]:
    """Return of which workers a run that came from its schedule or loop is live."""
    r, given = t.runs, dialect.rows("names", name=sa.Text())
    live = sa.select(r.c.worker).where(
        r.c.worker.in_(sa.select(given.c.name)), sa.literal_column("runs.trigger IN ('schedule', 'continuous')")
    )
    return set((await conn.execute(live, {"names": names_json(names)})).scalars())


async def _mark_streaks(conn: AsyncConnection, dialect: Dialect, names: Collection[str]) -> None:
    """Note from which history row on the streaks count anew."""
    s, h, given = t.worker_state, t.run_history, dialect.rows("names", name=sa.Text())
    last = sa.select(sa.func.coalesce(sa.func.max(h.c.id), 0)).where(h.c.worker == s.c.worker).scalar_subquery()
    mark = sa.update(s).where(s.c.worker.in_(sa.select(given.c.name))).values(streak_since_id=last)
    await conn.execute(mark, {"names": names_json(names)})

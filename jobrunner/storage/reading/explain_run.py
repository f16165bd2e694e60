"""One run, whole: why it waits, since when it runs, or how it ended. What `jobrunner explain --run` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobrunner.errors import RunNotFound
from jobrunner.model.facts import Gate
from jobrunner.model.run import HELD_UNTIL
from jobrunner.policy.flows import why_held
from jobrunner.storage.reading.explain import explain_waiting
from jobrunner.storage.reading.groups import live_parents
from jobrunner.storage.reading.status import read_live
from jobrunner.storage.records.history import read_history

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from jobrunner.storage.database.database import Database

_MOST_ATTEMPTS = 1000
_OF_AN_ATTEMPT = (
    "attempt",
    "outcome",
    "due_at",
    "started_at",
    "finished_at",
    "duration_ms",
    "error_type",
    "error",
    "reason",
    "node_id",
)
_OF_A_RUN = ("trigger", "scheduled_for", "due_at", "attempt", "is_forced", "started_at", "node_id")


async def explain_run(db: Database, run_id: int, now: datetime) -> dict[str, Any]:
    """Say of a run why it does not start, since when it runs, or how it ended.

    Returns:
        `run_id`, `worker`, `state` (`pending`, `running`, `stopping`, or how it ended, as `ends_run` does), `why` (of
        a run that waits what the shut gate that matters says, of one that was told to stop or has failed the reason;
        else None), `gates` (as in `explain`; empty unless it waits), `attempts` (those that have ended, the first
        first), `finished_at`, and of its last attempt `trigger`, `scheduled_for`, `due_at`, `attempt`, `is_forced`,
        `started_at` and `node_id`.

    Raises:
        RunNotFound: there is no such run, or its history was pruned.
    """
    before = None
    async with db.read() as conn:
        live = await read_live(conn, run_id)  # before the history: a run is in one of the two at any time
        if live is not None and live["due_at"] >= HELD_UNTIL:
            before = (await live_parents(conn, [run_id])).get(run_id)
        rows = list(reversed(await read_history(conn, run_id=run_id, limit=_MOST_ATTEMPTS)))
    if live is None and (not rows or rows[-1]["ends_run"] is None):
        raise RunNotFound(run_id, is_live=False)
    last: Mapping[str, Any] = rows[-1] if live is None else live
    found = {
        "run_id": run_id,
        "worker": last["worker"],
        "state": str(last["ends_run"] if live is None else live["state"]),
        "why": None,
        "gates": [],
        **{name: last[name] for name in _OF_A_RUN},
        "finished_at": rows[-1]["finished_at"] if live is None else None,
        "attempts": [{name: row[name] for name in _OF_AN_ATTEMPT} for row in rows],
    }
    if live is None:
        return {**found, "why": last["error"] or last["reason"]}
    if live["state"] == "pending":
        waiting = await explain_waiting(db, run_id, now)
        if waiting is None:
            return found
        return {**found, **waiting} if before is None else {**found, **_held(waiting, why_held(before))}
    return {**found, "why": live["cancel_reason"] and f"asked to stop: {live['cancel_reason']}"}


def _held(waiting: Mapping[str, Any], why: str) -> dict[str, Any]:
    """Say of a step of a flow what it waits for: until that has ended, it has no time at which it is due."""
    gates = [{**gate, "reason": why} if gate["gate"] == str(Gate.DUE) else gate for gate in waiting["gates"]]
    return {"why": why, "gates": gates}

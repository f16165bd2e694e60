"""Firings in a claim: what each due schedule or loop becomes, and the rows of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobrunner.model.run import RunState
from jobrunner.policy.firing import Fired, fire
from jobrunner.storage.records.gaps import read_gaps

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.model.facts import Facts, Start
    from jobrunner.model.worker import WorkerConfig
    from jobrunner.storage.database.dialect import Dialect


async def decide(
    conn: AsyncConnection, dialect: Dialect, facts: Facts, starts: Iterable[Start], node_id: str
) -> dict[str, Fired]:
    """Decide what the firings among `starts` become, by worker; only where times were missed are nodes looked at."""
    firing = [facts.workers[start.worker] for start in starts if start.run_id is None]
    fired = {worker.config.name: fire(worker.config, worker.state, facts.now) for worker in firing}
    late = [worker for worker in firing if fired[worker.config.name].missed]
    if late:
        gaps = await read_gaps(conn, dialect, [worker.config for worker in late], facts.now, node_id)
        for worker in late:
            name = worker.config.name
            gap = gaps.get(name)
            if gap is not None and gap.before is not None:  # else the node that claims is not in the table
                fired[name] = fire(worker.config, worker.state, facts.now, gap)
    return fired


def run_row(config: WorkerConfig, fired: Fired, now: datetime, claim: dict[str, Any]) -> dict[str, Any] | None:
    """Return the row of the run that came of a firing, None if none did."""
    if fired.trigger is None or fired.scheduled_for is None:
        return None
    return {
        **claim,
        "worker": config.name,
        "trigger": str(fired.trigger),
        "state": str(RunState.RUNNING),
        "priority": int(config.priority),
        "scheduled_for": fired.scheduled_for,
        "due_at": fired.scheduled_for,
        "payload": config.payload,
        "created_at": now,
        "is_ours": True,
    }

"""A node's real claims and ends, by hand, on a SQLite file: what `jobrunner.testing.simulate` must be equal to.

The same loop as a simulation's, one pass after the other, but every decision goes through the tables. The orchestrator
must have been made with that file and with the clock, so that its triggers become rows.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

from jobrunner import RunContext, WorkerOrchestrator
from jobrunner.runtime.attempt import Attempt
from jobrunner.runtime.timeouts import Timeouts
from jobrunner.storage import nodes
from jobrunner.storage.records.history import read_history
from jobrunner.storage.runs.claims import Claim, Nothing, claim_due
from jobrunner.storage.runs.facts import Here
from jobrunner.storage.runs.finishes import Ended, finish
from jobrunner.storage.runs.looks import Claimer
from jobrunner.storage.workers import definitions as workers
from jobrunner.testing import ManualClock
from jobrunner.testing.simulation import _Inline, _shows_nothing
from tests.simulation.database import SimulatedDatabase


async def live_in_tables(
    orchestrator: WorkerOrchestrator, clock: ManualClock, *, days: float, slots: int
) -> list[dict[str, Any]]:
    """Run the workers through `days` days on the orchestrator's own (migrated, empty) file; return the history."""
    url = orchestrator.settings.database_url
    db: Any = SimulatedDatabase(Path(str(make_url(url).database)), lambda _: None)
    handlers = orchestrator.handlers
    end = clock.now() + timedelta(days=days)
    identity = nodes.NodeIdentity("n", "host", 1, "boot", clock.now(), "0", slots)

    async def carry_out(claim: Claim) -> Ended:
        context = RunContext(claim.run, clock.now() + timedelta(seconds=claim.config.timeout_seconds))
        handler = handlers[claim.run.worker]
        outcome = await Attempt(claim, handler, context, clock, _Inline(), Timeouts(), _shows_nothing).run()
        return Ended(claim.run, outcome, claim.config)

    try:
        async with db.write() as conn:
            given = list(orchestrator.workers.values()), None, clock.now(), list(orchestrator.limits.values())
            await workers.register(conn, db.dialect, *given)
            await nodes.join(conn, db.dialect, identity, handlers.keys(), clock.now())
        claimer = Claimer(identity.id, Here(frozenset(handlers)))
        while clock.now() < end:
            claimed = await claim_due(db, claimer, slots, clock.now)
            if claimed.claims:
                in_order = sorted(claimed.claims, key=lambda claim: claim.run.id)
                await finish(db, [await carry_out(claim) for claim in in_order], lambda: 0.0)
            elif isinstance(claimed, Nothing):
                due = end if claimed.next_due_at is None else min(claimed.next_due_at, end)
                clock.advance(max((due - clock.now()).total_seconds(), 0.000001))
        async with db.peek() as conn:
            return list(reversed(await read_history(conn, limit=1_000_000)))
    finally:
        db.close()

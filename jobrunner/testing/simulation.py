"""A week of a schedule in a moment: the real definitions, claims and ends on a temporary SQLite file, by hand.

Time moves only between ticks, to the next time at which something is due. Handlers are called in this process, one
after the other, and take no time, unless they advance the clock themselves.
"""

from __future__ import annotations

import asyncio
import inspect
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobrunner.errors import Refused
from jobrunner.runtime.attempt import Attempt
from jobrunner.runtime.context import RunContext
from jobrunner.runtime.executors.inline import InlineCode
from jobrunner.runtime.identity import new_identity
from jobrunner.storage import nodes, schema, workers
from jobrunner.storage.claims import Claimer, claim_due
from jobrunner.storage.database import Database
from jobrunner.storage.facts import Here
from jobrunner.storage.finishes import Ended, finish
from jobrunner.storage.history import read_history
from jobrunner.testing.clock import ManualClock

if TYPE_CHECKING:
    from jobrunner.runtime.executors.code import Code
    from jobrunner.runtime.handlers import Handler
    from jobrunner.runtime.orchestrator import WorkerOrchestrator
    from jobrunner.storage.claims import Claim

_MOST_ROWS = 1_000_000
_LONGEST_STEP_SECONDS = 60.0


@dataclass(frozen=True)
class Simulation:
    """What happened: the rows of `run_history`, the oldest first, with the names of its columns. Times are UTC."""

    start: datetime
    end: datetime
    history: tuple[dict[str, Any], ...]
    seconds: float
    """How long the simulation itself took."""

    def of(self, worker: str) -> list[dict[str, Any]]:
        """Return the attempts of one worker, and what it missed."""
        return [row for row in self.history if row["worker"] == worker]


async def simulate(
    orchestrator: WorkerOrchestrator,
    *,
    days: float = 7,
    start: datetime = datetime(2026, 1, 5, tzinfo=UTC),
    clock: ManualClock | None = None,
    slots: int = 100,
) -> Simulation:
    """Run the orchestrator's workers through `days` days that begin at `start`.

    Args:
        orchestrator: it must not be running; its own database is not touched.
        days: how long, on the simulated clock.
        start: when, an aware time (a Monday, unless given).
        clock: the clock, for handlers that look at it or take time by advancing it; it starts where it stands.
        slots: how many runs may be active at once.

    Raises:
        Refused: the orchestrator is running.
    """
    if orchestrator.is_started:
        raise Refused("the orchestrator is running; simulate before its start")
    clock = clock or ManualClock(start)
    began, begin = time.perf_counter(), clock.now()
    end = begin + timedelta(days=days)
    with tempfile.TemporaryDirectory() as folder:
        db = Database.open(
            f"sqlite:///{Path(folder) / 'simulation.db'}", sqlite_synchronous="NORMAL", sqlite_in_loop=True
        )
        try:
            await schema.upgrade(db)
            await _Loop(orchestrator, db, clock, slots).run(end)
            async with db.peek() as conn:
                rows = await read_history(conn, limit=_MOST_ROWS)
        finally:
            await db.close()
    return Simulation(begin, end, tuple(reversed(rows)), time.perf_counter() - began)


class _Loop:
    """What a node does, one thing after the other."""

    def __init__(self, orchestrator: WorkerOrchestrator, db: Database, clock: ManualClock, slots: int) -> None:
        self._handlers = orchestrator.handlers
        self._configs = list(orchestrator.workers.values())
        self._db = db
        self._clock = clock
        self._slots = slots

    async def run(self, end: datetime) -> None:
        identity = new_identity(self._slots, allows_commands=False)
        async with self._db.write() as conn:
            await workers.register(conn, self._db.dialect, self._configs, None, self._clock.now())
            await nodes.join(conn, self._db.dialect, identity, self._handlers.keys(), self._clock.now())
        claimer = Claimer(identity.id, Here(frozenset(self._handlers)))
        while self._clock.now() < end:
            claimed = await claim_due(self._db, claimer, self._slots, self._clock.now)
            if claimed.claims:
                await finish(self._db, [await self._carry_out(claim) for claim in claimed.claims], lambda: 0.0)
            elif not claimed.has_more:
                due = end if claimed.next_due_at is None else min(claimed.next_due_at, end)
                self._clock.advance(max((due - self._clock.now()).total_seconds(), 0.000001))

    async def _carry_out(self, claim: Claim) -> Ended:
        deadline = self._clock.now() + timedelta(seconds=claim.config.timeout_seconds)
        context = RunContext(claim.run, deadline)
        handler = self._handlers[claim.run.worker]
        attempt = Attempt(claim, handler, context, self._clock, _Inline(), _shows_nothing)
        return Ended(claim.run, await attempt.run(), claim.config)


class _Inline:
    """Starts every handler on the loop, whatever its isolation."""

    def start(self, _claim: Claim, handler: Handler | None, context: RunContext, arguments: dict[str, Any]) -> Code:
        assert handler is not None  # noqa: S101 - there are no command workers in code

        async def call(*positional: Any, **fields: Any) -> Any:
            result = handler.function(*positional, **fields)
            return await result if inspect.isawaitable(result) else result

        return InlineCode(call, (context,) if handler.takes_run else (), arguments)


async def _shows_nothing(_claim: Claim) -> None:
    """A run that does not stop holds everything up here; there is nobody to show it to."""


async def run_until_idle(orchestrator: WorkerOrchestrator) -> list[dict[str, Any]]:
    """Start the orchestrator, let it work until there is nothing to do, stop it; return what ended meanwhile.

    That is rows of `run_history`, the oldest first. With a `ManualClock`, time passes as retries become due.
    """
    clock = orchestrator.clock
    before = {row["id"] for row in await _history(orchestrator)}
    await orchestrator.start()
    try:
        idle = asyncio.ensure_future(orchestrator.wait_idle())
        step = 0.05
        while isinstance(clock, ManualClock) and not idle.done():
            await asyncio.wait({idle}, timeout=0.005)  # real time, for what is under way
            if not idle.done() and not (await orchestrator.get_status())["running"]:
                clock.advance(step)
                step = min(step * 1.2, _LONGEST_STEP_SECONDS)
        await idle
    finally:
        await orchestrator.stop()
    return [row for row in await _history(orchestrator) if row["id"] not in before]


async def _history(orchestrator: WorkerOrchestrator) -> list[dict[str, Any]]:
    settings = orchestrator.settings
    db = Database.open(settings.database_url, schema=settings.schema)
    try:
        if (await schema.status(db)).state is schema.SchemaState.MISSING:
            return []
        async with db.peek() as conn:
            return list(reversed(await read_history(conn, limit=_MOST_ROWS)))
    finally:
        await db.close()

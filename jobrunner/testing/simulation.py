"""A week of a schedule in a moment: the real definitions and handlers, and every decision as a node takes it.

Time moves only between passes, to the next time at which something is due. Handlers are called in this process, one
after the other, and take no time, unless they advance the clock themselves. Some 10,000 runs take a second or two.

What a simulation has no part of: databases (a handler that triggers a worker of its orchestrator adds a simulated run,
whether in a transaction or not; enabling, disabling and `get_status` are refused), middleware, `run.transaction()`,
operators, and other nodes. Retries come after their delay without the jitter.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from jobrunner.errors import Refused
from jobrunner.policy.words import show_time
from jobrunner.runtime import logs
from jobrunner.runtime.attempt import Attempt
from jobrunner.runtime.context import RunContext
from jobrunner.runtime.executors.inline import InlineCode
from jobrunner.runtime.timeouts import Timeouts
from jobrunner.storage.database.database import Database
from jobrunner.storage.records.history import read_history
from jobrunner.storage.schema import revisions
from jobrunner.testing.clock import ManualClock
from jobrunner.testing.picture import Picture

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jobrunner.model.run import Outcome
    from jobrunner.runtime.executors.code import Code
    from jobrunner.runtime.handlers import Handler
    from jobrunner.runtime.orchestrator import WorkerOrchestrator
    from jobrunner.storage.runs.claims import Claim
    from jobrunner.storage.runs.enqueue import Request

_MOST_ROWS = 1_000_000
_LONGEST_STEP_SECONDS = 60.0
_MOST_STARTS_AT_ONCE = 10_000


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
        Refused: the orchestrator is running, or a worker starts again and again while no time passes.
        InvalidWorker, DependencyCycle: the definitions do not hold together.
    """
    if orchestrator.is_started:
        raise Refused("the orchestrator is running; simulate before its start")
    clock = clock or ManualClock(start)
    began, begin = time.perf_counter(), clock.now()
    end = begin + timedelta(days=days)
    loop = _Loop(orchestrator, clock, slots)
    with orchestrator.diverted(loop):
        await loop.run(end)
    return Simulation(begin, end, tuple(loop.picture.history), time.perf_counter() - began)


class _Loop:
    """What a node does, one thing after the other."""

    def __init__(self, orchestrator: WorkerOrchestrator, clock: ManualClock, slots: int) -> None:
        self.picture = Picture(orchestrator.workers.values(), orchestrator.limits.values(), clock.now())
        self._handlers = orchestrator.handlers
        self._clock = clock
        self._slots = slots

    def now(self) -> datetime:
        """Return the simulated time."""
        return self._clock.now()

    def enqueue(self, requests: Sequence[Request]) -> list[int]:
        """Add the runs that a handler triggers."""
        return self.picture.enqueue(requests, self._clock.now())

    async def run(self, end: datetime) -> None:
        picture, clock = self.picture, self._clock
        last = clock.now()
        while (now := clock.now()) < end:
            if now != last:
                picture.starts.clear()
                last = now
            claims, has_changed = picture.claim(now, self._slots)
            if claims:
                ended = [(claim.run, await self._carry_out(claim)) for claim in claims]
                picture.finish(ended, clock.now())
                self._refuse_to_stand_still(now)
            elif not has_changed:
                due = picture.next_moment()
                clock.advance((end - now if due is None else min(due, end) - now).total_seconds())

    async def _carry_out(self, claim: Claim) -> Outcome:
        deadline = self._clock.now() + timedelta(seconds=claim.config.timeout_seconds)
        context = RunContext(claim.run, deadline)
        handler = self._handlers[claim.run.worker]
        return await Attempt(claim, handler, context, self._clock, _Inline(), Timeouts(), _shows_nothing).run()

    def _refuse_to_stand_still(self, now: datetime) -> None:
        name, starts = self.picture.starts.most_common(1)[0]
        if starts >= _MOST_STARTS_AT_ONCE and now == self._clock.now():
            raise Refused(
                f"{name} has started {starts:,} times at {show_time(now)}, so the simulation would never end; "
                "give it a pause (interval_seconds), or pass a clock that its handler advances"
            )


class _Inline:
    """Starts every handler on the loop, whatever its isolation."""

    def start(
        self, claim: Claim, handler: Handler | None, context: RunContext, arguments: Callable[[], dict[str, Any]]
    ) -> Code:
        assert handler is not None  # noqa: S101 - there are no command workers in code

        async def call(*positional: Any, **fields: Any) -> Any:
            result = handler.function(*positional, **fields)
            return await result if inspect.isawaitable(result) else result

        with logs.said_to(context.output if handler.captures_logs else None):
            return InlineCode(claim.run.worker, call, (context,) if handler.takes_run else (), arguments())


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
    db = Database.of(orchestrator.settings)
    try:
        if (await revisions.status(db)).state is revisions.SchemaState.MISSING:
            return []
        async with db.peek() as conn:
            return list(reversed(await read_history(conn, limit=_MOST_ROWS)))
    finally:
        await db.close()

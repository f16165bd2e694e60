"""A simulated node: what `runtime.node` does, step by step, on the world's time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from jobrunner.errors import DatabaseUnavailable
from jobrunner.model.run import ClaimKey, Outcome, OutcomeKind, Run
from jobrunner.runtime.clock import SystemClock
from jobrunner.runtime.heartbeat import BEATS_A_LEASE, Heartbeat, Hooks
from jobrunner.runtime.outage import Outage
from jobrunner.storage import nodes
from jobrunner.storage.claims import Claimer, claim_due
from jobrunner.storage.database import Database
from jobrunner.storage.facts import Here
from jobrunner.storage.finishes import Ended, finish
from jobrunner.telemetry.events import Events
from tests.support.stage import T0, identity

if TYPE_CHECKING:
    from tests.simulation.world import World

LEASE, TICK = 6.0, 2.0
FENCE_SECONDS = LEASE * (BEATS_A_LEASE - 1.5) / BEATS_A_LEASE  # as the heartbeat's: a sixth and half a beat are left


@dataclass
class Execution:
    """Code that ran, in true time."""

    worker: str
    run_id: int
    start: float
    end: float | None = None


@dataclass
class Holding:
    """A claim the node knows of: its run, and the execution of its code, if it has begun."""

    run: Run
    execution: Execution | None = None
    outcome: Outcome | None = None


class SimulatedClock(SystemClock):
    """A node's clocks: monotonic is the true time, the wall clock may be off."""

    def __init__(self, world: World, node: SimulatedNode) -> None:
        self._world, self._node = world, node

    def now(self) -> datetime:
        return T0 + timedelta(seconds=self._world.time + self._node.clock_error)

    def monotonic(self) -> float:
        return self._world.time


class NodeDatabase:
    """The database as one node reaches it: before and after each use the node may be held up, or find it away."""

    def __init__(self, world: World, node: SimulatedNode) -> None:
        self._world, self._node = world, node
        self.dialect = world.db.dialect
        self.is_sqlite = True
        self.schema_prefix = ""

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        await self._world.reach(self._node)
        async with self._world.db.write() as conn:
            yield conn
        await self._world.answer(self._node)

    @asynccontextmanager
    async def peek(self) -> AsyncIterator[AsyncConnection]:
        await self._world.reach(self._node)
        async with self._world.db.peek() as conn:
            yield conn
        await self._world.hold_up(self._node)


class SimulatedNode:
    """One node: what `runtime.node` does, step by step, on the world's time."""

    def __init__(self, world: World, number: int) -> None:
        self.world, self.number = world, number
        self.clock_error = 0.0
        self.busy_until = 0.0  # stopped, or inside a pause
        self.away_until = 0.0  # alone without the database
        self.is_dead = False
        self.held: dict[ClaimKey, Holding] = {}
        self.is_ticking = False
        self.is_lost = False
        self.renewed_at = world.time
        self.incarnation = 0
        self.clock = SimulatedClock(world, self)
        self.db: Any = NodeDatabase(world, self)
        self.id = ""
        self._new_life()

    def _new_life(self) -> None:
        self.incarnation += 1
        self.id = str(UUID(int=self.world.random.getrandbits(128)))
        self.is_lost = False
        self.identity = identity(self.id, pid=self.number * 1000 + self.incarnation, boot_id=f"machine-{self.number}")
        here = Here(self.world.names)
        self.claimer = Claimer(self.id, here)
        hooks = Hooks(
            held=lambda: set(self.held),
            is_ticking=lambda: self.is_ticking,
            last_tick_at=lambda: None,
            on_lost=lambda: None,
            on_fence=lambda: None,
            on_code_without_claim=self._drop,
            on_changed=lambda: self.world.soon(self, self.tick),
            on_outdated=lambda _: None,
        )
        opens: Callable[[], Database] = lambda: self.db  # noqa: E731 - typed
        outage = Outage(self.clock, Events())
        self.heart = Heartbeat(opens, self.identity, LEASE, TICK, self.clock, outage, Events(), hooks)

    async def join(self) -> None:
        """Write the node's row, again under a new id if the answer was lost."""
        self.renewed_at = self.world.time  # before anyone can see the row
        async with self.db.write() as conn:
            await nodes.join(conn, self.db.dialect, self.identity, self.world.names, self.clock.now())

    @property
    def is_fenced(self) -> bool:
        return self.world.time - self.renewed_at >= FENCE_SECONDS

    def stop_code(self, at: float, *, is_lost: bool = False) -> None:
        """Tell all code to end, which it does at once; a lost node writes nothing for it."""
        for key, holding in list(self.held.items()):
            if holding.execution is not None and holding.execution.end is None:
                holding.execution.end = at
                self.hand_over(holding, OutcomeKind.INTERRUPTED)
            if is_lost:
                self.held.pop(key, None)

    def _drop(self, keys: list[ClaimKey]) -> None:
        for key in keys:
            holding = self.held.get(key)
            if holding is not None and holding.outcome is None:
                if holding.execution is not None:
                    holding.execution.end = self.world.time
                self.held.pop(key)

    def hand_over(self, holding: Holding, kind: OutcomeKind) -> None:
        more: dict[str, Any] = {"error_type": "E", "error": "no luck"} if kind is OutcomeKind.FAILED else {}
        delay = 1.0 if kind is OutcomeKind.SNOOZED else None
        holding.outcome = Outcome(kind, self.clock.now(), duration_ms=1, delay_seconds=delay, **more)
        self.world.soon(self, self.record)

    async def tick(self) -> None:
        """Claim and start, as the ticker does."""
        if self.is_ticking or self.is_lost:
            return
        free = 4 - len(self.held)
        if free <= 0 or self.is_fenced:
            return
        self.is_ticking = True
        try:
            claimed = await claim_due(self.db, self.claimer, free, self.clock.now)
            for claim in claimed.claims:
                self._start(claim.run)
        finally:
            self.is_ticking = False
        if claimed.claims:
            self.world.soon(self, self.tick)

    def _start(self, run: Run) -> None:
        holding = self.held[run.claim_key] = Holding(run)
        if self.is_fenced:
            self.hand_over(holding, OutcomeKind.INTERRUPTED)
            return
        holding.execution = self.world.begin(run)
        takes = self.world.random.choice((0.1, 0.5, 1.0, 3.0, 9.0))

        async def end() -> None:
            if self.held.get(run.claim_key) is holding and holding.outcome is None and holding.execution is not None:
                holding.execution.end = self.world.time
                self.hand_over(holding, self.world.outcome())

        self.world.at(self.world.time + takes, self, end)

    async def record(self) -> None:
        """Write the outcomes at hand, as the recorder does: again and again until it is answered."""
        batch = [holding for holding in self.held.values() if holding.outcome is not None]
        if not batch:
            return
        ended = [Ended(holding.run, holding.outcome) for holding in batch if holding.outcome is not None]
        try:
            await finish(self.db, ended, lambda: 0.0)
        except DatabaseUnavailable:
            self.world.at(self.world.time + 0.5, self, self.record)
            return
        for holding in batch:
            self.held.pop(holding.run.claim_key, None)
        self.world.soon(self, self.tick)

    async def beat(self) -> None:
        """One pulse, as the heartbeat does."""
        began = self.world.time
        try:
            try:
                async with self.db.write() as conn:
                    state = await nodes.beat(conn, self.id, self.clock.now(), None)
            except DatabaseUnavailable:
                self.heart._watch.missed()
                raise
            if state not in {"active", "draining"}:
                await self._rejoin()
                return
            self.renewed_at = began
            self.heart._watch.beat(self.clock.monotonic())
            await self.heart._look_at_others(self.db)
            await self.heart._rescue(self.db)
            await self.heart._compare(self.db)
        except DatabaseUnavailable:
            pass

    async def _rejoin(self) -> None:
        self.is_lost = True
        if self.is_ticking:  # what is being claimed in the old name is stopped, too: wait for the end of the pass
            return
        self.stop_code(self.world.time, is_lost=True)
        self._new_life()
        try:
            await self.join()
        except DatabaseUnavailable:
            self.is_lost = True  # the row may be there or not: a new id at the next beat

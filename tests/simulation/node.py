"""A simulated node: what `runtime.node` does, step by step, on the world's time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from jobrunner.errors import DatabaseUnavailable
from jobrunner.model.run import ClaimKey, Outcome, OutcomeKind, Run
from jobrunner.runtime.clock import SystemClock
from jobrunner.runtime.heartbeat import BEATS_A_LEASE, LEFT_BEHIND_SECONDS, Heartbeat, Hooks
from jobrunner.runtime.outage import Outage
from jobrunner.runtime.service_manager import ServiceManager
from jobrunner.storage import nodes
from jobrunner.storage.claims import Claimer, claim_due
from jobrunner.storage.database import Database
from jobrunner.storage.facts import Here
from jobrunner.storage.finishes import Ended, finish
from jobrunner.telemetry.events import Event, Events, NodeLost
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


class PeekingConnection:
    """Reads without a transaction: between two of its statements the node may be held up, too."""

    def __init__(self, conn: Any, world: World, node: SimulatedNode) -> None:
        self._conn, self._world, self._node = conn, world, node
        self._has_read = False

    async def execute(self, statement: Any, parameters: Any = None) -> Any:
        """Execute one statement, and perhaps stand still before it."""
        if self._has_read:
            await self._world.hold_up(self._node)
        self._has_read = True
        return await self._conn.execute(statement, parameters)


class NodeDatabase:
    """The database as one node reaches it: before and after each use the node may be held up, or find it away."""

    def __init__(self, world: World, node: SimulatedNode) -> None:
        self._world, self._node = world, node
        self.dialect = world.db.dialect
        self.is_sqlite = True
        self.schema_prefix = ""

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        await self._world.reach(self._node, is_write=True)
        async with self._world.db.write() as conn:
            yield conn
        await self._world.answer(self._node)

    @asynccontextmanager
    async def peek(self) -> AsyncIterator[AsyncConnection]:
        await self._world.reach(self._node)
        async with self._world.db.peek() as conn:
            yield PeekingConnection(conn, self._world, self._node)
        await self._world.hold_up(self._node)


class SimulatedNode:
    """One node: what `runtime.node` does, step by step, on the world's time."""

    def __init__(self, world: World, number: int) -> None:
        self.world, self.number = world, number
        self.clock_error = 0.0
        self.busy_until = 0.0  # stopped, or inside a pause
        self.away_until = 0.0  # alone without the database
        self.is_dead = False
        self.is_leaving = False
        self.names = world.names
        self._next_tick = 0.0
        self.held: dict[ClaimKey, Holding] = {}
        self.is_ticking = self.is_recording = self.is_beating = False
        self.is_lost = True  # it claims only once its row is written
        self.renewed_at = world.time
        self.incarnation = 0
        self.clock = SimulatedClock(world, self)
        self.db: Any = NodeDatabase(world, self)
        self.id = ""
        self._new_life()

    def _new_life(self) -> None:
        self.incarnation += 1
        self.id = str(UUID(int=self.world.random.getrandbits(128)))
        self.identity = identity(self.id, pid=self.number * 1000 + self.incarnation, boot_id=f"machine-{self.number}")
        here = Here(self.names)
        self.claimer = Claimer(self.id, here)
        hooks = Hooks(
            held=lambda: set(self.held),
            is_ticking=lambda: self.is_ticking,
            last_tick_at=lambda: None,
            came_round_at=self.clock.monotonic,
            blockers=list,
            on_lost=lambda: None,
            on_fence=lambda: None,
            on_code_without_claim=self._drop,
            on_changed=lambda: self.world.soon(self, self.tick),
            on_outdated=lambda _: None,
        )
        opens: Callable[[], Database] = lambda: self.db  # noqa: E731 - typed
        outage = Outage(self.clock, Events())
        events = Events()
        events.subscribe(self._on_event)
        self.heart = Heartbeat(opens, self.identity, LEASE, TICK, self.clock, outage, events, hooks, ServiceManager())

    def _on_event(self, event: Event) -> None:
        if isinstance(event, NodeLost):
            self.world.judge_lost(event.node_id)

    async def join(self) -> None:
        """Write the node's row, again under a new id if the answer was lost."""
        self.renewed_at = self.world.time  # before anyone can see the row
        async with self.db.write() as conn:
            await nodes.join(conn, self.db.dialect, self.identity, self.names, self.clock.now())
            self.world.beats[self.id] = self.world.time
        self.is_lost = False

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
        """Claim and start, as the ticker does, and plan the next pass."""
        free = 4 - len(self.held)
        if self.is_ticking or self.is_lost or self.is_leaving or self.is_fenced or free <= 0:
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
        elif claimed.has_more:
            self._tick_at(self.world.time + 0.1)
        elif claimed.next_due_at is not None:
            until = (claimed.next_due_at - self.clock.now()).total_seconds()
            if until < TICK:
                self._tick_at(self.world.time + max(until, 0.001))

    def _tick_at(self, at: float) -> None:
        """Plan a pass, unless an earlier one is planned."""
        if self.world.time < self._next_tick <= at:
            return
        self._next_tick = at

        async def tick() -> None:
            if self._next_tick == at:
                self._next_tick = 0.0
                await self.tick()

        self.world.at(at, self, tick)

    def _start(self, run: Run) -> None:
        holding = self.held[run.claim_key] = Holding(run)
        if self.is_fenced:
            self.hand_over(holding, OutcomeKind.INTERRUPTED)
            return
        holding.execution = self.world.begin(run)
        takes = 0.1 if self.world.is_healed else self.world.random.choice((0.1, 0.1, 0.5, 0.5, 1.0, 3.0, 9.0))

        async def end() -> None:
            if self.held.get(run.claim_key) is holding and holding.outcome is None and holding.execution is not None:
                holding.execution.end = self.world.time
                self.hand_over(holding, self.world.outcome())

        self.world.at(self.world.time + takes, self, end)

    async def record(self) -> None:
        """Write the outcomes at hand, as the recorder does: again and again until it is answered."""
        batch = [holding for holding in self.held.values() if holding.outcome is not None]
        if not batch or self.is_recording:
            return
        self.is_recording = True
        ended = [Ended(holding.run, holding.outcome) for holding in batch if holding.outcome is not None]
        try:
            finished = await finish(self.db, ended, lambda: 0.0)
        except DatabaseUnavailable:
            self.world.at(self.world.time + 0.5, self, self.record)
            return
        finally:
            self.is_recording = False
        for holding in batch:
            self.held.pop(holding.run.claim_key, None)
            if holding.outcome is not None and holding.run not in finished.stale:
                self.world.written[holding.run.claim_key] = str(holding.outcome.kind)
        self.world.soon(self, self.record)  # what ended meanwhile
        self.world.soon(self, self.tick)

    async def leave(self, *, has_stuck_code: bool) -> None:
        """Stop in good order; code that does not end is left behind, for others to take."""
        if self.is_leaving or self.is_lost or self.is_ticking:
            return
        self.is_leaving = True
        with suppress(DatabaseUnavailable):
            await self._note("draining")
        if not has_stuck_code:
            self.stop_code(self.world.time)
            await self.record()
        with suppress(DatabaseUnavailable):
            await self._note("stopped")
        if not self.is_dead:  # killed meanwhile
            self.die()
            self.world.restart()

    async def _note(self, state: str) -> None:
        async with self.db.write() as conn:
            await nodes.set_state(conn, self.id, state, self.clock.now())
            if state == "stopped":  # it ends here, and so does what code is left
                self.stop_code(self.world.time, is_lost=True)

    def die(self) -> None:
        """End, with all code."""
        self.is_dead = True
        for holding in self.held.values():
            if holding.execution is not None and holding.execution.end is None:
                holding.execution.end = self.world.time

    async def beat(self) -> None:
        """One pulse, as the heartbeat does."""
        if self.is_beating:
            return
        self.is_beating = True
        try:
            await self._pulse()
        finally:
            self.is_beating = False

    async def _pulse(self) -> None:
        began, before, now = self.world.time, self.clock.monotonic(), self.clock.now()
        held = set(self.held)
        try:
            try:
                self.world.lose_beat()
                async with self.db.write() as conn:
                    left_before = now - timedelta(seconds=LEFT_BEHIND_SECONDS)
                    seen = await nodes.beat(conn, self.db.dialect, self.id, now, None, left_before)
                    if seen is not None and seen.state in {"active", "draining"}:
                        self.world.beats[self.id] = self.world.time
            except DatabaseUnavailable:
                self.heart._watch.missed()
                raise
            if seen is None or seen.state not in {"active", "draining"}:
                await self._rejoin()
                return
            self.renewed_at = began
            after = self.clock.monotonic()
            self.heart._watch.beat(after)
            await self.heart._act_on(self.db, seen, held, before, after)
        except DatabaseUnavailable:
            pass

    async def _rejoin(self) -> None:
        self.is_lost = True
        if self.is_ticking:  # what is being claimed in the old name is stopped, too: wait for the end of the pass
            return
        self.stop_code(self.world.time, is_lost=True)
        self._new_life()
        with suppress(DatabaseUnavailable):  # the row may be there or not: a new id at the next beat
            await self.join()

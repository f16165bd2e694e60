"""A simulated node: what `runtime.node` does, step by step, on the world's time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from jobrunner.errors import DatabaseUnavailable
from jobrunner.model.run import ClaimKey, Outcome, OutcomeKind, Run
from jobrunner.policy.fast_path import Eligible
from jobrunner.policy.leases import BEATS_A_LEASE
from jobrunner.runtime.clock import SystemClock
from jobrunner.runtime.fast_path import FastPathKnowledge
from jobrunner.runtime.heartbeat import LEFT_BEHIND_SECONDS, Heartbeat, Hooks
from jobrunner.runtime.outage import Outage
from jobrunner.runtime.service_manager import ServiceManager
from jobrunner.storage import nodes
from jobrunner.storage.database.database import Database
from jobrunner.storage.runs.claims import Claim, Claimed, Nothing, Passed, claim_due
from jobrunner.storage.runs.facts import Here
from jobrunner.storage.runs.finishes import Ended, finish
from jobrunner.storage.runs.looks import Claimer, look
from jobrunner.storage.turns.sqlite import SqliteFastPath
from jobrunner.storage.turns.turn import Turned, claims_of, is_simple
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
    key: str | None = None


@dataclass
class Holding:
    """A claim the node knows of: its run, and the execution of its code, if it has begun."""

    run: Run
    simple_under: int | None = None
    execution: Execution | None = None
    outcome: Outcome | None = None
    was_in_a_turn: bool = False  # what a turn did not write the recorder writes

    @property
    def ended(self) -> Ended | None:
        """How it ended, if it has."""
        if self.outcome is None:
            return None
        return Ended(self.run, self.outcome, simple_under=self.simple_under)

    @property
    def is_simple(self) -> bool:
        """Has it ended, and waits for a turn to write it?"""
        return self.ended is not None and is_simple(self.ended) and not self.was_in_a_turn


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

    async def visit_writer(self, work: Callable[[Any], None]) -> None:
        await self._world.reach(self._node, is_write=True)
        self._world.db.visit_writer(work)
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
        self.in_turn: list[Holding] = []
        self.is_ticking = self.is_recording = self.is_beating = False
        self.is_lost = True  # it claims only once its row is written
        self.renewed_at = world.time
        self.incarnation = 0
        self.clock = SimulatedClock(world, self)
        self.db: Any = NodeDatabase(world, self)
        self.fast_path = SqliteFastPath(cast("Database", self.db))
        self.id = ""
        self._new_life()

    def _new_life(self) -> None:
        self.incarnation += 1
        self.id = str(UUID(int=self.world.random.getrandbits(128)))
        self.identity = identity(self.id, pid=self.number * 1000 + self.incarnation, boot_id=f"machine-{self.number}")
        here = Here(self.names)
        self.claimer = Claimer(self.id, here)
        self.known = FastPathKnowledge()
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
        self.world.soon(self, self.tick if holding.is_simple else self.record)

    async def tick(self) -> None:
        """Claim and start, as the ticker does, and plan the next pass."""
        free = 4 - len(self.held)
        may_claim = not (self.is_lost or self.is_leaving or self.is_fenced)
        has_simple = any(holding.is_simple for holding in self.held.values())
        if self.is_ticking or not ((may_claim and free > 0) or has_simple):
            return
        self.is_ticking = True
        try:
            if await self._turn(free, may_claim):
                self.world.soon(self, self.tick)
            elif may_claim and free > 0:
                await self._look_and_claim(free)
        finally:
            self.is_ticking = False

    async def _look_and_claim(self, free: int) -> None:
        is_all_looked_at = self.known.is_at_rest or not self.known.settled
        seen = await look(self.db, self.claimer, free, self.clock.now(), settled=self.known.settled)
        if seen.is_all_eligible:
            self.known.looked(self.clock.monotonic(), seen.eligible, is_nothing_due=False)
            if await self._take(seen.eligible, [], free):
                self.world.soon(self, self.tick)
                return
        claimed = await claim_due(self.db, self.claimer, free, self.clock.now, seen)
        self.known.looked(self.clock.monotonic(), claimed.eligible, is_nothing_due=isinstance(claimed, Nothing))
        if isinstance(claimed, Claimed):
            self.known.learn(claimed.planned)
        for claim in claimed.claims:
            self._start(claim)
        if claimed.claims or not (is_all_looked_at or isinstance(claimed, Passed)):
            self.world.soon(self, self.tick)
        elif isinstance(claimed, Passed):
            self._tick_at(self.world.time + 0.1)
        elif isinstance(claimed, Nothing) and claimed.next_due_at is not None:
            until = (claimed.next_due_at - self.clock.now()).total_seconds()
            if until < TICK:
                self._tick_at(self.world.time + max(until, 0.001))

    async def _turn(self, free: int, may_claim: bool) -> bool:
        """Take a turn of the fast path, as the ticker does; say whether it gave runs."""
        self.known.pass_begins(is_worth_a_turn=True)
        free = free if may_claim else 0
        eligible = self.known.next_turn(self.clock.now(), free, may_claim=may_claim)
        taken = [holding for holding in self.held.values() if holding.is_simple]
        if eligible is None and not taken:
            return False
        if eligible is not None:
            self.known.turn_sent(self.clock.monotonic())
        return await self._take(eligible, taken, free)

    async def _take(self, eligible: Eligible | None, taken: list[Holding], free: int) -> bool:
        self.in_turn = taken
        for holding in taken:
            holding.was_in_a_turn = True
        turned = Turned(has_other=True)
        try:
            ended = [holding.ended for holding in taken if holding.ended is not None]
            turned = await self.fast_path.turn(self.id, self.clock.now(), free, eligible, ended)
            self.world.turns += 1
        finally:
            self.in_turn = []
            self.known.turn_came_back(eligible, turned)
            for holding in taken:
                if holding.run.id in turned.written:
                    self.held.pop(holding.run.claim_key, None)
                    self.world.written[holding.run.claim_key] = str(OutcomeKind.SUCCEEDED)
            self.world.soon(self, self.record)  # what is left
        for claim in () if eligible is None else claims_of(turned, eligible):
            self._start(claim)
        return bool(turned.runs)

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

    def _start(self, claim: Claim) -> None:
        run = claim.run
        holding = self.held[run.claim_key] = Holding(run, claim.simple_under)
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
        batch = [
            holding
            for holding in self.held.values()
            if holding.outcome is not None and not holding.is_simple and holding not in self.in_turn
        ]
        if not batch or self.is_recording:
            return
        self.is_recording = True
        ended = [holding.ended for holding in batch if holding.ended is not None]
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
            for holding in self.held.values():
                holding.was_in_a_turn = True  # no more turns: the recorder writes all
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

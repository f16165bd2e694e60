"""A deterministic simulation of many nodes: one seed, one life, the same each time.

Real: every storage function the runtime uses, on a real SQLite file, and the heartbeat's own judgement of the others,
its rescue and its comparison of claims with code. Simulated: time, and everything that happens in it. Each node has a
wall clock that may jump and beats that may come late, or never; it is stopped for longer than its lease between any two
uses of the database; it loses the database alone or with all others; the answer to a commit is lost; it dies and comes
back; it leaves in good order, with or without code that does not end. Operators disable workers and enable them.

One true time drives everything. Whenever a node is about to use the database, or has just done so, it may be held up:
then the others live on first, as far as the pause goes.

Every second seed is a life of workers that have limits (`limited`): per key, rates, one that workers share.

Judged, after every commit: no limit is passed and no counterparts are together in the table, fences only grow, nothing
disabled is claimed, and nothing by a node that is lost. Judged by true time: nobody is lost who has beaten within a
lease; no run's code runs twice at once, nor that of counterparts, nor more than a limit allows (the code of a node that
was stopped does nothing while it is stopped, and is told to end as soon as it goes on). At the end, when all is healed:
every accepted run has ended once, with the outcome its node was told is written; attempts are numbered, letters and
streaks are right; the nodes that live do so by their rows.
"""

from __future__ import annotations

import heapq
import itertools
import random
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from jobrunner.errors import DatabaseUnavailable
from jobrunner.model.run import ClaimKey, OutcomeKind, Run
from jobrunner.policy.leases import BEATS_A_LEASE
from jobrunner.storage.runs.enqueue import Request, enqueue
from jobrunner.storage.workers import operations
from jobrunner.storage.workers.definitions import register
from tests.simulation.database import SimulatedDatabase
from tests.simulation.limited import LIMITED, LimitJudge, a_trigger, add_shared, together
from tests.simulation.node import FENCE_SECONDS, LEASE, TICK, Execution, SimulatedNode
from tests.simulation.table_judge import TableJudge, Violation
from tests.support.stage import ACTOR, T0, scheduled, triggered

LIVES_SECONDS, HEALS_SECONDS = (8.0, 12.0, 24.0), 400.0
MOST_WAITING = 10  # a longer queue takes time and shows no more
RISK_IN_FOCUS = 0.25  # what is decided before a pause, and written after it, is what goes wrong if anything does
DEEPEST = 2  # pauses within pauses
RETRY: dict[str, Any] = {"retry_delay_seconds": 0.5, "retry_max_delay_seconds": 4.0}
WORKERS = (
    triggered("free", max_running=3, max_retries=6, **RETRY),
    triggered("alone", max_retries=2, **RETRY),
    triggered("left", blocks=["right"], max_retries=6, **RETRY),
    triggered("right", max_running=2, max_retries=6, **RETRY),
    triggered("later", depends_on=["alone"], **RETRY),
    scheduled("clock", interval_seconds=5.0, max_retries=0, max_consecutive_failures=50),
)
BLOCKS = (("left", "right"),)
HEALTHY = 0.75  # the share of outcomes that are successes


@dataclass(order=True)
class Planned:
    at: float
    number: int
    node: SimulatedNode | None = field(compare=False)
    act: Callable[[], Coroutine[Any, Any, None]] = field(compare=False)


class World:
    """All nodes, the true time, and what happens to them."""

    def __init__(self, seed: int, path: Path) -> None:
        self.random = random.Random(seed)
        self.time = 0.0
        self.is_limited = seed % 2 == 1
        self.workers = LIMITED if self.is_limited else WORKERS
        self.order = tuple(config.name for config in self.workers)
        self.names = frozenset(self.order)
        self.most = {config.name: config.max_running for config in self.workers}
        self.table = TableJudge(self.most, BLOCKS)
        self.db = SimulatedDatabase(path, self._judge_table)
        self.is_healed = False
        self.all_away_until = 0.0
        self.accepted: list[int] = []
        self.written: dict[ClaimKey, str] = {}  # the outcomes that a node was told are written
        self.executions: list[Execution] = []
        self.has_jumps = self.random.random() < 0.3
        self.limits = LimitJudge(is_in_order=not self.has_jumps)
        self.trouble = self.random.choice((0.0, 0.02, 0.05, 0.1))  # how often a use of the database meets any
        self._focus = self.random.choice((None, None, "is_ticking", "is_ticking", "is_recording", "is_beating"))
        if self._focus is not None:  # all else goes well: others must live to notice
            self.trouble /= 5
        self.lost_beats = self.random.choice((0.0, 0.0, 0.1, 0.4))
        self._triggers_within = self.random.choice((1.5, 4.0))
        self._strikes_within = self.random.choice((3.0, 8.0, 15.0))
        self._plan: list[Planned] = []
        self._numbers = itertools.count()
        self._depth = 0
        self.nodes: list[SimulatedNode] = []
        self.beats: dict[str, float] = {}  # by node id, the true time of the last beat that counts
        self.events = self.turns = 0

    def _judge_table(self, driver: sqlite3.Connection) -> None:
        self.table.look(driver, self.time)
        if self.is_limited:
            self.limits.look(driver, self.time)

    # --- planning ---

    def at(self, at: float, node: SimulatedNode | None, act: Callable[[], Coroutine[Any, Any, None]]) -> None:
        heapq.heappush(self._plan, Planned(at, next(self._numbers), node, act))

    def soon(self, node: SimulatedNode, act: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.at(self.time + self.random.uniform(0.0, 0.02), node, act)

    def every(self, seconds: float, node: SimulatedNode, act: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def again() -> None:
            with suppress(DatabaseUnavailable):
                await act()
            self.at(
                self.time + seconds * self.random.choice((1, 1, 1, 1.2, 1.0 if self.is_healed else 2.2)), node, again
            )

        self.at(self.time + self.random.uniform(0, seconds), node, again)

    async def run_until(self, time: float) -> None:
        """Let everyone live until `time`; who stands still does so later."""
        while self._plan and self._plan[0].at <= time:
            planned = heapq.heappop(self._plan)
            node = planned.node
            if node is not None:
                if node.is_dead:
                    continue
                if node.busy_until > max(self.time, planned.at):
                    after = node.busy_until + 1e-9
                    heapq.heappush(self._plan, Planned(after, planned.number, node, planned.act))
                    continue
            self.time = max(self.time, planned.at)
            if node is not None and node.is_fenced:
                node.stop_code(self.time)
            self.events += 1
            with suppress(DatabaseUnavailable):
                await planned.act()
        self.time = max(self.time, time)

    # --- trouble ---

    async def hold_up(self, node: SimulatedNode, *, is_write: bool = False) -> None:
        """Perhaps stop the node here, for as long as it takes others to notice; they live on meanwhile.

        Or only this use of the database: then the node's other services live on, too.
        """
        if self.is_healed or self._depth >= DEEPEST or self.random.random() >= self._risk(node, is_write):
            return
        seconds = self.random.choice((0.05, 0.5, 2.0, LEASE, LEASE * 1.5, LEASE * 3))
        self._depth += 1
        if self.random.random() < 0.3:
            await self.run_until(self.time + seconds)  # this use alone is slow: the node lives on
        else:
            await self._stand_still(node, seconds)
        self._depth -= 1
        if node.is_dead:
            raise DatabaseUnavailable("the node died here")

    async def _stand_still(self, node: SimulatedNode, seconds: float) -> None:
        node.busy_until = self.time + seconds
        self._freeze(node)
        await self.run_until(node.busy_until)

    def _freeze(self, node: SimulatedNode) -> None:
        """End the code of a node that stands still past its fence: when that goes on, it is told to end."""
        for holding in node.held.values():
            execution = holding.execution
            if execution is not None and execution.end is None and node.busy_until - node.renewed_at >= FENCE_SECONDS:
                execution.end = max(self.time, node.renewed_at + FENCE_SECONDS)
                node.hand_over(holding, OutcomeKind.INTERRUPTED)

    def lose_beat(self) -> None:
        """Perhaps a beat does not reach the database."""
        if not self.is_healed and self.random.random() < self.lost_beats:
            raise DatabaseUnavailable("the beat is lost")

    def _risk(self, node: SimulatedNode, is_write: bool) -> float:
        if is_write and self._focus is not None and getattr(node, self._focus):
            return RISK_IN_FOCUS
        return self.trouble

    async def reach(self, node: SimulatedNode, *, is_write: bool = False) -> None:
        """Before a use of the database."""
        await self.hold_up(node, is_write=is_write)
        if max(node.away_until, self.all_away_until) > self.time:
            raise DatabaseUnavailable("away")

    async def answer(self, node: SimulatedNode) -> None:
        """After a commit: the answer may be late, or never come."""
        await self.hold_up(node, is_write=True)
        if not self.is_healed and self.random.random() < self.trouble / 2:
            raise DatabaseUnavailable("the answer to the commit is lost")

    async def strike(self) -> None:
        """Something happens to a node, or to all."""
        alive = [node for node in self.nodes if not node.is_dead]
        self.at(self.time + self.random.uniform(0.5, self._strikes_within), None, self.strike)
        if not alive:
            return
        node = self.random.choice(alive)
        what = self.random.choice(("kill", "leave", "alone", "away", "operate", "jump" if self.has_jumps else "alone"))
        if what == "kill":
            self._kill(node)
        elif what == "leave":
            is_stuck = self.random.random() < 0.3
            self.at(self.time, node, lambda: node.leave(has_stuck_code=is_stuck))
        elif what == "alone":
            node.away_until = self.time + self.random.uniform(0.5, LEASE * 2)
        elif what == "away":
            self.all_away_until = self.time + self.random.uniform(0.5, LEASE * 2.5)
        elif what == "operate":
            await self._operate()
        else:
            far = () if self.is_limited else (-3600.0, 3600.0)  # a rate stays shut until the latest start is past
            node.clock_error = self.random.choice((-60.0, -1.0, 0.0, 1.0, 60.0, *far))

    async def _operate(self) -> None:
        """An operator disables a worker; one that is disabled is enabled."""
        name = self.random.choice(self.order)
        db: Any = self.db
        if name in self.table.disabled:
            self.table.disabled.discard(name)
            await operations.enable(db, name, self.now(), ACTOR)
        else:
            await operations.disable(db, name, self.now(), ACTOR, None)
            self.table.disabled.add(name)

    def now(self) -> datetime:
        """The true time."""
        return T0 + timedelta(seconds=self.time)

    def _kill(self, node: SimulatedNode) -> None:
        node.die()
        self.restart()

    def restart(self) -> None:
        """Start another node soon."""
        self.at(self.time + self.random.uniform(0.2, LEASE), None, self.add_node)

    # --- life ---

    async def add_node(self) -> None:
        node = SimulatedNode(self, len(self.nodes) + 1)
        if not self.is_healed and self.random.random() < 0.2:
            node.names = self.names - {self.random.choice(self.order)}
        self.nodes.append(node)
        try:
            await node.join()
        except DatabaseUnavailable:
            if not node.is_dead:  # else whoever killed it starts another
                node.is_dead = True
                self.at(self.time + 1.0, None, self.add_node)
            return
        self.every(LEASE / BEATS_A_LEASE, node, node.beat)
        self.every(TICK, node, node.tick)
        self.every(LEASE / 12, node, self._look)

    async def _look(self) -> None:
        """The heartbeat's guard: `run_until` fences a node that is late at each of its events."""

    async def trigger(self) -> None:
        """Somebody else triggers runs; what the database accepts it keeps."""
        if self.db.value(_LEFT) < MOST_WAITING:
            await self._enqueue([self.random.choice(self.order) for _ in range(self.random.randint(1, 3))])
        for node in self.random.sample(self.nodes, min(2, len(self.nodes))):
            self.soon(node, node.tick)  # they hear of it; the others look by themselves
        if not self.is_healed:
            self.at(self.time + self.random.uniform(0.3, self._triggers_within), None, self.trigger)

    async def _enqueue(self, names: list[str]) -> None:
        async with self.db.write() as conn:
            for name in names:
                more = a_trigger(self.random) if self.is_limited else {}
                self.accepted.append(await enqueue(conn, self.db.dialect, Request(name, **more), self.now()))

    def outcome(self) -> OutcomeKind:
        if self.is_healed or self.random.random() < HEALTHY:
            return OutcomeKind.SUCCEEDED
        return self.random.choice((OutcomeKind.FAILED, OutcomeKind.SNOOZED, OutcomeKind.FAILED))

    def begin(self, run: Run) -> Execution:
        execution = Execution(run.worker, run.id, self.time, key=run.limit_key)
        self.executions.append(execution)
        return execution

    async def live(self) -> None:
        """The whole life, and the judgement at its end."""
        async with self.db.write() as conn:
            if self.is_limited:
                await add_shared(conn)
            await register(conn, self.db.dialect, self.workers, None, T0)
        for _ in range(self.random.choice((2, 3, 3, 4, 6))):
            await self.add_node()
        self.at(0.1, None, self.trigger)
        self.at(self.random.uniform(1.0, self._strikes_within), None, self.strike)
        await self.run_until(self.random.choice(LIVES_SECONDS))
        await self._heal()
        self.judge_executions()
        self.judge_outcomes()

    async def _heal(self) -> None:
        """End all trouble; within `HEALS_SECONDS` everything accepted must have ended."""
        self.is_healed = True
        self.all_away_until = 0.0
        for node in self.nodes:
            node.away_until = 0.0
            node.clock_error = 0.0
        self._plan = [p for p in self._plan if p.act != self.strike]
        heapq.heapify(self._plan)
        await self.add_node()
        await self._open_all()
        for node in [node for node in self.nodes if not node.is_dead][2:-1]:
            node.die()  # the last blow: few must do what is left
        began, left = self.time, 0
        while self.time < began + HEALS_SECONDS:
            await self.run_until(self.time + 1.0)
            if self.has_jumps:  # retries may wait for a time that only a wrong clock saw as near
                await self._bring_forward()
            left = self.db.value(_LEFT)
            if not left and self.time >= began + LEASE / 2:
                self._judge_nodes()
                return
        raise Violation(f"{left} accepted runs have not ended {HEALS_SECONDS:g} s after all trouble was over")

    def _judge_nodes(self) -> None:
        """Who lives knows by now if it was declared lost, and has joined anew."""
        states = dict(self.db.rows("SELECT id, state FROM nodes"))
        for node in self.nodes:
            if not node.is_dead and states.get(node.id) != "active":
                raise Violation(f"node {node.id} goes on, though it is {states.get(node.id)}")

    async def _open_all(self) -> None:
        """Enable what an operator or the circuit disabled; let what others depend on succeed once more."""
        db: Any = self.db
        self.table.disabled.clear()
        for name in self.order:
            if not db.value(f"SELECT is_enabled FROM worker_state WHERE worker = '{name}'"):
                await operations.enable(db, name, self.now(), ACTOR)
        await self._enqueue(["alone"])

    async def _bring_forward(self) -> None:
        near, now = (f"{self.now() + timedelta(seconds=more):{_TIME}}" for more in (10, 0))
        if self.db.value(f"SELECT count(*) FROM runs WHERE state = 'pending' AND due_at > '{near}'"):
            async with self.db.write() as conn:
                update = "UPDATE runs SET due_at = :now WHERE state = 'pending' AND due_at > :near"
                await conn.execute(sa.text(update), {"now": now, "near": near})

    # --- judgement ---

    def judge_lost(self, node_id: str) -> None:
        """By true time: nobody is declared lost who has beaten within the last lease."""
        silent = self.time - self.beats[node_id]
        if silent < LEASE:
            raise Violation(f"node {node_id} was declared lost at {self.time:.3f}, {silent:.3f} s after its beat")

    def judge_outcomes(self) -> None:
        """What a node was told is written, history has."""
        history = {(run_id, fence): outcome for run_id, fence, outcome in self.db.rows(_OUTCOMES)}
        for key, outcome in self.written.items():
            if history.get(key) != outcome:
                raise Violation(f"{outcome} of {key} was said to be written; history has {history.get(key)}")

    def judge_executions(self) -> None:
        """By true time: one execution of a run at a time, limits and blocks."""
        by_run: defaultdict[int, list[Execution]] = defaultdict(list)
        for execution in self.executions:
            by_run[execution.run_id].append(execution)
        for run_id, found in by_run.items():
            _at_most(1, found, f"run {run_id}")
        for name, limit in self.most.items():
            _at_most(limit, [e for e in self.executions if e.worker == name], name)
        self._judge_limits()
        for e in self.executions:
            for other in self.executions:
                if e.worker == "left" and other.worker == "right" and _overlap(e, other):
                    raise Violation(f"left {e} and right {other}")

    def _judge_limits(self) -> None:
        held: defaultdict[tuple[str, int], list[Execution]] = defaultdict(list)
        for execution in self.executions if self.is_limited else ():
            for limit in together(execution.worker, execution.key):
                held[limit].append(execution)
        for (what, most), found in held.items():
            _at_most(most, found, what)


def _overlap(one: Execution, other: Execution) -> bool:
    end, other_end = one.end or one.start, other.end or other.start
    return max(one.start, other.start) < min(end, other_end)


def _at_most(limit: int, found: list[Execution], what: str) -> None:
    changes = sorted(
        [(e.start, 1) for e in found] + [(e.end or e.start, -1) for e in found], key=lambda c: (c[0], c[1])
    )
    active = 0
    for at, change in changes:
        active += change
        if active > limit:
            raise Violation(f"{active} executions of {what} at {at:.3f}")


_OUTCOMES = "SELECT run_id, fence, outcome FROM run_history WHERE fence IS NOT NULL"
_TIME = "%Y-%m-%d %H:%M:%S.%f"
_LEFT = "SELECT count(*) FROM runs WHERE trigger = 'manual'"


async def play(seed: int, path: Path) -> World:
    """Live one seed on a fresh, migrated SQLite file at `path`; raises `Violation`."""
    random.seed(seed)  # the jitter of retries
    world = World(seed, path)
    try:
        await world.live()
    finally:
        world.db.close()
    return world

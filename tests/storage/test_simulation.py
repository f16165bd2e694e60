"""An hour of random life in simulated time, on both databases: no promise is broken, and both write the same history.

Twenty workers of all modes with random dependencies and blocks; two nodes that end runs in every way, die, drain and
come back; operators who trigger, force, disable, enable, pause, resume and cancel.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from jobrunner.errors import RunNotFound
from jobrunner.model.run import OutcomeKind, Run
from jobrunner.model.worker import WorkerConfig
from jobrunner.policy.missed import UNTIL_RESUMED
from jobrunner.storage import nodes
from jobrunner.storage.runs import cancelling
from jobrunner.storage.runs.finishes import Ended, finish
from jobrunner.storage.workers import operations
from jobrunner.storage.workers.repairs import sweep
from tests.support.checker import check
from tests.support.stage import ACTOR, T0, Stage, continuous, scheduled, triggered

NAMES = [f"w{n:02}" for n in range(20)]
MINUTES = 60
KINDS = {
    OutcomeKind.SUCCEEDED: 70,
    OutcomeKind.FAILED: 16,
    OutcomeKind.TIMED_OUT: 4,
    OutcomeKind.SNOOZED: 4,
    OutcomeKind.INTERRUPTED: 3,
    OutcomeKind.CANCELLED: 2,
}


def definitions(rng: random.Random) -> Iterator[WorkerConfig]:
    for number, name in enumerate(NAMES):
        earlier = NAMES[:number]
        fields: dict[str, Any] = {
            "max_running": rng.choice([1, 1, 1, 2, 3]),
            "max_retries": rng.choice([0, 0, 1, 2]),
            "retry_delay_seconds": rng.choice([1, 5, 20]),
            "priority": rng.randrange(4),
            "max_consecutive_failures": rng.choice([2, 3, 5]),
            "cooldown_seconds": rng.choice([None, 20, 60, 60]),
            "depends_on": rng.sample(earlier, k=min(len(earlier), rng.choice([0, 0, 0, 1, 1, 2]))),
            "blocks": rng.sample([each for each in NAMES if each != name], k=rng.choice([0, 0, 0, 1])),
        }
        kind = rng.choice(["interval", "interval", "cron", "loop", "triggered"])
        if kind == "interval":
            misfire = rng.choice(["run_once", "run_all", "skip"])
            yield scheduled(name, interval_seconds=rng.choice([7, 20, 60, 90]), misfire=misfire, **fields)
        elif kind == "cron":
            yield scheduled(name, cron=rng.choice(["* * * * *", "*/5 * * * *"]), jitter_seconds=3, **fields)
        elif kind == "loop":
            yield continuous(name, interval_seconds=rng.choice([0, 1, 15]), **fields)
        else:
            yield triggered(name, **fields)


@dataclass
class SimulatedNode:
    """A node: what it runs, and when and how each of these ends."""

    name: str
    handlers: list[str]
    starts: int = 0
    held: dict[int, tuple[Run, WorkerConfig, float, OutcomeKind]] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Another id for each start."""
        return f"{self.name}-{self.starts}"


class Simulation:
    """The life; everything random comes from `rng`, in an order that does not depend on the database."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self.stage = stage
        self.rng = random.Random(seed)
        self.accepted: list[int] = []
        self.nodes = [SimulatedNode("x", NAMES), SimulatedNode("y", NAMES[::2])]

    @property
    def clock(self) -> float:
        """Seconds since the beginning."""
        return (self.stage.now - T0).total_seconds()

    async def live(self) -> None:
        """Live for an hour, and look at the promises every ten minutes."""
        await self.stage.register(*definitions(self.rng))
        for node in self.nodes:
            await self.stage.join(node.id, node.handlers)
        checked = 0.0
        while self.clock < MINUTES * 60:
            self.stage.after(self.rng.choice([0.25, 2.0, 5.0, 10.0]))
            for node in self.nodes:
                await self.step(node)
            if self.rng.random() < 0.3:
                await self.operate()
            if self.clock >= checked + 600:
                checked = self.clock
                assert check(self.stage.url, accepted=self.accepted) == []

    async def step(self, node: SimulatedNode) -> None:
        await self.end(node, [item for item in node.held.values() if item[2] <= self.clock])
        chance = self.rng.random()
        if chance < 0.003:
            await self.die(node)
        elif chance < 0.006:
            await self.end(node, [(*item[:3], OutcomeKind.INTERRUPTED) for item in node.held.values()])
        claimed = await self.stage.claim(4 - len(node.held), node.id, node.handlers)
        for claim in sorted(claimed.claims, key=lambda claim: claim.run.id):
            kind = self.rng.choices(list(KINDS), weights=list(KINDS.values()))[0]
            ends_at = self.clock + self.rng.choice([0.1, 1, 3, 10, 40])
            node.held[claim.run.id] = (claim.run, claim.config, ends_at, kind)

    async def end(self, node: SimulatedNode, items: list[tuple[Run, WorkerConfig, float, OutcomeKind]]) -> None:
        if not items:
            return
        ended = []
        for run, config, _, kind in sorted(items, key=lambda item: item[0].id):
            discards = kind is OutcomeKind.FAILED and self.rng.random() < 0.1
            delay = 5.0 if kind is OutcomeKind.SNOOZED else None
            outcome = self.stage.outcome(kind, is_discard=discards, delay_seconds=delay)
            ended.append(Ended(run, outcome, config))
            del node.held[run.id]
        finished = await finish(self.stage.db, ended, lambda: self.rng.uniform(-0.1, 0.1))
        assert finished.stale == ()

    async def die(self, node: SimulatedNode) -> None:
        """The node is gone with all it ran; the other declares it lost and rescues; it comes back under a new id."""
        seen = nodes.SeenNode(node.id, node.id, 4711, "boot", T0, 0)
        async with self.stage.db.write() as conn:
            assert await nodes.declare_lost(conn, self.stage.db.dialect, seen, self.stage.now, "it is silent")
        finished = await nodes.rescue(self.stage.db, self.stage.now, self.stage.now)
        assert {run.id for run, _ in finished.written} == set(node.held)
        held, node.held = list(node.held.values()), {}
        late = [Ended(run, self.stage.outcome(), config) for run, config, *_ in held]
        if late:
            assert (await finish(self.stage.db, late)).written == ()
        node.starts += 1
        await self.stage.join(node.id, node.handlers)

    async def operate(self) -> None:
        rng, db, now = self.rng, self.stage.db, self.stage.now
        name = rng.choice(NAMES)
        match rng.choice(
            ["trigger"] * 6 + ["enable"] * 3 + ["disable", "pause", "resume", "resume", "cancel", "repair"]
        ):
            case "trigger":
                due_at = now + timedelta(seconds=rng.choice([0, 0, 30]))
                forced, key = rng.random() < 0.1, rng.choice([None, None, "k"])
                run_id = await self.stage.trigger(name, due_at=due_at, is_forced=forced, key=key)
                self.accepted.append(run_id)
            case "enable":
                await operations.enable(db, name, now, ACTOR)
            case "disable":
                await operations.disable(db, name, now, ACTOR, None)
            case "pause":
                until = rng.choice([now + timedelta(seconds=90), UNTIL_RESUMED])
                await operations.pause(db, name, now, ACTOR, until, None)
            case "resume":
                await operations.resume(db, name, now, ACTOR)
            case "cancel":
                await self.cancel(rng.choice(self.accepted or [0]))
            case "repair":
                assert (await sweep(db, now)).is_nothing  # no clock went back, so nothing was wrong

    async def cancel(self, run_id: int) -> None:
        try:
            await cancelling.cancel(self.stage.db, run_id, self.stage.now, ACTOR)
        except RunNotFound:
            return
        for node in self.nodes:
            if run_id in node.held:
                run, config, ends_at, _ = node.held[run_id]
                kind = self.rng.choice([OutcomeKind.CANCELLED, OutcomeKind.FAILED])
                node.held[run_id] = (run, config, ends_at, kind)


async def history(stage: Stage) -> list[tuple[Any, ...]]:
    columns = "run_id, fence, worker, trigger, attempt, outcome, ends_run, occurrences, reason, node_id"
    times = ("scheduled_for", "due_at", "started_at", "finished_at")
    rows = await stage.rows(f"SELECT {columns}, {', '.join(times)} FROM {{p}}run_history ORDER BY id")
    for row in rows:
        row.update({name: None if row[name] is None else stage.time(row[name]) for name in times})
    return [tuple(row.values()) for row in rows]


async def lived(url: str, seed: int) -> list[tuple[Any, ...]]:
    random.seed(seed)  # what the rescue draws its jitter from
    stage = Stage(url)
    try:
        simulation = Simulation(stage, seed)
        await simulation.live()
        assert check(url, accepted=simulation.accepted) == []
        return await history(stage)
    finally:
        await stage.db.close()


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.timeout(600)  # about 20 s of work; a busy machine takes its time
@pytest.mark.parametrize("seed", [1])
async def test_an_hour_of_random_life_breaks_no_promise_and_is_the_same_on_both(
    sqlite_url: str, postgres_url: str, seed: int, tmp_path: Path
):
    on_sqlite = await lived(sqlite_url, seed)
    assert len(on_sqlite) > 500
    assert await lived(postgres_url, seed) == on_sqlite

"""What `explain --at` says of a moment is what `explain` said at that moment, in histories made at random."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest

from jobrunner.model.run import OutcomeKind, Run
from jobrunner.model.worker import Dependency, WorkerConfig
from jobrunner.storage import nodes
from jobrunner.storage.reading.explain import explain
from jobrunner.storage.reading.past import explain_at
from jobrunner.storage.workers import operations
from tests.support.stage import ACTOR, Stage, continuous, scheduled, triggered

NAMES = ("a", "b", "c", "d")
SLOTS = 2
HISTORIES_ON_SQLITE, HISTORIES_ON_POSTGRES = 500, 40
LIVES_A_DATABASE = 50  # one after the other on one database, each with workers of its own
OUTCOMES = (*[OutcomeKind.SUCCEEDED] * 4, *[OutcomeKind.FAILED] * 3, OutcomeKind.SNOOZED, OutcomeKind.INTERRUPTED)


@dataclass
class Record:
    """What `explain` said when it was asked."""

    at: datetime
    worker: str
    document: dict[str, Any]


def definitions(draw: random.Random, life: int) -> list[WorkerConfig]:
    """Workers at random, with names of their own."""
    found: list[WorkerConfig] = []
    names = [f"{name}{life}" for name in NAMES]
    for name in names:
        rules: dict[str, Any] = {
            "max_running": draw.choice([1, 1, 2]),
            "max_retries": draw.choice([0, 1, 2]),
            "retry_delay_seconds": draw.choice([10, 90]),
            "max_consecutive_failures": draw.choice([1, 2, 5]),
            "cooldown_seconds": draw.choice([None, 45, 200]),
            "priority": draw.randrange(4),
            "misfire": draw.choice(["run_once", "run_all", "skip"]),
        }
        others = [each.name for each in found]
        if others and draw.random() < 0.5:
            condition, age = draw.choice(["succeeded", "fresh"]), draw.choice([None, None, 120])
            rules["depends_on"] = [Dependency(draw.choice(others), condition, age)]
        if draw.random() < 0.4:
            rules["blocks"] = [draw.choice([other for other in names if other != name])]
        kind = draw.choice(["interval", "interval", "cron", "loop", "triggered"])
        if kind == "interval":
            found.append(scheduled(name, interval_seconds=draw.choice([40, 75, 300]), **rules))
        elif kind == "cron":
            found.append(scheduled(name, cron=draw.choice(["* * * * *", "*/3 * * * *"]), **rules))
        elif kind == "loop":
            found.append(continuous(name, interval_seconds=draw.choice([5, 60]), **rules))
        else:
            found.append(triggered(name, **rules))
    return found


class Life:
    """A node, its runs and an operator, for some steps of random length."""

    def __init__(self, stage: Stage, seed: int, life: int) -> None:
        self.draw = random.Random(seed)
        self.stage = stage
        self.workers = definitions(self.draw, life)
        self.node = f"n{life}"
        self.running: list[Run] = []
        self.records: list[Record] = []

    @property
    def name(self) -> str:
        return self.draw.choice(self.workers).name

    async def live(self, steps: int = 14) -> None:
        await self.stage.register(*self.workers)
        names = [config.name for config in self.workers]
        await self.stage.join(self.node, names, max_concurrent=SLOTS)
        for _ in range(steps):
            self.pass_time(self.draw.choice([0.5, 7, 30, 61, 200]))
            await self.end_some()
            await self.something()
            await self.tick(names)
            await self.record()
        self.pass_time(1)
        for run in self.running:
            await self.stage.end(run)
        async with self.stage.db.write() as conn:
            await nodes.set_state(conn, self.node, "stopped", self.stage.now)
        for name in names:
            await operations.disable(self.stage.db, name, self.stage.now, ACTOR, "its life is over")

    def pass_time(self, seconds: float) -> None:
        self.stage.after(seconds + self.draw.random())

    async def tick(self, names: Sequence[str]) -> None:
        """Start all that can: a tick leaves what it has just made startable to the next."""
        while started := await self.stage.tick(SLOTS - len(self.running), self.node, names):
            self.running += started
            self.pass_time(0.01)
            if len(self.running) >= SLOTS:
                return

    async def end_some(self) -> None:
        for run in list(self.running):
            if self.draw.random() < 0.6:
                self.running.remove(run)
                kind = self.draw.choice(OUTCOMES)
                more = {"delay_seconds": 25} if kind is OutcomeKind.SNOOZED else {}
                await self.stage.end(run, kind, **more)
                self.pass_time(0.01)

    async def something(self) -> None:
        db, now, draw = self.stage.db, self.stage.now, self.draw
        match draw.choice(["disable", "enable", "enable", "pause", "resume", "cancel", "set", *["trigger"] * 4]):
            case "disable":
                await operations.disable(db, self.name, now, ACTOR, "it makes noise")
            case "enable":
                await operations.enable(db, self.name, now, ACTOR)
            case "pause":
                until = now + timedelta(seconds=draw.choice([20, 150]))
                await operations.pause(db, self.name, now, ACTOR, until, None, is_length=True)
            case "resume":
                await operations.resume(db, self.name, now, ACTOR)
            case "set":
                await operations.set_values(db, self.name, {"max_running": draw.choice([1, 2])}, now, ACTOR)
            case "cancel":
                waiting = await self.stage.column("SELECT id FROM {p}runs WHERE state = 'pending' ORDER BY id LIMIT 1")
                for run_id in waiting:
                    await operations.cancel(db, run_id, now, ACTOR)
            case _:
                forced = draw.random() < 0.15
                await self.stage.trigger(self.name, is_forced=forced)
        self.pass_time(0.01)

    async def record(self) -> None:
        self.pass_time(0.01)
        for config in self.workers:
            document = await explain(self.stage.db, config.name, self.stage.now)
            self.records.append(Record(self.stage.now, config.name, document))
        self.pass_time(0.01)


def judged(document: dict[str, Any]) -> tuple[str | None, set[str]]:
    """The gate that matters, and all that are shut."""
    shut = [gate for gate in document["gates"] if not gate["open"]]
    matters = next((gate["gate"] for gate in shut if gate["reason"] == document["why"]), None)
    return matters, {gate["gate"] for gate in shut}


async def lives(stage: Stage, seed: int, count: int) -> Counter[str]:
    """Live through some histories, and compare all that was recorded; return how often each gate mattered."""
    seen: Counter[str] = Counter()
    for life in range(count):
        one = Life(stage, seed + life, life)
        await one.live()
        for record in one.records:
            found = await explain_at(stage.db, record.worker, record.at, stage.now)
            then, now = judged(record.document), judged(found)
            assert now == then, f"life {seed + life}, {record.worker} at {record.at}: {record.document} but {found}"
            seen[str(then[0])] += 1
        stage.after(3600)
    return seen


@pytest.mark.parametrize("part", range(HISTORIES_ON_SQLITE // LIVES_A_DATABASE))
async def test_what_is_said_of_a_moment_is_what_was_said_then(sqlite_url: str, part: int):
    stage = Stage(sqlite_url)
    try:
        seen = await lives(stage, 1000 * part, LIVES_A_DATABASE)
    finally:
        await stage.db.close()
    assert {"enabled", "paused", "due", "max_running", "dependencies", "blocks", "slot"} <= seen.keys()


async def test_it_is_the_same_on_postgresql(postgres_url: str):
    stage = Stage(postgres_url)
    try:
        await lives(stage, 77_000, HISTORIES_ON_POSTGRES)
    finally:
        await stage.db.close()

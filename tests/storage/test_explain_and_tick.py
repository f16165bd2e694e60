"""`explain` against what the next tick does, over random states with all gates together, on both databases.

A life of eight workers goes on from state to state: definitions with limits of every kind, relations, priorities,
schedules and circuits; triggers, forced ones too, for now and for later; runs that end in every way; operators who
disable, enable, pause and resume. At each state all workers are explained, then a node ticks: by a turn of the fast
path where it would, else the long way. A worker starts exactly if `explain` says so, and then that very run.

JOBRUNNER_TEST_STATES says how many states, on each database: 100 in the suite, 2,000 for a long look;
JOBRUNNER_TEST_SEED which life it is.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from jobrunner.errors import JobrunnerError
from jobrunner.model.facts import Gate
from jobrunner.model.run import OutcomeKind, Run
from jobrunner.model.worker import WorkerConfig
from jobrunner.storage.reading import explain as explaining
from jobrunner.storage.reading.explain import explain, why_waits
from jobrunner.storage.runs import facts as reading
from jobrunner.storage.runs.claims import claim_due
from jobrunner.storage.runs.looks import Claimer, look
from jobrunner.storage.tables import define as t
from jobrunner.storage.turns.fast_path import FastPath, open_fast_path
from jobrunner.storage.turns.turn import claims_of
from jobrunner.storage.workers import operations
from tests.support.stage import ACTOR, Stage, scheduled, triggered

STATES = int(os.environ.get("JOBRUNNER_TEST_STATES", "100"))
SEED = int(os.environ.get("JOBRUNNER_TEST_SEED", "0"))
NAMES = [f"w{number}" for number in range(8)]
LIMITS = ("one", "two")
SLOTS = 8
RATES = ("1/2s", "2/5s", "3/10s", "5/8s")
ENDS = [OutcomeKind.SUCCEEDED] * 5 + [OutcomeKind.FAILED] * 2 + [OutcomeKind.SNOOZED, OutcomeKind.INTERRUPTED]


class Life:
    """A life by a seed; `seen` counts which gates were shut, starts, and turns that gave runs."""

    def __init__(self, stage: Stage, fast_path: FastPath, seed: int) -> None:
        self.stage, self.fast_path = stage, fast_path
        self.draw = random.Random(seed)
        self.claimer = Claimer("n1", reading.Here(frozenset(NAMES[:-1])))  # it has no code for the last
        self.running: list[Run] = []
        self.seen: Counter[str] = Counter()

    def config(self, number: int) -> WorkerConfig:
        draw, name = self.draw, NAMES[number]
        options: dict[str, Any] = {"max_running": draw.choice([1, 2, 3, 9]), "priority": draw.choice([0, 1, 1, 2, 3])}
        options |= {"max_retries": draw.choice([0, 1, 2]), "retry_delay_seconds": 1.0, "max_consecutive_failures": 3}
        options |= {"cooldown_seconds": draw.choice([None, 3.0])}
        if draw.random() < 0.6:
            options["limit_key"] = "key"
            options["payload"] = draw.choice([{}, {"key": "a"}])
            kinds = [("max_running_per_key", draw.choice([1, 2])), ("rate_per_key", draw.choice(RATES))]
            kinds += [("ordered", True), ("fair", True)]
            options |= dict(draw.sample(kinds, draw.randint(1, 2)))
        if draw.random() < 0.4:
            options["rate"] = draw.choice(RATES)
        if {"rate", "rate_per_key"} & options.keys():
            options["smooth"] = draw.random() < 0.3
        if draw.random() < 0.3:
            options["limits"] = draw.sample(LIMITS, draw.randint(1, 2))
        if number and draw.random() < 0.2:
            options["depends_on"] = [NAMES[draw.randrange(number)]]
        if number and draw.random() < 0.25:
            options["blocks"] = [NAMES[draw.randrange(number)]]
        if draw.random() < 0.25:
            return scheduled(name, interval_seconds=draw.choice([2.0, 5.0]), misfire="run_once", **options)
        return triggered(name, **options)

    async def define(self) -> None:
        """Define all limits and workers anew."""
        draw, n = self.draw, t.limits
        for name in LIMITS:
            drawn: dict[str, Any] = draw.choice(
                [{"max_running": 1}, {"max_running": 3}, {"rate": "2/3s"}, {"max_running": 2, "rate": "4/6s"}]
            )
            values = {"max_running": None, "rate": None, "updated_at": self.stage.now, **drawn}
            async with self.stage.db.write() as conn:
                if (await conn.execute(sa.update(n).where(n.c.name == name).values(**values))).rowcount == 0:
                    await conn.execute(sa.insert(n).values(name=name, **values))
        await self.stage.register(*(self.config(number) for number in range(len(NAMES))))
        for name in NAMES:
            if not (await self.stage.state(name)).is_enabled:
                await operations.enable(self.stage.db, name, self.stage.now, ACTOR)

    async def live(self) -> None:
        """Let something happen."""
        draw, stage = self.draw, self.stage
        for _ in range(draw.choice([0, 1, 2, 4])):
            payload = {"key": draw.choice(["a", "a", "a", "b", "c", "d"])} if draw.random() < 0.8 else {}
            later = stage.now + timedelta(seconds=draw.choice([-2, 0, 0, 0, 2]))
            more = {"is_forced": draw.random() < 0.1, "priority": draw.choice([None, None, 0, 1, 2, 3])}
            for _ in range(draw.choice([1, 1, 1, 12])):
                await stage.trigger(draw.choice(NAMES), payload=payload, due_at=later, **more)
        for run in [run for run in self.running if draw.random() < 0.7]:
            kind = draw.choice(ENDS)
            await stage.end(run, kind, **({"delay_seconds": 1.0} if kind is OutcomeKind.SNOOZED else {}))
            self.running.remove(run)
        if draw.random() < 0.25:
            await self.operate(draw.choice(NAMES))
        stage.after(draw.choice([0.0, 0.1, 0.5, 1.0, 2.0, 4.0]))

    async def operate(self, name: str) -> None:
        draw, stage = self.draw, self.stage
        now, db = stage.now, stage.db
        state = await stage.state(name)
        if not state.is_enabled:
            await operations.enable(db, name, now, ACTOR)
        elif state.paused_until is not None:
            await operations.resume(db, name, now, ACTOR)
        elif draw.random() < 0.5:
            await operations.disable(db, name, now, ACTOR, None)
        else:
            await operations.pause(db, name, now, ACTOR, now + timedelta(seconds=2), None)

    async def tick(self) -> list[Run]:
        """Tick as a node does."""
        stage, free = self.stage, SLOTS - len(self.running)
        seen = await look(stage.db, self.claimer, free, stage.now)
        started: list[Run] = []
        if seen.is_all_eligible and seen.eligible is not None:
            turned = await self.fast_path.turn("n1", stage.now, free, seen.eligible, [])
            stage.note(claims_of(turned, seen.eligible))
            started += turned.runs
            self.seen["turns"] += bool(turned.runs)
            if turned.runs and not turned.has_other:
                return started
        claimed = await claim_due(stage.db, self.claimer, free - len(started), lambda: stage.now)
        stage.note(claimed.claims)
        return started + [claim.run for claim in claimed.claims]

    async def explained(self) -> dict[str, dict[str, Any]]:
        """Explain all workers from one reading, as `explain` does each from its own, and one of them by `explain`."""
        stage = self.stage
        async with stage.db.read() as conn:
            due = await reading.read_due(conn, stage.db.dialect, stage.now, 100)
            _, (node,), facts = await explaining._read_all(conn, stage.db.dialect, stage.now, due.names | set(NAMES))
        said = {}
        for name, worker in facts.workers.items():
            judge = explaining.judge if node.has(worker) else lambda facts, _, name: explaining.nowhere(facts, name, "")
            said[name] = explaining.document(worker, judge(facts, node, name))
        name = self.draw.choice(NAMES)
        return said | {name: await explain(stage.db, name, stage.now)}

    async def judge(self) -> None:
        """Explain all workers, and some runs; then tick, and compare."""
        stage = self.stage
        said = await self.explained()
        waiting = await stage.column("SELECT id FROM {p}runs WHERE state = 'pending' ORDER BY id")
        asked = self.draw.sample(waiting, min(1, len(waiting)))
        reasons = {run_id: await why_waits(stage.db, run_id, stage.now) for run_id in asked}
        started = await self.tick()
        self.running += started
        names = Counter(run.worker for run in started)
        ids = {run.id for run in started}
        for name, each in said.items():
            assert each["starts"] == (name in names), f"{name}: {show(each)}; the tick starts {dict(names)}"
            self.seen.update([f"{gate['gate']} shut" for gate in each["gates"] if not gate["open"]])
            self.seen["starts"] += each["starts"]
            if each["starts"] and each["candidate"]["run_id"] is not None:
                assert each["candidate"]["run_id"] in ids, (name, each, ids)
        for run_id, reason in reasons.items():
            assert reason is None or run_id not in ids, (run_id, reason)


def show(answer: dict[str, Any]) -> str:
    shut = [f"{gate['gate']}: {gate['reason']}" for gate in answer["gates"] if not gate["open"]]
    return f"candidate {answer['candidate']}; shut: {shut}"


@pytest.mark.slow
async def test_explain_says_what_the_next_tick_does(stage: Stage):
    fast_path = open_fast_path(stage.db)
    assert fast_path is not None
    life = Life(stage, fast_path, SEED)
    await life.define()
    await stage.join("n1", NAMES[:-1], max_concurrent=SLOTS)
    for number in range(STATES):
        if number % 15 == 14:
            await life.define()
        await life.live()
        try:
            await life.judge()
        except (AssertionError, JobrunnerError) as error:
            error.add_note(f"state {number} of seed {SEED}")
            raise
    await fast_path.close()
    gates = {f"{gate} shut" for gate in Gate}
    assert gates | {"starts", "turns"} <= life.seen.keys()

"""Schedules by the fast path: it fires what the long way would, and nothing that the tables do not agree to."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import pytest

from jobrunner.model.facts import WorkerFacts
from jobrunner.model.run import OutcomeKind, Run
from jobrunner.model.worker import JobPriority, Misfire, WorkerConfig
from jobrunner.policy.firing import fire
from jobrunner.policy.gates import decide_starts
from jobrunner.policy.timetable import Timetable
from jobrunner.storage import nodes
from jobrunner.storage.runs import facts as reading
from jobrunner.storage.runs.claims import Claimed, claim_due
from jobrunner.storage.runs.finishes import Ended
from jobrunner.storage.runs.looks import Claimer
from jobrunner.storage.turns.fast_path import FastPath, open_fast_path
from jobrunner.storage.turns.turn import Turned, claims_of
from jobrunner.storage.workers import operations
from tests.support.checker import check
from tests.support.stage import ACTOR, T0, Stage, scheduled, triggered

NODE = "n1"


class Node:
    """One that fires the fast path what it can, and the rest the long way."""

    def __init__(self, stage: Stage, fast_path: FastPath, name: str = NODE) -> None:
        self.stage, self.fast_path, self.name = stage, fast_path, name
        self.timetable = Timetable()

    async def long_way(self, free: int = 10, handlers: set[str] | None = None) -> list[Run]:
        here = reading.Here(frozenset(handlers or self.stage._names))
        found = []
        while True:
            claimed = await claim_due(self.stage.db, Claimer(self.name, here), free, lambda: self.stage.now)
            if isinstance(claimed, Claimed):
                self.timetable.learn(claimed.planned)
            self.stage.note(claimed.claims)
            found += [claim.run for claim in claimed.claims]
            free -= len(claimed.claims)
            if not claimed.claims:
                return found

    async def fire(self, free: int = 10) -> Turned | None:
        eligible = self.timetable.due(self.stage.now, free, ())
        if eligible is None:
            return None
        turned = await self.fast_path.turn(self.name, self.stage.now, free, eligible, ())
        self.stage.note(claims_of(turned, eligible))
        fired = {run.worker for run in turned.runs}
        self.timetable.settle(eligible, fired, were_all_refused=turned.has_other)
        return turned

    async def end(self, *runs: Run) -> None:
        ended = [Ended(run, self.stage.outcome(), simple_under=self.stage.simple_under[run.claim_key]) for run in runs]
        turned = await self.fast_path.turn(self.name, self.stage.now, 0, None, ended)
        assert turned.written == {run.id for run in runs}


@pytest.fixture
async def node(stage: Stage) -> AsyncIterator[Node]:
    fast_path = open_fast_path(stage.db)
    assert fast_path is not None
    yield Node(stage, fast_path)
    await fast_path.close()


def any_schedule(name: str, draw: random.Random) -> WorkerConfig:
    when = {"interval_seconds": draw.choice([10, 20, 25, 70])} if draw.random() < 0.7 else {"cron": "* * * * *"}
    return scheduled(
        name,
        **when,
        misfire=draw.choice([*Misfire]),
        priority=draw.choice([*JobPriority]),
        max_running=draw.randint(1, 2),
        payload={"of": name},
    )


def is_only_missed(worker: WorkerFacts, now: datetime) -> bool:
    """Say whether a start of its schedule runs nothing, but is written down as missed (misfire skip)."""
    return worker.state.next_run_at is not None and fire(worker.config, worker.state, now).trigger is None


@pytest.mark.parametrize("seed", range(12))
async def test_it_fires_what_the_gates_would_start(stage: Stage, node: Node, seed: int):
    draw = random.Random(seed)
    names = [f"w{n}" for n in range(draw.randint(1, 6))]
    await stage.register(*(any_schedule(name, draw) for name in names), triggered("other"))
    await stage.join(NODE)
    running: list[Run] = await node.long_way()
    fired = 0
    for _ in range(30):
        stage.after(draw.choice([2.5, 5, 10, 10, 20]))
        ending = [run for run in running if draw.random() < 0.8]
        if ending:
            await node.end(*ending)
        running = [run for run in running if run not in ending]
        if draw.random() < 0.1:
            await stage.trigger(draw.choice([*names, "other"]))
        free = draw.randint(1, 6)
        here = reading.Here(frozenset(stage._names))
        async with stage.db.peek() as conn:
            due = await reading.read_due(conn, stage.db.dialect, stage.now, 100)
            facts, _ = await reading.read_around(conn, stage.db.dialect, stage.now, due.names, here, free)
        expected = decide_starts(facts)
        turned = await node.fire(free)
        started = [] if turned is None else [*turned.runs]
        fired += len(started)
        # What is left is for the long way: schedules whose earlier run still runs, runs that wait, what was missed.
        started += await node.long_way(free - len(started))
        if not any(is_only_missed(facts.workers[start.worker], stage.now) for start in expected):
            assert {(run.worker, run.slot) for run in started} == {(start.worker, start.slot) for start in expected}
        running += started
    assert fired > 0
    assert check(stage.url) == []


async def test_a_firing_leaves_the_same_rows_as_the_long_ways(stage: Stage, node: Node):
    await stage.register(
        *(scheduled(name, interval_seconds=10, payload={"k": 1}, priority=2) for name in ("long", "short"))
    )
    await stage.join(NODE)
    await node.end(*await node.long_way())
    stage.after(11)
    await node.long_way(handlers={"long"})
    node.timetable._planned.pop("long")
    turned = await node.fire()
    assert turned is not None
    (run,) = turned.runs
    assert (run.worker, run.scheduled_for, run.started_at) == ("short", T0 + timedelta(seconds=10), stage.now)
    own = {"id", "worker", "arrived", "revision"}
    for table in ("runs", "worker_state"):
        one, other = await stage.rows(f"SELECT * FROM {{p}}{table} ORDER BY worker")
        assert {k: v for k, v in one.items() if k not in own} == {k: v for k, v in other.items() if k not in own}
    await node.end(run)
    assert check(stage.url) == []


@pytest.mark.parametrize(
    ("change", "has_other"),
    [
        ("disable", True),
        ("pause", True),
        ("redefine", True),
        ("block", True),
        ("lost", True),
        ("other run due", True),
        ("other schedule due", True),
        ("moved by hand", False),
        ("own run waits", False),
        ("own run runs", False),
        ("fired elsewhere", False),
    ],
)
async def test_it_fires_nothing_when_something_has_changed(  # noqa: C901 - one case a change, each a line
    stage: Stage, node: Node, change: str, has_other: bool
):
    await stage.register(scheduled("a", interval_seconds=10, max_running=3), triggered("b"))
    seen = await stage.join(NODE)
    await node.end(*await node.long_way())
    db = stage.db
    if change == "disable":
        await operations.disable(db, "a", stage.now, ACTOR, None)
    elif change == "pause":
        await operations.pause(db, "a", stage.now, ACTOR, T0 + timedelta(hours=1), None)
    elif change == "redefine":
        await stage.register(scheduled("a", interval_seconds=10, max_running=2))
    elif change == "block":
        await stage.sql("INSERT INTO {p}worker_blocks (worker, blocks) VALUES ('a', 'b')")
    elif change == "lost":
        async with db.write() as conn:
            assert await nodes.declare_lost(conn, stage.db.dialect, seen, stage.now, "for the test")
    elif change == "other run due":
        await stage.trigger("b")
    elif change == "other schedule due":
        await stage.register(scheduled("c", interval_seconds=5))
    elif change == "own run runs":
        await stage.trigger("a")
        (run,) = await node.long_way()
        assert run.trigger == "manual"
    stage.after(10)
    if change == "moved by hand":
        later = "2026-03-02 12:00:09.500000"
        await stage.sql(f"UPDATE {{p}}worker_state SET next_run_at = '{later}' WHERE worker = 'a'")
    elif change == "own run waits":
        await stage.trigger("a", due_at=T0 + timedelta(hours=1))
    elif change == "fired elsewhere":
        await stage.join("n2")
        assert len(await stage.tick(node="n2")) == 1
    before = await stage.rows("SELECT * FROM {p}worker_state ORDER BY worker")
    turned = await node.fire()
    assert turned is not None
    assert (turned.runs, turned.has_other) == ((), has_other)
    assert await stage.rows("SELECT * FROM {p}worker_state ORDER BY worker") == before
    if has_other:
        turned = await node.fire()
        assert turned is not None
        assert turned.has_other
    assert node.timetable.due(stage.now, 10, ()) is None  # the long way has the next word
    assert check(stage.url) == []


async def test_what_was_missed_is_left_to_the_long_way(stage: Stage, node: Node):
    await stage.register(scheduled("a", interval_seconds=10))
    await stage.join(NODE)
    await node.end(*await node.long_way())
    stage.after(35)
    assert await node.fire() is None
    (run,) = await node.long_way()
    assert run.scheduled_for == T0 + timedelta(seconds=30)
    assert await stage.value("SELECT count(*) FROM {p}run_history WHERE outcome = 'missed'") == 1


async def test_with_too_few_slots_the_first_in_starting_order_are_fired(stage: Stage, node: Node):
    await stage.register(*(scheduled(f"w{n}", interval_seconds=10, priority=n % 3) for n in range(6)))
    await stage.join(NODE)
    await node.end(*await node.long_way())
    stage.after(11)
    turned = await node.fire(2)
    assert turned is not None
    assert [run.worker for run in sorted(turned.runs, key=lambda run: run.worker)] == ["w2", "w5"]
    turned = await node.fire(10)
    assert turned is not None
    assert {run.worker for run in turned.runs} == {"w0", "w1", "w3", "w4"}


async def test_a_failed_run_keeps_its_schedule_from_the_fast_path(stage: Stage, node: Node):
    await stage.register(scheduled("a", interval_seconds=10, max_retries=2, retry_delay_seconds=100))
    await stage.join(NODE)
    (run,) = await node.long_way()
    await stage.end(run, OutcomeKind.FAILED)
    stage.after(10)
    turned = await node.fire()
    assert turned is not None
    assert turned.runs == ()
    assert await stage.tick() == []  # its run has not ended: it waits to be tried again

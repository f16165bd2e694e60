"""What `explain --at` says of a moment is what `explain` said at that moment, in histories made at random."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from jobrunner.model.run import OutcomeKind, Run
from jobrunner.model.worker import Dependency, DependencyCondition, WorkerConfig
from jobrunner.storage import nodes
from jobrunner.storage.reading.explain import explain
from jobrunner.storage.reading.past import explain_at
from jobrunner.storage.runs import cancelling
from jobrunner.storage.runs.finishes import Ended, finish
from jobrunner.storage.tables import define as t
from jobrunner.storage.workers import operations
from tests.support.stage import ACTOR, T0, Stage, continuous, scheduled, triggered

NAMES = ("a", "b", "c", "d")
GROUPS = 20  # histories that share a node and a database, each with workers of its own
SLOTS = 14
STEPS, UNRECORDED = 8, 2
OUTCOMES = (*[OutcomeKind.SUCCEEDED] * 4, *[OutcomeKind.FAILED] * 3, OutcomeKind.SNOOZED, OutcomeKind.INTERRUPTED)


@dataclass
class Record:
    """What `explain` said when it was asked."""

    at: datetime
    worker: str
    document: dict[str, Any]


def definitions(draw: random.Random, group: int) -> list[WorkerConfig]:
    """Workers at random, with names of their own."""
    found: list[WorkerConfig] = []
    names = [f"{name}{group}" for name in NAMES]
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
        if draw.random() < 0.4:
            rules |= limits(draw)
        others = [each.name for each in found]
        if others and draw.random() < 0.5:
            condition, age = draw.choice(list(DependencyCondition)), draw.choice([None, None, 120])
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


def limits(draw: random.Random) -> dict[str, Any]:
    """Limits at random."""
    rules: dict[str, Any] = {"rate": draw.choice([None, None, "1/1m", "3/5m"]), "max_running": draw.choice([1, 3])}
    rules["smooth"] = rules["rate"] is not None and draw.random() < 0.3
    rules["limits"] = draw.choice([[], [], ["one"], ["two"], ["one", "two"]])
    if draw.random() < 0.5:
        rules |= {"limit_key": "customer", "payload": draw.choice([{}, {"customer": "a"}])}
        rules |= {"max_running_per_key": draw.choice([None, 1]), "rate_per_key": draw.choice([None, "1/1m", "2/5m"])}
        rules |= {"ordered": draw.random() < 0.3}
    return rules


class Life:
    """Twenty histories at once: a node, its runs and an operator, for some steps of random length."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self.draw = random.Random(seed)
        self.stage = stage
        self.workers = [config for group in range(GROUPS) for config in definitions(self.draw, group)]
        self.running: list[Run] = []
        self.records: list[Record] = []

    @property
    def name(self) -> str:
        return self.draw.choice(self.workers).name

    async def live(self) -> None:
        async with self.stage.db.write() as conn:
            await conn.execute(sa.insert(t.limits).values(name="one", max_running=2))
            await conn.execute(sa.insert(t.limits).values(name="two", rate="3/1m"))
        await self.stage.register(*self.workers)
        await self.stage.join("n1", max_concurrent=SLOTS)
        for step in range(STEPS):
            self.pass_time(self.draw.choice([0.5, 7, 30, 61, 200]))
            await self.end_some()
            for _ in range(GROUPS // 2):
                await self.something()
            await self.tick()
            if step < STEPS - UNRECORDED:
                await self.record()

    def pass_time(self, seconds: float) -> None:
        self.stage.after(seconds + self.draw.random())

    async def tick(self) -> None:
        """Start all that can be: what waits then, waits for a gate."""
        while len(self.running) < SLOTS and (started := await self.stage.tick(SLOTS - len(self.running))):
            self.running += started
            self.pass_time(0.01)

    async def end_some(self) -> None:
        ended = []
        for run in [run for run in self.running if self.draw.random() < 0.6]:
            self.running.remove(run)
            kind = self.draw.choice(OUTCOMES)
            more = {"delay_seconds": 25} if kind is OutcomeKind.SNOOZED else {}
            ended.append(Ended(run, self.stage.outcome(kind, **more)))
        if ended:
            await finish(self.stage.db, ended, lambda: 0.0)
        self.pass_time(0.01)

    async def something(self) -> None:
        db, now, draw = self.stage.db, self.stage.now, self.draw
        match draw.choice(["disable", "enable", "pause", "resume", "cancel", "set", *["trigger"] * 5]):
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
                    await cancelling.cancel(db, run_id, now, ACTOR)
            case _:
                payload = draw.choice([{}, {"customer": "a"}, {"customer": "b"}])
                await self.stage.trigger(self.name, payload=payload, is_forced=draw.random() < 0.15)
        self.pass_time(0.01)

    async def record(self) -> None:
        self.pass_time(0.01)
        for name in [self.name for _ in range(5)]:
            self.records.append(Record(self.stage.now, name, await explain(self.stage.db, name, self.stage.now)))


def judged(document: dict[str, Any]) -> tuple[str | None, set[str]]:
    """The gate that matters, and all that are shut."""
    shut = [gate for gate in document["gates"] if not gate["open"]]
    matters = next((gate["gate"] for gate in shut if gate["reason"] == document["why"]), None)
    return matters, {gate["gate"] for gate in shut}


def differs_by_others(then: dict[str, Any], now: dict[str, Any]) -> bool:
    """Say whether what cannot be known makes the difference: who else waited for a slot, when all were taken or not.

    If they were, the order between counterparts is judged as far as the first run that needs a slot, and no further.
    """
    gates = [{gate["gate"]: gate for gate in document["gates"]} for document in (then, now)]
    was, found = gates
    takes_slot = was["slot"]["reason"].startswith("others that are due go first")
    if takes_slot and judged(then)[1] - judged(now)[1] == {"slot"}:
        return True
    goes_first = [each["blocks"]["reason"].startswith("lets ") for each in gates]
    is_full = not was["slot"]["open"] and not found["slot"]["open"]
    return is_full and goes_first[0] != goes_first[1] and judged(then)[1] ^ judged(now)[1] == {"blocks"}


async def live_and_compare(url: str, seed: int) -> None:
    """Live, then ask again for each moment at which `explain` was asked."""
    stage = Stage(url, sqlite_synchronous="NORMAL")
    try:
        life = Life(stage, seed)
        await life.live()
        seen: Counter[str | None] = Counter()
        for record in life.records:
            found = await explain_at(stage.db, record.worker, record.at, stage.now)
            then, now = judged(record.document), judged(found)
            if differs_by_others(record.document, found):
                continue
            assert now == then, f"life {seed}, {record.worker} at {record.at}: {record.document}, but {found}"
            seen[then[0]] += 1
    finally:
        await stage.db.close()
    assert len(seen) >= 3, f"a life in which too little happened: {seen}"


@pytest.mark.parametrize("seed", range(25))
async def test_what_is_said_of_a_moment_is_what_was_said_then(sqlite_url: str, seed: int):
    await live_and_compare(sqlite_url, seed)


@pytest.mark.parametrize("seed", range(100, 102))
async def test_it_is_the_same_on_postgresql(postgres_url: str, seed: int):
    await live_and_compare(postgres_url, seed)


async def reasons(stage: Stage, worker: str, at: datetime) -> dict[str, str]:
    """What each gate said, and under `assumed` what is not known."""
    found = await explain_at(stage.db, worker, at, stage.now)
    shown = {gate["gate"]: ("" if gate["open"] else "shut: ") + gate["reason"] for gate in found["gates"]}
    return {**shown, "assumed": "; ".join(found["assumed"]), "node": str(found["node_id"])}


async def test_a_node_that_is_gone_had_the_code_of_what_it_ran(stage: Stage):
    await stage.register(triggered("ran"), triggered("never"))
    await stage.join("old", max_concurrent=1)
    await stage.trigger("ran")
    run = await stage.start_one(node="old")
    during = stage.after(5)
    stage.after(5)
    await stage.end(run)
    between = stage.after(5)
    async with stage.db.write() as conn:
        await nodes.set_state(conn, "old", "stopped", stage.after(5))
    without = stage.after(5)
    stage.after(5)
    await stage.join("new")
    stage.after(5)
    assert (await reasons(stage, "ran", during))["slot"] == "shut: all slots of the node are taken"
    assert (await reasons(stage, "ran", between))["handler"] == "a live node has the handler"
    found = await reasons(stage, "never", between)
    assert found["handler"] == "taken to be so: whether a node that lived then had the handler is not known"
    assert found["assumed"] == "a node that lived then had the handler; the nodes of then are gone"
    assert (await reasons(stage, "ran", without))["handler"] == "shut: no node lived then"
    assert (await reasons(stage, "ran", stage.now))["node"] == "new"


async def test_a_node_whose_row_is_pruned_is_known_by_its_attempts(stage: Stage):
    await stage.register(triggered("a"), triggered("b"))
    await stage.join("old")
    await stage.trigger("a")
    await stage.run_once()
    between = stage.after(60)
    stage.after(60)
    await stage.trigger("a")
    await stage.run_once()
    await stage.sql("DELETE FROM {p}node_handlers")
    await stage.sql("DELETE FROM {p}nodes")
    later = stage.after(60)
    stage.after(2 * 86400)
    found = await reasons(stage, "a", between)
    assert (found["handler"], found["node"], found["assumed"]) == ("a live node has the handler", "n1", "")
    assert found["slot"] == "taken to be so: how many slots the node had is not known any more"
    found = await reasons(stage, "b", later)
    assert found["handler"] == "taken to be so: whether a node that lived then had the handler is not known"
    assert found["assumed"].endswith("a node lived then; a node that has left is known for a day")


async def test_what_was_set_since_is_taken_back_and_said(stage: Stage):
    await stage.register(scheduled("a", cron="0 * * * *", max_running=1))
    await stage.join("n1")
    await stage.trigger("a")
    await stage.start_one()
    before = stage.after(60)
    stage.after(60)
    await operations.set_values(stage.db, "a", {"max_running": 7, "interval_seconds": 10}, stage.now, ACTOR)
    stage.after(60)
    found = await reasons(stage, "a", before)
    assert found["max_running"].startswith("shut: 1 of 1 running: run 1 on node n1, since ")
    assert found["due"].startswith("shut: not due until 2026-03-02 13:00:00 UTC")
    assert "is taken to have been as now, but for what was set since" in found["assumed"]


async def test_what_limits_held_then_is_said_and_what_of_them_is_not_known(stage: Stage):
    async with stage.db.write() as conn:
        await conn.execute(sa.insert(t.limits).values(name="stripe", max_running=1, updated_at=T0))
        await conn.execute(sa.insert(t.limits).values(name="all", rate="3/1m", updated_at=T0))
    await stage.register(
        triggered("charge", limits=["stripe"]),
        triggered("refund", limits=["stripe", "all"]),
        triggered("mail", max_running=9, limit_key="customer", max_running_per_key=1, rate="2/1m", limits=["all"]),
        triggered("next", max_running=9, limit_key="customer", ordered=True, rate_per_key="1/1m"),
    )
    await stage.join("n1", max_concurrent=20)
    for name, key in (("charge", "a"), ("refund", "a"), *[("mail", "a")] * 2, ("next", "b"), ("next", "b")):
        await stage.trigger(name, payload={"customer": key})
    runs = {run.id: run for run in await stage.tick(20)}
    first = stage.after(5)
    stage.after(1)
    await stage.end(runs[3])
    assert [run.id for run in await stage.tick(20)] == [4]
    await stage.end(runs[5])
    second = stage.after(5)
    await stage.trigger("mail", payload={"customer": "c"})
    third = stage.after(5)
    stage.after(600)
    stripe = sa.update(t.limits).where(t.limits.c.name == "stripe")
    async with stage.db.write() as conn:
        await conn.execute(stripe.values(max_running=7, updated_at=T0 + timedelta(minutes=5)))
    await operations.set_values(stage.db, "mail", {"rate": "9/1m"}, stage.now, ACTOR)
    found = await reasons(stage, "refund", first)
    assert found["limits"] == "limit stripe: 1 of 7"
    assert "limit stripe was changed at 2026-03-02 12:05:00 UTC, and is taken to have been as now" in found["assumed"]
    assert (await reasons(stage, "mail", first))["key"] == "shut: key customer=a: run 3 is active"
    assert (await reasons(stage, "next", first))["key"] == "shut: key customer=b: run 5 is active"
    assert (await reasons(stage, "next", second))["rate"] == "shut: rate 1/1m of key customer=b: opens 12:01:00 UTC"
    found = await reasons(stage, "mail", third)
    assert found["key"] == "key customer=c: 0 of 1 running"
    assert found["rate"] == "shut: rate 2/1m: opens 12:01:00 UTC"
    async with stage.db.write() as conn:
        await conn.execute(stripe.values(max_running=1))
    found = await reasons(stage, "refund", third)
    assert found["limits"] == "shut: limit stripe: 1 of 1, held by run 1"
    assert found["rate"] == "limit all, rate 3/1m: 2 of 3 started"


async def test_a_run_that_was_triggered_for_later_is_known_by_the_ids_of_others(stage: Stage):
    await stage.register(triggered("a"), triggered("b"))
    await stage.join("n1")
    before = stage.after(1)
    planned = await stage.trigger("a", due_at=stage.after(1) + timedelta(minutes=5))
    await stage.trigger("b")
    stage.after(1)
    await stage.run_once()
    after = stage.after(1)
    stage.after(600)
    await stage.run_once()
    assert (await explain_at(stage.db, "a", before, stage.now))["candidate"] is None
    assert (await explain_at(stage.db, "a", after, stage.now))["candidate"]["run_id"] == planned


async def test_reading_a_past_moment_is_bounded(stage: Stage):
    await stage.register(*(triggered(f"w{n:03}", blocks=[f"w{n - 1:03}"] if n else []) for n in range(80)))
    await stage.join("n1")
    at = stage.after(1)
    stage.after(1)
    found = await explain_at(stage.db, "w000", at, stage.now)
    assert found["assumed"] == ["of what w000 is related to, the nearest 50 workers were judged"]

"""The fast path through a tick decides what the long way would, and leaves to it what is not eligible."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from jobrunner.model.run import OutcomeKind, Run
from jobrunner.model.worker import JobPriority
from jobrunner.policy.fast_path import Eligible, find_eligible
from jobrunner.policy.gates import decide_starts
from jobrunner.storage import nodes
from jobrunner.storage.runs import facts as reading
from jobrunner.storage.runs.finishes import Ended
from jobrunner.storage.runs.live import read_claims
from jobrunner.storage.runs.looks import Claimer, look
from jobrunner.storage.schema.migrate import upgrade
from jobrunner.storage.turns.fast_path import FastPath, open_fast_path
from jobrunner.storage.turns.postgres import PostgresFastPath
from jobrunner.storage.turns.turn import LOOK_AGAIN_SECONDS, Turned, claims_of, is_simple
from jobrunner.storage.workers import operations
from tests.support.checker import check
from tests.support.stage import ACTOR, T0, Stage, continuous, scheduled, triggered

NODE = "n1"


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


@pytest.fixture
async def fast_path(stage: Stage) -> AsyncIterator[FastPath]:
    fast_path = open_fast_path(stage.db)
    assert fast_path is not None
    yield fast_path
    await fast_path.close()


async def facts_of(stage: Stage, slots: int) -> Any:
    here = reading.Here(frozenset(stage._names))
    async with stage.db.peek() as conn:
        names = (await reading.read_due(conn, stage.db.dialect, stage.now, 100)).names
        facts, _ = await reading.read_around(conn, stage.db.dialect, stage.now, names, here, slots)
    return facts


async def eligible_of(stage: Stage) -> Eligible:
    eligible = find_eligible(await facts_of(stage, 50), set())
    assert eligible is not None
    return eligible


def ended(stage: Stage, run: Run, **more: Any) -> Ended:
    return Ended(run, stage.outcome(**more), simple_under=stage.simple_under.get(run.claim_key))


async def turn(stage: Stage, fast_path: FastPath, eligible: Eligible | None, free: int = 10, ends: Any = ()) -> Turned:
    turned = await fast_path.turn(NODE, stage.now, free, eligible, list(ends))
    if eligible is not None:
        stage.note(claims_of(turned, eligible))
    return turned


def limits(draw: random.Random) -> dict[str, Any]:
    """Limits that a turn judges for itself, or none."""
    key = {"limit_key": "key", "max_running_per_key": draw.randint(1, 3)}
    rate = {"rate": f"{draw.randint(1, 9)}/{draw.choice(['1s', '3s'])}", "smooth": draw.random() < 0.2}
    return draw.choice([{}, key, rate, key | rate])


@pytest.mark.parametrize("seed", range(24))
async def test_it_starts_what_the_gates_would_start(stage: Stage, fast_path: FastPath, seed: int):
    draw = random.Random(seed)
    names = [f"w{n}" for n in range(draw.randint(1, 4))]
    await stage.register(*(triggered(name, max_running=draw.randint(1, 6), **limits(draw)) for name in names))
    await stage.join(NODE)
    for _ in range(draw.randint(1, 40)):
        priority = draw.choice([None, *JobPriority])
        due_at = stage.now + seconds(draw.randint(-20, 4))
        payload = {"n": draw.random(), "key": draw.choice([None, "a", "b", "c"])}
        await stage.trigger(draw.choice(names), priority=priority, due_at=due_at, payload=payload)
    running: list[Run] = []
    while True:
        stage.after(draw.choice([0.01, 0.02, 1]))
        ending = [run for run in running if draw.random() < 0.6]
        free = draw.randint(0, 8)
        first = await turn(stage, fast_path, None, 0, (ended(stage, run, result={"n": 1}) for run in ending))
        assert first.written == {run.id for run in ending}
        running = [run for run in running if run not in ending]
        facts = await facts_of(stage, free)
        expected = [] if free == 0 else decide_starts(facts)
        eligible = find_eligible(facts, set())
        if eligible is None or not eligible.configs:
            if not running:
                break
            continue
        turned = await turn(stage, fast_path, eligible, free)
        started = {(run.worker, run.id, run.slot) for run in turned.runs}
        wanted = {(start.worker, start.run_id, start.slot) for start in expected}
        if turned.has_other:  # the keys of all runs that a turn reads are full: it leaves what is behind them
            assert any(config.max_running_per_key for config in eligible.configs.values())
            assert started <= wanted
        else:
            assert started == wanted
        running += turned.runs
    assert check(stage.url) == []


async def test_a_forced_run_passes_a_rate_that_a_turn_judges_by(stage: Stage, fast_path: FastPath):
    await stage.register(triggered("rated", max_running=9, rate="1/1m"), triggered("free", max_running=9))
    await stage.join(NODE)
    for name in ("rated", "rated", "free"):
        await stage.trigger(name)
    eligible = await eligible_of(stage)
    assert [run.worker for run in (await turn(stage, fast_path, eligible)).runs] == ["rated", "free"]
    for name in ("free", "rated"):
        await stage.trigger(name, is_forced=name == "rated")
    turned = await turn(stage, fast_path, eligible)
    assert (turned.has_other, turned.runs) == (True, ())
    assert set((await eligible_of(stage)).configs) == {"free"}
    assert await stage.started() == ["free", "rated"]


async def test_what_is_put_before_the_head_of_a_queue_starts_a_moment_later_at_most(stage: Stage, fast_path: FastPath):
    await stage.register(triggered("a", max_running=9))
    await stage.join(NODE)
    for _ in range(4):
        await stage.trigger("a")
    eligible = await eligible_of(stage)
    (first,) = (await turn(stage, fast_path, eligible, free=1)).runs
    late = await stage.trigger("a", due_at=stage.now - seconds(60))
    urgent = await stage.trigger("a", due_at=stage.now - seconds(60), priority=JobPriority.HIGH)
    stage.after(LOOK_AGAIN_SECONDS / 2)
    second = {run.id for run in (await turn(stage, fast_path, eligible, free=2)).runs}
    assert second in ({urgent, first.id + 1}, {urgent, late})  # SQLite has no need to remember where it was
    stage.after(LOOK_AGAIN_SECONDS)
    third = {run.id for run in (await turn(stage, fast_path, eligible, free=1)).runs}
    assert late in second | third


async def test_a_claim_is_the_same_as_the_long_ways(stage: Stage, fast_path: FastPath):
    await stage.register(triggered("a", max_running=5, payload={"k": 1}))
    await stage.join(NODE)
    await stage.trigger("a", key="x", payload={"to": "ann"})
    stage.after(3)
    (run,) = (await turn(stage, fast_path, await eligible_of(stage))).runs
    async with stage.db.peek() as conn:
        assert await read_claims(conn, NODE) == [run]
    assert (run.fence, run.slot, run.started_at, run.first_started_at) == (1, 0, stage.now, stage.now)
    state = await stage.state("a")
    assert (state.last_fence, state.last_run_at) == (1, stage.now)


async def test_an_end_is_the_same_as_the_long_ways(stage: Stage, fast_path: FastPath):
    await stage.register(triggered("short", max_running=2), triggered("long", max_running=2))
    await stage.join(NODE)
    for name in ("short", "long"):
        await stage.trigger(name, payload={"to": name})
    by_name = {run.worker: run for run in await stage.tick()}
    stage.after(2)
    more: dict[str, Any] = {"result": {"rows": [1, "ä"]}, "output": "said", "reason": "a remark"}
    await stage.end(by_name["long"], **more)
    turned = await turn(stage, fast_path, None, 0, [ended(stage, by_name["short"], **more)])
    assert turned.written == {by_name["short"].id}
    rows = await stage.rows("SELECT * FROM {p}run_history ORDER BY worker")
    differ = {"id", "run_id", "worker", "payload"}
    assert {k: v for k, v in rows[0].items() if k not in differ} == {
        k: v for k, v in rows[1].items() if k not in differ
    }
    long, short = await stage.state("long"), await stage.state("short")
    assert replace(short, worker="long") == long
    assert short.last_ended_at == stage.now


async def test_a_failure_is_not_simple(stage: Stage):
    await stage.register(triggered("a"))
    await stage.trigger("a")
    run = await stage.start_one()
    assert is_simple(ended(stage, run))
    assert not is_simple(Ended(run, stage.outcome(OutcomeKind.FAILED)))


async def test_an_end_that_is_no_longer_ours_writes_nothing(stage: Stage, fast_path: FastPath):
    await stage.register(triggered("a", max_running=2))
    await stage.join(NODE)
    await stage.trigger("a")
    await stage.trigger("a")
    gone, ours = await stage.tick()
    await stage.end(gone, OutcomeKind.INTERRUPTED)
    await stage.tick()  # the same run again, under another fence
    for _ in range(2):
        turned = await turn(stage, fast_path, None, 0, [ended(stage, gone), ended(stage, ours)])
        assert gone.id not in turned.written
    assert await stage.value(f"SELECT count(*) FROM {{p}}run_history WHERE run_id = {gone.id}") == 1
    assert check(stage.url) == []


async def test_the_end_of_a_probe_and_of_a_loop_is_left_to_the_long_way(stage: Stage, fast_path: FastPath):
    await stage.register(
        triggered("a", max_consecutive_failures=1, max_retries=0, cooldown_seconds=5), continuous("loop")
    )
    await stage.join(NODE)
    await stage.trigger("a")
    await stage.trigger("loop")
    runs = await stage.tick()
    await stage.fail(next(run for run in runs if run.worker == "a"))
    stage.after(6)
    await stage.trigger("a")
    runs = [run for run in [*runs, *await stage.tick()] if run.worker == "loop" or run.attempt == 1]
    probe = max((run for run in runs if run.worker == "a"), key=lambda run: run.id)
    loops = [run for run in runs if run.worker == "loop"]
    turned = await turn(stage, fast_path, None, 0, [ended(stage, run) for run in (probe, *loops)])
    assert turned.written == frozenset()
    assert (await stage.state("a")).circuit_state == "half_open"


@pytest.mark.parametrize(
    "change",
    ["disable", "pause", "redefine", "by hand", "block", "dependency", "other due", "schedule due", "lost"],
)
async def test_what_changed_since_the_look_sends_it_the_long_way(stage: Stage, fast_path: FastPath, change: str):
    await stage.register(triggered("a", max_running=5), triggered("b"), scheduled("s", interval_seconds=60))
    await stage.join(NODE)
    for run in await stage.tick():
        await stage.end(run)
    await stage.trigger("a")
    seen = await stage.join("n2")
    eligible = await eligible_of(stage)
    assert set(eligible.configs) == {"a"}
    db = stage.db
    if change == "disable":
        await operations.disable(db, "a", stage.now, ACTOR, None)
    elif change == "pause":
        await operations.pause(db, "a", stage.now, ACTOR, T0 + seconds(3600), None)
    elif change == "redefine":
        await stage.register(triggered("a", max_running=1))
    elif change == "by hand":
        await stage.sql("UPDATE {p}workers SET max_running = 1 WHERE name = 'a'")
    elif change == "block":
        await stage.register(triggered("b", blocks=("a",)))
    elif change == "dependency":
        await stage.sql("INSERT INTO {p}worker_dependencies (worker, depends_on) VALUES ('a', 'b')")
    elif change == "other due":
        await stage.trigger("b")
    elif change == "schedule due":
        stage.after(61)
    else:
        async with db.write() as conn:
            assert await nodes.declare_lost(conn, stage.db.dialect, replace(seen, id=NODE), stage.now, "for the test")
    turned = await turn(stage, fast_path, eligible)
    assert turned.has_other
    assert turned.runs == ()


async def test_what_is_stuck_keeps_nobody_on_the_long_way(stage: Stage, fast_path: FastPath):
    await stage.register(triggered("a", max_running=5), triggered("off"))
    await stage.join(NODE)
    await operations.disable(stage.db, "off", stage.now, ACTOR, None)
    await stage.trigger("off")
    await stage.trigger("a")
    eligible = await eligible_of(stage)
    assert (set(eligible.configs), eligible.stuck) == ({"a"}, ("off",))
    assert [run.worker for run in (await turn(stage, fast_path, eligible)).runs] == ["a"]


async def test_a_look_says_when_all_that_may_start_is_eligible(stage: Stage, fast_path: FastPath):
    await stage.register(triggered("a", max_running=3))
    await stage.join(NODE)
    for _ in range(4):
        await stage.trigger("a")
    claimer = Claimer(NODE, reading.Here(frozenset({"a"})))
    seen = await look(stage.db, claimer, 10, stage.now)
    assert seen.is_all_eligible
    assert [run.slot for run in (await turn(stage, fast_path, seen.eligible)).runs] == [0, 1, 2]


async def test_no_run_starts_before_the_last_end_whatever_the_clocks_say(stage: Stage, fast_path: FastPath):
    await stage.register(triggered("a"))
    await stage.join(NODE)
    await stage.trigger("a")
    await stage.trigger("a")
    run = await stage.start_one()
    now: datetime = stage.after(10)
    await stage.end(run)
    stage.after(-7)  # another node, whose clock is behind
    (second,) = (await turn(stage, fast_path, await eligible_of(stage))).runs
    assert second.started_at == now
    assert check(stage.url) == []


async def test_a_worker_that_was_removed_and_is_there_again_is_another(stage: Stage, fast_path: FastPath):
    await stage.register(triggered("a", max_running=5), triggered("b"))
    await stage.join(NODE, ["b"])
    await stage.trigger("a")
    here = reading.Here(frozenset({"a"}))
    known = (await look(stage.db, Claimer(NODE, here), 5, stage.now)).eligible
    assert known is not None
    assert set(known.configs) == {"a"}
    for run in await stage.tick(handlers=["a"]):
        await stage.end(run)
    await operations.remove(stage.db, "a", stage.now, ACTOR)
    await stage.register(triggered("a", max_running=5, depends_on=["b"]))
    await stage.trigger("a")
    turned = await turn(stage, fast_path, known)
    assert (turned.has_other, turned.runs) == (True, ())


async def test_an_end_under_an_older_revision_goes_the_long_way_also_beside_a_newer_one(
    stage: Stage, fast_path: FastPath
):
    await stage.register(triggered("a", max_running=5))
    await stage.join(NODE)
    await stage.trigger("a")
    (old,) = await stage.tick()
    await stage.register(triggered("a", max_running=6))
    await stage.trigger("a")
    (new,) = await stage.tick()
    turned = await turn(stage, fast_path, None, 0, [ended(stage, old), ended(stage, new)])
    assert turned.written == {new.id}


async def test_a_function_that_somebody_took_away_is_made_again(postgres_url: str):
    stage = Stage(postgres_url)
    await upgrade(stage.db)
    fast_path = PostgresFastPath(stage.db)
    await stage.register(triggered("a", max_running=5))
    await stage.join(NODE)
    await stage.trigger("a")
    await stage.trigger("a")
    eligible = await eligible_of(stage)
    assert len((await turn(stage, fast_path, eligible, free=1)).runs) == 1
    await fast_path._connection.execute("DISCARD TEMP")
    assert len((await turn(stage, fast_path, eligible, free=1)).runs) == 1
    await fast_path.close()
    await stage.db.close()

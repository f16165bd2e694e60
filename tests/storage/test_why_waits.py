"""Why a run waits, as `jobrunner trigger` notes it: never anything but what `explain` says, never a word too much."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import pytest

from jobrunner.model.run import OutcomeKind
from jobrunner.storage import operations
from jobrunner.storage.explain import explain, why_waits
from tests.support.stage import ACTOR, T0, Stage, triggered

NAMES = ("a", "b", "c")


async def first_shut(stage: Stage, worker: str) -> tuple[int | None, str | None]:
    """The run that `explain` shows, and what its first shut gate says."""
    found = await explain(stage.db, worker, stage.now)
    shut = next((gate["reason"] for gate in found["gates"] if not gate["open"]), None)
    return (found["candidate"] or {}).get("run_id"), shut


async def test_a_probe_that_may_start_is_not_said_to_wait(stage: Stage):
    await stage.register(triggered("a", max_retries=0, max_consecutive_failures=1, cooldown_seconds=60))
    await stage.join("n1")
    await stage.trigger("a")
    await stage.fail(await stage.start_one())
    run_id = await stage.trigger("a")
    said = await why_waits(stage.db, run_id, stage.now)
    assert said is not None
    assert "disabled by its circuit: 1 run in a row failed" in said
    assert "a probe may start at 2026-03-02 12:01:00 UTC" in said
    stage.after(60)
    assert await why_waits(stage.db, run_id, stage.now) is None
    assert (await stage.start_one()).id == run_id


async def test_a_run_for_later_is_judged_at_its_time(stage: Stage):
    await stage.register(triggered("a"))
    await stage.join("n1")
    await operations.pause(stage.db, "a", stage.now, ACTOR, T0 + timedelta(hours=1), "moving house")
    before = await stage.trigger("a", due_at=T0 + timedelta(minutes=59))
    after = await stage.trigger("a", due_at=T0 + timedelta(hours=1))
    assert await why_waits(stage.db, before, stage.now) == "paused until 2026-03-02 13:00:00 UTC: moving house"
    assert await why_waits(stage.db, after, stage.now) is None


async def test_a_run_that_has_started_or_ended_waits_for_nothing(stage: Stage):
    await stage.register(triggered("a"))
    await stage.join("n1")
    run_id = await stage.trigger("a")
    run = await stage.start_one()
    assert await why_waits(stage.db, run_id, stage.now) is None
    await stage.end(run)
    assert await why_waits(stage.db, run_id, stage.now) is None


async def stir(stage: Stage, chance: random.Random) -> None:
    """Change something, as operators, triggers and nodes do."""
    name = chance.choice(NAMES)
    match chance.randrange(8):
        case 0:
            await operations.disable(stage.db, name, stage.now, ACTOR, "Sunday")
        case 1:
            await operations.enable(stage.db, name, stage.now, ACTOR)
        case 2:
            until = stage.now + timedelta(seconds=chance.choice([5, 60]))
            await operations.pause(stage.db, name, stage.now, ACTOR, until, chance.choice([None, "moving house"]))
        case 3:
            await operations.resume(stage.db, name, stage.now, ACTOR)
        case 4 | 5:
            more: dict[str, Any] = {"priority": chance.randrange(4), "is_forced": chance.random() < 0.2}
            await stage.trigger(name, **more)
        case _:
            kinds = [OutcomeKind.SUCCEEDED, OutcomeKind.FAILED, None]
            for run in await stage.tick(slots=3):
                kind = chance.choice(kinds)
                if kind is not None:
                    await stage.end(run, kind)
    stage.after(chance.choice([0, 1, 30]))


@pytest.mark.parametrize("seed", range(6))
async def test_in_any_state_it_says_what_the_first_shut_gate_says(stage: Stage, seed: int):
    chance = random.Random(seed)
    circuit: dict[str, Any] = {"max_retries": 0, "max_consecutive_failures": 2, "cooldown_seconds": 20}
    await stage.register(
        triggered("a", **circuit),
        triggered("b", **circuit, depends_on=["a"], max_running=2),
        triggered("c", **circuit, blocks=["a"]),
    )
    if chance.random() < 0.8:
        await stage.join("n1", chance.choice([NAMES, ("a", "b")]), max_concurrent=4)
    compared = 0
    for _ in range(40):
        await stir(stage, chance)
        for name in NAMES:
            run_id, shut = await first_shut(stage, name)
            if run_id is not None:
                found = await why_waits(stage.db, run_id, stage.now)
                assert found == shut
                compared += 1
    assert compared >= 10

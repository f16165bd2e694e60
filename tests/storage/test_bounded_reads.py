"""What is read for a screen reads no more than the screen shows, and is what reading all would have given."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest

from jobrunner.storage.reading import status
from jobrunner.storage.reading.soon import read_few
from jobrunner.storage.workers import operations
from tests.support.stage import ACTOR, Stage, scheduled, triggered


@pytest.mark.parametrize("seed", range(6))
async def test_the_first_firings_are_those_of_all_workers(stage: Stage, seed: int):
    draw = random.Random(seed)
    names = [f"w{n}" for n in range(12)]
    intervals = {name: draw.choice([1, 2, 5, 60]) for name in names}
    await stage.register(*(scheduled(name, interval_seconds=each) for name, each in intervals.items()))
    await stage.join("n1")
    for _ in range(3):
        await stage.run_once(slots=12)
        stage.after(draw.choice([0, 1, 7]))
    for name in draw.sample(names, 3):
        until = stage.now + timedelta(seconds=draw.choice([30, 1e6]))
        await operations.pause(stage.db, name, stage.now, ACTOR, until, None)
    await stage.sql("UPDATE {p}worker_state SET next_run_at = NULL WHERE worker IN ('w3', 'w7')")
    until = stage.now + timedelta(seconds=90)
    async with stage.db.read() as conn:
        everything = list(await status.read_firings(conn, stage.now, until))
        for limit in (1, 3, 8, 13, 50):
            found, is_cut = await status.read_upcoming(conn, stage.now, until, limit)
            assert found == everything[:limit]
            assert is_cut == (len(everything) > limit)
        assert (await read_few(conn, stage.now, until, 4)).is_cut


async def test_those_that_fail_or_are_switched_off_come_first(stage: Stage):
    await stage.register(*(triggered(name, max_retries=0, max_consecutive_failures=1) for name in "abcdefg"))
    await stage.join("n1")
    await stage.trigger("f")
    (run,) = await stage.tick()
    await stage.fail(run)
    await operations.pause(stage.db, "e", stage.now, ACTOR, stage.now + timedelta(seconds=60), None)
    await operations.disable(stage.db, "d", stage.now, ACTOR, None)
    await stage.sql("UPDATE {p}worker_state SET consecutive_failures = 2 WHERE worker = 'g'")
    await stage.trigger("a")
    async with stage.db.read() as conn:
        assert await status.read_worst(conn, stage.now, 5) == ["f", "g", "d", "e", "a"]
        assert await status.read_totals(conn) == status.Totals(workers=7, running=0, waiting=1)

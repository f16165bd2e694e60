"""`db verify` of limits, on both databases: silent on what they allow, loud where one was passed."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from jobrunner.storage.reading.findings import Scope
from jobrunner.storage.reading.verify import verify
from jobrunner.storage.tables import define as t
from jobrunner.storage.workers.clock_steps import ClockStep, note_steps
from tests.support.planted import broken, only, plant
from tests.support.stage import T0, Stage, triggered

KEYED = {"max_running": 9, "limit_key": "customer"}


@pytest.fixture
async def workers(stage: Stage) -> Stage:
    """Two of a key at a time, one in order, three rates, and two workers that share a limit; the clock an hour on."""
    async with stage.db.write() as conn:
        await conn.execute(sa.insert(t.limits).values(name="stripe", max_running=2, rate="3/1m", updated_at=T0))
    await stage.register(
        triggered("keys", max_running_per_key=2, **KEYED),
        triggered("order", ordered=True, **KEYED),
        triggered("rate", max_running=9, rate="2/1m"),
        triggered("even", max_running=9, rate="6/1m", smooth=True),
        triggered("each", rate_per_key="2/1m", **KEYED),
        triggered("charge", max_running=9, limits=["stripe"]),
        triggered("refund", max_running=9, limits=["stripe"]),
    )
    await stage.join("n1")
    stage.after(3600)
    return stage


async def test_more_of_a_key_at_once_than_may_be(workers: Stage):
    for run_id, (start, end, key) in enumerate([(0, 10, "a"), (5, 15, "a"), (10, 20, "a"), (6, 9, "b")], 1):
        await plant(workers, run_id, "keys", start, end, limit_key=key)
    await plant(workers, 5, "keys", 11, 12)  # it has no key
    assert await broken(workers) == []
    await plant(workers, 6, "keys", 12, 13, limit_key="a")
    violation = await only(workers, 3, "keys, key customer=a: 3 runs at once", "the most is 2")
    assert set(violation.rows) == {f"run_history.run_id={run_id}" for run_id in (2, 3, 6)}


async def test_two_of_a_key_at_once_of_a_worker_that_is_ordered(workers: Stage):
    await plant(workers, 1, "order", 0, 10, limit_key="a")
    await plant(workers, 2, "order", 10, 20, limit_key="a")
    assert await broken(workers) == []
    await plant(workers, 3, "order", 19, 21, limit_key="a", is_forced=True)
    await only(workers, 3, "order, key customer=a: 2 runs at once", "the most is 1")
    assert await broken(workers, tolerance=2) == []


async def test_what_runs_now_holds_its_key(workers: Stage):
    await workers.trigger("order", payload={"customer": "b"})
    run = await workers.start_one()
    await plant(workers, 1000, "order", 3590, 3600, limit_key="b")
    assert await broken(workers) == []
    await plant(workers, 1001, "order", 3600, 3601, limit_key="b")
    violation = await only(workers, 3, "order, key customer=b: 2 runs at once")
    assert f"run_history.run_id={run.id}" in violation.rows


async def test_more_starts_in_a_window_than_the_rate_allows(workers: Stage):
    for run_id, start in enumerate((0, 30, 60, 90), 1):
        await plant(workers, run_id, "rate", start, start + 1, is_rated=True)
    await plant(workers, 5, "rate", 95, 96, is_rated=True, is_forced=True)  # it passes
    assert await broken(workers) == []
    await plant(workers, 6, "rate", 119.9, 120, is_rated=True)
    violation = await only(workers, 3, "rate: run 6 started at", "more than its rate 2/1m allows")
    assert violation.rows == tuple(f"run_history.run_id={run_id}" for run_id in (4, 5, 6))


async def test_starts_that_are_not_even(workers: Stage):
    await plant(workers, 1, "even", 0, 1, is_rated=True)
    await plant(workers, 2, "even", 10, 11, is_rated=True)
    assert await broken(workers) == []
    await plant(workers, 3, "even", 19, 20, is_rated=True)
    await only(workers, 3, "even: run 3 started at", "more than its rate 6/1m, evenly, allows")
    assert await broken(workers, tolerance=1) == []


async def test_more_starts_of_a_key_than_its_rate_allows(workers: Stage):
    for run_id, (start, key) in enumerate([(0, "a"), (1, "a"), (2, "b"), (3, "b"), (4, None)], 1):
        await plant(workers, run_id, "each", start, start + 0.5, is_rated=True, limit_key=key)
    assert await broken(workers) == []
    await plant(workers, 6, "each", 59, 60, is_rated=True, limit_key="b")
    await only(workers, 3, "each, key customer=b: run 6 started at", "more than its rate 2/1m allows")


async def test_a_limit_that_workers_share_is_passed_by_all_of_them_together(workers: Stage):
    await plant(workers, 1, "charge", 0, 10, is_rated=True)
    await plant(workers, 2, "refund", 0, 10, is_rated=True)
    await plant(workers, 3, "charge", 10, 20, is_rated=True)
    assert await broken(workers) == []
    await plant(workers, 4, "refund", 59, 60, is_rated=True)
    await only(workers, 3, "limit stripe: run 4 started at", "more than its rate 3/1m allows")
    await workers.sql("UPDATE {p}limits SET rate = NULL")
    assert await broken(workers) == []
    await workers.sql("UPDATE {p}limits SET max_running = 1")
    await only(workers, 3, "limit stripe: 2 runs at once", "the most is 1")


@pytest.mark.parametrize("changed", ["workers", "limits"])
async def test_what_started_before_a_definition_changed_is_left_out(workers: Stage, changed: str):
    for run_id in range(1, 4):
        await plant(workers, run_id, "charge", run_id, 50, is_rated=True)
    assert len(await broken(workers)) == 1
    at = f"{T0 + timedelta(seconds=2):%Y-%m-%d %H:%M:%S.%f}" + ("" if workers.db.is_sqlite else "+00")
    await workers.sql(f"UPDATE {{p}}{changed} SET updated_at = '{at}'")
    assert await broken(workers) == []


async def test_times_through_which_a_clock_went_twice_are_not_judged(workers: Stage):
    for run_id in range(1, 4):
        await plant(workers, run_id, "rate", run_id, 50, is_rated=True)
    await only(workers, 3, "rate: run 3")
    await note_steps(workers.db, "n", [ClockStep(workers.now, workers.now - timedelta(seconds=7200))])
    doubts: list[None] = []
    found = [each async for each in verify(workers.db, Scope(workers.now, 30, 30), doubt=lambda: doubts.append(None))]
    assert (found, len(doubts)) == ([], 1)


async def test_what_the_runner_wrote_breaks_nothing(workers: Stage):
    for number in range(40):
        name = ("keys", "order", "rate", "even", "each", "charge", "refund")[number % 7]
        await workers.trigger(name, payload={"customer": "abc"[number % 3]})
    for number in range(40):
        for run in await workers.tick():
            workers.after(0.5)
            await (workers.fail(run) if number % 5 == 0 else workers.end(run))
        workers.after(7)
    assert await broken(workers) == []
    assert len(await workers.outcomes()) >= 40

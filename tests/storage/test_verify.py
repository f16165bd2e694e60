"""`db verify`, on both databases: silent on what the runner itself wrote, loud for each promise that is broken."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import timedelta

import pytest
import sqlalchemy as sa

from jobrunner.model.run import OutcomeKind
from jobrunner.storage.reading.findings import Scope
from jobrunner.storage.reading.verify import verify
from jobrunner.storage.workers.clock_steps import ClockStep, note_steps
from tests.support.planted import broken, furnished, only, plant, plant_letter
from tests.support.stage import Stage, triggered


@pytest.fixture
async def workers(stage: Stage) -> Stage:
    """Workers `a` and `b`, two of `wide` at a time, `x` blocks `y`, `later` depends on `a`; the clock an hour on."""
    return await furnished(stage)


async def test_a_worker_without_a_state_is_reported_and_mended(workers: Stage):
    await workers.sql("UPDATE {p}worker_state SET last_fence = 70 WHERE worker = 'a'")
    await plant(workers, 1, "a", 0, 1)
    await workers.sql("DELETE FROM {p}worker_state WHERE worker = 'a'")
    violation = await only(workers, 1, "a has no state: nothing of it starts")
    assert violation.rows == ("workers.name=a",)
    await workers.register(triggered("a"))
    assert await broken(workers) == []
    assert (await workers.state("a")).last_fence == 10
    await workers.trigger("a")
    assert await workers.started() == ["a"]


async def test_a_state_without_a_worker_is_reported_and_mended(workers: Stage):
    if workers.db.is_sqlite:
        await workers.sql("DROP TRIGGER workers_refuse_delete")
        bare(workers, "DELETE FROM workers WHERE name = 'wide'")
    else:
        await workers.sql("ALTER TABLE {p}worker_state DROP CONSTRAINT fk_worker_state_worker")
        await workers.sql("DELETE FROM {p}workers WHERE name = 'wide'")
    await only(workers, 1, "there is a state of wide, but no such worker")
    await workers.register(triggered("wide"))
    assert await broken(workers) == []


def bare(stage: Stage, statement: str) -> None:
    """Run a statement as in a shell, in which foreign keys are off."""
    with closing(sqlite3.connect(str(stage.db.url.database), timeout=5)) as shell:
        shell.execute(statement)
        shell.commit()


async def test_what_the_runner_wrote_breaks_nothing(workers: Stage):
    for kind in (OutcomeKind.FAILED, OutcomeKind.SUCCEEDED, OutcomeKind.LOST, OutcomeKind.INTERRUPTED):
        for name in ("a", "wide", "x", "y", "later"):
            await workers.trigger(name)
        for _ in range(8):
            runs = await workers.tick(slots=9)
            workers.after(2)
            for run in runs:
                await workers.end(run, kind if run.attempt == 1 else OutcomeKind.SUCCEEDED)
            workers.after(10)
    await workers.trigger("later")
    await workers.trigger("wide")
    await workers.tick()
    assert await broken(workers) == []
    assert len(await workers.outcomes()) > 20


# --- promise 1 ----------------------------------------------------------------------------------------------------


async def test_promise_1_a_run_that_ended_twice(workers: Stage):
    await plant(workers, 1, "a", 0, 1)
    await plant(workers, 1, "a", 2, 3, fence=11)
    assert (await only(workers, 1, "run 1 has ended 2 times")).rows == ("run_history.run_id=1",)


async def test_promise_1_a_run_that_ended_and_is_live(workers: Stage):
    run_id = await workers.trigger("a")
    await plant(workers, run_id, "a", 0, 1)
    await only(workers, 1, f"run {run_id} has ended (succeeded) and is live too")


async def test_promise_1_a_run_that_is_gone_without_an_end(workers: Stage):
    await plant(workers, 1, "a", 0, 1, outcome="failed", ends_run=None)
    await only(workers, 1, "run 1 is gone without an end")
    workers.after(86400 * 31)
    assert await broken(workers) == []  # pruning may have taken its end


async def test_promise_1_an_exhausted_run_without_a_letter(workers: Stage):
    await workers.sql("UPDATE {p}worker_state SET consecutive_failures = 1 WHERE worker = 'a'")
    await plant(workers, 1, "a", 0, 1, outcome="failed", ends_run="exhausted")
    await only(workers, 1, "run 1 was exhausted, but has no dead letter")


async def test_promise_1_a_letter_for_a_run_that_succeeded_or_is_live(workers: Stage):
    await plant(workers, 1000, "a", 0, 1)
    await plant_letter(workers, 1000)
    run_id = await workers.trigger("a")
    await plant_letter(workers, run_id)
    problems = {violation.problem for violation in await broken(workers)}
    assert problems == {"run 1000 succeeded, but has a dead letter", f"run {run_id} has a dead letter and is live"}


# --- promise 2 ----------------------------------------------------------------------------------------------------


async def test_promise_2_a_claim_that_ended_and_is_live(workers: Stage):
    await workers.trigger("a")
    run = await workers.start_one()
    await plant(workers, run.id, "a", 0, 1, fence=run.fence, outcome="interrupted", ends_run=None)
    await only(workers, 2, f"claim {run.fence} of run {run.id} has ended and is live")


@pytest.mark.parametrize("attempts", [(1, 3), (1, 1), (2, 3), (1, 2, 2)])
async def test_promise_2_attempts_with_a_gap_or_a_repeat(workers: Stage, attempts: tuple[int, ...]):
    for number, attempt in enumerate(attempts):
        more = {"outcome": "failed", "ends_run": None, "fence": 100 + number, "attempt": attempt}
        await plant(workers, 1, "a", number * 10, number * 10 + 1, **more)
    await plant(workers, 1, "a", 200, 201, fence=200, attempt=max(attempts) + 1)
    await only(workers, 2, "the attempts of run 1 are")


async def test_promise_2_one_claim_has_one_row(workers: Stage):
    await plant(workers, 1, "a", 0, 1)
    with pytest.raises(sa.exc.IntegrityError):
        await plant(workers, 1, "a", 0, 1)


# --- promise 3 ----------------------------------------------------------------------------------------------------


async def test_promise_3_more_at_once_than_may_be(workers: Stage):
    await plant(workers, 1, "wide", 0, 10)
    await plant(workers, 2, "wide", 5, 15)
    await plant(workers, 3, "wide", 10, 12)  # only touches the first
    assert await broken(workers) == []
    await plant(workers, 4, "wide", 11, 12)
    violation = await only(workers, 3, "wide: 3 runs at once")
    assert {f"run_history.run_id={run_id}" for run_id in (2, 3, 4)} == set(violation.rows)


async def test_promise_3_counts_what_runs_now(workers: Stage):
    await workers.trigger("a")
    run = await workers.start_one()
    await plant(workers, 1000, "a", 3600, 3601)
    violation = await only(workers, 3, "a: 2 runs at once")
    assert f"run_history.run_id={run.id}" in violation.rows


async def test_promise_3_counterparts_at_the_same_time(workers: Stage):
    await plant(workers, 1, "x", 0, 10)
    await plant(workers, 2, "y", 10, 20)
    await plant(workers, 3, "y", 10, 30)
    await plant(workers, 4, "x", 30, 31)
    assert await broken(workers) == []
    await plant(workers, 5, "x", 29, 29.5)
    violation = await only(workers, 3, "x (run 5) started at", "while y ran")
    assert violation.rows == ("run_history.run_id=5", "run_history.run_id=3")


async def test_promise_3_leaves_out_what_ran_under_an_older_definition(workers: Stage):
    await plant(workers, 1, "y", 0, 10)
    await plant(workers, 2, "x", 5, 10)
    await plant(workers, 3, "a", 0, 10)
    await plant(workers, 4, "a", 5, 10)
    assert len(await broken(workers)) == 2
    await workers.register(triggered("a", timeout_seconds=9), triggered("x", blocks=["y"], timeout_seconds=9))
    assert await broken(workers) == []


async def test_promise_3_with_a_tolerance_clocks_may_differ(workers: Stage):
    await plant(workers, 1, "x", 0, 10)
    await plant(workers, 2, "y", 9.8, 20)
    await plant(workers, 3, "a", 0, 10)
    await plant(workers, 4, "a", 9.8, 20)
    assert len(await broken(workers, tolerance=0.1)) == 2
    assert await broken(workers, tolerance=0.25) == []


# --- promise 4 ----------------------------------------------------------------------------------------------------


async def test_promise_3_is_not_judged_at_times_through_which_a_clock_went_twice(workers: Stage):
    await plant(workers, 1, "a", 0, 10)
    await plant(workers, 2, "a", 5, 15)
    await only(workers, 3, "a: 2 runs at once")
    doubts: list[None] = []
    for seconds, seen in ((600.0, 0), (-7200.0, 1)):  # a clock set to some time since; then to one before
        await note_steps(workers.db, "n", [ClockStep(workers.now, workers.now + timedelta(seconds=seconds))])
        found = [
            each async for each in verify(workers.db, Scope(workers.now, 30, 30), doubt=lambda: doubts.append(None))
        ]
        assert (len(found), len(doubts)) == (1 - seen, seen)


async def test_promise_4_a_start_while_the_dependency_ran(workers: Stage):
    await plant(workers, 1, "a", 0, 1)
    await plant(workers, 2, "a", 5, 10)
    await plant(workers, 3, "later", 2, 7)
    assert await broken(workers) == []
    await plant(workers, 4, "later", 6, 20)
    violation = await only(workers, 4, "later (run 4) started at", "while a ran")
    assert violation.rows == ("run_history.run_id=4",)


async def test_promise_4_a_start_although_the_dependency_had_failed(workers: Stage):
    await workers.sql("UPDATE {p}worker_state SET consecutive_failures = 1 WHERE worker = 'a'")
    await plant(workers, 1, "a", 0, 1)
    await plant(workers, 2, "later", 1, 20)
    await plant(workers, 3, "a", 5, 10, outcome="failed", ends_run="exhausted")
    await plant_letter(workers, 3)
    assert await broken(workers) == []
    await plant(workers, 4, "later", 11, 20, is_forced=True)
    assert await broken(workers) == []
    await plant(workers, 5, "later", 11, 20)
    await only(workers, 4, "later (run 5) started at", "although a had last failed")


async def test_promise_4_a_start_while_a_retry_waited(workers: Stage):
    await plant(workers, 1, "a", 0, 1)
    await plant(workers, 2, "a", 5, 6, outcome="failed", ends_run=None)
    await plant(workers, 2, "a", 10, 11, fence=21, attempt=2)
    await plant(workers, 3, "later", 12, 13)
    assert await broken(workers) == []
    await plant(workers, 4, "later", 8, 9)
    await only(workers, 4, "later (run 4)", "was to be tried again")


async def test_promise_4_a_start_before_the_dependency_ever_succeeded(workers: Stage):
    await plant(workers, 1, "later", 0, 1)
    await plant(workers, 2, "a", 5, 6)
    await only(workers, 4, "later (run 1)", "although a had never succeeded")
    workers.after(86400 * 40)
    assert await broken(workers) == []  # its success may be pruned


# --- promise 5 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [0, 1, 3])
async def test_promise_5_a_streak_that_history_does_not_bear_out(workers: Stage, stored: int):
    await plant(workers, 1, "a", 0, 1)
    for run_id in (2, 3):
        await plant(workers, run_id, "a", run_id, run_id + 1, outcome="failed", ends_run="exhausted")
        await plant_letter(workers, run_id)
    await workers.sql("UPDATE {p}worker_state SET consecutive_failures = 2 WHERE worker = 'a'")
    assert await broken(workers) == []
    await workers.sql(f"UPDATE {{p}}worker_state SET consecutive_failures = {stored} WHERE worker = 'a'")
    violation = await only(workers, 5, f"a: the stored streak is {stored}, history counts 2")
    assert "worker_state.worker=a" in violation.rows


async def test_promise_5_a_streak_of_which_only_the_last_failures_are_kept(workers: Stage):
    await plant(workers, 1, "a", 0, 1)
    for run_id in range(2, 7):
        await plant(workers, run_id, "a", run_id, run_id + 1, outcome="failed", ends_run="exhausted")
        await plant_letter(workers, run_id)
    await workers.sql("UPDATE {p}worker_state SET consecutive_failures = 5, streak_since_id = 1 WHERE worker = 'a'")
    for table in ("run_history", "dead_letters"):
        await workers.sql(f"DELETE FROM {{p}}{table} WHERE run_id <= 4")  # as pruning does
    assert await broken(workers) == []
    await workers.sql("UPDATE {p}worker_state SET consecutive_failures = 1 WHERE worker = 'a'")
    await only(workers, 5, "a: the stored streak is 1, history counts 2")

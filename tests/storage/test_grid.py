"""The newest runs of a worker with their attempts."""

from __future__ import annotations

import pytest

from jobrunner.model.run import OutcomeKind
from jobrunner.storage.reading import grid
from jobrunner.storage.reading.grid import GridRun, read_grid
from tests.support.plans import plan, recorded
from tests.support.stage import Stage, triggered


async def read(stage: Stage, worker: str = "mail", **more: int) -> list[GridRun]:
    async with stage.db.read() as conn:
        return await read_grid(conn, worker, **more)


async def prepare(stage: Stage, **more: object) -> None:
    await stage.register(
        triggered("mail", max_retries=1, retry_delay_seconds=5, max_running=5, **more), triggered("bill")
    )
    await stage.join("n1")


async def run_one(stage: Stage, kind: OutcomeKind = OutcomeKind.SUCCEEDED, worker: str = "mail") -> int:
    run_id = await stage.trigger(worker)
    (run,) = await stage.tick(handlers=[worker])
    await stage.end(run, kind)
    stage.after(1)
    return run_id


def shown(runs: list[GridRun]) -> list[tuple[int | None, str, list[str]]]:
    return [(run.run_id, run.state, [attempt.outcome for attempt in run.attempts]) for run in runs]


async def test_runs_that_ended_wait_again_and_run_are_shown_the_newest_last(stage: Stage):
    await prepare(stage)
    ended = await run_one(stage)
    tried = await run_one(stage, OutcomeKind.FAILED)
    await run_one(stage, worker="bill")
    running = await stage.trigger("mail")
    (run,) = await stage.tick(handlers=["mail"])
    await stage.trigger("mail", due_at=stage.now.replace(year=2030))  # it waits for its first attempt
    found = await read(stage)
    assert shown(found) == [
        (ended, "succeeded", ["succeeded"]),
        (tried, "pending", ["failed"]),
        (running, "running", ["running"]),
    ]
    (attempt,) = found[-1].attempts
    assert (attempt.attempt, attempt.started_at, attempt.finished_at) == (1, stage.now, None)
    assert (attempt.fence, attempt.history_id) == (run.fence, None)
    assert found[1].due_at is not None
    assert found[1].scheduled_for is not None
    assert found[1].due_at > found[1].scheduled_for


async def test_each_attempt_of_a_run_is_shown_in_its_order(stage: Stage):
    await prepare(stage)
    run_id = await run_one(stage, OutcomeKind.FAILED)
    later = await run_one(stage)
    stage.after(60)
    (run,) = await stage.tick(handlers=["mail"])
    assert shown(await read(stage)) == [
        (run_id, "running", ["failed", "running"]),
        (later, "succeeded", ["succeeded"]),
    ]
    await stage.fail(run)
    found = await read(stage)
    assert shown(found) == [(run_id, "exhausted", ["failed", "failed"]), (later, "succeeded", ["succeeded"])]
    assert [attempt.attempt for attempt in found[0].attempts] == [1, 2]
    assert all(attempt.duration_ms == 5 and attempt.history_id for attempt in found[0].attempts)


async def test_times_that_were_missed_are_shown_without_a_run(stage: Stage):
    await prepare(stage)
    await run_one(stage)
    await stage.sql(
        "INSERT INTO {p}run_history (worker, trigger, outcome, scheduled_for, due_at, finished_at, occurrences)"
        " SELECT worker, 'schedule', 'missed', finished_at, finished_at, finished_at, 3 FROM {p}run_history"
    )
    missed = (await read(stage))[-1]
    assert (missed.run_id, missed.state) == (None, "missed")
    (attempt,) = missed.attempts
    assert (attempt.outcome, attempt.attempt, attempt.started_at, attempt.fence) == ("missed", None, None, None)


async def test_only_so_many_of_the_newest_are_shown(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    await prepare(stage)
    ids = [await run_one(stage) for _ in range(6)]
    assert [run.run_id for run in await read(stage, most_runs=4)] == ids[2:]
    monkeypatch.setattr(grid, "MOST_ROWS", 3)
    assert [run.run_id for run in await read(stage)] == ids[3:]
    assert await read(stage, "nobody") == []


async def test_a_worker_s_newest_rows_are_found_along_its_index(stage: Stage):
    await prepare(stage)
    await run_one(stage)
    await run_one(stage, worker="bill")
    series = "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) SELECT i FROM n) AS n"
    await stage.sql(
        "INSERT INTO {p}run_history (run_id, fence, worker, trigger, attempt, outcome, finished_at)"
        f" SELECT -i, i, 'bill', 'manual', 1, 'succeeded', h.finished_at FROM {{p}}run_history AS h, {series}"
        " WHERE h.worker = 'bill'"
    )
    await stage.sql(f"INSERT INTO {{p}}runs (worker) SELECT 'mail' FROM {series}")
    for _ in range(2):
        with recorded(stage.db) as sent:
            assert len(await read(stage)) == 1
        plans = [await plan(stage.db, each) for each in sent]
        assert any("ix_run_history_worker" in how for how in plans), plans
        assert not any("SCAN main.run" in how or "Seq Scan on run" in how for how in plans), plans
        await stage.sql("ANALYZE")

"""What the pages of workers draw: the last runs with their attempts, durations by day, strips of outcomes."""

from __future__ import annotations

from datetime import timedelta

import pytest

from jobrunner.model.run import OutcomeKind
from jobrunner.storage.reading import days as by_day
from jobrunner.storage.reading import grid
from jobrunner.storage.reading.days import read_days
from jobrunner.storage.reading.grid import read_grid
from jobrunner.storage.reading.strips import read_strips
from tests.storage.test_minutes import ended, write
from tests.support.stage import Stage, triggered


async def grid_of(stage: Stage, worker: str = "mail", most: int = 50) -> list[grid.GridRun]:
    async with stage.db.read() as conn:
        return await read_grid(conn, worker, most)


async def test_the_grid_has_runs_that_ended_that_run_and_that_wait_for_another_attempt(stage: Stage):
    await stage.register(triggered("mail", max_retries=1, retry_delay_seconds=10, max_running=2), triggered("other"))
    await stage.join("n1")
    first, second = await stage.trigger("mail"), await stage.trigger("mail")
    one, two = await stage.tick()
    stage.after(1)
    await stage.fail(one)
    await stage.end(two)
    stage.after(10)
    (again,) = await stage.tick()
    found = await grid_of(stage)
    assert [(run.run_id, run.state, [each.outcome for each in run.attempts]) for run in found] == [
        (first, "running", ["failed", "running"]),
        (second, "succeeded", ["succeeded"]),
    ]
    assert [each.number for each in found[0].attempts] == [1, 2]
    stage.after(1)
    await stage.fail(again)
    third = await stage.trigger("mail")
    await stage.fail(await stage.start_one())
    waiting = await stage.trigger("mail", due_at=stage.now + timedelta(hours=1))
    found = await grid_of(stage)
    assert [(run.run_id, run.state) for run in found] == [
        (first, "exhausted"),
        (second, "succeeded"),
        (third, "pending"),
    ]
    assert waiting not in {run.run_id for run in found}
    assert not any(run.is_cut for run in found)
    assert await grid_of(stage, "other") == []


async def test_the_grid_has_the_newest_runs_and_no_more_than_were_asked_for(stage: Stage):
    await stage.register(triggered("mail"))
    await write(stage, *(ended(stage, 100 - each) for each in range(9)))
    assert [run.at for run in await grid_of(stage, most=3)] == [
        stage.now - timedelta(seconds=seconds) for seconds in (94, 93, 92)
    ]


async def test_missed_times_stand_in_the_grid_as_a_run_without_an_id(stage: Stage):
    await stage.register(triggered("mail"))
    await write(stage, ended(stage, 5), {**ended(stage, 3, "missed"), "occurrences": 7})
    _, missed = await grid_of(stage)
    assert (missed.run_id, missed.state, missed.occurrences, missed.attempts) == (None, "missed", 7, ())


async def test_a_run_of_which_older_attempts_were_not_read_says_so(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(grid, "MOST_ROWS", 2)
    await stage.register(triggered("mail", max_retries=5, retry_delay_seconds=1))
    await stage.join("n1")
    await stage.trigger("mail")
    for _ in range(3):
        await stage.fail(await stage.start_one())
        stage.after(100)
    (run,) = await grid_of(stage)
    assert ([each.number for each in run.attempts], run.is_cut) == ([2, 3], True)


async def test_durations_are_told_by_day_of_what_succeeded(stage: Stage):
    await stage.register(triggered("mail"))
    stage.now = stage.now.replace(hour=12)
    day = 86400
    rows = [{**ended(stage, day), "duration_ms": ms} for ms in range(1, 101)]
    rows += [{**ended(stage, 1, "failed"), "duration_ms": 9_000}, ended(stage, 2, "cancelled"), ended(stage, 15 * day)]
    rows += [{**ended(stage, 3, "missed"), "occurrences": 2}, {**ended(stage, 4), "duration_ms": None}]
    await write(stage, *rows)
    async with stage.db.read() as conn:
        found = await read_days(conn, "mail", stage.now)
        nothing = await read_days(conn, "other", stage.now)
    *older, yesterday, today = found.days
    assert (len(found.days), found.looked_at, found.whole_since) == (14, len(rows), None)
    assert (yesterday.succeeded, yesterday.p50_ms, yesterday.p95_ms) == (100, 50, 95)
    assert (today.succeeded, today.failed, today.others, today.p95_ms) == (1, 1, 1, None)
    assert today.date == stage.now.date()
    assert [each.ended for each in older] == [0] * 12
    assert (nothing.is_empty, nothing.looked_at, found.is_empty) == (True, 0, False)


async def test_of_very_many_attempts_the_newest_are_looked_at_and_that_is_said(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(by_day, "MOST_ROWS", 3)
    await stage.register(triggered("mail"))
    await write(stage, *(ended(stage, 10 - each) for each in range(5)))
    async with stage.db.read() as conn:
        found = await read_days(conn, "mail", stage.now)
    assert (found.looked_at, found.days[-1].ended) == (3, 3)
    assert found.whole_since == stage.now - timedelta(seconds=8)


async def test_the_strips_of_a_page_come_of_the_newest_ends_of_each_worker(stage: Stage):
    await stage.register(triggered("mail"), triggered("fetch"), triggered("idle"))
    rows = [{**ended(stage, 60 - each), "duration_ms": each} for each in range(52)]
    rows += [{**ended(stage, 1, "failed"), "worker": "fetch"}]
    await write(stage, *rows)
    async with stage.db.read() as conn:
        found = await read_strips(conn, stage.db.dialect, ["mail", "fetch", "idle"])
        assert await read_strips(conn, stage.db.dialect, []) == {}
    assert found.keys() == {"mail", "fetch"}
    assert [each.duration_ms for each in found["mail"].ends] == list(range(32, 52))
    assert (found["mail"].counted, found["mail"].p95_ms) == (50, 49)
    assert [each.outcome for each in found["fetch"].ends] == [str(OutcomeKind.FAILED)]
    assert (found["fetch"].p95_ms, found["fetch"].counted) == (None, 0)

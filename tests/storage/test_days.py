"""How long a worker's attempts took and how they ended, by day."""

from __future__ import annotations

from datetime import date, timedelta

import pytest

from jobrunner.model.run import OutcomeKind
from jobrunner.storage.reading import days as reading
from jobrunner.storage.reading.days import Days, read_days
from tests.support.plans import plan, recorded
from tests.support.stage import T0, Stage, triggered


async def read(stage: Stage, worker: str = "mail", **more: int) -> Days:
    async with stage.db.read() as conn:
        return await read_days(conn, worker, stage.now, **more)


async def end(stage: Stage, *durations: int, kind: OutcomeKind = OutcomeKind.SUCCEEDED, worker: str = "mail") -> None:
    for duration_ms in durations:
        await stage.trigger(worker)
        (run,) = await stage.tick(handlers=[worker])
        await stage.end(run, kind, duration_ms=duration_ms)


async def prepare(stage: Stage) -> None:
    await stage.register(*(triggered(each, max_retries=0, max_consecutive_failures=100) for each in ("mail", "bill")))
    await stage.join("n1")


async def test_each_day_has_its_percentiles_and_counts(stage: Stage):
    await prepare(stage)
    await end(stage, *range(100, 0, -10))
    await end(stage, 7777, kind=OutcomeKind.FAILED)
    await end(stage, 8888, worker="bill")
    stage.after(2 * 86400)
    await end(stage, 3)
    await end(stage, 4000, kind=OutcomeKind.TIMED_OUT)
    await end(stage, 4000, kind=OutcomeKind.SNOOZED)
    found = await read(stage)
    assert found.searched is None
    assert len(found.days) == 14
    assert found.days[-1].date == date(2026, 3, 4)
    assert [each.date for each in found.days] == sorted(each.date for each in found.days)
    first, between, last = found.days[-3:]
    assert (first.p50_ms, first.p95_ms, first.n, first.failed) == (50, 100, 11, 1)
    assert first.counts == {"succeeded": 10, "failed": 1}
    assert (between.p50_ms, between.p95_ms, between.n, between.counts) == (None, None, 0, {})
    assert (last.p50_ms, last.p95_ms, last.n, last.failed) == (3, 3, 3, 1)
    assert [each.n for each in (await read(stage, days=2)).days] == [0, 3]


async def test_a_day_ends_at_midnight_in_utc(stage: Stage):
    await prepare(stage)
    stage.now = T0.replace(hour=23, minute=59, second=59)
    await end(stage, 1)
    stage.after(1)
    await end(stage, 2)
    assert [each.p50_ms for each in (await read(stage, days=2)).days] == [1, 2]


async def test_what_was_missed_is_no_attempt(stage: Stage):
    await prepare(stage)
    await end(stage, 1)
    await stage.sql(
        "INSERT INTO {p}run_history (worker, trigger, outcome, finished_at, occurrences)"
        " SELECT worker, 'schedule', 'missed', finished_at, 3 FROM {p}run_history"
    )
    (today,) = (await read(stage, days=1)).days
    assert today.n == 1
    assert today.counts == {"succeeded": 1, "missed": 1}


async def test_of_more_rows_than_are_looked_at_it_says_so_if_they_are_of_these_days(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reading, "MOST_ROWS", 2)
    await prepare(stage)
    await end(stage, 1, 2)
    assert (await read(stage)).searched is None
    await end(stage, 3)
    found = await read(stage)
    assert found.searched == 2
    assert found.days[-1].n == 2
    stage.after(timedelta(days=20).total_seconds())
    await end(stage, 4, 5)
    assert (await read(stage)).searched is None


async def test_a_worker_s_days_are_read_along_its_index(stage: Stage):
    await prepare(stage)
    await end(stage, 1)
    await end(stage, 1, worker="bill")
    series = "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) SELECT i FROM n) AS n"
    await stage.sql(
        "INSERT INTO {p}run_history (run_id, fence, worker, trigger, attempt, outcome, finished_at)"
        f" SELECT -i, i, 'bill', 'manual', 1, 'succeeded', h.finished_at FROM {{p}}run_history AS h, {series}"
        " WHERE h.worker = 'bill'"
    )
    for _ in range(2):
        with recorded(stage.db) as sent:
            assert (await read(stage)).days[-1].n == 1
        assert len(sent) == 1
        assert "ix_run_history_worker" in await plan(stage.db, sent[0])
        await stage.sql("ANALYZE")

"""What really ran of some workers within the last hours."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest

from jobrunner.model.run import OutcomeKind
from jobrunner.storage.reading import lanes
from jobrunner.storage.reading.lanes import MOST_WORKERS, Span, read_lanes
from tests.support.plans import plan, recorded
from tests.support.stage import Stage, triggered


async def read(stage: Stage, names: Sequence[str], hours: float = 1) -> dict[str, list[Span]]:
    async with stage.db.read() as conn:
        return await read_lanes(conn, stage.now, timedelta(hours=hours), names)


async def run_one(stage: Stage, worker: str, kind: OutcomeKind = OutcomeKind.SUCCEEDED) -> int:
    run_id = await stage.trigger(worker)
    (run,) = await stage.tick(handlers=[worker])
    stage.after(10)
    await stage.end(run, kind)
    return run_id


async def prepare(stage: Stage) -> None:
    await stage.register(*(triggered(each, max_retries=0, max_consecutive_failures=100) for each in ("mail", "bill")))
    await stage.join("n1")


async def test_each_worker_has_the_attempts_that_ended_within_the_time(stage: Stage):
    await prepare(stage)
    old = await run_one(stage, "mail")
    stage.after(3600)
    began = stage.now
    failed = await run_one(stage, "mail", OutcomeKind.FAILED)
    other = await run_one(stage, "bill")
    newest = await run_one(stage, "mail")
    found = await read(stage, ["mail", "bill", "nobody"])
    assert list(found) == ["mail", "bill", "nobody"]
    assert [span.run_id for span in found["mail"]] == [failed, newest]
    assert found["mail"][0] == Span(began, began + timedelta(seconds=10), "failed", failed)
    assert [span.run_id for span in found["bill"]] == [other]
    assert found["nobody"] == []
    assert [span.run_id for span in (await read(stage, ["mail"], hours=2))["mail"]] == [old, failed, newest]
    assert await read(stage, []) == {}


async def test_what_never_started_has_no_span(stage: Stage):
    await prepare(stage)
    run_id = await run_one(stage, "mail")
    await stage.sql(
        "INSERT INTO {p}run_history (worker, trigger, outcome, finished_at, occurrences)"
        " SELECT worker, 'schedule', 'missed', finished_at, 3 FROM {p}run_history"
    )
    assert [span.run_id for span in (await read(stage, ["mail"]))["mail"]] == [run_id]


async def test_no_more_workers_and_spans_are_read_than_can_be_drawn(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lanes, "MOST_SPANS", 2)
    monkeypatch.setattr(lanes, "_newest", lanes._newest.__wrapped__)
    await prepare(stage)
    ids = [await run_one(stage, "mail") for _ in range(3)]
    found = await read(stage, ["mail", "mail", *(f"w{number}" for number in range(100))])
    assert len(found) == MOST_WORKERS
    assert [span.run_id for span in found["mail"]] == ids[1:]


async def test_each_worker_s_lane_is_read_along_its_index_in_one_statement(stage: Stage):
    await prepare(stage)
    await run_one(stage, "mail")
    await run_one(stage, "bill")
    series = "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) SELECT i FROM n) AS n"
    await stage.sql(
        "INSERT INTO {p}run_history (run_id, fence, worker, trigger, attempt, outcome, finished_at)"
        f" SELECT -i, i, 'bill', 'manual', 1, 'succeeded', h.finished_at FROM {{p}}run_history AS h, {series}"
        " WHERE h.worker = 'bill'"
    )
    for _ in range(2):
        with recorded(stage.db) as sent:
            await read(stage, ["mail", "bill"])
        assert len(sent) == 1
        how = await plan(stage.db, sent[0])
        assert how.count("ix_run_history_worker") == 2, how
        await stage.sql("ANALYZE")

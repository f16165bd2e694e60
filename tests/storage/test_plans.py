"""How the databases carry out what every tick, finish and heartbeat does, with much waiting and many workers.

50,000 runs wait for one worker whose only slot is taken, 5,000 others have schedules, history is long. Nothing may look
through all waiting runs or all of history; on PostgreSQL, neither before the first ANALYZE nor after it.
"""

from __future__ import annotations

import re
from datetime import timedelta

from jobrunner.model.run import OutcomeKind
from jobrunner.storage import nodes
from jobrunner.storage.runs import facts as reading
from jobrunner.storage.runs.live import News, read_claims, show_news
from tests.support.plans import Sent, plan, recorded
from tests.support.stage import T0, Stage, scheduled, triggered

WAITING = 50_000
WORKERS = 5_000
# A step that reads a whole table: SQLite's SCAN (also `SCAN x USING COVERING INDEX`), PostgreSQL's Seq Scan.
WHOLE = re.compile(
    r"(SCAN (main\.)?|Seq Scan on )(runs|inner_runs|found|run_history|worker_state|workers)(_\d+)?\b", re.IGNORECASE
)
# What may be read whole: 5,000 workers are 150 pages, read in 0.5 ms; the index on slots holds what is running.
SMALL = re.compile(r"Seq Scan on (worker_state|workers)\b|USING COVERING INDEX uq_runs_worker_slot")


async def crowd(stage: Stage) -> None:
    """Fill the database, with plain SQL: a row at a time would take minutes."""
    await stage.register(
        triggered("busy"),
        triggered("wide", max_running=20, max_retries=0),
        *(scheduled(f"w{n:04}", interval_seconds=3600) for n in range(WORKERS)),
    )
    await stage.join("n1")
    busy = await stage.trigger("busy")
    await stage.start_one(handlers=["busy"])
    for _ in range(30):
        await stage.trigger("wide")
    # Plain SQL reads its times from columns that are there already: so they have the database's own form.
    series = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {WAITING}) "
    if stage.db.is_sqlite:
        start = f"INSERT INTO runs (worker, priority, due_at, scheduled_for) {series}"
        begin = f"INSERT INTO run_history (run_id, fence, worker, trigger, attempt, outcome, finished_at) {series}"
    else:
        start = f"{series} INSERT INTO {{p}}runs (worker, priority, due_at, scheduled_for) "
        begin = (
            f"{series} INSERT INTO {{p}}run_history (run_id, fence, worker, trigger, attempt, outcome, finished_at) "
        )
    await stage.sql(f"{start} SELECT 'busy', i % 4, r.due_at, r.due_at FROM n, {{p}}runs AS r WHERE r.id = {busy}")
    await stage.sql(
        f"{begin} SELECT 1000000 + i, i, 'busy', 'manual', 1, CASE WHEN i % 2 = 0 THEN 'failed' ELSE 'succeeded' END,"
        f" r.due_at FROM n, {{p}}runs AS r WHERE r.id = {busy}"
    )


async def everyday(stage: Stage) -> list[Sent]:
    """What a node does all the time: tick with and without work, finish well and badly, beat, rescue, look ahead."""
    stage.after(60)
    with recorded(stage.db) as sent:
        runs = await stage.tick(slots=4, handlers=["wide"])
        assert len(runs) == 4
        async with stage.db.write() as conn:
            news = [News(run.claim_key, {"fraction": 0.5}, "half of it", 1) for run in runs]
            assert await show_news(conn, stage.db.dialect, news) == {run.claim_key for run in runs}
        await stage.end(runs[0])
        await stage.fail(runs[1])  # no retries: a dead letter
        await stage.end(runs[2], OutcomeKind.SNOOZED)
        await stage.end(runs[3], OutcomeKind.INTERRUPTED)
        assert await stage.tick(slots=4, handlers=["busy"]) == []
        async with stage.db.poke() as conn:
            await nodes.beat(conn, stage.db.dialect, "n1", stage.now, None, stage.now - timedelta(seconds=5))
        await nodes.rescue(stage.db, stage.now, stage.now - timedelta(seconds=5))
        async with stage.db.peek() as conn:
            await read_claims(conn, "n1")
            await reading.next_due_at(conn, stage.db.dialect, stage.now)
    return sent


async def test_nothing_looks_through_all_waiting_runs_or_all_of_history(stage: Stage):
    await crowd(stage)
    await stage.sql(
        "UPDATE {p}worker_state SET next_run_at = (SELECT max(due_at) FROM {p}runs) WHERE worker IN ('w0007', 'w0008')"
    )
    for _ in range(2):
        shown = set()
        for sent in await everyday(stage):
            how = await plan(stage.db, sent)
            shown.add(how)
            for step in how.splitlines():
                assert SMALL.search(step) or not WHOLE.search(step), f"{sent.sql}\n\n{how}"
        everything = "\n".join(shown)
        assert "ix_runs_pending" in everything
        assert "ix_worker_state_due" in everything
        await stage.sql("ANALYZE")


async def test_the_search_for_due_work_touches_each_busy_worker_once(stage: Stage):
    await crowd(stage)
    with recorded(stage.db) as sent:
        async with stage.db.peek() as conn:
            due = await reading.read_due(conn, stage.db.dialect, T0, 64)
    assert {"busy", "wide"} <= due.names
    assert due.has_more  # 5,000 schedules are due, and one page was read
    assert len(due.names) == 2 + 64
    how = await plan(stage.db, sent[0], is_run=True)
    if stage.db.is_sqlite:
        assert "SEARCH main.runs USING INDEX ix_runs_pending (worker>?)" in how
        assert how.count("SEARCH main.runs USING INDEX ix_runs_pending (worker=? AND priority>? AND priority<?)") == 4
    else:
        assert re.search(r"Index Only Scan using ix_runs_pending .*\n\s+Index Cond: \(worker > waiting", how)
        read = [int(count) for count in re.findall(r"ix_runs_pending .*actual rows=(\d+)", how)]
        assert max(read) <= 1  # of 50,000 waiting

"""What a look for changes tells apart, and what it reads for that."""

from __future__ import annotations

import re

from jobrunner.storage.reading.pulse import Pulse, read_pulse
from jobrunner.storage.workers import operations
from tests.support.plans import plan, recorded
from tests.support.stage import ACTOR, Stage, triggered


async def look(stage: Stage) -> Pulse:
    async with stage.db.read() as conn:
        return await read_pulse(conn)


async def test_what_people_decide_is_told_apart_from_what_runs_change(stage: Stage):
    await stage.register(triggered("mail", max_retries=0, max_consecutive_failures=100))
    await stage.join("n1")
    before = await look(stage)
    await stage.trigger("mail")
    (run,) = await stage.tick()
    await stage.end(run)
    ran = await look(stage)
    assert ran.moved != before.moved
    assert ran.decided == before.decided
    await operations.disable(stage.db, "mail", stage.now, ACTOR, None)
    disabled = await look(stage)
    assert disabled.moved == ran.moved
    assert disabled.decided != ran.decided


async def test_a_letter_and_a_node_that_leaves_are_decisions(stage: Stage):
    await stage.register(triggered("mail", max_retries=0, max_consecutive_failures=100))
    await stage.join("n1")
    seen = [await look(stage)]
    await stage.trigger("mail")
    (run,) = await stage.tick()
    await stage.fail(run)
    seen.append(await look(stage))
    await stage.sql("UPDATE {p}nodes SET state = 'draining'")
    seen.append(await look(stage))
    await stage.sql("UPDATE {p}nodes SET state = 'lost'")
    seen.append(await look(stage))
    assert len({each.decided for each in seen}) == len(seen)


async def test_a_beat_of_a_node_is_no_change(stage: Stage):
    await stage.register(triggered("mail"))
    await stage.join("n1")
    before = await look(stage)
    await stage.sql("UPDATE {p}nodes SET beat = beat + 1")
    assert await look(stage) == before


async def test_no_look_goes_through_a_table_that_grows(stage: Stage):
    await stage.register(triggered("mail"))
    await stage.trigger("mail")
    series = "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) SELECT i FROM n) AS n"
    await stage.sql(f"INSERT INTO {{p}}audit_log (actor, action) SELECT 'ada', 'bulk' FROM {series}")
    await stage.sql(f"INSERT INTO {{p}}runs (worker) SELECT 'mail' FROM {series}")
    await stage.sql(
        "INSERT INTO {p}run_history (run_id, fence, worker, trigger, attempt, outcome, finished_at)"
        f" SELECT -i, i, 'mail', 'manual', 1, 'succeeded', created_at FROM {{p}}runs, {series} WHERE {{p}}runs.id = 1"
    )
    await stage.sql(
        "INSERT INTO {p}dead_letters (run_id, worker, trigger, priority, scheduled_for, payload, attempts, errors,"
        " died_at) SELECT -i, 'mail', 'manual', 1, created_at, '{}', 1, '[]', created_at"
        f" FROM {{p}}runs, {series} WHERE {{p}}runs.id = 1"
    )
    await stage.sql("ANALYZE")
    with recorded(stage.db) as sent:
        await look(stage)
    assert len(sent) == 1
    how = await plan(stage.db, sent[0])
    # The newest rows of history are read in the order of ids; SQLite calls that a scan, too, but along no other index.
    whole = re.compile(
        r"SCAN main\.((audit_log|runs|dead_letters)\b|run_history USING)|Seq Scan on (run_|audit_|dead_)"
    )
    assert not whole.search(how), how

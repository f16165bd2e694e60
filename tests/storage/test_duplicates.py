"""What a trigger does with the run that has its key: keep, replace, postpone; and what it may not touch."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from typing import Any

from jobrunner.model.run import OutcomeKind
from jobrunner.storage.runs.enqueue import Added, Request, enqueue_told
from jobrunner.storage.tables.define import runs
from tests.storage.test_racing import RealTime
from tests.support.stage import T0, Stage, triggered


async def _told(stage: Stage, worker: str = "a", *, delay: float | None = None, **more: Any) -> Added:
    if delay is not None:
        more |= {"due_at": stage.now + timedelta(seconds=delay), "waits_since": stage.now}
    async with stage.db.write() as conn:
        return await enqueue_told(conn, stage.db.dialect, Request(worker, **{"key": "k", **more}), stage.now)


async def _row(stage: Stage, run_id: int) -> Any:
    async with stage.db.peek() as conn:
        return (await conn.execute(runs.select().where(runs.c.id == run_id))).one()


async def test_a_kept_run_stays_as_it_was(stage: Stage):
    await stage.register(triggered("a"))
    first = await _told(stage, payload={"n": 1}, delay=5)
    assert await _told(stage, payload={"n": 2}, delay=50) == Added(first.run_id, is_new=False)
    row = await _row(stage, first.run_id)
    assert (row.payload, row.due_at) == ({"n": 1}, T0 + timedelta(seconds=5))


async def test_a_replaced_run_has_the_new_payload_and_its_own_time(stage: Stage):
    await stage.register(triggered("a", payload={"n": 0, "who": "all"}, limit_key="who", max_running_per_key=1))
    first = await _told(stage, payload={"n": 1, "who": "ann"}, delay=5, on_duplicate="replace")
    assert first.is_new
    stage.after(1)
    replaced = Added(first.run_id, is_new=False, is_changed=True)
    assert await _told(stage, payload={"n": 2, "who": "bob"}, delay=50, on_duplicate="replace") == replaced
    row = await _row(stage, first.run_id)
    assert (row.payload, row.limit_key) == ({"n": 2, "who": "bob"}, "bob")
    assert (row.due_at, row.scheduled_for) == (T0 + timedelta(seconds=5),) * 2
    await _told(stage, on_duplicate="replace")  # the worker's own
    row = await _row(stage, first.run_id)
    assert (row.payload, row.limit_key) == ({"n": 0, "who": "all"}, "all")
    await _told(stage, payload={"who": []}, on_duplicate="replace", limit_key="said")
    assert (await _row(stage, first.run_id)).limit_key == "said"


async def test_a_postponed_run_is_due_later_and_keeps_its_payload(stage: Stage):
    await stage.register(triggered("a"))
    first = await _told(stage, payload={"n": 1}, delay=10)
    for _ in range(4):
        stage.after(8)
        assert await stage.tick() == []
        postponed = await _told(stage, payload={"n": 2}, delay=10, on_duplicate="postpone")
        assert postponed == Added(first.run_id, is_new=False, is_changed=True)
    row = await _row(stage, first.run_id)
    assert (row.payload, row.due_at, row.scheduled_for) == ({"n": 1}, *(T0 + timedelta(seconds=42),) * 2)
    stage.after(10)
    assert (await stage.start_one()).id == first.run_id


async def test_a_run_is_not_postponed_past_its_bound_nor_called_earlier(stage: Stage):
    await stage.register(triggered("a"))
    bound: dict[str, Any] = {"on_duplicate": "postpone", "at_most": timedelta(seconds=25)}
    first = await _told(stage, delay=10, **bound)
    for seconds in (5, 5, 5, 5):
        stage.after(seconds)
        await _told(stage, delay=10, **bound)
    assert (await _row(stage, first.run_id)).due_at == T0 + timedelta(seconds=25)
    assert not (await _told(stage, delay=1, on_duplicate="postpone")).is_changed
    assert (await _row(stage, first.run_id)).due_at == T0 + timedelta(seconds=25)
    stage.after(10)
    assert not (await _told(stage, delay=10, **bound)).is_changed  # it is due, and waits no longer
    assert (await stage.start_one()).id == first.run_id


async def test_a_run_that_was_added_by_sql_is_bounded_by_when_it_was_made(stage: Stage):
    await stage.register(triggered("a"))
    at = f"'{T0:%Y-%m-%d %H:%M:%S}.000000{'' if stage.db.is_sqlite else '+00'}'"
    columns = "worker, key, due_at, scheduled_for, created_at"
    await stage.sql(f"INSERT INTO {{p}}runs ({columns}) VALUES ('a', 'k', {at}, {at}, {at})")
    assert (await _told(stage, delay=10, on_duplicate="postpone", at_most=timedelta(seconds=7))).is_changed
    assert (await _row(stage, 1)).due_at == T0 + timedelta(seconds=7)


async def test_a_run_that_has_started_is_never_changed(stage: Stage):
    await stage.register(triggered("a", retry_delay_seconds=60, max_running=5))
    await stage.join("n1")
    first = await _told(stage, payload={"n": 1}, key_scope="live")
    run = await stage.start_one()
    for kind in ("replace", "postpone"):
        same = await _told(stage, payload={"n": 2}, delay=99, key_scope="live", on_duplicate=kind)
        assert same == Added(first.run_id, is_new=False)
    await stage.fail(run)
    for kind in ("replace", "postpone"):  # nor one that waits for its next attempt
        same = await _told(stage, payload={"n": 2}, delay=99, key_scope="live", on_duplicate=kind)
        assert same == Added(first.run_id, is_new=False)
    assert (await _row(stage, first.run_id)).payload == {"n": 1}


async def test_after_the_start_a_key_of_those_that_wait_makes_another_run(stage: Stage):
    await stage.register(triggered("a", max_running=5))
    await stage.join("n1")
    first = await _told(stage, payload={"n": 1})
    await stage.start_one()
    second = await _told(stage, payload={"n": 2}, on_duplicate="replace")
    assert second.is_new
    assert second.run_id != first.run_id
    third = await _told(stage, payload={"n": 3}, on_duplicate="replace", key_scope="live")  # the one that waits
    assert third == Added(second.run_id, is_new=False, is_changed=True)


async def test_a_step_that_waits_for_others_is_not_postponed(stage: Stage):
    await stage.register(triggered("a"))
    before = await stage.trigger("a")
    held = await _told(stage)
    await stage.sql(f"INSERT INTO {{p}}run_after (run_id, after_run_id) VALUES ({held.run_id}, {before})")
    due_at = (await _row(stage, held.run_id)).due_at
    assert due_at.year == 9999
    assert not (await _told(stage, delay=10, on_duplicate="postpone")).is_changed
    assert (await _row(stage, held.run_id)).due_at == due_at


async def test_what_a_replacing_trigger_was_told_is_what_runs_however_it_races_with_the_claim(database_url: str):
    """Each trigger that was told of a change has its payload run, unless a later one replaced it."""
    stages = [RealTime(database_url) for _ in range(3)]
    told: dict[int, list[int]] = {}
    ran: dict[int, int] = {}
    is_over = asyncio.Event()

    async def node(stage: Stage, name: str) -> None:
        rng = random.Random(name)
        while not is_over.is_set() or await stage.value("SELECT count(*) FROM {p}runs"):
            for claim in (await stage.claim(2, name, ["a"])).claims:
                ran[claim.run.id] = claim.run.payload["n"]
                await stage.end(claim.run, OutcomeKind.SUCCEEDED)
            await asyncio.sleep(rng.uniform(0, 0.002))

    async def trigger(stage: Stage) -> None:
        for number in range(300):
            added = await _told(stage, payload={"n": number}, on_duplicate="replace")
            assert added.is_new or added.is_changed
            told.setdefault(added.run_id, []).append(number)
        is_over.set()

    try:
        await stages[0].register(triggered("a", max_running=5))
        async with asyncio.timeout(60):
            await asyncio.gather(node(stages[0], "n1"), node(stages[1], "n2"), trigger(stages[2]))
    finally:
        for stage in stages:
            await stage.db.close()
    assert ran == {run_id: numbers[-1] for run_id, numbers in told.items()}
    assert len(ran) > 1


async def test_two_that_postpone_at_once_both_count(database_url: str):
    stages = [RealTime(database_url) for _ in range(2)]
    try:
        await stages[0].register(triggered("a"))
        await asyncio.gather(
            *(_told(stage, delay=60 + 60 * n, on_duplicate="postpone") for n, stage in enumerate(stages * 10))
        )
        (row,) = await stages[0].rows("SELECT due_at FROM {p}runs")
        assert stages[0].time(row["due_at"]) > stages[0].now + timedelta(seconds=60 * 20 - 30)
    finally:
        for stage in stages:
            await stage.db.close()

"""Enqueueing, on both databases: defaults, keys, unknown workers, many at once."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
import sqlalchemy as sa

from jobrunner.errors import WorkerNotFound
from jobrunner.model.run import OutcomeKind
from jobrunner.model.worker import JobPriority
from jobrunner.storage.runs.enqueue import WORKERS_OWN, Request, enqueue, enqueue_many
from jobrunner.storage.tables.define import runs
from tests.support.stage import T0, Stage, triggered


async def row_of(stage: Stage, run_id: int):
    async with stage.db.peek() as conn:
        return (await conn.execute(runs.select().where(runs.c.id == run_id))).one()


async def test_a_trigger_takes_its_workers_payload_and_priority_and_is_due_now(stage: Stage):
    await stage.register(triggered("a", payload={"k": "v"}, priority=JobPriority.CRITICAL))
    row = await row_of(stage, await stage.trigger("a"))
    assert (row.worker, row.trigger, row.state, row.attempt) == ("a", "manual", "pending", 1)
    assert (row.payload, row.priority, row.key, row.is_forced) == ({"k": "v"}, 3, None, False)
    assert (row.due_at, row.scheduled_for) == (T0, T0)
    assert (row.slot, row.fence, row.node_id, row.started_at, row.first_started_at) == (None,) * 5


async def test_what_a_trigger_says_wins_over_its_workers_defaults(stage: Stage):
    await stage.register(triggered("a", payload={"k": "v"}, priority=JobPriority.CRITICAL))
    later = T0 + timedelta(hours=1)
    row = await row_of(stage, await stage.trigger("a", payload={}, priority=0, due_at=later, is_forced=True, key="x"))
    assert (row.payload, row.priority, row.due_at, row.scheduled_for) == ({}, 0, later, later)
    assert (row.is_forced, row.key) == (True, "x")


async def test_a_payload_comes_back_as_it_was(stage: Stage):
    payload = {
        "text": "ä\n\"'\\u0000 \U0001f600",
        "big": 12345678901234567890,
        "pi": 3.25,
        "n": None,
        "l": [1, {"a": []}],
    }
    await stage.register(triggered("a"))
    run_id = await stage.trigger("a", payload=payload)
    assert (await row_of(stage, run_id)).payload == payload
    assert (await stage.start_one()).payload == payload


async def test_a_payload_over_one_mebibyte_is_refused_by_the_database_too(stage: Stage):
    await stage.register(triggered("a"))
    with pytest.raises(sa.exc.IntegrityError):
        await stage.trigger("a", payload={"x": "y" * (1024 * 1024 + 100_000)})


async def test_an_unknown_worker_is_refused(stage: Stage):
    with pytest.raises(WorkerNotFound, match="no worker named 'nobody'"):
        await stage.trigger("nobody")
    with pytest.raises(sa.exc.IntegrityError, match=r"unknown worker|foreign key"):
        await stage.sql("INSERT INTO {p}runs (worker) VALUES ('nobody')")


async def test_a_trigger_for_a_disabled_worker_is_accepted_and_waits(stage: Stage):
    await stage.register(triggered("a"))
    await stage.sql("UPDATE {p}worker_state SET is_enabled = false, disabled_by = 'operator'")
    assert await stage.trigger("a") > 0
    assert await stage.tick() == []


async def test_a_trigger_is_part_of_the_callers_transaction(stage: Stage):
    await stage.register(triggered("a"))

    async def fail_after_enqueueing():
        async with stage.db.write() as conn:
            await enqueue(conn, stage.db.dialect, Request("a"), T0)
            raise RuntimeError("undone")

    with pytest.raises(RuntimeError, match="undone"):
        await fail_after_enqueueing()
    assert await stage.value("SELECT count(*) FROM {p}runs") == 0


async def test_enqueueing_locks_no_row_that_others_update(stage: Stage, other_stage: Stage):
    await stage.register(triggered("a", max_running=3))
    if stage.db.is_sqlite:
        return  # one writer at a time there
    async with stage.db.write() as conn:
        await enqueue(conn, stage.db.dialect, Request("a"), T0)
        async with asyncio.timeout(5):
            assert await other_stage.trigger("a") > 0
            assert len(await other_stage.tick(handlers=["a"])) == 1
            await other_stage.register(triggered("a", max_running=4))


# --- keys ---------------------------------------------------------------------------------------------------------


async def test_a_key_is_unique_among_runs_that_have_not_started(stage: Stage):
    await stage.register(triggered("a"), triggered("b"))
    first = await stage.trigger("a", key="k", payload={"n": 1})
    assert await stage.trigger("a", key="k", payload={"n": 2}) == first
    assert (await row_of(stage, first)).payload == {"n": 1}
    assert await stage.trigger("a", key="other") != first
    assert await stage.trigger("b", key="k") != first
    assert await stage.trigger("a") != await stage.trigger("a")


async def test_once_its_run_has_started_a_key_is_free_again(stage: Stage):
    await stage.register(triggered("a", max_running=5))
    first = await stage.trigger("a", key="k")
    run = await stage.start_one()
    second = await stage.trigger("a", key="k")
    assert second != first
    assert await stage.trigger("a", key="k") == second
    await stage.fail(run)  # waits again, but has started
    assert await stage.trigger("a", key="k") == second
    assert await stage.value("SELECT count(*) FROM {p}runs") == 2


async def test_an_interrupted_run_has_started_all_the_same(stage: Stage):
    await stage.register(triggered("a"))
    first = await stage.trigger("a", key="k")
    await stage.end(await stage.start_one(), OutcomeKind.INTERRUPTED)
    assert await stage.trigger("a", key="k") != first


async def test_a_live_key_is_held_until_its_run_has_ended(stage: Stage):
    await stage.register(triggered("a", max_retries=1, max_running=5))
    first = await stage.trigger("a", key="k", key_scope="live")
    assert await stage.trigger("a", key="k", key_scope="live") == first
    run = await stage.start_one()
    assert await stage.trigger("a", key="k", key_scope="live") == first
    await stage.fail(run)
    assert await stage.trigger("a", key="k", key_scope="live") == first
    stage.after(5)
    await stage.end(await stage.start_one())
    assert await stage.trigger("a", key="k", key_scope="live") != first


async def test_a_live_key_answers_those_who_ask_for_less_and_is_answered_by_any_live_run(stage: Stage):
    await stage.register(triggered("a", max_running=5))
    live = await stage.trigger("a", key="k", key_scope="live")
    await stage.tick()
    assert await stage.trigger("a", key="k", key_scope="waiting") == live
    waiting = await stage.trigger("a", key="m")
    await stage.tick()
    assert await stage.trigger("a", key="m", key_scope="live") == waiting


@pytest.mark.parametrize("scope", ["waiting", "live"])
async def test_of_many_triggers_with_one_key_at_once_one_makes_a_run(stage: Stage, other_stage: Stage, scope):
    await stage.register(triggered("a"))
    ids = await asyncio.gather(
        *(each.trigger("a", key="k", key_scope=scope) for each in (stage, other_stage) for _ in range(4))
    )
    assert len(set(ids)) == 1
    assert await stage.column("SELECT id FROM {p}runs") == [ids[0]]


async def test_a_trigger_waits_for_an_uncommitted_one_with_its_key(stage: Stage, other_stage: Stage):
    await stage.register(triggered("a"))
    async with stage.db.write() as conn:
        first = await enqueue(conn, stage.db.dialect, Request("a", key="k"), T0)
        second = asyncio.create_task(other_stage.trigger("a", key="k"))
        await asyncio.sleep(0.1)
        assert not second.done()
    assert await second == first


# --- many at once -------------------------------------------------------------------------------------------------


async def many(stage: Stage, worker: str, *payloads: str, priority: int | None = None) -> list[int]:
    async with stage.db.write() as conn:
        return await enqueue_many(conn, stage.db.dialect, worker, payloads, stage.now, priority)


async def test_many_triggers_keep_their_order_and_take_their_workers_payload_and_priority(stage: Stage):
    await stage.register(triggered("a", payload={"k": "v"}, priority=JobPriority.HIGH))
    ids = await many(stage, "a", '{"n": 1}', WORKERS_OWN, "{}")
    rows = [await row_of(stage, run_id) for run_id in ids]
    assert [(row.worker, row.payload, row.priority) for row in rows] == [
        ("a", {"n": 1}, 2),
        ("a", {"k": "v"}, 2),
        ("a", {}, 2),
    ]
    assert {(row.trigger, row.state, row.due_at, row.scheduled_for) for row in rows} == {("manual", "pending", T0, T0)}
    assert ids == sorted(ids)
    (low,) = await many(stage, "a", WORKERS_OWN, priority=0)
    assert (await row_of(stage, low)).priority == 0


async def test_thousands_of_triggers_are_enqueued_whole(stage: Stage):
    await stage.register(triggered("a"))
    ids = await many(stage, "a", *(f'{{"n": {n}, "text": "ä"}}' for n in range(12_000)))
    assert len(set(ids)) == 12_000
    for n in (0, 4999, 5000, 11_999):
        assert (await row_of(stage, ids[n])).payload == {"n": n, "text": "ä"}


async def test_payloads_of_many_mebibytes_are_enqueued_in_several_statements(stage: Stage):
    await stage.register(triggered("a"))
    ids = await many(stage, "a", *(f'{{"n": {n}, "x": "{"y" * 1_000_000}"}}' for n in range(12)))
    assert [(await row_of(stage, run_id)).payload["n"] for run_id in ids] == list(range(12))


async def test_no_triggers_at_all_are_none(stage: Stage):
    await stage.register(triggered("a"))
    assert await many(stage, "a") == []


async def test_many_triggers_of_an_unknown_worker_are_refused(stage: Stage):
    with pytest.raises(WorkerNotFound, match="nobody"):
        await many(stage, "nobody", WORKERS_OWN, "{}")
    assert await stage.value("SELECT count(*) FROM {p}runs") == 0

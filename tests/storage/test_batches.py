"""Batches, on both databases: finished when sealed with no live member; what they call is made once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jobrunner.errors import BatchNotFound, Refused, WorkerNotFound
from jobrunner.model.run import OutcomeKind, Run
from jobrunner.storage.reading.findings import Scope
from jobrunner.storage.reading.groups import list_batches, read_batch
from jobrunner.storage.reading.verify import verify
from jobrunner.storage.runs import batches, cancelling, dead_letters, finishes
from jobrunner.storage.runs.batches import NewBatch
from jobrunner.storage.runs.dead_letters import Chosen
from jobrunner.storage.runs.enqueue import enqueue_many
from jobrunner.storage.runs.finishes import Ended, finish
from jobrunner.storage.runs.retention import prune
from tests.support.stage import ACTOR, Stage, triggered

CALLS = {"on_success": "good", "on_failure": "bad", "on_finish": "over"}


@pytest.fixture
async def ready(stage: Stage) -> Stage:
    callbacks = [triggered(name, max_running=50) for name in CALLS.values()]
    await stage.register(triggered("a", max_running=50, max_retries=0, max_consecutive_failures=1000), *callbacks)
    await stage.join("n1")
    return stage


async def begin(stage: Stage, **more: Any) -> int:
    async with stage.db.write() as conn:
        return await batches.begin(conn, stage.db.dialect, NewBatch(**{**CALLS, **more}))


async def seal(stage: Stage, batch_id: int) -> None:
    await batches.seal(stage.db, batch_id, stage.now)


async def members(stage: Stage, batch_id: int, count: int) -> list[Run]:
    for _ in range(count):
        await stage.trigger("a", batch_id=batch_id)
    return [run for run in await stage.tick(50) if run.batch_id == batch_id]


async def called(stage: Stage) -> list[str]:
    """The callbacks that wait, in the order in which they were made."""
    return await stage.column("SELECT worker FROM {p}runs WHERE worker <> 'a' ORDER BY id")


async def broken(stage: Stage) -> list[str]:
    """The problems that `db verify` tells."""
    return [found.problem async for found in verify(stage.db, Scope(stage.now, 30, 90))]


async def row(stage: Stage, batch_id: int) -> dict[str, Any]:
    (found,) = await stage.rows("SELECT * FROM {p}batches WHERE id = :id", id=batch_id)
    return found


async def test_the_last_end_after_the_seal_calls_success_then_finish(ready: Stage):
    batch_id = await begin(ready, payload={"to": "ann"})
    first, second = await members(ready, batch_id, 2)
    await ready.end(first)
    await seal(ready, batch_id)
    assert await called(ready) == []
    ready.after(3)
    await ready.end(second)
    assert await called(ready) == ["good", "over"]
    found = await row(ready, batch_id)
    assert (ready.time(found["finished_at"]), found["failed_at"]) == (ready.now, None)
    ids = await ready.column("SELECT id FROM {p}runs ORDER BY id")
    assert [found["success_run_id"], found["finish_run_id"], found["failure_run_id"]] == [*ids, None]
    payloads = [run.payload for run in await ready.tick()]
    assert payloads == [{"to": "ann", "batch_id": batch_id}] * 2


async def test_an_empty_batch_finishes_when_it_is_sealed(ready: Stage):
    batch_id = await begin(ready, on_failure=None)
    await seal(ready, batch_id)
    await seal(ready, batch_id)
    assert await called(ready) == ["good", "over"]


async def test_a_batch_that_is_not_sealed_does_not_finish(ready: Stage):
    batch_id = await begin(ready)
    (run,) = await members(ready, batch_id, 1)
    await ready.end(run)
    await batches.sweep(ready.db, 0, ready.now)
    assert await called(ready) == []


@pytest.mark.parametrize("how", ["exhausted", "discarded", "cancelled"])
async def test_the_first_member_that_fails_calls_failure_at_once_and_only_once(ready: Stage, how: str):
    batch_id = await begin(ready)
    first, second, third = await members(ready, batch_id, 3)
    if how == "cancelled":
        waiting = await ready.trigger("a", batch_id=batch_id)
        await cancelling.cancel(ready.db, waiting, ready.now, ACTOR)
    else:
        await ready.fail(first, is_discard=how == "discarded")
    assert await called(ready) == ["bad"]
    await ready.fail(second)
    await seal(ready, batch_id)
    if how == "cancelled":
        await ready.end(first)
    await ready.end(third)
    assert await called(ready) == ["bad", "over"]
    assert (await row(ready, batch_id))["success_run_id"] is None


async def test_a_retry_neither_fails_nor_finishes_a_batch(ready: Stage):
    await ready.register(triggered("a", max_running=50, max_retries=1, max_consecutive_failures=1000))
    batch_id = await begin(ready)
    (run,) = await members(ready, batch_id, 1)
    await seal(ready, batch_id)
    await ready.fail(run)
    assert await called(ready) == []
    ready.after(60)
    await ready.end(await ready.start_one())
    assert await called(ready) == ["good", "over"]


async def test_two_that_end_the_last_members_at_once_call_once(ready: Stage, other_stage: Stage):
    for _ in range(10):
        batch_id = await begin(ready)
        first, second = await members(ready, batch_id, 2)
        await seal(ready, batch_id)
        other_stage.now = ready.now
        await asyncio.gather(ready.fail(first), other_stage.fail(second))
        # Of two probes at once one may leave the batch to the other, which did not see all: then the sweep does it.
        await asyncio.gather(*(batches.sweep(stage.db, 0, stage.now) for stage in (ready, other_stage)))
        assert await called(ready) == ["bad", "over"]
        await ready.run_once()


async def test_a_member_adds_members_while_it_runs(ready: Stage):
    batch_id = await begin(ready)
    (first,) = await members(ready, batch_id, 1)
    await seal(ready, batch_id)
    (second,) = await members(ready, batch_id, 1)
    await ready.end(first)
    assert await called(ready) == []
    await ready.end(second)
    assert await called(ready) == ["good", "over"]


async def test_nothing_is_added_to_a_batch_that_has_finished_or_is_none(ready: Stage):
    batch_id = await begin(ready)
    await seal(ready, batch_id)
    for unknown in (batch_id, 99):
        with pytest.raises(Refused, match=f"^batch {unknown} does not exist, or has finished; begin another$"):
            await ready.trigger("a", batch_id=unknown)
        with pytest.raises(Refused, match=f"^batch {unknown} does not exist, or has finished; begin another$"):
            async with ready.db.write() as conn:
                await enqueue_many(conn, ready.db.dialect, "a", ["{}"], ready.now, batch_id=unknown)
    async with ready.db.peek() as conn:
        with pytest.raises(Refused, match="has finished"):
            await batches.require_open(conn, batch_id)
        with pytest.raises(BatchNotFound):
            await batches.require_open(conn, 99)


async def test_a_batch_that_calls_nobody_known_is_refused(ready: Stage):
    with pytest.raises(WorkerNotFound):
        await begin(ready, on_finish="nobody")


async def test_a_replay_joins_its_batch_while_that_is_open_and_calls_nothing_twice(ready: Stage):
    batch_id = await begin(ready)
    first, second = await members(ready, batch_id, 2)
    await ready.fail(first)
    (letter,) = await ready.rows("SELECT id, batch_id FROM {p}dead_letters")
    assert letter["batch_id"] == batch_id
    await dead_letters.replay(ready.db, Chosen(ids=(letter["id"],)), ready.now, ACTOR)
    await ready.end(second)
    await seal(ready, batch_id)
    assert await called(ready) == ["bad"]
    again = next(run for run in await ready.tick() if run.worker == "a")
    assert again.batch_id == batch_id
    await ready.fail(again)
    calls = ["bad", "over"]
    assert await called(ready) == calls
    (late,) = await ready.column("SELECT id FROM {p}dead_letters WHERE status = 'open'")
    await dead_letters.replay(ready.db, Chosen(ids=(late,)), ready.now, ACTOR)
    after = next(run for run in await ready.tick() if run.worker == "a")
    assert after.batch_id is None
    await ready.end(after)
    assert await called(ready) == calls


async def test_a_replay_keeps_the_limit_key(ready: Stage):
    await ready.register(triggered("k", max_retries=0, limit_key="who", max_running_per_key=1))
    await ready.trigger("k", payload={"who": "ann"})
    await ready.fail(await ready.start_one())
    (letter,) = await ready.column("SELECT id FROM {p}dead_letters")
    await dead_letters.replay(ready.db, Chosen(ids=(letter,)), ready.now, ACTOR, payload={"who": "bob"})
    assert await ready.column("SELECT limit_key FROM {p}runs") == ["ann"]


async def test_the_sweep_does_what_a_crash_has_left(ready: Stage, monkeypatch: pytest.MonkeyPatch):
    async def crash(*_: object) -> None:
        raise OSError("the process is gone")

    failing, fine, open_one = [await begin(ready) for _ in range(3)]
    runs = await members(ready, failing, 2) + await members(ready, fine, 1)
    await members(ready, open_one, 1)
    for batch_id in (failing, fine):
        await seal(ready, batch_id)
    with monkeypatch.context() as patch:
        patch.setattr(finishes, "probe", crash)
        await ready.fail(runs[0])
        await ready.end(runs[2])
    assert await called(ready) == []
    assert await batches.sweep(ready.db, 0, ready.now) == 0
    assert sorted(await called(ready)) == ["bad", "good", "over"]
    await batches.sweep(ready.db, 0, ready.now)
    assert len(await called(ready)) == 3


async def test_a_sweep_goes_round_in_pages(ready: Stage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batches, "SWEPT_AT_ONCE", 2)
    ids = [await begin(ready, on_success=None, on_failure=None) for _ in range(3)]
    await ready.sql("UPDATE {p}batches SET sealed_at = created_at")
    after = await batches.sweep(ready.db, 0, ready.now)
    assert (after, len(await called(ready))) == (ids[1], 2)
    assert (await batches.sweep(ready.db, after, ready.now), len(await called(ready))) == (0, 3)


async def test_a_failure_that_only_history_knows_is_found_at_the_end(ready: Stage, monkeypatch: pytest.MonkeyPatch):
    async def crash(*_: object) -> None:
        raise OSError("the process is gone")

    batch_id = await begin(ready)
    first, second = await members(ready, batch_id, 2)
    with monkeypatch.context() as patch:
        patch.setattr(finishes, "probe", crash)
        await ready.fail(first)
    await seal(ready, batch_id)
    await ready.end(second)
    assert await called(ready) == ["bad", "over"]


async def test_a_batch_waits_for_a_worker_that_was_removed(ready: Stage):
    batch_id = await begin(ready)
    (run,) = await members(ready, batch_id, 1)
    await seal(ready, batch_id)
    for table in ("worker_state", "workers"):
        column = "worker" if table == "worker_state" else "name"
        await ready.sql(f"DELETE FROM {{p}}{table} WHERE {column} = 'over'")
    await ready.end(run)
    assert (await row(ready, batch_id))["finished_at"] is None
    await ready.register(triggered("over"))
    await batches.sweep(ready.db, 0, ready.now)
    assert await called(ready) == ["good", "over"]


async def test_ends_in_one_transaction_are_probed_together(ready: Stage):
    one, other = await begin(ready), await begin(ready)
    runs = await members(ready, one, 2) + await members(ready, other, 1)
    for batch_id in (one, other):
        await seal(ready, batch_id)
    ends = [Ended(run, ready.outcome()) for run in runs[:2]]
    await finish(ready.db, [*ends, Ended(runs[2], ready.outcome(OutcomeKind.FAILED))])
    assert await called(ready) == ["good", "over", "bad", "over"]


async def test_a_list_of_batches_says_how_far_each_is(ready: Stage):
    empty, running, unsealed, unknown = [await begin(ready) for _ in range(4)]
    first, _ = await members(ready, running, 2)
    for batch_id in (empty, running):
        await seal(ready, batch_id)
    await ready.fail(first)
    await ready.sql(f"UPDATE {{p}}batches SET sealed_at = created_at, on_finish = 'gone' WHERE id = {unknown}")
    async with ready.db.peek() as conn:
        found = await list_batches(conn, 10)
        assert await list_batches(conn, 2, before=unknown) == found[1:3]
        assert await read_batch(conn, running) == found[2]
        with pytest.raises(BatchNotFound):
            await read_batch(conn, 99)
    said = [(one["id"], one["state"], one["live"], one["ended"], one["why"]) for one in found]
    assert said == [
        (unknown, "sealed", 0, 0, "it calls worker 'gone', which is not in the database"),
        (unsealed, "open", 0, 0, f"batch {unsealed} is not sealed"),
        (running, "sealed", 1, 1, "not all of its members have ended"),
        (empty, "finished", 0, 0, None),
    ]


async def test_verify_finds_what_a_batch_cannot_be(ready: Stage):
    batch_id = await begin(ready)
    (run,) = await members(ready, batch_id, 1)
    await seal(ready, batch_id)
    assert await broken(ready) == []
    await ready.sql("UPDATE {p}batches SET finished_at = sealed_at")
    assert await broken(ready) == [
        f"batch {batch_id} has finished, but run {run.id} of it is live",
        f"batch {batch_id} has finished, and not called what it should",
    ]
    await ready.sql("UPDATE {p}batches SET finished_at = NULL")
    await ready.sql("UPDATE {p}runs SET batch_id = NULL")
    assert await broken(ready) == []
    ready.after(61)
    assert await broken(ready) == [f"batch {batch_id} is sealed and has no live member, and has not finished"]
    await batches.sweep(ready.db, 0, ready.now)
    assert await broken(ready) == []


async def test_batches_by_plain_sql_finish_too(ready: Stage):
    ready.now = datetime.now(UTC) + timedelta(seconds=5)  # plain SQL has the database's own time
    await ready.sql("INSERT INTO {p}batches (on_finish) VALUES ('over')")
    await ready.sql("INSERT INTO {p}runs (worker, batch_id) SELECT 'a', max(id) FROM {p}batches")
    await ready.sql("UPDATE {p}batches SET sealed_at = created_at")
    await ready.end(await ready.start_one())
    assert await called(ready) == ["over"]


async def test_batches_are_pruned_long_after_they_have_finished(ready: Stage):
    old, unsealed = [await begin(ready, on_success=None, on_finish=None) for _ in range(2)]
    await seal(ready, old)
    ready.after(91 * 86400)
    young = await begin(ready, on_success=None, on_finish=None)
    await seal(ready, young)
    assert (await prune(ready.db, ready.now, 30, 90, batch=1)).batches == 1
    assert await ready.column("SELECT id FROM {p}batches ORDER BY id") == [unsealed, young]

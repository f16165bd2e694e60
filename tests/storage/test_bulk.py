"""A bulk operation does to all that fit, and to nothing else, what it was asked to; through a crash and a stop."""

from __future__ import annotations

from typing import Any

import pytest

from jobrunner.errors import BulkNotFound, Refused, UsageError
from jobrunner.storage import bulk
from tests.support.stage import ACTOR, Stage, triggered


async def _sleep(_: float) -> None:
    pass


async def _begin(stage: Stage, action: str, text: str, **more: Any) -> int:
    seen = await bulk.preview(stage.db, action, text, stage.now)
    return await bulk.begin(stage.db, seen, stage.now, ACTOR, **more)


async def _work(stage: Stage, holder: str = "n1") -> dict[str, Any] | None:
    row = await bulk.take(stage.db, holder, stage.now)
    if row is None:
        return None
    await bulk.BulkWorker(stage.db, row, lambda: stage.now, _sleep).run()
    async with stage.db.peek() as conn:
        return await bulk.read_operation(conn, row["id"])


async def _letters(stage: Stage, *names: str) -> None:
    await stage.register(*(triggered(name, max_retries=0, max_consecutive_failures=1000) for name in set(names)))
    await stage.join("n1")
    for name in names:
        await stage.trigger(name, payload={"to": name})
        await stage.fail(await stage.start_one(), error=f"{name} timed out")


async def test_the_letters_that_fit_are_replayed_and_no_others(stage: Stage):
    await _letters(stage, *["send-a", "send-b", "other"] * 4)
    seen = await bulk.preview(stage.db, "replay", "worker:send-* error:timed", stage.now)
    assert (seen.count, len(seen.examples)) == (8, 5)
    assert await stage.column("SELECT status FROM {p}dead_letters WHERE status <> 'open'") == []
    bulk_id = await bulk.begin(stage.db, seen, stage.now, ACTOR, rate=3)
    row = await _work(stage)
    assert row is not None
    assert (row["id"], row["state"], row["done"], row["left_out"]) == (bulk_id, "done", 8, 0)
    assert sorted(await stage.column("SELECT worker FROM {p}runs")) == ["send-a"] * 4 + ["send-b"] * 4
    assert await stage.column("SELECT DISTINCT worker FROM {p}dead_letters WHERE status = 'open'") == ["other"]
    assert await stage.value("SELECT count(*) FROM {p}audit_log WHERE action = 'replay'") == 8
    assert await stage.value("SELECT count(*) FROM {p}audit_log WHERE action = 'bulk'") == 2
    assert await _work(stage) is None


async def test_what_comes_after_the_preview_is_not_touched(stage: Stage):
    await _letters(stage, "a", "a")
    seen = await bulk.preview(stage.db, "discard", "worker:a", stage.now)
    await stage.trigger("a")
    await stage.fail(await stage.start_one())
    await bulk.begin(stage.db, seen, stage.now, ACTOR)
    row = await _work(stage)
    assert row is not None
    assert row["done"] == 2
    assert await stage.value("SELECT count(*) FROM {p}dead_letters WHERE status = 'open'") == 1


async def test_after_a_crash_another_goes_on_and_everything_is_done_once(stage: Stage):
    await _letters(stage, *["a"] * 10)
    await _begin(stage, "replay", "worker:a", rate=2)
    row = await bulk.take(stage.db, "n1", stage.now)
    assert row is not None

    class KilledError(Exception):
        pass

    async def killed(_: float) -> None:
        raise KilledError

    with pytest.raises(KilledError):
        await bulk.BulkWorker(stage.db, row, lambda: stage.now, killed).run()
    assert await bulk.take(stage.db, "n2", stage.now) is None  # n1 may live still
    stage.after(bulk.HOLD_SECONDS + 100)
    done = await _work(stage, "n2")
    assert done is not None
    assert (done["state"], done["done"]) == ("done", 10)
    assert await stage.value("SELECT count(*) FROM {p}runs") == 10


async def test_who_was_taken_for_dead_does_not_go_on(stage: Stage):
    await _letters(stage, *["a"] * 6)
    await _begin(stage, "discard", "worker:a", rate=1)
    row = await bulk.take(stage.db, "n1", stage.now)
    assert row is not None

    async def stalled(_: float) -> None:
        stage.after(1000)
        assert await _work(stage, "n2") is not None

    await bulk.BulkWorker(stage.db, row, lambda: stage.now, stalled).run()
    assert await stage.value("SELECT done FROM {p}bulk_operations") == 6


async def test_a_stopped_operation_ends_where_it_is(stage: Stage):
    await _letters(stage, *["a"] * 6)
    bulk_id = await _begin(stage, "replay", "worker:a", rate=2)
    row = await bulk.take(stage.db, "n1", stage.now)
    assert row is not None

    async def stop(_: float) -> None:
        await bulk.stop(stage.db, bulk_id, stage.now, "bob@desk")

    await bulk.BulkWorker(stage.db, row, lambda: stage.now, stop).run()
    async with stage.db.peek() as conn:
        ended = await bulk.read_operation(conn, bulk_id)
    assert (ended["state"], ended["stopped_by"]) == ("stopped", "bob@desk")
    assert await stage.value("SELECT count(*) FROM {p}dead_letters WHERE status = 'open'") == 2
    with pytest.raises(Refused, match="is stopped already"):
        await bulk.stop(stage.db, bulk_id, stage.now, ACTOR)
    with pytest.raises(BulkNotFound):
        await bulk.stop(stage.db, bulk_id + 1, stage.now, ACTOR)


async def test_live_runs_are_cancelled_waiting_and_running_ones(stage: Stage):
    await stage.register(triggered("a", max_running=2), triggered("b"))
    await stage.join("n1")
    for number in range(5):
        await stage.trigger("a", payload={"n": number})
    await stage.trigger("b")
    await stage.tick(slots=1)
    await _begin(stage, "cancel", "worker:a payload.n:0", reason="wrong")
    first = await _work(stage)
    assert first is not None
    assert first["done"] == 1
    await _begin(stage, "cancel", "worker:a", reason="all of it")
    row = await _work(stage)
    assert row is not None
    assert row["state"] == "done"
    assert await stage.column("SELECT worker FROM {p}runs WHERE state = 'pending'") == ["b"]
    assert await stage.value("SELECT cancel_reason FROM {p}runs WHERE state = 'running'") == "all of it"
    assert await stage.column("SELECT DISTINCT reason FROM {p}run_history") == ["all of it"]


async def test_what_cannot_be_replayed_is_left_out_and_said(stage: Stage):
    await _letters(stage, "a", "b", "a")
    await stage.sql("DELETE FROM {p}worker_state WHERE worker = 'b'")
    await stage.sql("DELETE FROM {p}node_handlers WHERE worker = 'b'")
    await stage.sql("DELETE FROM {p}workers WHERE name = 'b'")
    await _begin(stage, "replay", "worker:*")
    row = await _work(stage)
    assert row is not None
    assert (row["state"], row["done"], row["left_out"]) == ("done", 2, 1)
    assert "letter 2" in row["last_error"]


@pytest.mark.parametrize(
    ("action", "text", "said"),
    [
        ("delete", "worker:a", "'delete' is no bulk operation"),
        ("replay", " ", "a bulk operation needs a filter"),
        ("replay", "status:replayed worker:a", "only open letters can be replayed"),
        ("cancel", "error:x", "live runs cannot be filtered by 'error'"),
    ],
)
async def test_what_is_not_meant_clearly_is_refused(stage: Stage, action: str, text: str, said: str):
    with pytest.raises(UsageError, match=said):
        await bulk.preview(stage.db, action, text, stage.now)


async def test_the_times_of_a_filter_do_not_move_on(stage: Stage):
    await _letters(stage, "a")
    stage.after(3600)
    await _begin(stage, "discard", "worker:a until:30m")
    stage.after(7200)
    await _begin(stage, "discard", "worker:a since:1h")
    assert (await _work(stage) or {})["done"] == 1
    assert (await _work(stage) or {})["done"] == 0


async def test_a_run_that_cannot_be_cancelled_keeps_no_other_from_it(stage: Stage):
    await stage.register(triggered("a"), triggered("b"))
    await stage.join("n1")
    for name in ("a", "b", "a"):
        await stage.trigger(name)
    await stage.sql("DELETE FROM {p}worker_state WHERE worker = 'b'")
    await _begin(stage, "cancel", "worker:*")
    row = await _work(stage)
    assert row is not None
    assert (row["state"], row["done"], row["left_out"]) == ("done", 2, 1)
    assert row["last_error"].startswith("run 2: ")


async def test_at_a_slow_rate_a_stop_is_noticed_within_seconds(stage: Stage):
    await _letters(stage, "a", "a")
    bulk_id = await _begin(stage, "discard", "worker:a", rate=0.01)
    row = await bulk.take(stage.db, "n1", stage.now)
    assert row is not None
    slept = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        stage.after(seconds)
        assert await bulk.take(stage.db, "n2", stage.now) is None  # it is held all the time
        if len(slept) == 3:
            await bulk.stop(stage.db, bulk_id, stage.now, ACTOR)

    await bulk.BulkWorker(stage.db, row, lambda: stage.now, sleep).run()
    assert slept == [5.0, 5.0, 5.0]
    assert await stage.value("SELECT count(*) FROM {p}dead_letters WHERE status = 'open'") == 1


async def test_a_preview_of_what_hardly_anything_fits_ends(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    await _letters(stage, *["a"] * 6)
    monkeypatch.setattr(bulk, "_MOST_PAGES", 2)
    monkeypatch.setattr(bulk, "_PAGE_ROWS", 2)
    seen = await bulk.preview(stage.db, "replay", "worker:a", stage.now)
    assert (seen.count, seen.is_cut) == (4, True)

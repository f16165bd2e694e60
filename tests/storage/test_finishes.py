"""Finishing, on both databases: history, retry, letter, streak and circuit in one fenced transaction."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa

from jobrunner.errors import DatabaseUnavailable
from jobrunner.model.run import EndsRun, OutcomeKind, RunState
from jobrunner.model.worker import CircuitState
from jobrunner.storage.records.history import MAX_TRACEBACK_BYTES, storable, tail
from jobrunner.storage.runs import cancelling, finishes
from jobrunner.storage.runs.finishes import Ended, finish
from jobrunner.storage.runs.live import News, show_news
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables import rows
from jobrunner.storage.tables.define import dead_letters
from jobrunner.storage.workers import definitions as workers
from tests.support.stage import ACTOR, T0, Stage, continuous, scheduled, triggered


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


async def claimed(stage: Stage, **fields):
    await stage.register(triggered("a", **fields))
    await stage.trigger("a", payload={"x": 1}, key="k")
    return await stage.start_one()


async def everything(stage: Stage):
    """All rows that finishing may change."""
    tables = ("runs", "run_history", "dead_letters", "worker_state")
    return [await stage.rows(f"SELECT * FROM {{p}}{table} ORDER BY 1") for table in tables]


# --- what is written ----------------------------------------------------------------------------------------------


async def test_success_moves_the_run_from_runs_to_history(stage: Stage):
    run = await claimed(stage)
    stage.after(2)
    finished = await stage.end(run, result={"rows": 3}, output="hello", duration_ms=1999)
    assert [(done.id, decided.ends_run) for done, decided in finished.written] == [(run.id, EndsRun.SUCCEEDED)]
    assert finished.stale == ()
    assert await stage.value("SELECT count(*) FROM {p}runs") == 0
    assert await stage.value("SELECT count(*) FROM {p}dead_letters") == 0
    (row,) = await stage.rows("SELECT * FROM {p}run_history")
    assert (row["run_id"], row["fence"], row["worker"], row["trigger"]) == (run.id, 1, "a", "manual")
    assert (row["attempt"], row["outcome"], row["ends_run"]) == (1, "succeeded", "succeeded")
    assert (row["duration_ms"], row["output"], row["node_id"], row["error"]) == (1999, "hello", "n1", None)
    times = [stage.time(row[name]) for name in ("scheduled_for", "due_at", "started_at", "finished_at")]
    assert times == [T0, T0, T0, T0 + seconds(2)]
    state = await stage.state("a")
    assert (state.last_run_outcome, state.last_success_at, state.total_runs) == ("succeeded", T0 + seconds(2), 1)
    assert state.last_duration_ms == 1999


async def test_a_failed_attempt_waits_to_be_tried_again_and_its_claim_is_gone(stage: Stage):
    run = await claimed(stage)
    await stage.sql("""UPDATE {p}runs SET progress = '{"at": 1}', output = 'x', output_lines = 1""")
    await stage.fail(run)
    (row,) = await stage.rows("SELECT * FROM {p}runs")
    assert (row["id"], row["state"], row["attempt"]) == (run.id, "pending", 2)
    assert stage.time(row["due_at"]) == T0 + seconds(5)
    assert stage.time(row["scheduled_for"]) == T0
    assert {row[name] for name in ("slot", "fence", "node_id", "started_at", "progress", "output", "output_lines")} == {
        None
    }
    (history,) = await stage.rows("SELECT * FROM {p}run_history")
    assert (history["outcome"], history["ends_run"], history["attempt"]) == ("failed", None, 1)
    assert (history["error_type"], history["error"], history["traceback"]) == (
        "ValueError",
        "no luck",
        "Traceback: no luck",
    )
    stage.after(4.999)
    assert await stage.tick() == []
    stage.after(0.001)
    again = await stage.start_one()
    assert (again.id, again.attempt, again.fence, again.payload) == (run.id, 2, 2, {"x": 1})
    assert (again.first_started_at, again.started_at) == (T0, T0 + seconds(5))


async def test_the_drawn_jitter_moves_the_retry(stage: Stage):
    run = await claimed(stage)
    await finish(stage.db, [Ended(run, stage.outcome(OutcomeKind.FAILED))], lambda: 0.1)
    assert stage.time(await stage.value("SELECT due_at FROM {p}runs")) == T0 + seconds(5.5)


async def test_an_exhausted_run_becomes_a_dead_letter_with_the_error_of_every_attempt(stage: Stage):
    run = await claimed(stage, max_retries=2)
    kinds = [OutcomeKind.FAILED, OutcomeKind.TIMED_OUT, OutcomeKind.LOST]
    for number, kind in enumerate(kinds, 1):
        await stage.end(run, kind, error=f"error {number}", error_type=f"E{number}")
        if number < 3:
            stage.after(60)
            run = await stage.start_one()
    assert await stage.value("SELECT count(*) FROM {p}runs") == 0
    (letter,) = await stage.rows("SELECT * FROM {p}dead_letters")
    assert (letter["run_id"], letter["worker"], letter["attempts"], letter["status"]) == (run.id, "a", 3, "open")
    assert (letter["trigger"], letter["priority"], letter["key"]) == ("manual", 1, "k")
    assert (letter["error_type"], letter["error"], letter["traceback"]) == ("E3", "error 3", "Traceback: no luck")
    assert stage.time(letter["died_at"]) == stage.now
    async with stage.db.peek() as conn:
        stored = (await conn.execute(dead_letters.select())).one()
    assert stored.payload == {"x": 1}
    assert [(error["attempt"], error["outcome"], error["error"]) for error in stored.errors] == [
        (1, "failed", "error 1"),
        (2, "timed_out", "error 2"),
        (3, "lost", "error 3"),
    ]
    attempts = await stage.rows("SELECT attempt, ends_run FROM {p}run_history ORDER BY id")
    assert [tuple(row.values()) for row in attempts] == [(1, None), (2, None), (3, "exhausted")]
    assert (await stage.state("a")).consecutive_failures == 1


async def test_a_letter_lists_no_snoozed_or_interrupted_attempt(stage: Stage):
    run = await claimed(stage, max_retries=0)
    for kind in (OutcomeKind.SNOOZED, OutcomeKind.INTERRUPTED):
        await stage.end(run, kind)
        run = await stage.start_one()
    await stage.fail(run)
    async with stage.db.peek() as conn:
        stored = (await conn.execute(dead_letters.select())).one()
    assert (stored.attempts, len(stored.errors)) == (1, 1)


async def test_a_discarded_run_has_a_letter_and_leaves_the_streak_alone(stage: Stage):
    run = await claimed(stage)
    await stage.fail(run, is_discard=True, reason="of no use")
    assert await stage.column("SELECT ends_run FROM {p}run_history") == ["discarded"]
    assert await stage.value("SELECT count(*) FROM {p}dead_letters") == 1
    assert (await stage.state("a")).consecutive_failures == 0


async def test_a_snoozed_run_waits_with_the_same_attempt(stage: Stage):
    run = await claimed(stage)
    await stage.end(run, OutcomeKind.SNOOZED, delay_seconds=30.0, reason="later")
    stage.after(30)
    again = await stage.start_one()
    assert (again.id, again.attempt, again.due_at) == (run.id, 1, T0 + seconds(30))


async def test_an_interrupted_run_is_due_as_before_with_the_same_attempt(stage: Stage):
    run = await claimed(stage)
    stage.after(9)
    await stage.end(run, OutcomeKind.INTERRUPTED)
    again = await stage.start_one(node="n2")
    assert (again.id, again.attempt, again.due_at, again.fence) == (run.id, 1, T0, 2)


async def test_a_run_lost_three_times_in_a_row_is_dead_whatever_its_retries(stage: Stage):
    run = await claimed(stage, max_retries=50)
    for _ in range(2):
        await stage.end(run, OutcomeKind.LOST)
        stage.after(60)
        run = await stage.start_one()
    await stage.end(run, OutcomeKind.LOST)
    assert await stage.column("SELECT attempts FROM {p}dead_letters") == [3]


async def test_a_run_that_was_to_be_cancelled_is_not_tried_again(stage: Stage):
    run = await claimed(stage)
    assert await cancelling.cancel(stage.db, run.id, stage.now, ACTOR) is RunState.RUNNING
    await stage.fail(run)
    assert await stage.value("SELECT count(*) FROM {p}runs") == 0
    (row,) = await stage.rows("SELECT outcome, ends_run FROM {p}run_history")
    assert tuple(row.values()) == ("failed", "cancelled")


async def test_what_no_database_can_store_is_made_storable_everywhere(stage: Stage):
    run = await claimed(stage, max_retries=0, max_consecutive_failures=1)
    bad = "nul \0 and \ud800"
    await stage.fail(run, error=bad, error_type=bad, traceback=bad, reason=bad, output=bad)
    (row,) = await stage.rows("SELECT error, error_type, traceback, reason, output FROM {p}run_history")
    assert set(row.values()) == {"nul \\0 and ?"}
    state = await stage.state("a")
    assert state.last_error == "nul \\0 and ?"
    assert not state.is_enabled  # the circuit's reason and its audit row carry the error, too
    assert await stage.value("SELECT count(*) FROM {p}dead_letters") == 1


async def test_long_errors_and_tracebacks_are_cut_to_64_kib(stage: Stage):
    run = await claimed(stage, max_retries=0)
    await stage.fail(run, error="e" * 10**6, traceback="begin" + "t" * 10**6 + "end")
    (row,) = await stage.rows("SELECT error, traceback FROM {p}run_history")
    assert len(row["error"]) == MAX_TRACEBACK_BYTES
    assert len(row["traceback"]) == MAX_TRACEBACK_BYTES
    assert row["traceback"].endswith("end")
    assert len((await stage.state("a")).last_error or "") == MAX_TRACEBACK_BYTES


def test_cutting_text_never_splits_a_character():
    assert storable("ä" * 100, 51) == "ä" * 24 + "..."
    assert tail("ä" * 100, 51) == "...\n" + "ä" * 23
    assert storable(None) is None
    assert tail(None) is None


# --- fences -------------------------------------------------------------------------------------------------------


async def test_a_stale_fence_writes_nothing(stage: Stage):
    old = await claimed(stage)
    await stage.end(old, OutcomeKind.LOST)
    stage.after(60)
    new = await stage.start_one(node="n2")
    before = await everything(stage)
    for kind in (OutcomeKind.SUCCEEDED, OutcomeKind.FAILED, OutcomeKind.CANCELLED):
        finished = await stage.end(old, kind)
        assert finished.written == ()
        assert [run.id for run in finished.stale] == [old.id]
    assert await everything(stage) == before
    finished = await stage.end(new)
    assert len(finished.written) == 1
    assert await stage.outcomes() == ["lost", "succeeded"]


async def test_a_fence_of_a_run_that_has_gone_back_to_waiting_is_stale(stage: Stage):
    run = await claimed(stage)
    await stage.end(run, OutcomeKind.INTERRUPTED)
    before = await everything(stage)
    assert (await stage.end(run)).written == ()
    assert await everything(stage) == before


async def test_an_end_written_twice_counts_once_and_is_not_called_lost(stage: Stage):
    """The answer to the first commit was lost, so the node tries again."""
    run = await claimed(stage)
    await stage.end(run)
    before = await everything(stage)
    finished = await stage.end(run)
    assert (finished.written, finished.stale) == ((), ())
    assert await everything(stage) == before


async def test_stale_ends_do_not_hold_up_those_of_the_same_batch(stage: Stage):
    await stage.register(triggered("a", max_running=5))
    for _ in range(3):
        await stage.trigger("a")
    runs = await stage.tick()
    forged = replace(runs[1], fence=99)
    finished = await finish(stage.db, [Ended(run, stage.outcome()) for run in (runs[0], forged, runs[2])], None)
    assert [run.id for run, _ in finished.written] == [runs[0].id, runs[2].id]
    assert await stage.column("SELECT id FROM {p}runs") == [runs[1].id]


async def test_guarded_writes_that_miss_a_row_roll_everything_back(stage: Stage, monkeypatch):
    await stage.register(triggered("a", max_running=5))
    await stage.trigger("a")
    await stage.trigger("a")
    runs = await stage.tick()
    before = await everything(stage)
    ends = [Ended(runs[0], stage.outcome()), Ended(runs[1], stage.outcome(OutcomeKind.FAILED))]
    real = rows.to_json

    def forged(given):
        return real({**row, "fence": 99} if "attempt" in row else row for row in given)

    monkeypatch.setattr(finishes, "to_json", forged)
    with pytest.raises(DatabaseUnavailable, match="nothing was written"):
        await finish(stage.db, ends)
    monkeypatch.undo()
    assert await everything(stage) == before


async def test_two_writers_of_one_end_write_it_once(stage: Stage, other_stage: Stage):
    await stage.register(triggered("a", max_running=5, max_retries=0))
    for _ in range(5):
        await stage.trigger("a")
    runs = await stage.tick()
    lost = [Ended(run, stage.outcome(OutcomeKind.LOST)) for run in runs]
    done = [Ended(run, stage.outcome()) for run in runs]
    both = await asyncio.gather(finish(stage.db, done), finish(other_stage.db, lost))
    assert sorted(len(finished.written) for finished in both) == [0, 5]
    assert sorted(len(finished.stale) for finished in both) == [0, 5]
    assert await stage.value("SELECT count(*) FROM {p}run_history") == 5


# --- batches ------------------------------------------------------------------------------------------------------


async def test_ends_of_one_worker_are_decided_one_after_the_other_in_the_order_of_ids(stage: Stage):
    await stage.register(triggered("a", max_running=9, max_retries=0, max_consecutive_failures=3))
    for _ in range(5):
        await stage.trigger("a")
    runs = await stage.tick()
    kinds = [OutcomeKind.FAILED, OutcomeKind.SUCCEEDED, OutcomeKind.FAILED, OutcomeKind.FAILED, OutcomeKind.FAILED]
    ends = [Ended(run, stage.outcome(kind)) for run, kind in zip(runs, kinds, strict=True)]
    await finish(stage.db, list(reversed(ends)))
    state = await stage.state("a")
    assert (state.consecutive_failures, state.disabled_by, state.total_runs) == (3, "circuit", 5)
    assert await stage.outcomes() == [str(kind) for kind in kinds]
    assert await stage.column("SELECT action FROM {p}audit_log WHERE worker = 'a'") == ["trip"]


async def test_a_large_batch_of_many_workers_is_one_transaction(stage: Stage):
    await stage.register(*(triggered(f"w{n:03}", max_running=9) for n in range(60)))
    for n in range(60):
        for _ in range(3):
            await stage.trigger(f"w{n:03}")
    runs = await stage.tick(slots=500)
    assert len(runs) == 180
    kinds = [OutcomeKind.SUCCEEDED, OutcomeKind.FAILED, OutcomeKind.INTERRUPTED]
    finished = await finish(stage.db, [Ended(run, stage.outcome(kinds[run.id % 3])) for run in runs])
    assert len(finished.written) == 180
    assert await stage.value("SELECT count(*) FROM {p}run_history") == 180
    assert await stage.value("SELECT count(*) FROM {p}runs WHERE state = 'pending'") == 120


# --- the circuit, the loop ----------------------------------------------------------------------------------------


async def test_the_circuit_opens_in_the_transaction_of_the_history_row(stage: Stage):
    await stage.register(scheduled("a", interval_seconds=60, max_retries=0, max_consecutive_failures=2))
    await stage.run_once(OutcomeKind.FAILED)
    stage.after(60)
    run = await stage.start_one()
    stage.after(150)
    await stage.fail(run)
    state = await stage.state("a")
    assert (state.is_enabled, state.disabled_by, state.circuit_state) == (False, "circuit", CircuitState.OPEN)
    assert state.disabled_reason == "2 runs in a row failed; the last: ValueError: no luck"
    assert (state.next_run_at, state.consecutive_failures, state.total_failures) == (None, 2, 2)
    (audit,) = await stage.rows("SELECT * FROM {p}audit_log WHERE worker = 'a'")
    assert (audit["actor"], audit["action"]) == ("jobrunner", "trip")
    (missed,) = await stage.rows("SELECT * FROM {p}run_history WHERE outcome = 'missed'")
    assert (missed["occurrences"], missed["reason"]) == (2, f"disabled by its circuit: {state.disabled_reason}")
    stage.after(10**6)
    assert await stage.tick() == []


async def test_a_loop_is_due_again_after_its_pause(stage: Stage):
    await stage.register(continuous("a", interval_seconds=7))
    run = await stage.start_one()
    stage.after(3)
    await stage.end(run)
    assert (await stage.state("a")).next_run_at == T0 + seconds(10)


async def test_a_finish_sees_a_definition_that_changed_while_it_waited_for_its_lock(stage: Stage, other_stage: Stage):
    await stage.register(continuous("a", interval_seconds=7))
    run = await stage.start_one()
    async with other_stage.db.write() as conn:
        stored = await workers.read_one(conn, other_stage.db.dialect, "a", lock=True)
        ending = asyncio.create_task(stage.end(run))
        await asyncio.sleep(0.1)
        await workers.write_overrides(conn, stored, {"interval_seconds": 70}, stage.now)
    await ending
    assert (await stage.state("a")).next_run_at == T0 + seconds(70)


async def test_what_a_run_says_is_written_for_its_own_claim_only_and_waits_for_nobody(stage: Stage, other_stage: Stage):
    await stage.register(triggered("a", max_running=3))
    for _ in range(3):
        await stage.trigger("a")
    first, second, third = await stage.tick(slots=3)
    before = News(first.claim_key, {"fraction": 0.5}, None, None)
    stale = News((second.id, (second.fence or 0) + 9), None, "not mine", 1)
    async with stage.db.write() as conn:
        assert await show_news(conn, stage.db.dialect, [before, stale]) == {first.claim_key}
    news = [News(run.claim_key, None, f"{run.id}", 1) for run in (first, second, third)]
    if not stage.db.is_sqlite:  # there only one writes at a time
        async with other_stage.db.write() as ending:
            await ending.execute(sa.delete(t.runs).where(t.runs.c.id == second.id))
            async with stage.db.write() as conn:
                assert await show_news(conn, stage.db.dialect, news) == {first.claim_key, third.claim_key}
    else:
        async with stage.db.write() as conn:
            await show_news(conn, stage.db.dialect, [news[0], news[2]])
    rows = await stage.rows("SELECT output, output_lines, progress FROM {p}runs WHERE slot <> 1 ORDER BY id")
    assert [(row["output"], row["output_lines"]) for row in rows] == [(str(first.id), 1), (str(third.id), 1)]
    assert rows[0]["progress"] is not None  # what is not new stays
    assert rows[1]["progress"] is None

"""What operators do, on both databases: the change and its audit row in one transaction."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

import pytest

from jobrunner.errors import InvalidWorker, Refused, RunNotFound, WorkerNotFound
from jobrunner.model.run import OutcomeKind, RunState
from jobrunner.model.worker import CircuitState
from jobrunner.policy.missed import UNTIL_RESUMED
from jobrunner.storage import nodes
from jobrunner.storage.runs import cancelling
from jobrunner.storage.runs.enqueue import Request, enqueue
from jobrunner.storage.workers import operations
from tests.support.checker import check
from tests.support.stage import ACTOR, T0, Stage, continuous, scheduled, triggered


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


async def audits(stage: Stage, *actions: str):
    """The operator's decisions, newest last: action, worker and detail."""
    rows = await stage.rows(f"SELECT * FROM {{p}}audit_log WHERE actor = '{ACTOR}' ORDER BY id")
    found = []
    for row in rows:
        detail = json.loads(row["detail"]) if isinstance(row["detail"], str) else row["detail"]
        found.append((row["action"], row["worker"], detail))
        assert stage.time(row["at"]) == stage.now or len(rows) > 1
    return found


# --- disable, enable ----------------------------------------------------------------------------------------------


async def test_disabling_stops_starts_keeps_the_reason_and_is_audited(stage: Stage):
    await stage.register(scheduled("a", interval_seconds=60))
    await stage.trigger("a")
    await operations.disable(stage.db, "a", stage.now, ACTOR, "maintenance")
    state = await stage.state("a")
    assert (state.is_enabled, state.disabled_by, state.disabled_reason) == (False, "operator", "maintenance")
    assert state.next_run_at is None
    assert await audits(stage) == [("disable", "a", {"reason": "maintenance"})]
    stage.after(10**6)
    assert await stage.tick() == []


async def test_disabling_records_what_was_missed_and_enabling_goes_on_after_now(stage: Stage):
    await stage.register(scheduled("a", interval_seconds=60))
    await stage.join("n1")
    await stage.run_once()
    stage.after(65)
    await operations.disable(stage.db, "a", stage.now, ACTOR, None)
    (row,) = await stage.rows("SELECT * FROM {p}run_history WHERE outcome = 'missed'")
    assert (row["occurrences"], row["reason"], row["worker"]) == (1, "disabled by ann@desk: no reason given", "a")
    stage.after(3600)
    state = await operations.enable(stage.db, "a", stage.now, ACTOR)
    assert state.next_run_at == T0 + seconds(3720)
    assert (await stage.state("a")).next_run_at == state.next_run_at
    assert await stage.outcomes() == ["succeeded", "missed", "missed"]


async def test_enabling_zeroes_the_streak_and_notes_from_where_it_counts(stage: Stage):
    await stage.register(triggered("a", max_retries=0, max_consecutive_failures=2), triggered("b", max_retries=0))
    for name in "aba":
        await stage.trigger(name)
        await stage.run_once(OutcomeKind.FAILED)
    assert (await stage.state("a")).disabled_by == "circuit"
    await operations.enable(stage.db, "a", stage.now, ACTOR)
    state = await stage.state("a")
    assert (state.is_enabled, state.consecutive_failures, state.circuit_state) == (True, 0, CircuitState.CLOSED)
    last = await stage.value("SELECT max(id) FROM {p}run_history WHERE worker = 'a'")
    assert await stage.column("SELECT streak_since_id FROM {p}worker_state ORDER BY worker") == [last, 0]
    assert await audits(stage) == [("enable", "a", {"was_enabled": False, "consecutive_failures": 2})]
    await stage.trigger("a")
    await stage.run_once(OutcomeKind.FAILED)
    assert (await stage.state("a")).consecutive_failures == 1


async def test_an_operators_disable_ends_the_cooldown(stage: Stage):
    await stage.register(triggered("a", max_retries=0, max_consecutive_failures=1, cooldown_seconds=10))
    await stage.trigger("a")
    await stage.run_once(OutcomeKind.FAILED)
    await operations.disable(stage.db, "a", stage.now, ACTOR, None)
    await stage.trigger("a")
    stage.after(10**6)
    assert await stage.tick() == []


async def test_a_probe_that_ends_after_an_operator_disabled_moves_nothing(stage: Stage):
    await stage.register(triggered("a", max_retries=0, max_consecutive_failures=1, cooldown_seconds=10))
    await stage.trigger("a")
    await stage.run_once(OutcomeKind.FAILED)
    await stage.trigger("a")
    stage.after(10)
    probe = await stage.start_one()
    await operations.disable(stage.db, "a", stage.now, ACTOR, "no more")
    await stage.end(probe)
    state = await stage.state("a")
    assert (state.is_enabled, state.disabled_by, state.disabled_reason) == (False, "operator", "no more")


async def test_operations_on_unknown_workers_change_nothing(stage: Stage):
    for operation in (
        operations.enable(stage.db, "nobody", T0, ACTOR),
        operations.disable(stage.db, "nobody", T0, ACTOR, None),
        operations.pause(stage.db, "nobody", T0, ACTOR, UNTIL_RESUMED, None),
        operations.resume(stage.db, "nobody", T0, ACTOR),
        operations.set_values(stage.db, "nobody", {"max_retries": 1}, T0, ACTOR),
        operations.unset_values(stage.db, "nobody", ["max_retries"], T0, ACTOR),
        operations.remove(stage.db, "nobody", T0, ACTOR),
    ):
        with pytest.raises(WorkerNotFound):
            await operation
    assert await audits(stage) == []


# --- pause, resume ------------------------------------------------------------------------------------------------


async def test_a_paused_worker_starts_nothing_until_its_pause_ends(stage: Stage):
    await stage.register(scheduled("a", interval_seconds=60))
    await stage.run_once()
    await operations.pause(stage.db, "a", stage.now, ACTOR, T0 + seconds(150), "upgrade")
    await stage.trigger("a")
    assert await audits(stage) == [
        ("pause", "a", {"until": f"{T0 + seconds(150):%Y-%m-%dT%H:%M:%S.%fZ}", "reason": "upgrade"})
    ]
    assert await stage.next_due_at() == T0 + seconds(150)
    stage.after(149)
    assert await stage.tick() == []
    stage.after(1)
    await stage.run_once()
    stage.after(30)
    assert (await stage.start_one()).scheduled_for == T0 + seconds(180)
    assert await stage.outcomes() == ["succeeded", "missed", "succeeded"]


async def test_pausing_records_what_was_missed_so_far(stage: Stage):
    await stage.register(scheduled("a", interval_seconds=60))
    await stage.join("n1")
    stage.after(61)
    await operations.pause(stage.db, "a", stage.now, ACTOR, UNTIL_RESUMED, None)
    (row,) = await stage.rows("SELECT * FROM {p}run_history")
    assert (row["outcome"], row["occurrences"], row["reason"]) == ("missed", 2, "paused until resumed, by ann@desk")


async def test_resuming_ends_a_pause(stage: Stage):
    await stage.register(continuous("a"), scheduled("b", interval_seconds=60))
    for name in "ab":
        await operations.pause(stage.db, name, stage.now, ACTOR, UNTIL_RESUMED, None)
    stage.after(90)
    assert await stage.tick() == []
    for name in "ab":
        await operations.resume(stage.db, name, stage.now, ACTOR)
    stage.after(60)
    assert await stage.started() == ["a", "b"]
    assert (await audits(stage))[-1][0] == "resume"


async def test_a_loop_that_is_paused_while_it_runs_goes_on_when_it_is_resumed(stage: Stage):
    await stage.register(continuous("a"))
    run = await stage.start_one()
    await operations.pause(stage.db, "a", stage.now, ACTOR, UNTIL_RESUMED, None)
    await stage.end(run)
    stage.after(3600)
    assert await stage.tick() == []
    await operations.resume(stage.db, "a", stage.now, ACTOR)
    stage.after(0.001)
    assert await stage.started() == ["a"]


# --- set, unset ---------------------------------------------------------------------------------------------------


async def test_setting_a_value_is_audited_with_old_and_new(stage: Stage):
    await stage.register(scheduled("a", interval_seconds=60))
    await stage.run_once()
    values = {"interval_seconds": 30, "priority": "HIGH"}
    merged = (await operations.set_values(stage.db, "a", values, stage.now, ACTOR)).after
    assert (merged.interval_seconds, int(merged.priority)) == (30, 2)
    (audit,) = await audits(stage)
    assert audit[0] == "set"
    assert audit[2]["old"]["interval_seconds"] == 60
    assert audit[2]["new"]["interval_seconds"] == 30
    assert (await stage.state("a")).next_run_at == T0 + seconds(30)
    assert await stage.value("SELECT priority FROM {p}worker_state") == 2


async def test_a_cron_and_an_interval_take_each_others_place(stage: Stage):
    await stage.register(scheduled("a", interval_seconds=60))
    await operations.set_values(stage.db, "a", {"cron": "0 * * * *"}, stage.now, ACTOR)
    assert (await stage.stored("a")).config.interval_seconds is None
    await operations.set_values(stage.db, "a", {"interval_seconds": 5}, stage.now, ACTOR)
    stored = await stage.stored("a")
    assert (stored.config.cron, stored.overrides) == (None, {"interval_seconds": 5})
    assert [detail for _, _, detail in await audits(stage)] == [
        {
            "old": {"cron": None, "interval_seconds": 60},
            "new": {"cron": "0 * * * *", "interval_seconds": None},
        },
        {
            "old": {"interval_seconds": None, "cron": "0 * * * *"},
            "new": {"interval_seconds": 5, "cron": None},
        },
    ]


@pytest.mark.parametrize(
    "values", [{"max_retries": -1}, {"cron": "nonsense"}, {"handler": "x"}, {"nonsense": 1}, {"priority": "urgent"}]
)
async def test_what_cannot_be_set_changes_nothing(stage: Stage, values):
    await stage.register(scheduled("a"))
    before = await stage.stored("a")
    with pytest.raises(InvalidWorker):
        await operations.set_values(stage.db, "a", values, stage.now, ACTOR)
    assert await stage.stored("a") == before
    assert await audits(stage) == []


async def test_overrides_that_cannot_be_read_are_not_written_over(stage: Stage):
    await stage.register(triggered("a"))
    deep = '{"n":' + "[" * 700 + "]" * 700 + "}"
    await stage.sql(f"UPDATE {{p}}workers SET overrides = '{deep}'")
    with pytest.raises(Refused, match="cannot be read: it is nested 701 deep"):
        await operations.set_values(stage.db, "a", {"max_retries": 1}, stage.now, "me")


async def test_unsetting_what_is_not_set_is_refused(stage: Stage):
    await stage.register(scheduled("a"))
    with pytest.raises(Refused, match="no override of max_retries"):
        await operations.unset_values(stage.db, "a", ["max_retries"], stage.now, ACTOR)


async def test_unsetting_brings_back_what_code_said(stage: Stage):
    await stage.register(scheduled("a", max_retries=1))
    await operations.set_values(stage.db, "a", {"max_retries": 9, "max_running": 2}, stage.now, ACTOR)
    await operations.unset_values(stage.db, "a", ["max_retries"], stage.now, ACTOR)
    stored = await stage.stored("a")
    assert (stored.config.max_retries, stored.overrides) == (1, {"max_running": 2})
    assert (await audits(stage))[-1] == ("unset", "a", {"old": {"max_retries": 9}, "new": {"max_retries": 1}})


# --- cancel -------------------------------------------------------------------------------------------------------


async def test_cancelling_a_waiting_run_ends_it_at_once(stage: Stage):
    await stage.register(triggered("a"))
    run_id = await stage.trigger("a")
    state = await cancelling.cancel(stage.db, run_id, stage.now, ACTOR, "a mistake")
    assert state is RunState.PENDING
    assert await stage.value("SELECT count(*) FROM {p}runs") == 0
    (row,) = await stage.rows("SELECT * FROM {p}run_history")
    assert (row["run_id"], row["outcome"], row["ends_run"], row["reason"]) == (
        run_id,
        "cancelled",
        "cancelled",
        "a mistake",
    )
    assert (row["fence"], row["started_at"]) == (None, None)
    assert await audits(stage) == [("cancel", "a", {"run_id": run_id, "state": "pending", "reason": "a mistake"})]
    assert (await stage.state("a")).last_run_outcome is None


async def test_cancelling_a_run_that_waits_to_be_tried_again_ends_it(stage: Stage):
    await stage.register(triggered("a"))
    run_id = await stage.trigger("a")
    await stage.fail(await stage.start_one())
    await cancelling.cancel(stage.db, run_id, stage.now, ACTOR)
    assert await stage.outcomes() == ["failed", "cancelled"]
    assert (await stage.state("a")).consecutive_failures == 0


async def test_cancelling_a_running_run_asks_it_to_stop(stage: Stage):
    await stage.register(triggered("a"))
    run_id = await stage.trigger("a")
    run = await stage.start_one()
    assert await cancelling.cancel(stage.db, run_id, stage.now, ACTOR) is RunState.RUNNING
    assert stage.time(await stage.value("SELECT cancel_requested_at FROM {p}runs")) == stage.now
    await stage.end(run, OutcomeKind.CANCELLED)
    assert await stage.column("SELECT ends_run FROM {p}run_history") == ["cancelled"]


async def test_a_loop_goes_on_after_its_waiting_run_was_cancelled(stage: Stage):
    await stage.register(continuous("a", interval_seconds=5))
    run = await stage.start_one()
    await stage.end(run, OutcomeKind.SNOOZED, delay_seconds=900.0)
    await cancelling.cancel(stage.db, run.id, stage.now, ACTOR)
    assert (await stage.state("a")).next_run_at == T0 + seconds(5)


async def test_cancelling_what_is_not_live_is_not_found(stage: Stage):
    await stage.register(triggered("a"))
    run_id = await stage.trigger("a")
    await stage.run_once()
    for unknown in (run_id, 999_999):
        with pytest.raises(RunNotFound):
            await cancelling.cancel(stage.db, unknown, stage.now, ACTOR)


async def test_a_run_is_cancelled_or_claimed_never_both(stage: Stage, other_stage: Stage):
    await stage.register(triggered("a", max_running=30))
    ids = [await stage.trigger("a") for _ in range(20)]
    other_stage.now = stage.now

    async def cancel(run_id: int) -> RunState:
        return await cancelling.cancel(other_stage.db, run_id, stage.now, ACTOR)

    async def claim() -> list[int]:
        return [run.id for _ in range(10) for run in await stage.tick(slots=2)]

    started, *states = await asyncio.gather(claim(), *(cancel(run_id) for run_id in ids))
    ended = await stage.column("SELECT run_id FROM {p}run_history")
    assert sorted([*started, *ended]) == ids
    for run_id, state in zip(ids, states, strict=True):
        assert (state is RunState.PENDING) == (run_id in ended)


# --- remove -------------------------------------------------------------------------------------------------------


async def test_removing_takes_definition_and_state_and_leaves_history_and_letters(stage: Stage):
    await stage.register(triggered("a", max_retries=0, blocks=["b"], depends_on=["c"]), triggered("b"), triggered("c"))
    for name in "ca":
        await stage.trigger(name)
        (run,) = await stage.tick()
        await stage.end(run, OutcomeKind.FAILED if name == "a" else OutcomeKind.SUCCEEDED)
    await operations.remove(stage.db, "a", stage.now, ACTOR)
    assert await stage.column("SELECT name FROM {p}workers ORDER BY name") == ["b", "c"]
    assert await stage.column("SELECT worker FROM {p}worker_state ORDER BY worker") == ["b", "c"]
    assert await stage.value("SELECT count(*) FROM {p}worker_blocks") == 0
    assert await stage.column("SELECT worker FROM {p}run_history ORDER BY id") == ["c", "a"]
    assert await stage.column("SELECT worker FROM {p}dead_letters") == ["a"]
    assert (await audits(stage))[-1][:2] == ("remove", "a")


async def test_a_worker_that_is_new_again_goes_on_from_its_history(stage: Stage):
    await stage.register(triggered("a", max_retries=0))
    await stage.trigger("a")
    failed = await stage.start_one()
    await stage.fail(failed)
    await operations.remove(stage.db, "a", stage.now, ACTOR)
    await stage.register(triggered("a", max_retries=0))
    assert (await stage.state("a")).consecutive_failures == 0
    await stage.trigger("a")
    again = await stage.start_one()
    assert again.fence is not None
    assert failed.fence is not None
    assert again.fence > failed.fence
    await stage.fail(again)
    assert check(stage.url) == []


async def test_a_worker_with_live_runs_is_not_removed(stage: Stage):
    await stage.register(triggered("a"))
    await stage.trigger("a")
    with pytest.raises(Refused, match="1 live run; "):
        await operations.remove(stage.db, "a", stage.now, ACTOR)


async def test_a_worker_whose_code_a_live_node_has_is_not_removed(stage: Stage):
    await stage.register(triggered("a"))
    await stage.join("n1", ["a"])
    with pytest.raises(Refused, match="pid 4711"):
        await operations.remove(stage.db, "a", stage.now, ACTOR)
    async with stage.db.write() as conn:
        await nodes.set_state(conn, "n1", "stopped", stage.now)
    await operations.remove(stage.db, "a", stage.now, ACTOR)


@pytest.mark.parametrize("relation", ["depends_on", "blocks"])
async def test_a_worker_that_another_is_tied_to_is_not_removed(stage: Stage, relation):
    await stage.register(triggered("a"), triggered("b", **{relation: ["a"]}))
    with pytest.raises(Refused, match="b depends on 'a' or blocks it"):
        await operations.remove(stage.db, "a", stage.now, ACTOR)


async def test_a_run_that_is_being_enqueued_keeps_its_worker_from_being_removed(stage: Stage, other_stage: Stage):
    await stage.register(triggered("a"))
    async with stage.db.write() as conn:
        await enqueue(conn, stage.db.dialect, Request("a"), T0)
        removing = asyncio.create_task(operations.remove(other_stage.db, "a", T0, ACTOR))
        await asyncio.sleep(0.1)
        assert not removing.done()
    with pytest.raises(Refused, match="1 live run; "):
        await removing

"""Times of a schedule that pass while a worker is off, or without a node for it: one row, with the cause and author."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from jobrunner.model.run import OutcomeKind
from jobrunner.model.worker import Isolation
from jobrunner.policy.missed import UNTIL_RESUMED
from jobrunner.policy.schedule import COUNTED_AT_MOST
from jobrunner.storage import nodes
from jobrunner.storage.database import wakeups
from jobrunner.storage.runs import facts as reading
from jobrunner.storage.runs.claims import claim_due
from jobrunner.storage.runs.looks import Claimer
from jobrunner.storage.workers import operations
from tests.support.planted import broken
from tests.support.stage import ACTOR, T0, Stage, continuous, scheduled, triggered

OTHER = "root@vm"


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


async def missed(stage: Stage, worker: str = "a") -> list[tuple[float, float, int, str]]:
    """What the worker has missed: the first and last time in seconds after T0, how many, and why."""
    sql = "SELECT * FROM {p}run_history WHERE outcome = 'missed' AND worker = :worker ORDER BY id"
    rows = await stage.rows(sql, worker=worker)
    assert await broken(stage) == []

    def after(value: Any) -> float:
        return (stage.time(value) - T0).total_seconds()

    return [(after(row["scheduled_for"]), after(row["due_at"]), row["occurrences"], row["reason"]) for row in rows]


async def minutely(stage: Stage, **more: Any) -> None:
    """A worker `a` that runs every minute and has run once, and a node for it."""
    await stage.register(scheduled("a", interval_seconds=60, max_retries=0, max_consecutive_failures=1, **more))
    await stage.join("n1")
    await stage.run_once()


async def gone(stage: Stage, node: str = "n1", state: str = "stopped") -> None:
    async with stage.db.write() as conn:
        await nodes.set_state(conn, node, state, stage.now)


# --- disabled, paused, circuit open -------------------------------------------------------------------------------


async def test_enabling_records_what_passed_while_disabled_and_by_whom(stage: Stage):
    await minutely(stage)
    stage.after(10)
    await operations.disable(stage.db, "a", stage.now, OTHER, "maintenance")
    stage.after(3600)
    assert await stage.tick() == []
    assert await missed(stage) == []
    state = await operations.enable(stage.db, "a", stage.now, ACTOR)
    told = [(60, 3600, 60, "disabled by root@vm: maintenance")]
    assert await missed(stage) == told
    assert (state.next_run_at, state.missed_from, state.disabled_actor) == (T0 + seconds(3660), None, None)
    await operations.enable(stage.db, "a", stage.now, ACTOR)
    stage.after(60)
    await stage.run_once()
    assert await missed(stage) == told


async def test_what_passed_is_counted_up_to_a_thousand(stage: Stage):
    await minutely(stage)
    await operations.disable(stage.db, "a", stage.now, OTHER, "maintenance")
    stage.after(10**6)
    await operations.enable(stage.db, "a", stage.now, ACTOR)
    assert [row[2] for row in await missed(stage)] == [COUNTED_AT_MOST]


@pytest.mark.parametrize("when", [{"cron": "*/5 * * * *", "timezone": "Europe/Berlin"}, {"interval_seconds": 300}])
async def test_what_never_ran_misses_its_times_too(stage: Stage, when: dict[str, Any]):
    await stage.register(scheduled("a", **when))
    await stage.join("n1")
    await operations.disable(stage.db, "a", stage.now, OTHER, "not yet")
    stage.after(920)
    await operations.enable(stage.db, "a", stage.now, ACTOR)
    assert (await missed(stage))[-1] == (300, 900, 3, "disabled by root@vm: not yet")


async def test_nothing_passed_nothing_recorded(stage: Stage):
    await minutely(stage)
    stage.after(1)
    await operations.disable(stage.db, "a", stage.now, OTHER, "maintenance")
    stage.after(1)
    await operations.enable(stage.db, "a", stage.now, ACTOR)
    await operations.pause(stage.db, "a", stage.now, OTHER, T0 + seconds(30), None)
    stage.after(60)
    await stage.run_once()
    assert await stage.outcomes() == ["succeeded", "succeeded"]


@pytest.mark.parametrize("make", [triggered, continuous])
async def test_what_has_no_schedule_misses_nothing(stage: Stage, make: Any):
    await stage.register(make("a"))
    await stage.join("n1")
    stage.after(60)
    await operations.disable(stage.db, "a", stage.now, OTHER, "maintenance")
    stage.after(3600)
    await operations.enable(stage.db, "a", stage.now, ACTOR)
    await operations.pause(stage.db, "a", stage.now, OTHER, stage.now + seconds(60), None)
    stage.after(3600)
    await stage.run_once()
    assert await missed(stage) == []


async def test_resuming_records_what_passed_while_paused(stage: Stage):
    await minutely(stage)
    stage.after(10)
    await operations.pause(stage.db, "a", stage.now, OTHER, UNTIL_RESUMED, "deploy")
    stage.after(600)
    await operations.resume(stage.db, "a", stage.now, ACTOR)
    assert await missed(stage) == [(60, 600, 10, "paused until resumed, by root@vm: deploy")]
    assert (await stage.state("a")).paused_by is None


async def test_the_first_claim_after_a_pause_records_what_passed_and_clears_it(stage: Stage):
    await minutely(stage)
    await operations.pause(stage.db, "a", stage.now, OTHER, T0 + seconds(3590), None)
    stage.after(3599)
    assert await stage.tick() == []
    assert await missed(stage) == []
    stage.after(1 + 125)  # two more are passed over, once the pause has ended
    assert (await stage.run_once())[0].scheduled_for == T0 + seconds(3720)
    told = [
        (60, 3540, 59, "paused until 2026-03-02 12:59:50 UTC, by root@vm"),
        (3600, 3660, 2, "passed over for a later time (misfire run_once)"),
    ]
    assert await missed(stage) == told
    state = await stage.state("a")
    assert (state.paused_until, state.paused_by, state.missed_from) == (None, None, None)
    stage.after(60)
    await stage.run_once()
    assert await missed(stage) == told


async def test_a_waiting_run_may_be_the_first_claim_after_a_pause(stage: Stage):
    await minutely(stage)
    await operations.pause(stage.db, "a", stage.now, OTHER, T0 + seconds(130), "deploy")
    await stage.trigger("a")
    stage.after(140)
    await stage.run_once()
    told = [(60, 120, 2, "paused until 2026-03-02 12:02:10 UTC, by root@vm: deploy")]
    assert await missed(stage) == told
    stage.after(45)
    assert (await stage.run_once())[0].scheduled_for == T0 + seconds(180)
    assert await missed(stage) == told


async def test_a_forced_run_during_a_pause_leaves_it_as_it_is(stage: Stage):
    await minutely(stage)
    await operations.pause(stage.db, "a", stage.now, OTHER, T0 + seconds(130), "deploy")
    stage.after(70)
    await stage.trigger("a", is_forced=True)
    await stage.run_once()
    assert await missed(stage) == []
    assert (await stage.state("a")).paused_until == T0 + seconds(130)


async def test_disabled_while_paused_says_each_for_its_time(stage: Stage):
    await minutely(stage)
    await operations.pause(stage.db, "a", stage.now, OTHER, T0 + seconds(600), "deploy")
    stage.after(130)
    await operations.disable(stage.db, "a", stage.now, ACTOR, "maintenance")
    stage.after(120)
    await operations.enable(stage.db, "a", stage.now, ACTOR)
    stage.after(470)
    await stage.run_once()
    paused = "paused until 2026-03-02 12:10:00 UTC, by root@vm: deploy"
    assert [row for row in await missed(stage) if not row[3].startswith("passed over")] == [
        (60, 120, 2, paused),
        (180, 240, 2, "disabled by ann@desk: maintenance"),
        (300, 540, 5, paused),
    ]


async def test_enabling_records_what_passed_while_the_circuit_was_open(stage: Stage):
    await minutely(stage)
    stage.after(60)
    await stage.run_once(OutcomeKind.FAILED)
    stage.after(600)
    await operations.enable(stage.db, "a", stage.now, ACTOR)
    why = "disabled by its circuit: 1 run in a row failed; the last: ValueError: no luck"
    assert await missed(stage) == [(120, 660, 10, why)]


async def test_the_probe_and_the_closing_record_what_passed_until_then(stage: Stage):
    await minutely(stage, cooldown_seconds=300)
    stage.after(60)
    await stage.run_once(OutcomeKind.FAILED)
    stage.after(360)
    probe = await stage.start_one()
    why = "disabled by its circuit: 1 run in a row failed; the last: ValueError: no luck"
    until_probe = (120, 300, 4, why)
    passed_over = (360, 360, 1, "passed over for a later time (misfire run_once)")
    assert await missed(stage) == [until_probe, passed_over]
    stage.after(150)
    await stage.end(probe)
    assert await missed(stage) == [until_probe, passed_over, (480, 540, 2, why)]
    assert (await stage.state("a")).next_run_at == T0 + seconds(600)


async def test_a_schedule_that_changes_meanwhile_ends_what_is_counted_by_the_old_one(stage: Stage):
    await minutely(stage)
    await operations.disable(stage.db, "a", stage.now, OTHER, "maintenance")
    stage.after(150)
    await operations.set_values(stage.db, "a", {"interval_seconds": 100}, stage.now, ACTOR)
    stage.after(300)
    await operations.enable(stage.db, "a", stage.now, ACTOR)
    why = "disabled by root@vm: maintenance"
    assert await missed(stage) == [(60, 120, 2, why), (200, 400, 3, why)]


# --- no live node -------------------------------------------------------------------------------------------------


async def test_the_first_claim_says_that_no_live_node_could_run_it(stage: Stage):
    await minutely(stage)
    stage.after(150)  # 60 and 120 were passed over while a node lived
    await gone(stage)
    stage.after(3450)
    await stage.join("n2")
    stage.after(130)
    assert (await stage.start_one(node="n2")).scheduled_for == T0 + seconds(3720)
    rule = "passed over for a later time (misfire run_once)"
    assert await missed(stage) == [
        (60, 120, 2, rule),
        (180, 3540, 57, "no live node could run it"),
        (3600, 3660, 2, rule),
    ]


async def test_a_live_node_without_the_code_cannot_run_it(stage: Stage):
    await stage.register(scheduled("a", interval_seconds=60), triggered("b"))
    await stage.join("n1", ["a"])
    await stage.run_once()
    await gone(stage)
    await stage.join("n2", ["b"])
    stage.after(3610)
    await stage.join("n3", ["a"])
    await stage.start_one(node="n3")
    assert await missed(stage) == [(60, 3540, 59, "no live node could run it")]


async def test_a_command_waits_for_a_node_that_allows_commands(stage: Stage):
    command = {"isolation": Isolation.COMMAND, "handler": "", "payload": {"command": ["true"]}}
    await stage.register(scheduled("a", interval_seconds=60, **command))
    await stage.join("n1", [])
    stage.after(3610)
    await gone(stage)
    await stage.join("n2", [], allows_commands=True)
    await stage.sql(f"UPDATE {{p}}worker_state SET last_due_at = '{T0 - seconds(60):%Y-%m-%d %H:%M:%S.000000}'")
    claimed = await claim_due(stage.db, Claimer("n2", reading.Here((), allows_commands=True)), 5, lambda: stage.now)
    assert len(claimed.claims) == 1
    assert await missed(stage) == [(0, 3540, 60, "no live node could run it")]


async def test_a_node_that_has_not_beaten_for_long_counts_as_gone(stage: Stage):
    await minutely(stage)
    stage.after(3610)
    await stage.join("n2")
    await stage.start_one(node="n2")
    assert await missed(stage) == [(60, 3540, 59, "no live node could run it")]


async def test_while_a_node_lives_the_rule_is_the_reason(stage: Stage):
    await stage.register(scheduled("a", interval_seconds=60), triggered("b", blocks=["a"]))
    await stage.join("n1")
    await stage.run_once()
    await stage.trigger("b")
    run = await stage.start_one()
    stage.after(200)
    await stage.join("n2")
    await stage.end(run)
    await stage.run_once()
    assert await missed(stage) == [(60, 120, 2, "passed over for a later time (misfire run_once)")]


async def test_disabling_what_no_node_could_run_says_so(stage: Stage):
    await minutely(stage)
    stage.after(10)
    await gone(stage)
    stage.after(600)
    await operations.disable(stage.db, "a", stage.now, OTHER, "maintenance")
    assert await missed(stage) == [(60, 600, 10, "no live node could run it")]


# --- races, kills -------------------------------------------------------------------------------------------------


async def test_a_kill_in_the_middle_leaves_all_as_it_was(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    await minutely(stage)
    await operations.disable(stage.db, "a", stage.now, OTHER, "maintenance")
    stage.after(610)

    async def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(wakeups, "notify", die)
        with pytest.raises(KeyboardInterrupt):
            await operations.enable(stage.db, "a", stage.now, ACTOR)
    assert not (await stage.state("a")).is_enabled
    assert await missed(stage) == []
    await operations.enable(stage.db, "a", stage.now, ACTOR)
    assert len(await missed(stage)) == 1


async def test_two_who_enable_at_once_record_it_once(stage: Stage, other_stage: Stage):
    await minutely(stage)
    await operations.disable(stage.db, "a", stage.now, OTHER, "maintenance")
    stage.after(610)
    await asyncio.gather(*(operations.enable(each.db, "a", stage.now, ACTOR) for each in (stage, other_stage)))
    assert len(await missed(stage)) == 1


async def test_two_nodes_record_a_pause_that_has_ended_once(stage: Stage, other_stage: Stage):
    await minutely(stage)
    await stage.join("n2")
    await operations.pause(stage.db, "a", stage.now, OTHER, T0 + seconds(600), None)
    stage.after(610)
    other_stage.now, other_stage._names = stage.now, stage._names
    claims = await asyncio.gather(stage.tick(node="n1"), other_stage.tick(node="n2"))
    assert sum(len(runs) for runs in claims) == 1
    assert len(await missed(stage)) == 1

"""Registering, on both databases: only what changed is written, operators' overrides survive, schedules move on."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from jobrunner.errors import DependencyCycle, InvalidWorker, WorkerNotFound
from jobrunner.model.run import OutcomeKind
from jobrunner.model.worker import Dependency, DependencyCondition, JobPriority, WorkerConfig
from jobrunner.policy.missed import UNTIL_RESUMED
from jobrunner.storage.runs.finishes import Ended, finish
from jobrunner.storage.workers import definitions as workers
from jobrunner.storage.workers import operations
from jobrunner.storage.workers.repairs import sweep
from tests.support.stage import ACTOR, T0, Stage, continuous, scheduled, triggered


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


async def edges(stage: Stage):
    dependencies = await stage.rows("SELECT * FROM {p}worker_dependencies ORDER BY worker, depends_on")
    blocks = await stage.rows("SELECT * FROM {p}worker_blocks ORDER BY worker, blocks")
    return [tuple(row.values()) for row in dependencies], [tuple(row.values()) for row in blocks]


# --- what is written ----------------------------------------------------------------------------------------------


async def test_a_new_worker_is_written_whole(stage: Stage):
    config = scheduled(
        "a",
        handler="app:work",
        cron="*/5 * * * *",
        timezone="Europe/Berlin",
        jitter_seconds=3,
        timeout_seconds=7.5,
        max_retries=1,
        priority="HIGH",
        cooldown_seconds=60,
        max_running=4,
        misfire="skip",
        isolation="process",
        memory_limit_mb=512,
        payload={"k": [1, "ä"]},
        description="does things",
    )
    registered = await stage.register(config)
    assert (registered.added, registered.changed, registered.kept_newer) == (("a",), (), ())
    stored = await stage.stored("a")
    assert stored.config == config
    assert (stored.overrides, stored.definition_version) == ({}, None)
    assert stored.definition["cron"] == "*/5 * * * *"
    assert stored.state.is_enabled
    assert await stage.value("SELECT priority FROM {p}worker_state") == 2


async def test_when_new_workers_are_due_first(stage: Stage):
    await stage.register(
        scheduled("interval"), scheduled("cron", cron="0 * * * *"), continuous("loop"), triggered("triggered")
    )
    due = {name: (await stage.state(name)).next_run_at for name in ("interval", "cron", "loop", "triggered")}
    assert due == {"interval": T0, "cron": T0 + seconds(3600), "loop": T0, "triggered": None}


async def test_relations_are_written_with_their_conditions(stage: Stage):
    edge = Dependency("b", DependencyCondition.FRESH, 60.0)
    await stage.register(triggered("a", depends_on=[edge, "c"], blocks=["b"]), triggered("b"), triggered("c"))
    assert await edges(stage) == ([("a", "b", "fresh", 60.0), ("a", "c", "succeeded", None)], [("a", "b")])
    assert (await stage.stored("a")).config.depends_on == (edge, Dependency("c"))


async def test_unchanged_definitions_are_not_written_again(stage: Stage):
    await stage.register(scheduled("a"), scheduled("b"))
    before = await stage.rows("SELECT * FROM {p}workers ORDER BY name")
    stage.after(60)
    registered = await stage.register(scheduled("a"), scheduled("b"))
    assert (registered.added, registered.changed) == ((), ())
    assert await stage.rows("SELECT * FROM {p}workers ORDER BY name") == before


async def test_only_the_definitions_that_changed_are_written(stage: Stage):
    await stage.register(scheduled("a"), scheduled("b"))
    stage.after(60)
    registered = await stage.register(scheduled("a", max_retries=9), scheduled("b"), scheduled("c"))
    assert (registered.added, registered.changed) == (("c",), ("a",))
    rows = await stage.rows("SELECT name, updated_at, max_retries FROM {p}workers ORDER BY name")
    assert [(row["name"], stage.time(row["updated_at"]) - T0, row["max_retries"]) for row in rows] == [
        ("a", seconds(60), 9),
        ("b", seconds(0), 3),
        ("c", seconds(60), 3),
    ]


async def test_relations_that_code_dropped_are_gone_and_others_stay(stage: Stage):
    await stage.register(triggered("a", depends_on=["b"], blocks=["c"]), triggered("b", blocks=["c"]), triggered("c"))
    await stage.register(triggered("a", depends_on=["c"]), triggered("b", blocks=["c"]), triggered("c"))
    assert await edges(stage) == ([("a", "c", "succeeded", None)], [("b", "c")])


async def test_registering_never_touches_enabled_pause_or_streak(stage: Stage):
    await stage.register(scheduled("a", max_retries=0, max_consecutive_failures=9))
    await stage.run_once(OutcomeKind.FAILED)
    await operations.pause(stage.db, "a", stage.now, ACTOR, T0 + seconds(900), None)
    await operations.disable(stage.db, "a", stage.now, ACTOR, "maintenance")
    before = await stage.state("a")
    await stage.register(scheduled("a", interval_seconds=7, max_retries=1))
    assert await stage.state("a") == replace(before, missed_from=T0 + seconds(7))  # times pass by the new interval


async def test_a_worker_whose_code_is_gone_stays(stage: Stage):
    await stage.register(scheduled("a"), scheduled("b"))
    await stage.register(scheduled("b"))
    assert await stage.column("SELECT name FROM {p}workers ORDER BY name") == ["a", "b"]


async def test_registering_is_one_transaction(stage: Stage):
    await stage.register(scheduled("a"))
    with pytest.raises(InvalidWorker):
        await stage.register(scheduled("a", max_retries=9), scheduled("b", depends_on=["nobody"]))
    assert await stage.column("SELECT name FROM {p}workers") == ["a"]
    assert (await stage.stored("a")).config.max_retries == 3


async def test_two_nodes_that_register_at_once_both_succeed(stage: Stage, other_stage: Stage):
    mine = [scheduled(f"w{n}", blocks=["x"], depends_on=["y"]) for n in range(20)]
    others = [scheduled(f"w{n}", depends_on=["y"]) for n in reversed(range(10, 30))]
    shared = [triggered("x"), triggered("y")]
    await asyncio.gather(stage.register(*mine, *shared), other_stage.register(*others, *shared))
    assert await stage.value("SELECT count(*) FROM {p}workers") == 32
    assert await stage.value("SELECT count(*) FROM {p}worker_state") == 32


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("relation", "words"), [("depends_on", "depends on"), ("blocks", "blocks")])
async def test_a_relation_to_a_name_that_nobody_knows_is_refused(stage: Stage, relation, words):
    with pytest.raises(InvalidWorker, match=rf"worker 'a': {words} 'nobody', which is known neither in code nor"):
        await stage.register(triggered("a", **{relation: ["nobody"]}))
    assert await stage.value("SELECT count(*) FROM {p}workers") == 0


async def test_a_relation_to_a_worker_that_only_the_database_knows_is_accepted(stage: Stage):
    await stage.register(triggered("b"), triggered("c"))
    await stage.register(triggered("a", depends_on=["b"], blocks=["c"]))
    assert await edges(stage) == ([("a", "b", "succeeded", None)], [("a", "c")])


async def test_a_cycle_is_refused_and_shown_as_a_path(stage: Stage):
    with pytest.raises(DependencyCycle, match="a -> b -> c -> a"):
        await stage.register(
            triggered("a", depends_on=["b"]), triggered("b", depends_on=["c"]), triggered("c", depends_on=["a"])
        )


async def test_a_cycle_through_what_only_the_database_knows_is_refused(stage: Stage):
    await stage.register(triggered("a"), triggered("b", depends_on=["a"]))
    with pytest.raises(DependencyCycle, match="a -> b -> a"):
        await stage.register(triggered("a", depends_on=["b"]))


async def test_a_cycle_that_the_same_start_resolves_is_accepted(stage: Stage):
    await stage.register(triggered("a"), triggered("b", depends_on=["a"]))
    await stage.register(triggered("a", depends_on=["b"]), triggered("b"))
    assert await edges(stage) == ([("a", "b", "succeeded", None)], [])


async def test_an_unknown_worker_is_not_found(stage: Stage):
    with pytest.raises(WorkerNotFound):
        await stage.stored("nobody")


# --- versions -----------------------------------------------------------------------------------------------------


async def test_a_lower_version_never_overwrites_a_higher_one(stage: Stage):
    await stage.register(triggered("a", max_retries=2), version=2)
    registered = await stage.register(triggered("a", max_retries=1), triggered("b"), version=1)
    assert (registered.added, registered.changed, registered.kept_newer) == (("b",), (), ("a",))
    stored = await stage.stored("a")
    assert (stored.config.max_retries, stored.definition_version) == (2, 2)
    assert (await stage.register(triggered("a", max_retries=3), version=3)).changed == ("a",)


async def test_without_versions_the_last_start_wins(stage: Stage):
    await stage.register(triggered("a", max_retries=2))
    await stage.register(triggered("a", max_retries=1))
    assert (await stage.stored("a")).config.max_retries == 1


async def test_a_higher_version_of_the_same_definition_is_noted(stage: Stage):
    await stage.register(triggered("a", max_retries=2), version=1)
    await stage.register(triggered("a", max_retries=2), version=2)
    await stage.register(triggered("a", max_retries=1), version=1)
    assert (await stage.stored("a")).config.max_retries == 2


# --- overrides ----------------------------------------------------------------------------------------------------


async def test_a_deploy_never_undoes_an_operator(stage: Stage):
    await stage.register(scheduled("a", interval_seconds=60, max_retries=1))
    await operations.set_values(stage.db, "a", {"interval_seconds": 30}, stage.now, ACTOR)
    await stage.register(scheduled("a", interval_seconds=600, max_retries=2))
    stored = await stage.stored("a")
    assert (stored.config.interval_seconds, stored.config.max_retries) == (30, 2)
    assert stored.definition["interval_seconds"] == 600
    await operations.unset_values(stage.db, "a", ["interval_seconds"], stage.now, ACTOR)
    assert (await stage.stored("a")).config.interval_seconds == 600


async def test_setting_two_values_at_once_from_two_places_keeps_both(stage: Stage, other_stage: Stage):
    await stage.register(triggered("a"))
    await asyncio.gather(
        *(
            operations.set_values(each.db, "a", {field: value}, T0, ACTOR)
            for each, field, value in [
                (stage, "max_retries", 7),
                (other_stage, "timeout_seconds", 9),
                (stage, "max_running", 3),
                (other_stage, "description", "x"),
            ]
        )
    )
    stored = await stage.stored("a")
    assert stored.overrides == {"max_retries": 7, "timeout_seconds": 9, "max_running": 3, "description": "x"}
    assert (stored.config.max_retries, stored.config.timeout_seconds, stored.config.max_running) == (7, 9, 3)


async def test_a_deploy_sees_an_override_that_was_set_while_it_waited_for_the_lock(stage: Stage, other_stage: Stage):
    await stage.register(triggered("a"))
    async with stage.db.write() as conn:
        stored = await workers.read_one(conn, stage.db.dialect, "a", lock=True)
        deploying = asyncio.create_task(other_stage.register(triggered("a", timeout_seconds=5)))
        await asyncio.sleep(0.1)
        await workers.write_overrides(conn, stored, {"max_retries": 7}, T0)
    await deploying
    config = (await stage.stored("a")).config
    assert (config.max_retries, config.timeout_seconds) == (7, 5)


# --- schedules that change ----------------------------------------------------------------------------------------


async def ran_at(stage: Stage, *configs: WorkerConfig) -> None:
    await stage.register(*configs)
    await stage.run_once()


async def test_a_changed_interval_counts_from_the_last_due_time(stage: Stage):
    await ran_at(stage, scheduled("a", interval_seconds=600))
    stage.after(100)
    await stage.register(scheduled("a", interval_seconds=300))
    assert (await stage.state("a")).next_run_at == T0 + seconds(300)


async def test_a_changed_interval_is_not_due_before_now_and_nothing_counts_as_missed(stage: Stage):
    await ran_at(stage, scheduled("a", interval_seconds=600))
    stage.after(1900)
    await stage.register(scheduled("a", interval_seconds=60))
    assert (await stage.state("a")).next_run_at == stage.now
    await stage.run_once()
    assert await stage.outcomes() == ["succeeded", "succeeded"]


async def test_a_new_cron_takes_its_next_time(stage: Stage):
    await ran_at(stage, scheduled("a", interval_seconds=60))
    stage.after(700)
    await stage.register(scheduled("a", cron="30 * * * *"))
    assert (await stage.state("a")).next_run_at == T0 + seconds(1800)


async def test_a_worker_that_becomes_triggered_has_no_next_time_and_a_loop_is_due_now(stage: Stage):
    await ran_at(stage, scheduled("a"), scheduled("b"))
    stage.after(5)
    await stage.register(triggered("a"), continuous("b"))
    assert (await stage.state("a")).next_run_at is None
    assert (await stage.state("b")).next_run_at == stage.now


async def test_a_changed_priority_moves_the_schedule_in_the_starting_order(stage: Stage):
    await ran_at(stage, scheduled("a", interval_seconds=60), scheduled("b", interval_seconds=60))
    await stage.register(scheduled("b", interval_seconds=60, priority=JobPriority.CRITICAL))
    await operations.set_values(stage.db, "a", {"priority": "LOW"}, stage.now, ACTOR)
    assert await stage.column("SELECT priority FROM {p}worker_state ORDER BY worker") == [0, 3]
    stage.after(60)
    assert await stage.started(slots=1) == ["b"]


async def test_a_changed_schedule_of_a_paused_worker_waits_for_the_end_of_the_pause(stage: Stage):
    await ran_at(stage, scheduled("a", interval_seconds=60))
    await operations.pause(stage.db, "a", stage.now, ACTOR, T0 + seconds(600), None)
    await stage.register(scheduled("a", interval_seconds=7))
    state = await stage.state("a")
    assert state.next_run_at is not None
    assert T0 + seconds(600) <= state.next_run_at < T0 + seconds(607)


async def test_a_changed_schedule_of_a_disabled_worker_plans_nothing(stage: Stage):
    await ran_at(stage, scheduled("a", interval_seconds=60))
    await operations.disable(stage.db, "a", stage.now, ACTOR, None)
    await stage.register(scheduled("a", interval_seconds=7))
    assert (await stage.state("a")).next_run_at is None


async def test_a_live_run_keeps_the_values_it_was_claimed_with(stage: Stage):
    await stage.register(triggered("a", max_retries=0, retry_delay_seconds=1))
    await stage.trigger("a")
    (claim,) = (await stage.claim()).claims
    await stage.register(triggered("a", max_retries=9, retry_delay_seconds=77))
    await finish(stage.db, [Ended(claim.run, stage.outcome(OutcomeKind.FAILED), claim.config)])
    assert await stage.column("SELECT ends_run FROM {p}run_history") == ["exhausted"]


# --- clocks that went back ----------------------------------------------------------------------------------------


async def test_a_next_time_too_far_ahead_is_computed_again(stage: Stage):
    await ran_at(stage, scheduled("a", interval_seconds=60), continuous("b"), scheduled("c", cron="0 * * * *"))
    stage.now = T0 - timedelta(days=1)
    assert len((await sweep(stage.db, stage.now)).schedules) == 3
    for name, period in (("a", 60), ("b", 1), ("c", 3600)):
        next_run_at = (await stage.state(name)).next_run_at
        assert next_run_at is not None
        assert stage.now < next_run_at <= stage.now + seconds(period)


async def test_next_times_that_are_right_are_left_alone(stage: Stage):
    await ran_at(stage, scheduled("a", interval_seconds=60), continuous("b"), triggered("c"), scheduled("d"))
    await operations.disable(stage.db, "d", stage.now, ACTOR, None)
    await operations.pause(stage.db, "a", stage.now, ACTOR, T0 + timedelta(days=9), None)
    await operations.pause(stage.db, "b", stage.now, ACTOR, UNTIL_RESUMED, None)
    stage.after(1)
    before = [await stage.state(name) for name in "abcd"]
    assert (await sweep(stage.db, stage.now)).is_nothing
    assert [await stage.state(name) for name in "abcd"] == before


async def test_an_enabled_loop_that_lost_its_next_time_gets_one_again(stage: Stage):
    await stage.register(continuous("a"), continuous("b"))
    await stage.tick(handlers=["b"])
    await stage.sql("UPDATE {p}worker_state SET next_run_at = NULL")
    assert (await sweep(stage.db, stage.now)).schedules == ["a"]
    assert (await stage.state("a")).next_run_at is not None
    assert (await stage.state("b")).next_run_at is None  # its run is live


async def test_an_old_override_never_keeps_new_code_from_starting(stage: Stage):
    await stage.register(scheduled("a", interval_seconds=60))
    await operations.set_values(stage.db, "a", {"interval_seconds": 30}, stage.now, ACTOR)
    await stage.register(triggered("a"))
    row = (await stage.rows("SELECT execution_mode, interval_seconds FROM {p}workers"))[0]
    assert (row["execution_mode"], row["interval_seconds"]) == ("triggered", None)
    await stage.register(scheduled("a", interval_seconds=90))
    assert await stage.value("SELECT interval_seconds FROM {p}workers") == 30  # it was kept, and fits again

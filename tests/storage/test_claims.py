"""Claiming, on both databases: what starts, in which slot, under which fence, and what never starts together."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from itertools import pairwise

import pytest
import sqlalchemy as sa

from jobrunner.model.facts import Gate, Start
from jobrunner.model.run import OutcomeKind, RunState, Trigger
from jobrunner.model.worker import CircuitState, Dependency, DependencyCondition, JobPriority
from jobrunner.policy.gates import View
from jobrunner.storage.runs import cancelling, claims
from jobrunner.storage.runs.claims import Nothing, Passed
from jobrunner.storage.runs.live import read_claims
from jobrunner.storage.workers import operations
from tests.support.stage import ACTOR, T0, Stage, continuous, scheduled, triggered

DECISIONS = "SELECT action FROM {p}audit_log WHERE worker = 'a' ORDER BY id"


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


# --- waiting runs -------------------------------------------------------------------------------------------------


async def test_a_waiting_run_is_claimed_whole(stage: Stage):
    await stage.register(triggered("a", timeout_seconds=7))
    run_id = await stage.trigger("a", payload={"x": 1})
    stage.after(3)
    (claim,) = (await stage.claim(node="n7")).claims
    run = claim.run
    assert (run.id, run.worker, run.trigger, run.state) == (run_id, "a", Trigger.MANUAL, RunState.RUNNING)
    assert (run.slot, run.fence, run.node_id, run.attempt) == (0, 1, "n7", 1)
    assert (run.started_at, run.first_started_at, run.due_at) == (T0 + seconds(3), T0 + seconds(3), T0)
    assert run.payload == {"x": 1}
    assert claim.config.timeout_seconds == 7
    assert (await stage.state("a")).last_run_at == T0 + seconds(3)


async def test_a_claimed_run_is_not_claimed_again(stage: Stage, other_stage: Stage):
    await stage.register(triggered("a", max_running=5))
    await stage.trigger("a")
    assert await stage.started() == ["a"]
    assert await stage.started() == []
    assert await other_stage.started(node="n2", handlers=["a"]) == []


async def test_every_claim_takes_a_greater_fence(stage: Stage):
    await stage.register(triggered("a", max_running=2))
    fences: list[int] = []
    for _ in range(3):
        await stage.trigger("a")
        await stage.trigger("a")
        runs = await stage.tick()
        fences += [run.fence or 0 for run in runs]
        for run in runs:
            await stage.end(run)
    run_id = await stage.trigger("a")
    for _ in range(3):
        run = await stage.start_one()
        assert run.id == run_id
        fences.append(run.fence or 0)
        await stage.end(run, OutcomeKind.INTERRUPTED)
    assert fences[0] > 0
    assert all(one < other for one, other in pairwise(fences))
    assert (await stage.state("a")).last_fence == fences[-1]


async def test_no_more_runs_are_claimed_than_slots_are_free(stage: Stage):
    await stage.register(triggered("a", max_running=9))
    for _ in range(6):
        await stage.trigger("a")
    claimed = await stage.claim(slots=4)
    assert len(claimed.claims) == 4
    assert await stage.claim(slots=0) == Passed()


async def test_runs_take_the_lowest_free_slots(stage: Stage):
    await stage.register(triggered("a", max_running=3))
    for _ in range(4):
        await stage.trigger("a")
    first = await stage.tick()
    assert [run.slot for run in first] == [0, 1, 2]
    await stage.end(first[1])
    assert (await stage.start_one()).slot == 1


async def test_starting_order_is_priority_then_due_time_then_id(stage: Stage):
    await stage.register(triggered("a", max_running=9), triggered("b", max_running=9, priority=JobPriority.HIGH))
    late = await stage.trigger("a")
    older = await stage.trigger("a", due_at=T0 - seconds(60))
    high = await stage.trigger("b")
    low = await stage.trigger("b", priority=0, due_at=T0 - seconds(600))
    same = await stage.trigger("a")
    order = [(await stage.start_one(slots=1)).id for _ in range(5)]
    assert order == [high, older, late, same, low]


async def test_a_run_that_is_not_due_waits_and_the_next_due_time_is_told(stage: Stage):
    await stage.register(triggered("a"), scheduled("b", interval_seconds=100))
    await stage.run_once()
    await stage.trigger("a", due_at=T0 + seconds(50))
    claimed = await stage.claim()
    assert isinstance(claimed, Nothing)
    assert claimed.next_due_at == T0 + seconds(50)
    stage.after(50)
    assert await stage.started() == ["a"]
    assert await stage.next_due_at() == T0 + seconds(100)


async def test_a_row_inserted_with_plain_sql_is_claimed_with_the_workers_priority(stage: Stage):
    await stage.register(triggered("a", priority=JobPriority.HIGH), triggered("b"))
    await stage.sql("""INSERT INTO {p}runs (worker, payload) VALUES ('a', '{"to": "x"}')""")
    await stage.sql("INSERT INTO {p}runs (worker) VALUES ('b')")
    stage.now = T0.replace(year=2100)
    runs = [await stage.start_one(slots=1) for _ in range(2)]
    assert [(run.worker, run.priority, run.payload, run.attempt) for run in runs] == [
        ("a", 2, {"to": "x"}, 1),
        ("b", 1, {}, 1),
    ]


async def test_a_worker_without_code_here_is_left_to_others(stage: Stage):
    await stage.register(triggered("a"), triggered("b"))
    await stage.trigger("a")
    await stage.trigger("b")
    assert await stage.started(handlers=["b"]) == ["b"]
    assert await stage.started(handlers=["a"], node="n2") == ["a"]


async def test_a_saturated_worker_with_many_waiting_runs_holds_up_no_other(stage: Stage):
    await stage.register(triggered("a", priority=JobPriority.CRITICAL), triggered("b"))
    for _ in range(30):
        await stage.trigger("a")
    await stage.trigger("b")
    assert await stage.started(slots=2) == ["a", "b"]


async def test_due_schedules_that_are_stuck_hold_up_no_other_however_many(stage: Stage):
    stuck = [scheduled(f"stuck{n:03}", depends_on=["never"]) for n in range(150)]
    await stage.register(triggered("never"), *stuck)
    stage.after(1)
    await stage.register(scheduled("z"))
    assert await stage.started(slots=1) == ["z"]


# --- schedules and loops ------------------------------------------------------------------------------------------


async def test_a_due_schedule_becomes_a_running_run_and_its_grid_begins_with_the_first(stage: Stage):
    await stage.register(scheduled("a", interval_seconds=60, payload={"k": "v"}, priority=JobPriority.LOW))
    at = stage.after(10)
    run = await stage.start_one()
    assert (run.trigger, run.state, run.scheduled_for, run.due_at) == (Trigger.SCHEDULE, RunState.RUNNING, at, at)
    assert (run.payload, run.priority, run.fence, run.slot, run.attempt) == ({"k": "v"}, 0, 1, 0, 1)
    state = await stage.state("a")
    assert (state.next_run_at, state.last_due_at, state.last_run_at) == (at + seconds(60), at, at)
    assert await stage.outcomes() == []


async def test_a_schedule_keeps_its_grid_however_late_it_is_served(stage: Stage):
    await stage.register(scheduled("a", interval_seconds=60))
    await stage.run_once()
    stage.after(75)
    (run,) = await stage.run_once()
    assert run.scheduled_for == T0 + seconds(60)
    assert (await stage.state("a")).next_run_at == T0 + seconds(120)


@pytest.mark.parametrize(
    ("misfire", "runs_for", "missed"),
    [("run_once", [180], [(60, 120, 2)]), ("run_all", [60, 120, 180], []), ("skip", [180], [(60, 120, 2)])],
)
async def test_what_comes_of_several_due_times_is_the_misfire_rules_choice(stage: Stage, misfire, runs_for, missed):
    await stage.register(scheduled("a", interval_seconds=60, misfire=misfire))
    await stage.run_once()
    stage.after(185)
    for offset in runs_for:
        (run,) = await stage.run_once()
        assert run.scheduled_for == T0 + seconds(offset)
    assert await stage.started() == []
    rows = await stage.rows("SELECT * FROM {p}run_history WHERE outcome = 'missed' ORDER BY id")
    found = [(stage.time(row["scheduled_for"]), stage.time(row["due_at"]), row["occurrences"]) for row in rows]
    assert found == [(T0 + seconds(first), T0 + seconds(last), count) for first, last, count in missed]
    assert all(f"misfire {misfire}" in row["reason"] for row in rows)
    assert (await stage.state("a")).next_run_at == T0 + seconds(240)


async def test_skip_runs_nothing_that_is_more_than_sixty_seconds_late(stage: Stage):
    await stage.register(scheduled("a", interval_seconds=600, misfire="skip"))
    await stage.run_once()
    stage.after(1300)
    claimed = await stage.claim()
    assert claimed.claims == ()
    assert isinstance(claimed, Passed)  # so that the node looks again at once
    (row,) = await stage.rows("SELECT * FROM {p}run_history WHERE outcome = 'missed'")
    assert (row["occurrences"], row["run_id"], row["fence"]) == (2, None, None)
    state = await stage.state("a")
    assert (state.next_run_at, state.last_due_at) == (T0 + seconds(1800), T0 + seconds(1200))
    assert await stage.next_due_at() == T0 + seconds(1800)


async def test_at_most_one_live_run_comes_from_the_schedule(stage: Stage):
    await stage.register(scheduled("a", interval_seconds=60, max_running=5))
    first = await stage.start_one()
    stage.after(60)
    assert await stage.started() == []
    await stage.fail(first)  # waits to be tried again: still live
    assert await stage.started() == []
    stage.after(5)
    again = await stage.start_one()
    assert (again.id, again.attempt, again.scheduled_for) == (first.id, 2, T0)
    await stage.end(again)
    assert (await stage.start_one()).scheduled_for == T0 + seconds(60)


async def test_a_loop_runs_again_its_pause_after_its_end(stage: Stage):
    await stage.register(continuous("a", interval_seconds=2))
    run = await stage.start_one()
    assert (run.trigger, run.scheduled_for) == (Trigger.CONTINUOUS, T0)
    assert (await stage.state("a")).next_run_at is None
    stage.after(10)
    assert await stage.started() == []
    await stage.end(run)
    assert await stage.next_due_at() == T0 + seconds(12)
    stage.after(2)
    assert (await stage.start_one()).scheduled_for == T0 + seconds(12)


async def test_a_triggered_worker_is_never_started_by_a_schedule(stage: Stage):
    await stage.register(triggered("a"))
    stage.after(10**6)
    claimed = await stage.claim()
    assert claimed == Nothing(None)


async def test_a_worker_of_any_mode_can_be_triggered(stage: Stage):
    await stage.register(scheduled("a"), continuous("b"), triggered("c"))
    await stage.run_once()
    for name in "abc":
        await stage.trigger(name)
    assert await stage.started() == ["a", "b", "c"]


# --- dependencies, blocks, force ----------------------------------------------------------------------------------


async def test_a_dependent_waits_for_a_success_and_for_an_idle_dependency(stage: Stage):
    await stage.register(triggered("a", max_retries=1), triggered("b", depends_on=["a"]))
    await stage.trigger("b")
    assert await stage.started() == []  # never ran
    await stage.trigger("a")
    a = await stage.start_one()
    assert await stage.started() == []  # is running
    await stage.fail(a)
    assert await stage.started() == []  # waits to be tried again
    stage.after(5)
    await stage.fail(await stage.start_one())
    assert await stage.started() == []  # its last run failed
    await stage.trigger("a")
    assert await stage.started() == ["a"]  # due too, and goes first
    await stage.end((await claims_of(stage, "n1"))[0])
    assert await stage.started() == ["b"]


async def claims_of(stage: Stage, node: str):
    async with stage.db.peek() as conn:
        return await read_claims(conn, node)


async def test_a_cancelled_extra_run_of_a_dependency_changes_nothing(stage: Stage):
    await stage.register(triggered("a"), triggered("b", depends_on=["a"]))
    await stage.trigger("a")
    await stage.run_once()
    extra = await stage.trigger("a", due_at=T0 + seconds(60))
    await cancelling.cancel(stage.db, extra, stage.now, ACTOR)
    await stage.trigger("b")
    assert await stage.started() == ["b"]


async def test_pruning_history_does_not_unmeet_a_dependency(stage: Stage):
    await stage.register(triggered("a"), triggered("b", depends_on=["a"]))
    await stage.trigger("a")
    await stage.run_once()
    await stage.sql("DELETE FROM {p}run_history")
    await stage.trigger("b")
    assert await stage.started() == ["b"]


async def test_a_fresh_dependency_serves_one_start_and_its_retries(stage: Stage):
    edge = Dependency("a", DependencyCondition.FRESH)
    await stage.register(triggered("a"), triggered("b", depends_on=[edge], max_running=3))
    await stage.trigger("a")
    await stage.run_once()
    stage.after(1)
    first = await stage.trigger("b")
    await stage.trigger("b")
    run = await stage.start_one()
    assert run.id == first
    await stage.fail(run)
    stage.after(5)
    again = await stage.start_one()  # the other run is due before it, and is not fresh
    assert (again.id, again.attempt) == (first, 2)


async def test_blocks_hold_in_both_directions(stage: Stage):
    await stage.register(triggered("a", blocks=["b"]), triggered("b"))
    for first, second in ("ab", "ba"):
        await stage.trigger(first)
        run = await stage.start_one()
        await stage.trigger(second)
        assert await stage.started() == []
        await stage.end(run)
        (other,) = await stage.run_once()
        assert other.worker == second


async def test_counterparts_due_at_once_start_one_after_the_other(stage: Stage):
    await stage.register(triggered("a", blocks=["b"]), triggered("b"), triggered("c"))
    for name in "abc":
        await stage.trigger(name)
    assert await stage.started() == ["a", "c"]


async def test_a_stopping_run_keeps_slot_and_blocks(stage: Stage):
    await stage.register(triggered("a", blocks=["b"]), triggered("b"))
    await stage.trigger("a")
    await stage.tick()
    await stage.sql("UPDATE {p}runs SET state = 'stopping'")
    await stage.trigger("a")
    await stage.trigger("b")
    assert await stage.started() == []


async def test_neither_of_two_busy_counterparts_starves_the_other(stage: Stage):
    await stage.register(
        triggered("a", blocks=["b"], max_running=2), triggered("b", max_running=2), triggered("c", max_running=20)
    )
    for _ in range(6):
        await stage.trigger("a")
        stage.after(0.5)
        await stage.trigger("b")
        stage.after(0.5)
    order = []
    for _ in range(40):
        for run in await stage.tick():
            order.append(run.worker)
            stage.after(1)
        for run in await claims_of(stage, "n1"):
            await stage.end(run)
    assert sorted(order) == ["a"] * 6 + ["b"] * 6
    assert "bb" not in "".join(order)[:6]
    assert set(order[:4]) == {"a", "b"}


async def test_force_opens_enabled_paused_and_dependencies_and_nothing_else(stage: Stage):
    await stage.register(triggered("never"), triggered("a", depends_on=["never"]), triggered("x", blocks=["a"]))
    await operations.disable(stage.db, "a", stage.now, ACTOR, None)
    await operations.pause(stage.db, "a", stage.now, ACTOR, T0 + seconds(900), None)
    await stage.trigger("a")
    assert await stage.started() == []
    forced = await stage.trigger("a", is_forced=True)
    await stage.trigger("x")
    blocking = await stage.start_one(slots=1, handlers=["x"])
    assert await stage.started() == []
    await stage.end(blocking)
    assert await stage.started(handlers=["x"]) == []
    run = await stage.start_one()
    assert (run.id, run.is_forced) == (forced, True)
    await stage.trigger("a", is_forced=True)
    assert await stage.started() == []  # max_running
    await stage.fail(run)
    stage.after(5)
    again = await stage.tick()
    assert len(again) == 1
    assert again[0].is_forced
    (row,) = await stage.rows("SELECT is_forced FROM {p}run_history WHERE worker = 'a'")
    assert row["is_forced"]


# --- the circuit --------------------------------------------------------------------------------------------------


async def open_circuit(stage: Stage) -> None:
    await stage.register(triggered("a", max_retries=0, max_consecutive_failures=2, cooldown_seconds=90, max_running=9))
    for _ in range(2):
        await stage.trigger("a")
        await stage.run_once(OutcomeKind.FAILED)


async def test_only_the_first_run_in_order_is_the_probe(stage: Stage):
    await open_circuit(stage)
    ids = [await stage.trigger("a") for _ in range(3)]
    assert await stage.next_due_at() == T0 + seconds(90)
    stage.after(90)
    probe = await stage.start_one()
    assert probe.id == ids[0]
    state = await stage.state("a")
    assert (state.circuit_state, state.probe_run_id, state.is_enabled) == (CircuitState.HALF_OPEN, probe.id, False)
    assert await stage.started() == []
    assert await stage.column(DECISIONS) == ["trip", "probe"]
    await stage.end(probe)
    assert await stage.started() == ["a", "a"]
    assert (await stage.state("a")).is_enabled
    assert await stage.column(DECISIONS) == ["trip", "probe", "close"]


async def test_a_failing_probe_opens_the_circuit_for_twice_as_long(stage: Stage):
    await open_circuit(stage)
    await stage.trigger("a")
    await stage.trigger("a")
    stage.after(90)
    await stage.fail(await stage.start_one())
    state = await stage.state("a")
    assert (state.circuit_state, state.probe_at, state.consecutive_failures) == (
        CircuitState.OPEN,
        T0 + seconds(270),
        3,
    )
    stage.after(179)
    assert await stage.started() == []
    stage.after(1)
    assert await stage.started() == ["a"]


@pytest.mark.parametrize("kind", [OutcomeKind.INTERRUPTED, OutcomeKind.SNOOZED])
async def test_an_interrupted_or_snoozed_probe_stays_the_probe(stage: Stage, kind):
    await open_circuit(stage)
    first = await stage.trigger("a")
    await stage.trigger("a", priority=3)
    await stage.sql(f"UPDATE {{p}}runs SET priority = 3 WHERE id = {first}")
    stage.after(90)
    probe = await stage.start_one()
    await stage.end(probe, kind)
    await stage.trigger("a", priority=3, due_at=T0 - seconds(60))
    assert (await stage.start_one()).id == probe.id


async def test_when_a_waiting_probe_is_cancelled_the_next_run_is_the_probe(stage: Stage):
    await open_circuit(stage)
    first, second = await stage.trigger("a"), await stage.trigger("a")
    stage.after(90)
    await stage.end(await stage.start_one(), OutcomeKind.INTERRUPTED)
    await cancelling.cancel(stage.db, first, stage.now, ACTOR)
    assert (await stage.start_one()).id == second
    assert (await stage.state("a")).probe_run_id == second


async def test_a_schedules_firing_may_be_the_probe(stage: Stage):
    await stage.register(
        scheduled("a", interval_seconds=60, max_retries=0, max_consecutive_failures=1, cooldown_seconds=90)
    )
    await stage.run_once(OutcomeKind.FAILED)
    assert await stage.next_due_at() == T0 + seconds(90)
    stage.after(120)
    probe = await stage.start_one()
    assert probe.scheduled_for == T0 + seconds(120)
    assert (await stage.state("a")).probe_run_id == probe.id
    stage.after(60)
    assert await stage.started() == []
    await stage.end(probe)
    state = await stage.state("a")
    assert (state.is_enabled, state.next_run_at) == (True, T0 + seconds(240))


# --- the last word ------------------------------------------------------------------------------------------------


async def test_the_database_refuses_a_second_run_in_one_slot(stage: Stage):
    await stage.register(triggered("a", max_running=2))
    await stage.trigger("a")
    await stage.trigger("a")
    await stage.tick()
    with pytest.raises(sa.exc.IntegrityError) as caught:
        await stage.sql("UPDATE {p}runs SET slot = 0")
    assert stage.db.dialect.is_unique_violation(caught.value)


async def test_the_database_refuses_a_second_live_run_of_a_schedule(stage: Stage):
    await stage.register(scheduled("a"))
    await stage.tick()
    with pytest.raises(sa.exc.IntegrityError) as caught:
        await stage.sql("INSERT INTO {p}runs (worker, trigger, is_ours) VALUES ('a', 'schedule', true)")
    assert stage.db.dialect.is_unique_violation(caught.value)


async def test_the_database_refuses_half_a_claim(stage: Stage):
    await stage.register(triggered("a"))
    await stage.trigger("a")
    with pytest.raises(sa.exc.IntegrityError):
        await stage.sql("UPDATE {p}runs SET state = 'running'")
    with pytest.raises(sa.exc.IntegrityError):
        await stage.sql("UPDATE {p}runs SET slot = 1")


async def test_a_violated_unique_index_rolls_the_whole_tick_back_and_the_next_decides_afresh(stage: Stage, monkeypatch):
    """Should the locks ever fail us: two runs are given one slot."""
    await stage.register(scheduled("a", interval_seconds=60), triggered("b", max_running=2))
    await stage.trigger("b")
    await stage.trigger("b")
    with monkeypatch.context() as patched:
        patched.setattr(View, "start", lambda view, candidate: Start(candidate.worker, candidate.id, 0, is_probe=False))
        claimed = await stage.claim()
    assert isinstance(claimed, Passed)
    assert await stage.value("SELECT count(*) FROM {p}runs WHERE state = 'running'") == 0
    assert (await stage.state("a")).last_fence == 0
    assert await stage.started() == ["a", "b", "b"]


# --- several nodes ------------------------------------------------------------------------------------------------


async def test_no_claim_commits_after_the_disable_has(stage: Stage, other_stage: Stage):
    await stage.register(triggered("a", max_running=50))
    for _ in range(50):
        await stage.trigger("a")
    other_stage.now = stage.now

    async def claim() -> int:
        return sum([len(await stage.tick(slots=1)) for _ in range(20)])

    async def disable() -> int:
        await asyncio.sleep(0.02)
        await operations.disable(other_stage.db, "a", other_stage.now, ACTOR, None)
        count = await other_stage.value("SELECT count(*) FROM {p}runs WHERE state = 'running'")
        return int(count)

    claimed, at_disable = await asyncio.gather(claim(), disable())
    assert claimed == at_disable
    assert await stage.tick() == []


async def test_a_claim_decided_before_a_disable_does_not_commit_after_it(stage: Stage, other_stage: Stage, monkeypatch):
    """The tick has peeked and found work; then an operator disables; then the tick takes its locks."""
    await stage.register(triggered("a"), scheduled("b"))
    await stage.trigger("a")
    claim_locked = claims._claim_locked

    async def disable_first(*given):
        for name in "ab":
            await operations.disable(other_stage.db, name, stage.now, ACTOR, None)
        return await claim_locked(*given)

    monkeypatch.setattr(claims, "_claim_locked", disable_first)
    assert await stage.started() == []
    assert await stage.value("SELECT count(*) FROM {p}runs WHERE state <> 'pending'") == 0


@pytest.mark.parametrize("limit", [1, 3])
async def test_two_nodes_racing_for_one_worker_never_exceed_its_limit(stage: Stage, other_stage: Stage, limit):
    await stage.register(triggered("a", max_running=limit))
    total = 24
    for _ in range(total):
        await stage.trigger("a")
    most = 0
    done: list[int] = []

    async def node(name: str, mine: Stage):
        nonlocal most
        mine.now = stage.now
        for _ in range(400):
            for run in await mine.tick(slots=2, node=name, handlers=["a"]):
                active = await mine.value("SELECT count(*) FROM {p}runs WHERE state = 'running'")
                most = max(most, active)
                await mine.end(run)
                done.append(run.id)
            if len(done) == total:
                return

    await asyncio.gather(node("n1", stage), node("n2", other_stage))
    assert sorted(done) == sorted(set(done))
    assert len(done) == total
    assert most <= limit
    assert await stage.value("SELECT count(DISTINCT fence) FROM {p}run_history") == total


async def test_two_nodes_racing_for_blocked_counterparts_never_overlap_them(stage: Stage, other_stage: Stage):
    await stage.register(triggered("a", blocks=["b"], max_running=2), triggered("b", max_running=2))
    total = 10
    for _ in range(total):
        await stage.trigger("a")
        await stage.trigger("b")
    done: list[int] = []

    async def node(name: str, mine: Stage):
        mine.now = stage.now
        for _ in range(400):
            for run in await mine.tick(slots=2, node=name, handlers=["a", "b"]):
                running = set(await mine.column("SELECT worker FROM {p}runs WHERE state = 'running'"))
                assert running == {run.worker}
                await mine.end(run)
                done.append(run.id)
            if len(done) == 2 * total:
                return

    await asyncio.gather(node("n1", stage), node("n2", other_stage))
    assert sorted(done) == sorted(set(done))
    assert len(done) == 2 * total


async def test_two_nodes_racing_for_one_firing_start_it_once(stage: Stage, other_stage: Stage):
    names = [f"w{n}" for n in range(10)]
    await stage.register(*(scheduled(name, interval_seconds=60) for name in names))
    for _ in range(3):
        other_stage.now = stage.after(60)
        runs = [
            run
            for tick in await asyncio.gather(
                *(mine.tick(20, node=node, handlers=names) for node, mine in (("n1", stage), ("n2", other_stage)) * 2)
            )
            for run in tick
        ]
        for run in runs:
            await stage.end(run)
        runs += await stage.run_once(slots=20)
        assert sorted(run.worker for run in runs) == names
    assert await stage.value("SELECT count(*) FROM {p}run_history") == 30  # and nothing was missed


# --- explain ------------------------------------------------------------------------------------------------------


async def test_explain_reads_the_same_facts_as_the_tick(stage: Stage):
    await stage.register(triggered("a", blocks=["b"]), triggered("b"), triggered("c", depends_on=["a"]))
    await stage.trigger("a")
    await stage.tick()
    await stage.trigger("b")
    await stage.trigger("c")
    shut = {}
    for name in "abc":
        _, verdicts = await stage.explain(name)
        shut[name] = {verdict.gate for verdict in verdicts if not verdict.is_open}
    assert shut == {"a": {Gate.DUE, Gate.MAX_RUNNING}, "b": {Gate.BLOCKS}, "c": {Gate.DEPENDENCIES}}


async def test_a_schedule_broken_by_hand_stops_its_worker_and_nobody_else(stage: Stage):
    await stage.register(scheduled("broken", interval_seconds=60), scheduled("sound", interval_seconds=60))
    await stage.sql("UPDATE {p}workers SET interval_seconds = NULL, cron = 'never' WHERE name = 'broken'")
    assert {run.worker for run in await stage.tick(slots=5)} == {"sound"}
    row = (await stage.rows("SELECT next_run_at, last_error FROM {p}worker_state WHERE worker = 'broken'"))[0]
    assert row["next_run_at"] is None
    assert "its schedule cannot be used" in row["last_error"]

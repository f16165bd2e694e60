"""Nodes, on both databases: joining, beating, being declared lost, and having one's runs taken over."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from jobrunner.model.run import EndsRun, OutcomeKind
from jobrunner.storage import nodes
from jobrunner.storage.reading.nodes_heard import list_nodes
from jobrunner.storage.runs import facts as reading
from jobrunner.storage.runs.finishes import Finished
from jobrunner.storage.schema import revisions
from tests.support.plans import recorded
from tests.support.stage import T0, Stage, scheduled, triggered

GRACE = timedelta(seconds=5)


async def rescue(stage: Stage) -> Finished:
    return await nodes.rescue(stage.db, stage.now, stage.now - GRACE)


async def seen(stage: Stage, node: str) -> nodes.Seen | None:
    async with stage.db.poke() as conn:
        return await nodes.beat(conn, stage.db.dialect, node, stage.now, stage.now, stage.now - GRACE)


async def beat(stage: Stage, node: str) -> str | None:
    found = await seen(stage, node)
    return None if found is None else found.state


async def declare_lost(stage: Stage, node: nodes.SeenNode) -> bool:
    async with stage.db.write() as conn:
        return await nodes.declare_lost(conn, stage.db.dialect, node, stage.now, "it is silent")


async def others(stage: Stage, node: str = "me") -> list[nodes.SeenNode]:
    async with stage.db.peek() as conn:
        return await nodes.others(conn, node)


async def set_state(stage: Stage, node: str, state: str) -> None:
    async with stage.db.write() as conn:
        await nodes.set_state(conn, node, state, stage.now)


async def states(stage: Stage) -> dict[str, str]:
    return {row["id"]: row["state"] for row in await stage.rows("SELECT id, state FROM {p}nodes")}


# --- joining, beating, leaving ------------------------------------------------------------------------------------


async def test_a_node_joins_with_its_code(stage: Stage):
    await stage.register(triggered("a"), triggered("b"))
    await stage.join("n1", ["a", "b"], allows_commands=True)
    await stage.join("n2", [])
    (row,) = await stage.rows("SELECT * FROM {p}nodes WHERE id = 'n1'")
    assert (row["state"], row["beat"], row["hostname"], row["pid"], row["max_concurrent"]) == (
        "active",
        0,
        "n1",
        4711,
        5,
    )
    assert stage.time(row["started_at"]) == stage.time(row["heartbeat_at"]) == T0
    rows = await stage.rows("SELECT worker, node_id FROM {p}node_handlers ORDER BY worker")
    assert [tuple(row.values()) for row in rows] == [("a", "n1"), ("b", "n1")]


async def test_a_beat_is_raised_by_one_each_time(stage: Stage):
    await stage.join("n1", [])
    stage.after(5)
    assert await beat(stage, "n1") == "active"
    assert await beat(stage, "n1") == "active"
    (row,) = await stage.rows("SELECT * FROM {p}nodes")
    assert row["beat"] == 2
    assert stage.time(row["heartbeat_at"]) == stage.time(row["last_tick_at"]) == stage.now


async def test_a_node_without_a_row_learns_so_from_its_beat(stage: Stage):
    assert await beat(stage, "n1") is None


async def test_a_beat_shows_what_there_is_to_do(stage: Stage):
    await stage.register(triggered("a", max_running=3))
    for name in ("n1", "n2", "n3", "n4"):
        await stage.join(name)
    await set_state(stage, "n3", "draining")
    await set_state(stage, "n4", "stopped")
    found = await seen(stage, "n1")
    assert found is not None
    assert (found.state, found.has_orphans, found.has_claims) == ("active", False, False)
    assert not revisions.is_ahead(found.revision)
    assert sorted(found.others, key=lambda node: node.id) == sorted(await others(stage, "n1"), key=lambda node: node.id)
    assert {node.id for node in found.others} == {"n2", "n3"}
    await stage.trigger("a")
    await stage.start_one(node="n2")
    mine, theirs = await seen(stage, "n1"), await seen(stage, "n2")
    assert mine is not None
    assert theirs is not None
    assert [(mine.has_claims, mine.has_orphans), (theirs.has_claims, theirs.has_orphans)] == [
        (False, False),
        (True, False),
    ]
    await set_state(stage, "n2", "stopped")
    for seconds, has_orphans in ((0, False), (5, True)):
        stage.after(seconds)
        found = await seen(stage, "n1")
        assert found is not None
        assert found.has_orphans == has_orphans
    await stage.sql("UPDATE {p}nodes SET state = 'lost' WHERE id = 'n2'")
    found = await seen(stage, "n1")
    assert found is not None
    assert found.has_orphans


async def test_on_postgres_an_idle_beat_is_one_statement(stage: Stage):
    await stage.join("n1", [])
    await stage.join("n2", [])
    with recorded(stage.db) as sent:
        assert await seen(stage, "n1") is not None
    assert len(sent) == (2 if stage.db.is_sqlite else 1)


async def test_the_other_nodes_are_those_alive(stage: Stage):
    for name in ("n1", "n2", "n3", "n4", "n5"):
        await stage.join(name, [])
    await set_state(stage, "n2", "draining")
    await set_state(stage, "n3", "stopped")
    async with stage.db.peek() as conn:
        others = await nodes.others(conn, "n1")
    await declare_lost(stage, next(node for node in others if node.id == "n4"))
    async with stage.db.peek() as conn:
        assert {node.id for node in await nodes.others(conn, "n1")} == {"n2", "n5"}
        assert {row["id"] for row in await list_nodes(conn, stage.now)} == {"n1", "n2", "n5"}
        assert len(await list_nodes(conn, stage.now, is_all=True)) == 5


async def test_a_stopped_node_leaves_no_code_behind(stage: Stage):
    await stage.register(triggered("a"))
    await stage.join("n1")
    await set_state(stage, "n1", "draining")
    assert await stage.value("SELECT count(*) FROM {p}node_handlers") == 1
    await set_state(stage, "n1", "stopped")
    assert await stage.value("SELECT count(*) FROM {p}node_handlers") == 0
    assert await states(stage) == {"n1": "stopped"}


async def test_the_handler_gate_knows_the_code_of_live_nodes_only(stage: Stage):
    await stage.register(triggered("a"))
    await stage.trigger("a")

    async def gate() -> bool:
        async with stage.db.peek() as conn:
            facts, _ = await reading.read_around(conn, stage.db.dialect, T0, ["a"], reading.Here(None), 1)
        return facts.workers["a"].has_handler

    assert not await gate()
    seen = await stage.join("n1", ["a"])
    assert await gate()
    await declare_lost(stage, seen)
    assert not await gate()


async def test_a_command_worker_needs_a_node_that_allows_commands(stage: Stage):
    await stage.register(triggered("a", isolation="command"))

    async def gate(here: reading.Here) -> tuple[bool, bool]:
        async with stage.db.peek() as conn:
            facts, _ = await reading.read_around(conn, stage.db.dialect, T0, ["a"], here, 1)
        return facts.workers["a"].has_handler, facts.workers["a"].has_handler_elsewhere

    await stage.join("n1", [])
    assert await gate(reading.Here(None)) == (False, False)
    await stage.join("n2", [], allows_commands=True)
    assert await gate(reading.Here(None)) == (True, True)
    assert await gate(reading.Here(())) == (False, True)
    assert (await gate(reading.Here((), allows_commands=True)))[0]


# --- being lost ---------------------------------------------------------------------------------------------------


async def test_a_node_is_declared_lost_only_with_the_beat_that_was_watched(stage: Stage):
    seen = await stage.join("n1", [])
    await beat(stage, "n1")
    assert not await declare_lost(stage, seen)
    assert await states(stage) == {"n1": "active"}
    assert await declare_lost(stage, replace(seen, beat=1))
    assert await states(stage) == {"n1": "lost"}
    assert await beat(stage, "n1") == "lost"
    rows = await stage.rows("SELECT action, actor FROM {p}audit_log WHERE action = 'node_lost'")
    assert [tuple(row.values()) for row in rows] == [("node_lost", "jobrunner")]


async def test_a_node_is_declared_lost_once(stage: Stage, other_stage: Stage):
    seen = await stage.join("n1", [])
    assert sorted(await asyncio.gather(declare_lost(stage, seen), declare_lost(other_stage, seen))) == [False, True]
    assert not await declare_lost(stage, seen)


@pytest.mark.parametrize("state", ["stopped", "lost"])
async def test_a_node_that_is_gone_already_is_not_declared_lost(stage: Stage, state):
    seen = await stage.join("n1", [])
    await (set_state(stage, "n1", "stopped") if state == "stopped" else declare_lost(stage, seen))
    assert not await declare_lost(stage, seen)
    await set_state(stage, "n1", "draining")
    assert await states(stage) == {"n1": state}


# --- rescue -------------------------------------------------------------------------------------------------------


async def test_the_runs_of_a_lost_node_are_ended_as_lost_and_tried_again(stage: Stage):
    await stage.register(triggered("a"), scheduled("b", interval_seconds=60))
    seen = await stage.join("n1")
    await stage.join("n2")
    await stage.trigger("a")
    runs = await stage.tick(node="n1")
    stage.after(30)
    assert (await rescue(stage)).written == ()
    await stage.sql("UPDATE {p}runs SET output = 'half of it', output_lines = 1 WHERE worker = 'a'")
    await declare_lost(stage, seen)
    finished = await rescue(stage)
    assert {run.id for run, _ in finished.written} == {run.id for run in runs}
    assert await stage.outcomes() == ["lost", "lost"]
    (row, other) = await stage.rows("SELECT * FROM {p}run_history ORDER BY id")
    assert (row["output"], other["output"]) == ("half of it", None)  # what it has said is kept
    assert row["error"] == "its node died (node n1); whether the work was done is not known"
    assert (row["error_type"], row["duration_ms"], row["node_id"]) == ("NodeLost", 30_000, "n1")
    assert await stage.column("SELECT attempt FROM {p}runs ORDER BY id") == [2, 2]
    assert (await rescue(stage)).written == ()
    stage.after(10)
    assert await stage.started(node="n2") == ["a", "b"]


@pytest.mark.parametrize(("beaten", "found", "delay"), [(None, 30, 0), (None, 2, 3), (3, 4, 4), (3, 9, 0), (99, 30, 0)])
async def test_the_delay_of_a_run_lost_again_counts_from_the_last_sign_of_life(stage: Stage, beaten, found, delay):
    await stage.register(triggered("a", retry_delay_seconds=5))
    await stage.join("n1")
    await stage.trigger("a")
    await stage.sql("UPDATE {p}runs SET lost_in_a_row = 1")
    await stage.start_one(node="n1")
    if beaten is not None:  # 99: by a clock that was ahead, which nobody waits for
        stage.after(beaten)
        await beat(stage, "n1")
        stage.after(-beaten)
    stage.after(found)
    (seen,) = await others(stage)
    await declare_lost(stage, seen)
    ((_, decided),) = (await rescue(stage)).written
    assert decided.retry is not None
    assert decided.outcome.finished_at == stage.now
    assert (decided.retry.due_at - stage.now).total_seconds() == pytest.approx(delay, abs=0.51)  # its jitter


async def test_a_late_end_of_a_lost_node_finds_its_fence_gone(stage: Stage):
    await stage.register(triggered("a"))
    seen = await stage.join("n1")
    await stage.trigger("a")
    run = await stage.start_one(node="n1")
    await declare_lost(stage, seen)
    await rescue(stage)
    assert [stale.id for stale in (await stage.end(run)).stale] == [run.id]
    assert await stage.outcomes() == ["lost"]


async def test_runs_of_a_node_without_a_row_are_rescued(stage: Stage):
    await stage.register(triggered("a", max_retries=0))
    await stage.trigger("a")
    await stage.tick(node="ghost")
    ((_, decided),) = (await rescue(stage)).written
    assert decided.ends_run is EndsRun.EXHAUSTED
    assert await stage.value("SELECT count(*) FROM {p}dead_letters") == 1


async def test_runs_of_live_and_draining_nodes_are_left_alone(stage: Stage):
    await stage.register(triggered("a", max_running=2))
    for node in ("n1", "n2"):
        await stage.join(node)
        await stage.trigger("a")
        await stage.tick(node=node)
    await set_state(stage, "n2", "draining")
    stage.after(10**6)
    assert (await rescue(stage)).written == ()


async def test_what_a_stopped_node_left_behind_is_taken_after_a_grace_with_the_same_attempt(stage: Stage):
    await stage.register(triggered("a"))
    await stage.join("n1")
    await stage.trigger("a")
    run = await stage.start_one(node="n1")
    stage.after(60)
    await set_state(stage, "n1", "stopped")
    stage.after(4.9)
    assert (await rescue(stage)).written == ()
    stage.after(0.1)
    assert len((await rescue(stage)).written) == 1
    assert await stage.outcomes() == ["interrupted"]
    again = await stage.start_one(node="n2")
    assert (again.id, again.attempt) == (run.id, 1)


async def test_what_was_left_behind_does_not_wait_for_a_clock_that_was_ahead(stage: Stage):
    await stage.register(triggered("a"))
    await stage.join("n1")
    await stage.trigger("a")
    await stage.start_one(node="n1")
    stage.after(3600)
    await set_state(stage, "n1", "stopped")
    stage.after(-3600)
    assert len((await rescue(stage)).written) == 1
    assert await stage.outcomes() == ["interrupted"]


async def test_a_rescued_run_that_was_to_be_cancelled_is_cancelled(stage: Stage):
    await stage.register(triggered("a"))
    await stage.trigger("a")
    await stage.tick(node="ghost")
    await stage.sql("UPDATE {p}runs SET cancel_requested_at = started_at")
    ((_, decided),) = (await rescue(stage)).written
    assert decided.ends_run is EndsRun.CANCELLED
    assert await stage.value("SELECT count(*) FROM {p}runs") == 0


async def test_many_nodes_may_rescue_at_once(stage: Stage, other_stage: Stage):
    await stage.register(triggered("a", max_running=40))
    for _ in range(40):
        await stage.trigger("a")
    await stage.tick(slots=40, node="ghost")
    other_stage.now = stage.now
    both = await asyncio.gather(rescue(stage), rescue(other_stage), rescue(stage), rescue(other_stage))
    assert sum(len(finished.written) for finished in both) == 40
    assert await stage.outcomes() == ["lost"] * 40
    assert await stage.column("SELECT DISTINCT attempt FROM {p}runs") == [2]


async def test_a_run_lost_with_three_nodes_in_a_row_is_dead(stage: Stage):
    await stage.register(triggered("a", max_retries=50))
    await stage.trigger("a")
    for _ in range(3):
        await stage.tick(node="ghost")
        await rescue(stage)
        stage.after(60)
    assert await stage.column("SELECT attempts FROM {p}dead_letters") == [3]
    assert await stage.outcomes() == [str(OutcomeKind.LOST)] * 3

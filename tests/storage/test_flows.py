"""Flows, on both databases: steps wait, are released and cancelled by whoever ends what they wait for."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jobrunner.model.run import OutcomeKind, Run
from jobrunner.storage import nodes
from jobrunner.storage.reading.explain_run import explain_run
from jobrunner.storage.reading.findings import Scope
from jobrunner.storage.reading.groups import live_parents
from jobrunner.storage.reading.status import read_runs
from jobrunner.storage.reading.verify import verify
from jobrunner.storage.reading.why_waits import with_why
from jobrunner.storage.runs import cancelling
from jobrunner.storage.runs.enqueue import Request
from jobrunner.storage.runs.finishes import Ended, finish
from jobrunner.storage.runs.flows import Planned, add_flow, read_before
from jobrunner.storage.runs.retention import prune
from tests.support.stage import ACTOR, T0, Stage, triggered


async def flow(stage: Stage, *steps: tuple[str, tuple[str, ...]], **more: Any) -> dict[str, int]:
    """Add a flow of the worker `a`; `more` is of all steps."""
    planned = [Planned(name, Request("a"), after, **more) for name, after in steps]
    async with stage.db.write() as conn:
        return await add_flow(conn, stage.db.dialect, planned, stage.now)


@pytest.fixture
async def ready(stage: Stage) -> Stage:
    await stage.register(triggered("a", max_running=50, max_retries=0))
    await stage.join("n1")
    return stage


async def steps_of(stage: Stage, slots: int = 50) -> dict[str | None, Run]:
    return {run.step: run for run in await stage.tick(slots)}


async def broken(stage: Stage) -> list[str]:
    """The problems that `db verify` tells."""
    return [found.problem async for found in verify(stage.db, Scope(stage.now, 30, 90))]


async def cancelled(stage: Stage) -> dict[str, str]:
    rows = await stage.rows("SELECT step, reason FROM {p}run_history WHERE ends_run = 'cancelled' ORDER BY id")
    return {row["step"]: row["reason"] for row in rows}


async def test_a_step_starts_when_all_before_it_have_succeeded(ready: Stage):
    ids = await flow(ready, ("x", ()), ("y", ()), ("z", ("x", "y")))
    rows = await ready.rows("SELECT id, flow_id, step FROM {p}runs ORDER BY id")
    assert [tuple(row.values()) for row in rows] == [(ids[name], ids["x"], name) for name in "xyz"]
    started = await steps_of(ready)
    assert sorted(map(str, started)) == ["x", "y"]
    await ready.end(started["x"])
    assert await steps_of(ready) == {}
    ready.after(7)
    await ready.end(started["y"])
    (row,) = await ready.rows("SELECT due_at, waits_since FROM {p}runs")
    assert [ready.time(value) for value in row.values()] == [ready.now, ready.now]
    assert list(await steps_of(ready)) == ["z"]


async def test_a_retry_is_no_end(ready: Stage):
    await ready.register(triggered("b", max_retries=1))
    async with ready.db.write() as conn:
        planned = [Planned("x", Request("b")), Planned("y", Request("a"), ("x",))]
        await add_flow(conn, ready.db.dialect, planned, ready.now)
    await ready.fail(await ready.start_one())
    assert await ready.tick() == []
    ready.after(60)
    await ready.end(await ready.start_one())
    assert (await ready.start_one()).step == "y"


async def test_a_step_of_one_flow_alone_has_its_number_too(ready: Stage):
    ids = await flow(ready, ("x", ()))
    assert await ready.column("SELECT flow_id FROM {p}runs") == [ids["x"]]


async def test_a_time_of_its_own_is_kept_to_after_the_release(ready: Stage):
    later = T0 + timedelta(hours=1)
    async with ready.db.write() as conn:
        planned = [Planned("x", Request("a")), Planned("y", Request("a", due_at=later), ("x",))]
        await add_flow(conn, ready.db.dialect, planned, ready.now)
    await ready.end(await ready.start_one())
    (row,) = await ready.rows("SELECT due_at, scheduled_for FROM {p}runs")
    assert [ready.time(value) for value in row.values()] == [later, later]
    assert await ready.tick() == []


async def test_a_failure_cancels_all_below_it_and_says_why(ready: Stage):
    ids = await flow(ready, ("x", ()), ("y", ("x",)), ("z", ("y",)), ("other", ()), ("both", ("z", "other")))
    before = await ready.state("a")
    started = await steps_of(ready)
    await ready.fail(started["x"])
    assert await cancelled(ready) == {
        "y": f"step x (run {ids['x']}) of its flow exhausted its attempts",
        "z": f"step y (run {ids['y']}) of its flow was cancelled",
        "both": f"step z (run {ids['z']}) of its flow was cancelled",
    }
    assert await ready.column("SELECT step FROM {p}runs") == ["other"]
    rows = await ready.rows("SELECT due_at, started_at, fence FROM {p}run_history WHERE step = 'both'")
    assert [(ready.time(row["due_at"]), row["started_at"], row["fence"]) for row in rows] == [(T0, None, None)]
    state = await ready.state("a")
    assert (state.total_runs, state.consecutive_failures) == (before.total_runs + 1, 1)  # the one that ran


async def test_if_failed_run_gets_the_outcomes_and_the_results(ready: Stage):
    ids = await flow(ready, ("x", ()), ("y", ()), ("z", ("x", "y")), if_failed="run")
    started = await steps_of(ready)
    await ready.fail(started["x"])
    assert await steps_of(ready) == {}
    await ready.end(started["y"], result={"rows": 3})
    assert list(await steps_of(ready)) == ["z"]
    async with ready.db.peek() as conn:
        before = await read_before(conn, ids["z"])
    assert before.results == {"y": {"rows": 3}}
    assert before.outcomes == {"x": "exhausted", "y": "succeeded"}


async def test_cancelling_a_step_that_waits_cancels_those_after_it(ready: Stage):
    ids = await flow(ready, ("x", ()), ("y", ("x",)), ("z", ("y",)))
    await cancelling.cancel(ready.db, ids["y"], ready.now, ACTOR, "not needed")
    assert await cancelled(ready) == {"y": "not needed", "z": f"step y (run {ids['y']}) of its flow was cancelled"}
    assert [run.step for run in await ready.tick()] == ["x"]


async def test_a_rescue_goes_on_with_the_flow(ready: Stage):
    ids = await flow(ready, ("x", ()), ("y", ("x",)))
    (run,) = await ready.tick()
    async with ready.db.write() as conn:
        seen = nodes.SeenNode("n1", "n1", 4711, "boot", T0, 0)
        assert await nodes.declare_lost(conn, ready.db.dialect, seen, ready.now, "gone")
    finished = await nodes.rescue(ready.db, ready.now, ready.now)
    assert [found.id for found, _ in finished.written] == [run.id]
    assert await cancelled(ready) == {"y": f"step x (run {ids['x']}) of its flow exhausted its attempts"}


async def test_of_ends_in_one_transaction_a_failure_wins(ready: Stage):
    await flow(ready, ("x", ()), ("y", ()), ("z", ("x", "y")))
    started = await steps_of(ready)
    ends = [
        Ended(started["x"], ready.outcome()),
        Ended(started["y"], ready.outcome(OutcomeKind.FAILED)),
    ]
    await finish(ready.db, ends)
    assert list(await cancelled(ready)) == ["z"]


async def test_two_that_end_the_last_two_at_once_release_the_step(ready: Stage, other_stage: Stage):
    for _ in range(15):
        await flow(ready, ("x", ()), ("y", ()), ("z", ("x", "y")))
        started = await steps_of(ready)
        other_stage.now = ready.now
        await asyncio.gather(ready.end(started["x"]), other_stage.end(started["y"]))
        (last,) = (await steps_of(ready)).values()
        assert last.step == "z"
        await ready.end(last)
    assert await ready.value("SELECT count(*) FROM {p}runs") == 0


async def test_an_end_that_is_not_committed_is_waited_for(postgres_url: str):
    """The other has ended its run and not committed: whoever ends the last but one waits for it, and then releases."""
    stage = Stage(postgres_url)
    try:
        await stage.register(triggered("a", max_running=50), triggered("b", max_running=50))
        await stage.join("n1")
        async with stage.db.write() as conn:
            planned = [
                Planned("x", Request("a")),
                Planned("y", Request("b")),
                Planned("z", Request("a"), ("x", "y")),
            ]
            await add_flow(conn, stage.db.dialect, planned, stage.now)
        started = await steps_of(stage)
        from jobrunner.storage.runs.finishes import finish_within

        async with stage.db.write() as conn:
            first = await finish_within(conn, stage.db.dialect, [Ended(started["x"], stage.outcome())])
            second = asyncio.ensure_future(stage.end(started["y"]))
            while not await stage.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
                await asyncio.sleep(0.01)
        assert (first.has_released, (await second).has_released) == (False, True)
        assert list(await steps_of(stage)) == ["z"]
    finally:
        await stage.db.close()


async def test_the_rows_of_others_are_not_read_for_an_end_without_a_flow(ready: Stage):
    await ready.trigger("a")
    finished = await ready.end(await ready.start_one())
    assert (finished.has_released, finished.members) == (False, {})


async def test_explain_names_what_a_held_step_waits_for(ready: Stage):
    ids = await flow(ready, ("x", ()), ("y", ()), ("z", ("x", "y")))
    async with ready.db.peek() as conn:
        assert await live_parents(conn, list(ids.values())) == {ids["z"]: [(ids["x"], "x"), (ids["y"], "y")]}
        assert await live_parents(conn, []) == {}
    found = await explain_run(ready.db, ids["z"], ready.now)
    assert found["why"] == f"waits for run {ids['x']} of its flow (x), and for 1 more"
    assert [gate["reason"] for gate in found["gates"] if gate["gate"] == "due"] == [found["why"]]
    await ready.end((await steps_of(ready))["x"])
    found = await explain_run(ready.db, ids["z"], ready.now)
    assert found["why"] == f"waits for run {ids['y']} of its flow (y)"


async def test_verify_finds_a_step_that_waits_for_nothing(ready: Stage):
    await flow(ready, ("x", ()), ("y", ("x",)))
    assert await broken(ready) == []
    await ready.sql("DELETE FROM {p}run_after")
    (problem,) = await broken(ready)
    assert problem.endswith("of a is held, but no run that it waits for is live: it never starts")


async def test_steps_and_edges_by_plain_sql_wait_and_are_released(ready: Stage):
    ready.now = datetime.now(UTC) + timedelta(seconds=5)  # plain SQL has the database's own time
    await ready.sql("INSERT INTO {p}runs (worker, step) VALUES ('a', 'x'), ('a', 'y')")
    first, second = await ready.column("SELECT id FROM {p}runs ORDER BY id")
    await ready.sql(f"INSERT INTO {{p}}run_after (run_id, after_run_id) VALUES ({second}, {first})")
    started = await steps_of(ready)
    assert list(started) == ["x"]
    await ready.end(started["x"])
    assert list(await steps_of(ready)) == ["y"]


async def test_a_list_of_live_runs_says_of_a_held_step_what_it_waits_for(ready: Stage):
    ids = await flow(ready, ("x", ()), ("y", ("x",)))
    async with ready.db.read() as conn:
        rows = await read_runs(conn, limit=10)
        why = {row["id"]: row["why"] for row in await with_why(conn, ready.db.dialect, ready.now, rows)}
    assert why == {ids["x"]: None, ids["y"]: f"waits for run {ids['x']} of its flow (x)"}


async def test_edges_are_pruned_with_the_history_of_their_steps(ready: Stage):
    old = await flow(ready, ("x", ()), ("y", ("x",)), ("z", ("y",)))
    for _ in range(3):
        await ready.run_once()
    young = await flow(ready, ("x", ()), ("y", ("x",)))
    assert (await prune(ready.db, ready.now, 30, 90)).run_after == 0
    ready.after(31 * 86400)
    assert (await prune(ready.db, ready.now, 30, 90, batch=2)).run_after == 2
    assert await ready.column("SELECT run_id FROM {p}run_after") == [young["y"]]
    assert old["y"] < young["y"]

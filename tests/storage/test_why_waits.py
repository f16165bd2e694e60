"""Why a run waits, as `jobrunner trigger` notes it: never anything but what `explain` says, never a word too much."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import pytest

from jobrunner.model.run import OutcomeKind
from jobrunner.storage.reading.explain import explain, why_waits
from jobrunner.storage.reading.standing import read_standing
from jobrunner.storage.workers import operations
from tests.support.stage import ACTOR, T0, Stage, continuous, scheduled, triggered

NAMES = ("a", "b", "c")

OTHERS = "runs other workers only (another MODULE, or --workers)"


async def headline(stage: Stage, worker: str) -> tuple[int | None, str | None]:
    """The run that `explain` shows, and what it says first."""
    found = await explain(stage.db, worker, stage.now)
    assert found["why"] in {None, *(gate["reason"] for gate in found["gates"] if not gate["open"])}
    return (found["candidate"] or {}).get("run_id"), found["why"]


async def why(stage: Stage, worker: str) -> str | None:
    """What `status` says of a worker."""
    return (await standing(stage, worker))["why"]


async def standing(stage: Stage, worker: str) -> dict[str, Any]:
    """A worker's row of `status`, which is the same alone and among all."""
    async with stage.db.read() as conn:
        (row,) = await read_standing(conn, stage.db.dialect, stage.now, worker)
        rows = await read_standing(conn, stage.db.dialect, stage.now)
    assert row in rows
    return row


async def test_a_probe_that_may_start_is_not_said_to_wait(stage: Stage):
    await stage.register(triggered("a", max_retries=0, max_consecutive_failures=1, cooldown_seconds=60))
    await stage.join("n1")
    await stage.trigger("a")
    await stage.fail(await stage.start_one())
    run_id = await stage.trigger("a")
    said = await why_waits(stage.db, run_id, stage.now)
    assert said is not None
    assert "disabled by its circuit: 1 run in a row failed" in said
    assert "a probe may start at 2026-03-02 12:01:00 UTC" in said
    stage.after(60)
    assert await why_waits(stage.db, run_id, stage.now) is None
    assert (await stage.start_one()).id == run_id


async def test_a_run_for_later_is_judged_at_its_time(stage: Stage):
    await stage.register(triggered("a"))
    await stage.join("n1")
    await operations.pause(stage.db, "a", stage.now, ACTOR, T0 + timedelta(hours=1), "moving house")
    before = await stage.trigger("a", due_at=T0 + timedelta(minutes=59))
    after = await stage.trigger("a", due_at=T0 + timedelta(hours=1))
    assert (
        await why_waits(stage.db, before, stage.now)
        == "paused until 2026-03-02 13:00:00 UTC, by ann@desk: moving house"
    )
    assert await why_waits(stage.db, after, stage.now) is None


async def test_a_run_that_has_started_or_ended_waits_for_nothing(stage: Stage):
    await stage.register(triggered("a"))
    await stage.join("n1")
    run_id = await stage.trigger("a")
    run = await stage.start_one()
    assert await why_waits(stage.db, run_id, stage.now) is None
    await stage.end(run)
    assert await why_waits(stage.db, run_id, stage.now) is None


async def stir(stage: Stage, chance: random.Random) -> None:
    """Change something, as operators, triggers and nodes do."""
    name = chance.choice(NAMES)
    match chance.randrange(8):
        case 0:
            await operations.disable(stage.db, name, stage.now, ACTOR, "Sunday")
        case 1:
            await operations.enable(stage.db, name, stage.now, ACTOR)
        case 2:
            until = stage.now + timedelta(seconds=chance.choice([5, 60]))
            await operations.pause(stage.db, name, stage.now, ACTOR, until, chance.choice([None, "moving house"]))
        case 3:
            await operations.resume(stage.db, name, stage.now, ACTOR)
        case 4 | 5:
            more: dict[str, Any] = {"priority": chance.randrange(4), "is_forced": chance.random() < 0.2}
            await stage.trigger(name, **more)
        case _:
            kinds = [OutcomeKind.SUCCEEDED, OutcomeKind.FAILED, None]
            for run in await stage.tick(slots=3):
                kind = chance.choice(kinds)
                if kind is not None:
                    await stage.end(run, kind)
    stage.after(chance.choice([0, 1, 30]))


@pytest.mark.parametrize("seed", range(6))
async def test_in_any_state_it_says_what_explain_says_first(stage: Stage, seed: int):
    chance = random.Random(seed)
    circuit: dict[str, Any] = {"max_retries": 0, "max_consecutive_failures": 2, "cooldown_seconds": 20}
    await stage.register(
        triggered("a", **circuit),
        triggered("b", **circuit, depends_on=["a"], max_running=2),
        triggered("c", **circuit, blocks=["a"]),
    )
    if chance.random() < 0.8:
        await stage.join("n1", chance.choice([NAMES, ("a", "b")]), max_concurrent=4)
    compared = 0
    for _ in range(40):
        await stir(stage, chance)
        for name in NAMES:
            run_id, shut = await headline(stage, name)
            if run_id is not None:
                found = await why_waits(stage.db, run_id, stage.now)
                assert found == shut
                compared += 1
    assert compared >= 10


# --- what waits for its time --------------------------------------------------------------------------------------


async def test_a_run_for_later_is_explained_and_not_said_to_be_nothing(stage: Stage):
    await stage.register(triggered("a"))
    await stage.join("n1")
    later = await stage.trigger("a", due_at=T0 + timedelta(hours=3))
    assert await headline(stage, "a") == (later, f"not due until 2026-03-02 15:00:00 UTC: run {later}")
    first = await stage.trigger("a", due_at=T0 + timedelta(hours=1), priority=0)
    said = f"not due until 2026-03-02 13:00:00 UTC: run {first}; 1 more waits"
    assert await headline(stage, "a") == (first, said)
    await stage.trigger("a", due_at=T0 + timedelta(hours=2), priority=3)
    assert await headline(stage, "a") == (first, said.replace("1 more waits", "2 more wait"))
    assert await stage.tick() == []


async def test_a_retry_is_explained_with_its_attempt_and_the_error_of_the_one_before(stage: Stage):
    await stage.register(triggered("a", timezone="Europe/Berlin"))
    await stage.join("n1")
    run_id = await stage.trigger("a")
    await stage.fail(await stage.start_one(), error="smtp down\nat mail.example.org")
    said = f"not due until 2026-03-02 12:00:05 UTC (13:00:05 CET): run {run_id}, attempt 2: ValueError: smtp down"
    assert await headline(stage, "a") == (run_id, said)
    assert await why(stage, "a") == "attempt 2 at 12:00:05 UTC (13:00:05 CET): ValueError: smtp down"
    assert (await standing(stage, "a"))["next_at"] == T0 + timedelta(seconds=5)
    stage.after(5)
    await stage.fail(await stage.start_one(), error="no route")
    assert (await why(stage, "a") or "").endswith(": no route")


async def test_a_snoozed_run_is_explained_with_its_reason(stage: Stage):
    await stage.register(triggered("a"))
    await stage.join("n1")
    run_id = await stage.trigger("a")
    await stage.end(await stage.start_one(), OutcomeKind.SNOOZED, delay_seconds=60.0, reason="not there yet")
    said = f"not due until 2026-03-02 12:01:00 UTC: run {run_id}: not there yet"
    assert await headline(stage, "a") == (run_id, said)
    assert (await standing(stage, "a"))["next_at"] == T0 + timedelta(seconds=60)


@pytest.mark.parametrize("of", [scheduled, continuous])
async def test_a_retry_that_its_schedule_waits_for_is_what_comes_next(stage: Stage, of: Any):
    await stage.register(of("a", interval_seconds=1, retry_delay_seconds=60))
    await stage.join("n1")
    run = await stage.start_one()
    await stage.fail(run)
    stage.after(20)  # the schedule has been due long since
    said = f"not due until 2026-03-02 12:01:00 UTC: run {run.id}, attempt 2: ValueError: no luck"
    assert await headline(stage, "a") == (run.id, said)
    row = await standing(stage, "a")
    assert (row["next_at"], row["why"]) == (
        T0 + timedelta(seconds=60),
        "attempt 2 at 12:01:00 UTC: ValueError: no luck",
    )


async def test_a_run_that_is_due_comes_before_one_for_later_and_a_firing_before_either(stage: Stage):
    await stage.register(scheduled("a", interval_seconds=60))
    await stage.join("n1")
    await stage.run_once()
    later = await stage.trigger("a", due_at=T0 + timedelta(hours=1))
    assert await headline(stage, "a") == (None, "not due until 2026-03-02 12:01:00 UTC; 1 more waits")
    assert (await standing(stage, "a"))["next_at"] == T0 + timedelta(seconds=60)
    now = await stage.trigger("a")
    assert await headline(stage, "a") == (now, None)
    assert later != now


async def test_what_waits_is_counted_so_far_only(stage: Stage):
    await stage.register(triggered("a"))
    await stage.join("n1")
    later = {"due_at": T0 + timedelta(hours=1)}
    first = await stage.trigger("a", **later)
    said = f"not due until 2026-03-02 13:00:00 UTC: run {first}"
    for _ in range(99):
        await stage.trigger("a", **later)
    assert (await headline(stage, "a"))[1] == f"{said}; 99 more wait"
    for _ in range(11):
        await stage.trigger("a", **later)
    assert (await headline(stage, "a"))[1] == f"{said}; at least 100 more wait"


async def test_what_lasts_is_said_before_not_due(stage: Stage):
    await stage.register(triggered("fetch"), triggered("a", depends_on=["fetch"]))
    await stage.join("n1", ["fetch"])
    run_id = await stage.trigger("a", due_at=T0 + timedelta(hours=1))
    assert await headline(stage, "a") == (run_id, f"no live node has the handler: node n1 {OTHERS}")
    await stage.join("n2")
    await stage.trigger("fetch")
    await stage.run_once()
    assert await headline(stage, "a") == (run_id, f"not due until 2026-03-02 13:00:00 UTC: run {run_id}")
    await operations.disable(stage.db, "fetch", stage.now, ACTOR, "maintenance")
    said = "waits for fetch: it is disabled (maintenance)"
    assert await headline(stage, "a") == (run_id, said)
    assert await why_waits(stage.db, run_id, stage.now) == said
    await operations.disable(stage.db, "a", stage.now, ACTOR, "Sunday")
    assert await headline(stage, "a") == (run_id, f"disabled by {ACTOR}: Sunday")


# --- what `status` says -------------------------------------------------------------------------------------------


async def test_status_says_who_disabled_a_worker(stage: Stage):
    await stage.register(triggered("a"))
    await operations.disable(stage.db, "a", stage.now, ACTOR, "maintenance")
    row = await standing(stage, "a")
    assert (row["disabled_by"], row["disabled_actor"]) == ("operator", ACTOR)
    assert row["why"] == f"disabled by {ACTOR}: maintenance"
    await operations.enable(stage.db, "a", stage.now, ACTOR)
    assert (await standing(stage, "a"))["disabled_actor"] is None
    by_hand = "is_enabled = false, disabled_by = 'operator', disabled_reason = 'by hand'"
    await stage.sql(f"UPDATE {{p}}worker_state SET {by_hand}")
    row = await standing(stage, "a")
    assert (row["disabled_actor"], row["why"]) == (None, "disabled by an operator: by hand")


async def test_an_overdue_worker_that_no_node_can_run_says_so(stage: Stage):
    await stage.register(scheduled("a"), scheduled("c"))
    await stage.sql("UPDATE {p}workers SET isolation = 'command' WHERE name = 'c'")
    stage.after(5)
    assert await why(stage, "a") is None  # a node may yet take it at its next tick
    stage.after(5)
    assert await why(stage, "a") == "no node is running; `jobrunner run MODULE` starts one"
    await stage.join("n1", ["b"])
    assert await why(stage, "a") == f"no live node has the handler: node n1 {OTHERS}"
    said = "a command: only nodes started with --allow-commands run it, and none of these is live"
    assert await why(stage, "c") == said
    assert (await headline(stage, "c"))[1] == said
    await stage.join("n2", ["a"], allows_commands=True)
    for name in ("a", "c"):  # nodes that could, and do not
        assert await why(stage, name) == f"due since 2026-03-02 12:00:00 UTC; `jobrunner explain {name}` tells more"


async def test_an_overdue_worker_names_what_it_waits_for(stage: Stage):
    blocked, others = triggered("b", blocks=["busy"]), [triggered(name) for name in ("busy", "full", "late")]
    await stage.register(scheduled("fetch"), scheduled("a", depends_on=["fetch"]), blocked, *others)
    await stage.join("n1", max_concurrent=2)
    await operations.disable(stage.db, "fetch", stage.now, ACTOR, "maintenance")
    await stage.trigger("busy")
    await stage.start_one(handlers=["busy"])
    await stage.trigger("b")
    stage.after(10)
    said = "waits for fetch: it has not succeeded yet, and it is disabled (maintenance)"
    assert await why(stage, "a") == said == (await headline(stage, "a"))[1]
    assert (await why(stage, "b") or "").startswith("blocked by busy, run 1 on node n1, since ")
    await stage.trigger("full")
    await stage.start_one(handlers=["full"])
    await stage.trigger("late")
    stage.after(10)
    assert await why(stage, "late") == "all slots of the node are taken"


async def test_beyond_the_first_hundred_an_overdue_worker_says_where_to_ask(stage: Stage):
    await stage.register(*(scheduled(f"w{n:03}") for n in range(110)))
    stage.after(10)
    async with stage.db.read() as conn:
        rows = await read_standing(conn, stage.db.dialect, stage.now)
    said = [row["why"] for row in rows]
    assert said.count("no node is running; `jobrunner run MODULE` starts one") == 100
    assert sum("explain w" in each for each in said) == 10


async def test_a_worker_that_runs_or_is_paused_is_not_called_overdue(stage: Stage):
    await stage.register(triggered("a"), triggered("b"))
    await stage.join("n1")
    await stage.trigger("a")
    await stage.start_one()
    await stage.trigger("a")
    await stage.trigger("b")
    await operations.pause(stage.db, "b", stage.now, ACTOR, T0 + timedelta(hours=1), "moving house")
    stage.after(10)
    assert await why(stage, "a") is None
    assert (await why(stage, "b") or "").startswith("paused until 2026-03-02 13:00:00 UTC")


async def test_of_a_worker_that_runs_it_is_said_why_more_waits_when_that_is_long(stage: Stage):
    await stage.register(triggered("a"))
    await stage.join("n1")
    await stage.trigger("a")
    await stage.start_one()
    await stage.trigger("a")
    stage.after(61)
    assert (await why(stage, "a") or "").startswith("1 of 1 running: run 1")

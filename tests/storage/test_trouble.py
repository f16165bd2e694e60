"""Since when workers are in trouble: what history, the audit log and the nodes tell of it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from jobrunner.model.run import OutcomeKind
from jobrunner.storage.reading.standing import read_standing
from jobrunner.storage.reading.traces import with_since
from jobrunner.storage.workers import operations
from tests.support.stage import ACTOR, T0, Stage, triggered


async def since(stage: Stage, **health: str) -> dict[str, Any]:
    """Read since when each worker is in trouble, given how it is: the view has a clock of its own."""
    async with stage.db.read() as conn:
        rows = await read_standing(conn, stage.db.dialect, stage.now)
        rows = [{**row, "health": health.get(row["name"], row["health"])} for row in rows]
        return {row["name"]: row["since"] for row in await with_since(conn, stage.db.dialect, stage.now, rows)}


async def fail(stage: Stage, worker: str, times: int) -> None:
    for _ in range(times):
        await stage.trigger(worker)
        await stage.fail(await stage.start_one())
        stage.after(10)


async def test_a_failing_worker_is_so_since_its_first_failure_after_a_success(stage: Stage) -> None:
    await stage.register(triggered("w", max_retries=0))
    await stage.join("n1")
    await fail(stage, "w", 1)
    await stage.trigger("w")
    await stage.end(await stage.start_one())
    broke = stage.after(10)
    await fail(stage, "w", 3)
    assert await since(stage, w="failing") == {"w": broke}


async def test_a_worker_that_its_circuit_disabled_is_so_since_the_first_failure_that_led_to_it(stage: Stage) -> None:
    await stage.register(triggered("w", max_retries=0, max_consecutive_failures=2))
    await stage.join("n1")
    broke = stage.now
    await fail(stage, "w", 2)
    assert not (await stage.state("w")).is_enabled
    assert await since(stage) == {"w": broke}


async def test_a_streak_counts_from_when_the_worker_was_enabled(stage: Stage) -> None:
    await stage.register(triggered("w", max_retries=0))
    await stage.join("n1")
    await fail(stage, "w", 2)
    await operations.enable(stage.db, "w", stage.now, ACTOR)
    broke = stage.after(60)
    await fail(stage, "w", 1)
    assert await since(stage, w="failing") == {"w": broke}
    assert await since(stage, w="degraded") == {"w": T0}


async def test_a_streak_longer_than_is_looked_at_began_after_the_last_success(stage: Stage) -> None:
    await stage.register(triggered("w", max_retries=0, max_consecutive_failures=1000))
    await stage.join("n1")
    await stage.trigger("w")
    await stage.end(await stage.start_one())
    stage.after(10)
    await fail(stage, "w", 201)
    assert await since(stage, w="failing") == {"w": T0}


async def test_who_was_switched_off_is_so_since_then(stage: Stage) -> None:
    await stage.register(triggered("off"), triggered("paused"), triggered("fine"))
    await stage.join("n1")
    off_at = stage.after(10)
    await operations.disable(stage.db, "off", off_at, ACTOR, None)
    paused_at = stage.after(10)
    await operations.pause(stage.db, "paused", paused_at, ACTOR, paused_at + timedelta(hours=1), None)
    stage.after(10)
    assert await since(stage, paused="paused", fine="healthy") == {"off": off_at, "paused": paused_at, "fine": None}


async def test_what_waits_is_stalled_since_it_was_due(stage: Stage) -> None:
    await stage.register(triggered("w"))
    await stage.join("n1")
    await stage.trigger("w")
    stage.after(300)
    assert await since(stage, w="stalled") == {"w": T0}


async def test_a_worker_without_a_node_is_so_since_the_last_one_was_heard_of(stage: Stage) -> None:
    await stage.register(triggered("w"))
    await stage.join("n1")
    await stage.trigger("w")
    (run,) = await stage.tick()
    await stage.end(run, OutcomeKind.SUCCEEDED)
    heard = await stage.value("SELECT max(heartbeat_at) FROM {p}nodes")
    await stage.sql("UPDATE {p}nodes SET state = 'stopped'")
    stage.after(300)
    assert await since(stage, w="no_node") == {"w": stage.time(heard)}

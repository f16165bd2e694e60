"""Each state of health has a scene that makes it, and it alone; where two hold, the more harmful is said.

The view asks the database's own clock, so the scenes lie around the time it is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jobrunner.policy.filters import HEALTH
from jobrunner.storage.tables import define as t
from jobrunner.storage.workers import operations
from tests.support.stage import ACTOR, Stage, scheduled, triggered

Scene = Callable[[Stage], Awaitable[None]]
LONG_AGO = timedelta(hours=1)


async def _ended(stage: Stage, count: int, **more: Any) -> None:
    """Let attempts of `w` have ended, each a second long and on time, as `more` says otherwise."""
    now = datetime.now(UTC)
    last = await stage.value("SELECT coalesce(max(run_id), 1000) FROM {p}run_history")
    late = more.pop("late", 0.0)
    for number in range(1, count + 1):
        started = now - LONG_AGO + timedelta(seconds=number)
        row = {
            "run_id": last + number,
            "fence": last + number,
            "worker": "w",
            "trigger": "manual",
            "attempt": 1,
            "outcome": "succeeded",
            "ends_run": "succeeded",
            "due_at": started - timedelta(seconds=late),
            "started_at": started,
            "finished_at": started + timedelta(seconds=1),
            "duration_ms": 1000,
            "node_id": "n1",
            **more,
        }
        async with stage.db.write() as conn:
            await conn.execute(t.run_history.insert(), row)
    await stage.sql(
        "UPDATE {p}worker_state SET last_run_at = '2026-01-01 00:00:00.000000', last_run_outcome = 'succeeded'"
        " WHERE worker = 'w'"
    )


async def _running(stage: Stage, seconds: float, late: float = 0.0) -> None:
    """Let a run of `w` have started so long ago, so late."""
    stage.now = datetime.now(UTC) - timedelta(seconds=seconds + late)
    await stage.trigger("w")
    stage.after(late)
    await stage.start_one()


async def _healthy(stage: Stage) -> None:
    await _ended(stage, 60)


async def _unknown(stage: Stage) -> None:
    pass


async def _disabled(stage: Stage) -> None:
    await operations.disable(stage.db, "w", datetime.now(UTC), ACTOR, None)


async def _paused(stage: Stage) -> None:
    now = datetime.now(UTC)
    await operations.pause(stage.db, "w", now, ACTOR, now + LONG_AGO, None)


async def _failing(stage: Stage) -> None:
    await stage.trigger("w")
    await stage.fail(await stage.start_one())


async def _stalled(stage: Stage) -> None:
    stage.now = datetime.now(UTC) - timedelta(seconds=70)
    await stage.trigger("w")


async def _late(stage: Stage) -> None:
    await _ended(stage, 20, late=1.5)
    await _running(stage, 0.0, late=9.0)


async def _slow(stage: Stage) -> None:
    await _ended(stage, 20)
    await _running(stage, 5.0)


async def _no_node(stage: Stage) -> None:
    await _ended(stage, 20)
    await stage.sql("UPDATE {p}nodes SET state = 'stopped'")


async def _degraded(stage: Stage) -> None:
    await _ended(stage, 200, outcome="failed", ends_run="exhausted")  # long ago
    await _ended(stage, 6, outcome="failed", ends_run="exhausted")
    await _ended(stage, 44)
    await stage.sql("UPDATE {p}worker_state SET total_failures = 206")


SCENES: dict[str, Scene] = {
    "disabled": _disabled,
    "paused": _paused,
    "failing": _failing,
    "stalled": _stalled,
    "late": _late,
    "slow": _slow,
    "no_node": _no_node,
    "degraded": _degraded,
    "healthy": _healthy,
    "unknown": _unknown,
}


@pytest.fixture
async def living(stage: Stage) -> Stage:
    await stage.register(triggered("w", max_retries=0, max_running=5), triggered("other"))
    stage.now = datetime.now(UTC)
    await stage.join("n1", lease_seconds=3600.0)
    return stage


async def _health(stage: Stage) -> dict[str, str]:
    return {row["name"]: row["health"] for row in await stage.rows("SELECT name, health FROM {p}worker_status")}


def test_every_state_has_its_scene():
    assert tuple(SCENES) == HEALTH


@pytest.mark.parametrize("state", HEALTH)
async def test_a_scene_makes_its_state_and_only_of_its_worker(living: Stage, state: str):
    await SCENES[state](living)
    others = "no_node" if state == "no_node" else "unknown"
    assert await _health(living) == {"w": state, "other": others}


@pytest.mark.parametrize("worse", range(5))
async def test_of_two_states_the_more_harmful_is_said(living: Stage, worse: int):
    await list(SCENES.values())[worse](living)
    await living.sql("UPDATE {p}nodes SET state = 'stopped'")
    assert (await _health(living))["w"] == HEALTH[worse]


@pytest.mark.parametrize(("failures", "health"), [(5, "healthy"), (6, "degraded")])
async def test_more_than_a_tenth_of_the_last_fifty_is_degraded(living: Stage, failures: int, health: str):
    await _ended(living, failures, outcome="failed", ends_run="exhausted")
    await _ended(living, 50 - failures)
    await living.sql("UPDATE {p}worker_state SET total_failures = 9")
    assert (await _health(living))["w"] == health


async def test_a_schedule_is_stalled_after_three_of_its_periods(living: Stage):
    living.now = datetime.now(UTC) - timedelta(seconds=290)
    await living.register(scheduled("hour", interval_seconds=100), scheduled("minute", interval_seconds=60))
    health = await _health(living)
    assert (health["hour"], health["minute"]) == ("no_node", "stalled")


async def test_a_schedule_that_waits_for_its_own_run_is_not_stalled(living: Stage):
    living.now = datetime.now(UTC) - timedelta(seconds=600)
    await living.register(scheduled("s", interval_seconds=10))
    await living.join("n2", lease_seconds=3600.0)
    await living.sql("UPDATE {p}nodes SET lease_seconds = 100000")
    await living.start_one(node="n2")
    assert (await _health(living))["s"] != "stalled"


async def test_of_few_ends_nothing_is_said(living: Stage):
    await _ended(living, 4, late=0.1)
    await _running(living, 30.0, late=9.0)
    assert (await _health(living))["w"] == "healthy"

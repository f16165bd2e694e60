"""A clock that was wrong, on both databases: what it has left behind holds nothing up, and nothing fires twice."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta
from typing import Any

import pytest

from jobrunner import RetryAfter, RunContext, Snooze, WorkerOptions, WorkerOrchestrator
from jobrunner.runtime import housekeeper
from jobrunner.storage import nodes
from jobrunner.storage.reading.verify import Scope, verify
from jobrunner.storage.workers import operations
from jobrunner.telemetry import events as e
from jobrunner.testing import ManualClock
from tests.runtime.conftest import House
from tests.support.stage import identity

TWO_HOURS = 7200.0
TICK = 5.0
ACTOR = "ann@desk"


async def nothing() -> None:
    pass


class Scene:
    """A house with one node that lives by a manual clock."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.clock = ManualClock()
        self.node = house.orchestrator(clock=self.clock, tick_interval=TICK)

    async def start(self, *, runs: int = 0) -> None:
        """Start, and wait until so many attempts have ended."""
        await self.node.start()
        await self.house.attempts(runs)
        await self.settled()

    async def settled(self) -> None:
        await self.house.settled(self.node, self.clock)

    async def after(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.advance(seconds)
        await self.settled()

    async def step(self, seconds: float) -> None:
        """Set the wall clock, and let the node tick."""
        self.clock.step(seconds)
        await self.after(TICK)

    @property
    def told(self) -> list[str]:
        """What was told of clocks."""
        warned = [event.message for event in self.house.seen if isinstance(event, e.Warned)]
        return [message for message in warned if "clock" in message]

    async def state_time(self, worker: str, column: str) -> datetime:
        return self.house.time((await self.house.state(worker))[column])

    async def fired(self, worker: str) -> list[datetime]:
        """The times of a worker's firings."""
        rows = await self.house.history(worker)
        return [self.house.time(row["scheduled_for"]) for row in rows if row["outcome"] == "succeeded"]


@pytest.fixture
def scene(house: House) -> Scene:
    return Scene(house)


KINDS: dict[str, dict[str, Any]] = {
    "interval": {"interval_seconds": 60},
    "jitter": {"interval_seconds": 60, "jitter_seconds": 30},
    "cron": {"cron": "* * * * *"},
    "hourly": {"cron": "0 * * * *"},
    "loop": {"execution_mode": "continuous", "interval_seconds": 20},
}
PERIODS = {"hourly": 3600.0}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_clock_that_goes_back_holds_up_nothing_longer_than_a_period(scene: Scene, kind):
    scene.node.register_worker("it", nothing, **KINDS[kind])
    period = PERIODS.get(kind, 60.0)
    await scene.start()
    await scene.after(period)
    await scene.after(period)
    before = len(scene.house.ended())
    assert before >= 2
    fired_before = await scene.fired("it")
    await scene.step(-TWO_HOURS)
    assert len(scene.told) == 1
    assert scene.told[0].startswith("the clock went back by 2 h; computed again: 1 next time (it)")
    assert await scene.state_time("it", "next_run_at") <= scene.clock.now() + timedelta(seconds=period)
    await scene.after(period)
    assert len(scene.house.ended()) > before
    fired = (await scene.fired("it"))[len(fired_before) :]
    assert len(set(fired)) == len(fired) == 1
    assert len(scene.told) == 1


async def test_one_line_tells_of_all_that_stood_still(scene: Scene):
    for number in range(20):
        scene.node.register_worker(f"w{number:02}", nothing, interval_seconds=60)
    await scene.start(runs=20)
    await scene.step(-TWO_HOURS)
    (line,) = scene.told
    assert line == "the clock went back by 2 h; computed again: 20 next times (w00, w01, w02, …)"


async def test_what_was_just_served_is_not_served_again_when_the_clock_goes_back_less_than_a_period(scene: Scene):
    scene.node.register_worker("daily", nothing, cron="0 13 * * *")
    scene.node.register_worker("slow", nothing, interval_seconds=86400)
    await scene.start(runs=1)
    scene.clock.advance(3605)
    await scene.house.attempts(2)
    await scene.settled()
    await scene.step(-TWO_HOURS)
    scene.clock.advance(TWO_HOURS)
    await scene.settled()
    assert len(await scene.fired("daily")) == 1
    assert len(await scene.fired("slow")) == 1
    scene.clock.advance(86400)
    await scene.house.attempts(4)
    for name in ("daily", "slow"):
        first, second = await scene.fired(name)
        assert second - first == timedelta(days=1)


@pytest.mark.parametrize("column", ["next_run_at", "far"])
async def test_a_next_time_that_a_hand_wrote_too_far_ahead_is_found_within_a_tick(scene: Scene, column):
    scene.node.register_worker("it", nothing, interval_seconds=60)
    scene.node.register_worker("cron", nothing, cron="*/5 * * * *")
    await scene.start(runs=1)
    ahead = "2026-01-01 14:00:00.000000" if column == "next_run_at" else "2199-01-01 00:00:00.000000"
    plus = "+00" if not scene.house.db.is_sqlite else ""
    await scene.house.sql(f"UPDATE {{p}}worker_state SET next_run_at = '{ahead}{plus}'")
    await scene.after(TICK)
    assert await scene.state_time("it", "next_run_at") <= scene.clock.now() + timedelta(seconds=60)
    assert await scene.state_time("cron", "next_run_at") <= scene.clock.now() + timedelta(seconds=300)
    assert len(scene.told) == 1
    assert scene.told[0].startswith("further ahead than can be, by another clock or by hand; computed again: 2 next")
    await scene.after(60)
    assert len(await scene.fired("it")) == 2


async def test_a_loop_of_a_node_whose_clock_was_ahead_goes_on_within_a_tick(scene: Scene):
    """Ahead by less than a retry may wait: only when its last run ended tells that nobody is to wait so long."""
    scene.node.register_worker("loop", nothing, execution_mode="continuous", interval_seconds=30)
    await scene.start(runs=1)
    plus = "+00" if not scene.house.db.is_sqlite else ""
    for sets in ("next_run_at = '{}', last_ended_at = '{}'", "next_run_at = '{}'"):
        ahead = f"{scene.clock.now() + timedelta(minutes=50):%Y-%m-%d %H:%M:%S}.000000{plus}"
        await scene.house.sql(f"UPDATE {{p}}worker_state SET {sets.format(ahead, ahead)}")
        await scene.after(TICK)
        assert await scene.state_time("loop", "next_run_at") <= scene.clock.now() + timedelta(seconds=30)
    assert len(scene.told) == 2


async def test_a_time_that_is_rightly_far_ahead_is_left_alone_and_found_but_once(scene: Scene):
    scene.node.register_worker("yearly", nothing, cron="0 0 29 2 *")
    scene.node.register_worker("weekdays", nothing, cron="*/5 9-10 * * 1-5")
    scene.clock.step(timedelta(days=1, hours=-1, minutes=-5).total_seconds())  # Friday, 10:55
    await scene.start()
    await scene.after(300)
    assert await scene.state_time("weekdays", "next_run_at") == datetime.fromisoformat("2026-01-05T09:00Z")
    await scene.after(3 * TICK)
    assert (await scene.house.state("weekdays"))["reach_seconds"] == (3 * 24 - 2) * 3600 + 5 * 60
    assert scene.told == []


async def failing_once(run: RunContext) -> None:
    if run.attempt == 1:
        raise ValueError("no luck")


async def failing_for_long(run: RunContext) -> None:
    if run.attempt == 1:
        raise RetryAfter(30)


_snoozed: set[int] = set()


async def snoozing(run: RunContext) -> None:
    if run.id not in _snoozed:
        _snoozed.add(run.id)
        raise Snooze(30)


@pytest.mark.parametrize("handler", [failing_once, failing_for_long, snoozing])
async def test_a_run_that_waits_for_its_next_attempt_waits_no_longer_than_before(scene: Scene, handler):
    _snoozed.clear()
    scene.node.register_worker("it", handler, execution_mode="triggered", retry_delay_seconds=30)
    await scene.start()
    await scene.node.trigger_worker("it")
    await scene.house.attempts(1)
    await scene.settled()
    await scene.step(-TWO_HOURS)
    assert scene.told == ["the clock went back by 2 h; computed again: 1 waiting run"]
    await scene.after(40)  # the delay has up to 10 % of jitter
    await scene.house.attempts(2)
    assert scene.house.ended()[-1].outcome.kind == "succeeded"


async def test_a_delay_moves_with_the_clock_and_a_time_that_was_named_stays(scene: Scene):
    scene.node.register_worker("it", nothing, execution_mode="triggered", max_running=5)
    await scene.start()
    delayed = await scene.node.trigger_worker("it", delay=30)
    named = scene.clock.now() + timedelta(seconds=30)
    at = await scene.node.trigger_worker("it", at=named)
    await scene.settled()
    await scene.step(-TWO_HOURS)
    await scene.after(30)
    (end,) = await scene.house.attempts(1)
    assert end.run.id == delayed
    (row,) = await scene.house.rows("SELECT due_at FROM {p}runs WHERE id = :id", id=at)
    assert scene.house.time(row["due_at"]) == named


async def test_a_trigger_of_a_machine_whose_clock_is_ahead_starts_within_a_tick(scene: Scene):
    scene.node.register_worker("it", nothing, execution_mode="triggered")
    await scene.start()
    elsewhere = ManualClock(scene.clock.now() + timedelta(hours=2))
    program = WorkerOrchestrator(scene.house.url, clock=elsewhere)
    await program.trigger_worker("it")
    await program.stop()
    await scene.after(TICK)
    await scene.house.attempts(1)


async def test_a_pause_of_a_given_length_moves_with_the_clock_and_a_named_end_stays(scene: Scene):
    for name in ("long", "named"):
        scene.node.register_worker(name, nothing, interval_seconds=20)
    await scene.start(runs=2)
    end = scene.clock.now() + timedelta(seconds=60)
    await operations.pause(scene.house.db, "long", scene.clock.now(), ACTOR, end, None, is_length=True)
    await operations.pause(scene.house.db, "named", scene.clock.now(), ACTOR, end, None)
    await scene.step(-TWO_HOURS)
    assert scene.told == ["the clock went back by 2 h; computed again: 1 pause (long)"]
    assert await scene.state_time("long", "paused_until") <= scene.clock.now() + timedelta(seconds=60)
    assert await scene.state_time("named", "paused_until") == end
    await scene.after(90)
    assert len(await scene.fired("long")) > 1
    assert len(await scene.fired("named")) == 1


@pytest.mark.parametrize("how", ["step", "hand"])
async def test_a_probe_waits_no_longer_than_its_cooldown(scene: Scene, how):
    async def failing() -> None:
        raise ValueError("no luck")

    options: WorkerOptions = {"max_retries": 0, "max_consecutive_failures": 1, "cooldown_seconds": 60}
    scene.node.register_worker("it", failing, interval_seconds=10, **options)
    await scene.start(runs=1)
    if how == "step":
        await scene.step(-TWO_HOURS)
    else:
        plus = "+00" if not scene.house.db.is_sqlite else ""
        await scene.house.sql(f"UPDATE {{p}}worker_state SET probe_at = '2026-01-02 00:00:00.000000{plus}'")
        await scene.after(TICK)
    assert "computed again: 1 cooldown (it)" in scene.told[0]
    assert await scene.state_time("it", "probe_at") <= scene.clock.now() + timedelta(seconds=60)
    await scene.after(80)
    await scene.house.attempts(2)


async def test_nothing_that_has_happened_stays_in_the_future(scene: Scene):
    scene.node.register_worker("first", nothing, execution_mode="triggered")
    scene.node.register_worker(
        "second",
        nothing,
        execution_mode="triggered",
        depends_on=["first"],
        blocks=["first"],
    )
    await scene.start()
    await scene.node.trigger_worker("first")
    await scene.house.attempts(1)
    await scene.settled()
    await scene.step(-TWO_HOURS)
    for name in ("last_ended_at", "last_run_at", "last_success_at"):
        assert await scene.state_time("first", name) <= scene.clock.now()
    await scene.node.trigger_worker("second")
    end = (await scene.house.attempts(2))[-1]
    assert end.run.started_at is not None
    assert end.run.started_at <= scene.clock.now()
    assert end.run.started_at <= end.outcome.finished_at


async def test_while_a_live_node_is_ahead_nothing_is_touched_and_it_is_told_once(scene: Scene):
    scene.node.register_worker("it", nothing, interval_seconds=60)
    await scene.start(runs=1)
    ahead = scene.clock.now() + timedelta(hours=2)
    async with scene.house.db.write() as conn:
        await nodes.join(conn, scene.house.db.dialect, identity("other"), ["it"], ahead)
    plus = "+00" if not scene.house.db.is_sqlite else ""
    await scene.house.sql(f"UPDATE {{p}}worker_state SET next_run_at = '2026-01-01 14:01:00.000000{plus}'")
    for _ in range(10):
        await scene.after(TICK)
    assert await scene.state_time("it", "next_run_at") == datetime.fromisoformat("2026-01-01T14:01Z")
    (line,) = scene.told
    assert line.startswith("the clock of a node on other is 1.99 h ahead of this one's; set the clocks right")
    await scene.house.sql("UPDATE {p}nodes SET state = 'stopped' WHERE id = 'other'")
    await scene.after(TICK)
    assert await scene.state_time("it", "next_run_at") <= scene.clock.now() + timedelta(seconds=60)


async def test_a_clock_that_jumps_ahead_is_as_a_sleep(scene: Scene):
    scene.node.register_worker("it", nothing, interval_seconds=60)
    await scene.start(runs=1)
    await scene.step(TWO_HOURS)
    await scene.house.attempts(2)
    await scene.settled()
    assert [row["outcome"] for row in await scene.house.history()].count("missed") == 1
    assert len(await scene.fired("it")) == 2
    assert scene.told == []


async def test_an_age_by_a_clock_that_has_jumped_ahead_deletes_nothing_for_an_hour(scene: Scene, monkeypatch):
    pruned: list[datetime] = []

    async def prune(_db: object, now: datetime, *_: object) -> None:
        pruned.append(now)

    monkeypatch.setattr(housekeeper.retention, "prune", prune)
    scene.node.register_worker("it", nothing, execution_mode="triggered")
    await scene.start()
    scene.clock.step(40 * 86400)
    await scene.after(100)
    await scene.settled()
    assert pruned == []
    scene.clock.step(-40 * 86400)
    scene.clock.advance(3600)
    await scene.house.until(lambda: pruned)
    assert pruned == [scene.clock.now()]


async def test_a_run_during_which_the_clock_goes_back_ends_as_any_other(scene: Scene):
    end = asyncio.Event()

    async def long() -> None:
        await end.wait()

    scene.node.register_worker("it", long, interval_seconds=3600, max_running=1)
    await scene.node.start()
    await scene.house.until(lambda: scene.node._node is not None and scene.node._node.held)
    scene.clock.step(-TWO_HOURS)
    scene.clock.advance(TICK)
    await scene.house.until(lambda: scene.told)
    end.set()
    await scene.house.attempts(1)
    await scene.settled()
    (row,) = await scene.house.history("it")
    assert row["duration_ms"] == TICK * 1000
    assert scene.house.time(row["finished_at"]) == scene.clock.now()
    await scene.after(3600)
    assert len(await scene.fired("it")) == 2
    scope = Scope(scene.clock.now() + timedelta(days=1), 30.0, 90.0, timedelta(seconds=1))
    assert [violation async for violation in verify(scene.house.db, scope)] == []


async def test_nodes_whose_clocks_go_back_together_wait_for_each_others_beats_and_tell_of_nothing_else(house: House):
    scene = Scene(house)
    other = house.orchestrator(clock=scene.clock, tick_interval=TICK, lease=12.0)
    scene.node.configure(lease=12.0)
    for orchestrator in (scene.node, other):
        orchestrator.register_worker("it", nothing, interval_seconds=60)
        await orchestrator.start()
    await house.attempts(1)
    await house.until(lambda: other._node is not None and other._node._ticker.last_tick_at is not None)
    await scene.settled()
    await house.settled(other, scene.clock)
    scene.clock.step(-TWO_HOURS)
    async with asyncio.timeout(100):
        while len(scene.told) < 2:
            seen = len(scene.told)
            beats = await house.rows("SELECT beat FROM {p}nodes ORDER BY id")
            scene.clock.advance(2.0)
            while len(scene.told) == seen and beats == await house.rows("SELECT beat FROM {p}nodes ORDER BY id"):
                await asyncio.sleep(0.01)
    assert [line.split(";")[0] for line in scene.told] == ["the clock went back by 2 h"] * 2
    assert sorted("1 next time" in line for line in scene.told) == [False, True]


async def test_a_clock_that_was_set_is_noted_whichever_way_it_went(scene: Scene):
    scene.node.register_worker("it", nothing, interval_seconds=60)
    await scene.start(runs=1)
    for seconds in (TWO_HOURS, -3.0, -TWO_HOURS):
        await scene.step(seconds)
    rows = await scene.house.rows("SELECT actor, detail FROM {p}audit_log WHERE action = 'clock' ORDER BY id")
    details = [json.loads(row["detail"]) if isinstance(row["detail"], str) else row["detail"] for row in rows]
    assert [(row["actor"], detail["seconds"]) for row, detail in zip(rows, details, strict=True)] == [
        ("jobrunner", TWO_HOURS), ("jobrunner", -3.0), ("jobrunner", -TWO_HOURS),
    ]  # fmt: skip
    assert {detail["node_id"] for detail in details} == {
        row["id"] for row in await scene.house.rows("SELECT id FROM {p}nodes")
    }

"""The heartbeat, on both databases: it proves life, takes over from the dead, and keeps table and code in step.

A lease of 1.5 s here, so a beat every 0.25 s: a busy machine must not make it end by itself.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psutil
import pytest

from jobrunner import RunContext, WorkerOrchestrator
from jobrunner.errors import DatabaseUnavailable
from jobrunner.policy.leases import Watch
from jobrunner.runtime import heartbeat, tick
from jobrunner.runtime.clock import SystemClock
from jobrunner.runtime.identity import boot_id, is_gone, new_identity, start_ticks
from jobrunner.storage import nodes
from jobrunner.storage.nodes import SeenNode
from jobrunner.storage.runs.claims import claim_due
from jobrunner.telemetry import events as e
from tests.runtime.conftest import House

TRIGGERED: dict[str, Any] = {"execution_mode": "triggered", "max_retries": 0}
LEASE = 1.5
LONG_AGO = "2020-01-01 00:00:00.000000"


async def nothing() -> None:
    pass


class Sleeper:
    """A handler that runs until it is cancelled or let go."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.let_go = asyncio.Event()
        self.cancelled = 0

    async def work(self) -> None:
        self.started.set()
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


async def begun(house: House, handler: Any, **settings: Any) -> WorkerOrchestrator:
    """A node that runs one triggered worker, `it`."""
    orchestrator = house.orchestrator(**{"lease": LEASE, **settings})
    orchestrator.register_worker("it", handler, execution_mode="triggered", max_retries=1, retry_delay_seconds=0)
    await orchestrator.start()
    return orchestrator


async def join(house: House, node_id: str, **more: Any) -> None:
    """Another host's node, by its row."""
    values = {"pid": 1, "boot_id": "elsewhere", "state": "active", "beat": 0, **more}
    await house.sql(
        "INSERT INTO {p}nodes (id, hostname, pid, boot_id, process_started_at, state, beat, started_at, heartbeat_at,"
        f" max_concurrent, version) VALUES ('{node_id}', 'far', {values['pid']}, '{values['boot_id']}', '{LONG_AGO}',"
        f" '{values['state']}', {values['beat']}, '{LONG_AGO}', '{LONG_AGO}', 5, '0')"
    )


async def claim_by_hand(house: House, run_id: int, node_id: str) -> None:
    await house.sql(
        f"UPDATE {{p}}runs SET state = 'running', slot = 0, fence = 1, node_id = '{node_id}', "
        f"started_at = '{LONG_AGO}', first_started_at = '{LONG_AGO}' WHERE id = {run_id}"
    )
    await house.sql("UPDATE {p}worker_state SET last_fence = 1 WHERE worker = 'it'")


def node_id(orchestrator: WorkerOrchestrator) -> str:
    assert orchestrator._node is not None
    return orchestrator._node.identity.id


# --- proving life -------------------------------------------------------------------------------------------------


async def test_a_node_whose_loop_is_kept_busy_beats_on(house: House):
    async def rude() -> None:
        time.sleep(1.5)

    node = await begun(house, rude)
    watcher = house.orchestrator(lease=LEASE)
    watcher.register_worker("other", nothing, **TRIGGERED)
    await watcher.start()
    (before,) = await house.rows("SELECT beat FROM {p}nodes WHERE id = :id", id=node_id(node))
    await node.trigger_worker("it")
    await house.attempts(1)
    (after,) = await house.rows("SELECT beat FROM {p}nodes WHERE id = :id", id=node_id(node))
    assert after["beat"] - before["beat"] >= 3
    assert [row["state"] for row in await house.rows("SELECT state FROM {p}nodes")] == ["active", "active"]
    assert [row["outcome"] for row in await house.history()] == ["succeeded"]


async def test_a_node_that_does_not_tick_is_not_vouched_for_until_it_does(
    house: House, monkeypatch: pytest.MonkeyPatch
):
    real, hangs, goes_on = claim_due, asyncio.Event(), asyncio.Event()

    async def claim(*arguments: Any) -> Any:
        if hangs.is_set():
            await goes_on.wait()
        return await real(*arguments)

    monkeypatch.setattr(tick, "claim_due", claim)
    monkeypatch.setattr(heartbeat, "longest_silence", lambda *_: 0.5)
    sleeper = Sleeper()
    node = await begun(house, sleeper.work, tick_interval=0.05)
    run_id = await node.trigger_worker("it")
    await sleeper.started.wait()
    hangs.set()
    await house.until(lambda: sleeper.cancelled)  # its lease is about to end
    (before,) = await house.rows("SELECT beat FROM {p}nodes")
    await asyncio.sleep(LEASE / 2)
    (after,) = await house.rows("SELECT beat FROM {p}nodes")
    assert after == before
    sleeper.let_go.set()
    hangs.clear()
    goes_on.set()
    await house.until_row("SELECT id FROM {p}nodes WHERE beat > :beat", beat=before["beat"])
    await house.until_row("SELECT id FROM {p}run_history WHERE outcome = 'succeeded'")
    ends = [(row["run_id"], row["outcome"], row["attempt"]) for row in await house.history()]
    assert {*ends[:-1]} == {(run_id, "interrupted", 1)}
    assert ends[-1] == (run_id, "succeeded", 1)
    said = [event.message for event in house.seen if isinstance(event, e.Warned) and "not ticked" in event.message]
    assert "its lease is not renewed until it ticks" in said[0]
    assert "is blocked" not in said[0]  # its loop answers


async def test_a_database_that_is_away_is_no_fault_of_the_nodes(house: House, monkeypatch: pytest.MonkeyPatch):
    """A tick that fails is a tick: who cannot claim just now still holds what runs here."""
    is_away = asyncio.Event()
    real = claim_due

    async def claim(*arguments: Any) -> Any:
        if is_away.is_set():
            raise DatabaseUnavailable("locked")
        return await real(*arguments)

    monkeypatch.setattr(tick, "claim_due", claim)
    sleeper = Sleeper()
    node = await begun(house, sleeper.work, tick_interval=0.5)
    await node.trigger_worker("it")
    await sleeper.started.wait()
    is_away.set()
    (before,) = await house.rows("SELECT beat FROM {p}nodes")
    await house.until_row("SELECT id FROM {p}nodes WHERE beat >= :beat", beat=before["beat"] + 16)
    assert sleeper.cancelled == 0
    is_away.clear()
    sleeper.let_go.set()
    await house.attempts(1)


async def test_a_heartbeat_that_meets_an_error_nobody_thought_of_beats_on(
    house: House, monkeypatch: pytest.MonkeyPatch
):
    real, times = nodes.beat, 0

    async def beat(*arguments: Any) -> Any:
        nonlocal times
        times += 1
        if times in {2, 3}:
            raise ZeroDivisionError("a bug")
        return await real(*arguments)

    monkeypatch.setattr(nodes, "beat", beat)
    node = await begun(house, nothing)
    await house.until_row("SELECT id FROM {p}nodes WHERE id = :id AND beat >= 3", id=node_id(node))
    said = [event.message for event in house.seen if isinstance(event, e.Warned)]
    assert said == ["the heartbeat failed and is tried again: a bug"] * 2


@pytest.mark.parametrize("how", ["refuses", "hangs"])
async def test_a_lease_that_cannot_be_renewed_stops_all_code_in_time(
    house: House, monkeypatch: pytest.MonkeyPatch, how: str
):
    real, is_away, away_since = nodes.beat, asyncio.Event(), 0.0

    async def beat(*arguments: Any) -> Any:
        if is_away.is_set():
            if how == "refuses":
                raise DatabaseUnavailable("unplugged")
            await asyncio.sleep(3600)
        return await real(*arguments)

    monkeypatch.setattr(nodes, "beat", beat)
    sleeper = Sleeper()
    node = await begun(house, sleeper.work)
    run_id = await node.trigger_worker("it")
    await sleeper.started.wait()
    is_away.set()
    away_since = time.monotonic()
    await house.until(lambda: sleeper.cancelled)
    assert time.monotonic() - away_since < LEASE
    await house.attempts(1)
    (row,) = await house.history()
    assert (row["outcome"], row["attempt"], row["reason"]) == ("interrupted", 1, "the node could not renew its lease")
    await node.trigger_worker("it")
    await asyncio.sleep(0.1)
    assert len(await house.rows("SELECT id FROM {p}runs WHERE state = 'pending'")) == 2  # it claims nothing now
    sleeper.let_go.set()
    is_away.clear()
    ends = await house.attempts(3)
    assert ends[1].run.id == run_id  # given back, and first in order


# --- taking over --------------------------------------------------------------------------------------------------


async def test_a_silent_node_is_lost_after_a_whole_lease_and_its_runs_are_rescued(house: House):
    await join(house, "silent")
    await join(house, "alive")

    async def beat() -> None:
        while True:
            await house.sql("UPDATE {p}nodes SET beat = beat + 1 WHERE id = 'alive'")
            await asyncio.sleep(0.05)

    began = time.monotonic()
    beating = asyncio.ensure_future(beat())
    node = await begun(house, nothing)
    await node.disable_worker("it")
    run_id = await node.trigger_worker("it")
    await claim_by_hand(house, run_id, "silent")
    await node.enable_worker("it")
    await house.attempts(2)
    assert time.monotonic() - began >= LEASE
    rows = await house.history()
    assert [(row["outcome"], row["attempt"], row["node_id"]) for row in rows] == [
        ("lost", 1, "silent"),
        ("succeeded", 2, node_id(node)),
    ]
    states = {row["id"]: row["state"] for row in await house.rows("SELECT id, state FROM {p}nodes")}
    assert states == {"silent": "lost", "alive": "active", node_id(node): "active"}
    (audit,) = await house.rows("SELECT action, actor FROM {p}audit_log WHERE action = 'node_lost'")
    assert audit["actor"] == "jobrunner"
    beating.cancel()


async def test_a_wall_clock_that_runs_away_makes_nobody_lost(house: House, monkeypatch: pytest.MonkeyPatch):
    ahead = timedelta()
    monkeypatch.setattr(SystemClock, "now", lambda _self: datetime.now(UTC) + ahead)
    await join(house, "quiet")
    node = await begun(house, nothing, lease=3600)
    beating = node._node._heartbeat  # type: ignore[union-attr]  # it runs
    for _ in range(12):
        ahead += timedelta(seconds=beating.interval)
        await beating.pulse(house.db)
    assert await house.rows("SELECT state FROM {p}nodes WHERE id = 'quiet'") == [{"state": "active"}]
    assert await house.rows("SELECT id FROM {p}nodes WHERE state <> 'active'") == []


async def test_a_dead_process_of_this_host_is_taken_over_from_at_the_start(house: House):
    dead = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    await dead.wait()
    await join(house, "dead", pid=dead.pid, boot_id=boot_id())
    program = house.orchestrator()
    program.register_worker("it", nothing, execution_mode="triggered", max_retries=1, retry_delay_seconds=0)
    await program.start()
    await program.disable_worker("it")
    run_id = await program.trigger_worker("it")
    await program.stop()
    await claim_by_hand(house, run_id, "dead")
    node = await begun(house, nothing, lease=3600)
    await node.enable_worker("it")
    await house.attempts(2)
    assert [(row["outcome"], row["attempt"]) for row in await house.history()] == [("lost", 1), ("succeeded", 2)]


async def test_what_a_stopped_node_left_behind_is_taken_after_five_seconds_and_not_before(house: House):
    await join(house, "stopped", state="stopped")
    node = await begun(house, nothing)
    await node.disable_worker("it")
    run_id = await node.trigger_worker("it")
    now = datetime.now(UTC) - timedelta(seconds=4)  # one more to wait
    await house.sql(
        f"UPDATE {{p}}nodes SET heartbeat_at = '{now:%Y-%m-%d %H:%M:%S.%f}' WHERE id = 'stopped'"
        if house.db.is_sqlite
        else f"UPDATE {{p}}nodes SET heartbeat_at = '{now.isoformat()}' WHERE id = 'stopped'"
    )
    await claim_by_hand(house, run_id, "stopped")
    await asyncio.sleep(0.4)
    assert await house.history() == []
    await node.enable_worker("it")
    await house.attempts(2)
    rows = await house.history()
    assert [(row["outcome"], row["attempt"]) for row in rows] == [("interrupted", 1), ("succeeded", 1)]


async def test_a_node_that_was_declared_lost_stops_its_runs_and_joins_anew(house: House):
    sleeper = Sleeper()
    node = await begun(house, sleeper.work, lease=6)  # it learns of it within a second, and is not late by itself
    first_id = node_id(node)
    run_id = await node.trigger_worker("it")
    await sleeper.started.wait()
    sleeper.let_go.clear()
    await house.sql("UPDATE {p}nodes SET state = 'lost'")
    await house.until(lambda: sleeper.cancelled)
    sleeper.let_go.set()
    await house.attempts(2)
    rows = await house.history()
    assert [(row["run_id"], row["outcome"], row["attempt"]) for row in rows] == [
        (run_id, "lost", 1),
        (run_id, "succeeded", 2),
    ]
    states = {row["id"]: row["state"] for row in await house.rows("SELECT id, state FROM {p}nodes")}
    assert states == {first_id: "lost", node_id(node): "active"}
    assert any(isinstance(event, e.RunTakenAway) for event in house.seen)


async def test_a_node_that_was_declared_lost_claims_nothing_until_it_knows(house: House):
    """Others rescue what it holds at once: what it claimed now, they would run a second time."""
    node = await begun(house, nothing, lease=60)  # it will not know for 10 s
    await house.until_row("SELECT id FROM {p}nodes WHERE beat >= 1")
    await house.sql("UPDATE {p}nodes SET state = 'lost'")
    await node.trigger_worker("it")
    ticker = node._node._ticker  # type: ignore[union-attr]  # it runs
    ticks = ticker.ticks
    await house.until(lambda: ticker.ticks > ticks + 3)
    assert await house.rows("SELECT state, attempt FROM {p}runs") == [{"state": "pending", "attempt": 1}]


# --- table and code in step ---------------------------------------------------------------------------------------


async def test_a_claim_without_code_is_given_back(house: House):
    node = await begun(house, nothing, tick_interval=0.05)
    await node.disable_worker("it")
    run_id = await node.trigger_worker("it")
    await claim_by_hand(house, run_id, node_id(node))
    await house.until_row("SELECT id FROM {p}run_history WHERE outcome = 'interrupted'")
    await node.enable_worker("it")
    await house.attempts(1)
    rows = await house.history()
    assert [(row["outcome"], row["attempt"], row["reason"]) for row in rows] == [
        ("interrupted", 1, "claimed, but its code was never started"),
        ("succeeded", 1, None),
    ]


async def test_a_claim_whose_answer_is_on_its_way_is_not_given_back(house: House, monkeypatch: pytest.MonkeyPatch):
    """The commit is done, but the node's loop does not know of it yet: a busy loop, a slow network."""
    real, holding, answered = tick.Ticker._claim, asyncio.Event(), asyncio.Event()

    async def slow(*arguments: Any) -> Any:
        claimed = await real(*arguments)
        if claimed.claims and not holding.is_set():
            holding.set()
            await answered.wait()
        return claimed

    monkeypatch.setattr(tick.Ticker, "_claim", slow)
    monkeypatch.setattr(heartbeat, "longest_silence", lambda *_: 3600.0)  # so that it beats on meanwhile
    node = await begun(house, nothing, tick_interval=0.02)
    await node.trigger_worker("it")
    await holding.wait()
    (seen,) = await house.rows("SELECT beat FROM {p}nodes")
    await house.until_row("SELECT id FROM {p}nodes WHERE beat >= :beat", beat=seen["beat"] + 4)
    answered.set()
    await house.attempts(1)
    assert [row["outcome"] for row in await house.history()] == ["succeeded"]


async def test_code_without_a_claim_is_stopped_and_writes_nothing(house: House):
    sleeper = Sleeper()
    node = await begun(house, sleeper.work)
    await node.trigger_worker("it")
    await sleeper.started.wait()
    await house.sql("DELETE FROM {p}runs")
    await house.until(lambda: any(isinstance(event, e.RunTakenAway) for event in house.seen))
    assert sleeper.cancelled == 1
    assert await house.history() == []
    assert node._node is not None
    await house.until(lambda: not node._node.held)  # type: ignore[union-attr]  # it runs


async def test_a_handler_sees_its_fence_grow(house: House):
    fences: list[int] = []

    async def it(run: RunContext) -> None:
        fences.append(run.fence)
        if len(fences) < 3:
            raise ValueError("again")

    node = await begun(house, it)
    await node.trigger_worker("it")
    await house.attempts(2)
    await node.trigger_worker("it")
    await house.attempts(3)
    assert fences == sorted(set(fences))


# --- the judgement, without a database ----------------------------------------------------------------------------


def seen(beat: int, name: str = "other") -> SeenNode:
    return SeenNode(name, "far", 1, "elsewhere", datetime(2020, 1, 1, tzinfo=UTC), beat)


def test_a_node_is_lost_when_its_beat_stood_still_for_a_whole_lease():
    watch = Watch(30)
    for now in range(0, 30, 5):
        watch.beat(now)
        assert watch.look([seen(7)], now, now) == []
    watch.beat(30)
    assert watch.look([seen(7)], 30, 30) == [seen(7)]


def test_every_new_beat_starts_the_lease_anew():
    watch = Watch(30)
    for now in range(0, 300, 5):
        watch.beat(now)
        assert watch.look([seen(now // 25)], now, now) == []


def test_who_could_not_beat_itself_has_seen_nothing():
    """A database outage makes nobody lost: what stood still while our own beats were missing proves nothing."""
    watch = Watch(30)
    for now in range(0, 30, 5):
        watch.beat(now)
        watch.look([seen(7)], now, now)
    watch.missed()
    watch.beat(100)
    assert watch.look([seen(7)], 100, 100) == []
    for now in range(105, 130, 5):
        watch.beat(now)
        assert watch.look([seen(7)], now, now) == []
    watch.beat(130)
    assert watch.look([seen(7)], 130, 130) == [seen(7)]


def test_a_pause_of_the_watcher_itself_starts_the_watch_anew():
    """This process was suspended: its clock went on, everyone else's beats are unread."""
    watch = Watch(30)
    watch.beat(0)
    watch.look([seen(7)], 0, 0)
    watch.beat(60)
    assert watch.look([seen(7)], 60, 60) == []


def test_a_node_that_comes_later_is_watched_from_then_on():
    watch = Watch(30)
    for now in range(0, 30, 5):
        watch.beat(now)
        watch.look([seen(now)], now, now)
    watch.beat(30)
    assert watch.look([seen(1), seen(1, "new")], 30, 30) == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process's start does not move with the clock")
def test_a_clock_that_was_set_makes_no_living_process_gone():
    here = new_identity(5, allows_commands=False, lease=30.0)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        ticks = start_ticks(child.pid)
        hours_off = here.process_started_at + timedelta(hours=2)
        alive = SeenNode("child", here.hostname, child.pid, here.boot_id, hours_off, 0, ticks)
        assert ticks is not None
        assert not is_gone(alive, here)
        assert is_gone(replace(alive, start_ticks=ticks - 1), here)  # the pid was reused
    finally:
        child.kill()
        child.communicate()


def test_only_a_process_that_has_certainly_ended_is_gone():
    here = new_identity(5, allows_commands=False, lease=30.0)
    me = SeenNode("me", here.hostname, here.pid, here.boot_id, here.process_started_at, 0)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        started = datetime.fromtimestamp(psutil.Process(child.pid).create_time(), UTC)
        alive = SeenNode("child", here.hostname, child.pid, here.boot_id, started, 0)
        assert not is_gone(me, here)
        assert not is_gone(alive, here)
        assert not is_gone(replace(alive, process_started_at=started + timedelta(seconds=2)), here)  # the clock was set
        assert is_gone(replace(alive, process_started_at=started - timedelta(hours=1)), here)  # the pid was reused
        assert is_gone(replace(me, process_started_at=here.process_started_at - timedelta(hours=1)), here)
        assert not is_gone(replace(alive, boot_id="elsewhere", pid=999_999_999), here)
        os.kill(child.pid, 9)
        while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.001)
        assert is_gone(alive, here)  # dead, though its parent has not looked yet
    finally:
        child.kill()
        child.wait()
        assert child.stdin is not None
        child.stdin.close()
    assert is_gone(alive, here)

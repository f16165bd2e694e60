"""The tick loop, on both databases: a free slot is filled at once, and whoever enqueues is heard at once.

`tick_interval` is 60 s everywhere here, so that only a wake-up or a due time explains what happens earlier.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from jobrunner import JobPriority
from jobrunner.errors import DatabaseUnavailable
from jobrunner.model.run import Outcome, OutcomeKind, Run, RunState, Trigger
from jobrunner.model.worker import WorkerConfig, WorkerExecutionMode
from jobrunner.policy.fast_path import Eligible
from jobrunner.runtime import tick
from jobrunner.runtime.aside import SetAside
from jobrunner.runtime.outage import Outage
from jobrunner.runtime.outbox import Outbox
from jobrunner.runtime.recorder import Recorder
from jobrunner.runtime.tick import Ticker
from jobrunner.runtime.timekeeper import Timekeeper
from jobrunner.storage.database.database import Database
from jobrunner.storage.runs import cancelling
from jobrunner.storage.runs.claims import claim_due
from jobrunner.storage.runs.facts import Here
from jobrunner.storage.runs.finishes import Ended
from jobrunner.storage.runs.looks import Claimer
from jobrunner.storage.turns.turn import LOOK_AGAIN_SECONDS, Turned
from jobrunner.telemetry import events as e
from jobrunner.testing import ManualClock
from tests.runtime.conftest import House

TRIGGERED: dict[str, Any] = {"execution_mode": "triggered", "max_retries": 0}
GENEROUS_SECONDS = (
    5.0  # a twelfth of a tick; the promise is 0.1 on SQLite and 0.02 on PostgreSQL; shared machines stutter
)


async def nothing() -> None:
    pass


async def test_a_free_slot_is_filled_at_once(house: House):
    orchestrator = house.orchestrator(max_concurrent=1)
    orchestrator.register_worker("it", nothing, max_running=5, **TRIGGERED)
    await orchestrator.start()
    began = time.monotonic()
    await orchestrator.trigger_many("it", [None] * 20)
    await house.attempts(20)
    assert time.monotonic() - began < 5  # one after the other; at the next tick each, it would be 20 minutes


async def test_what_becomes_due_is_not_left_to_the_next_tick(house: House):
    orchestrator = house.orchestrator()
    orchestrator.register_worker("it", nothing, **TRIGGERED)
    orchestrator.register_worker("often", nothing, interval_seconds=0.1)
    await orchestrator.start()
    run_id = await orchestrator.trigger_worker("it", delay=0.3)
    (end,) = await house.attempts(1, "it")
    await house.attempts(2, "often")
    assert end.run.id == run_id
    assert end.run.started_at is not None
    assert timedelta(0) <= end.run.started_at - end.run.due_at < timedelta(seconds=5)  # a twelfth of a tick


async def test_an_idle_node_sleeps_and_does_not_spin(house: House):
    orchestrator = house.orchestrator(lease=60)
    orchestrator.register_worker("it", nothing, interval_seconds=3600)
    orchestrator.register_worker("off", nothing, interval_seconds=3600)
    await orchestrator.start()
    await house.attempts(2)
    await orchestrator.disable_worker("off")
    await orchestrator.trigger_worker("off")  # waits for ever, and is due
    await orchestrator.wait_idle()
    await asyncio.sleep(0.1)
    ticks = orchestrator._node._ticker.ticks  # type: ignore[union-attr]  # it runs
    await asyncio.sleep(0.5)
    assert orchestrator._node._ticker.ticks - ticks <= 4  # type: ignore[union-attr]  # a heartbeat may wake it


async def test_a_worker_that_is_enabled_while_others_keep_the_node_busy_starts_soon(house: House):
    """Under load those who were stuck at the last look are passed by until the next, never for good."""
    orchestrator = house.orchestrator(max_concurrent=2)

    async def short() -> None:
        await asyncio.sleep(0.002)

    orchestrator.register_worker("busy", short, max_running=2, **TRIGGERED)
    orchestrator.register_worker("off", nothing, priority=JobPriority.HIGH, **TRIGGERED)
    await orchestrator.start()
    await orchestrator.disable_worker("off")
    await orchestrator.trigger_worker("off")
    await orchestrator.trigger_many("busy", [None] * 2_000)
    await house.attempts(100, "busy")
    await orchestrator.enable_worker("off")
    await house.attempts(1, "off")
    assert len([end for end in house.seen if isinstance(end, e.RunEnded) and end.run.worker == "busy"]) < 1_900


async def test_under_load_a_late_look_at_those_who_are_stuck_is_not_put_off_by_ends(tmp_path: Path):
    """One turn more claims runs; then there are turns for what has ended only, until there was a look."""
    clock, events = ManualClock(), e.Events()
    db = Database.open(f"sqlite:///{tmp_path}/never-opened.db")
    outage = Outage(clock, events)
    recorder = Recorder(db, outage, events, Outbox(), lambda _: None)
    claimer = Claimer("n1", Here(frozenset()))
    ticker = Ticker(
        db,
        clock,
        outage,
        claimer,
        recorder,
        60.0,
        lambda: 9,
        lambda _: None,
        SetAside(clock, events),
        Timekeeper(db, clock, events, 60.0),
        lambda _: None,
    )
    config = WorkerConfig("busy", "x", WorkerExecutionMode.TRIGGERED)
    run = Run(1, "busy", Trigger.MANUAL, RunState.RUNNING, 1, clock.now(), clock.now(), {}, None, 1, False)
    ticker._known.looked(clock.monotonic() - 1, Eligible({"busy": config}, {"busy": 1}, ("off",)), is_nothing_due=False)
    ticker._known.pass_begins(is_worth_a_turn=True)
    ticker._timekeeper.looked()  # at the start it has to; that is not what is looked at here
    claiming: list[bool] = []

    async def turn(_path: Any, eligible: Eligible | None, _ended: Any, _most: int) -> Turned:
        claiming.append(eligible is not None)
        recorder.outbox.put(Ended(run, Outcome(OutcomeKind.SUCCEEDED, clock.now()), simple_under=1))
        turned = Turned(runs=() if eligible is None else (run,))
        ticker._known.turn_came_back(eligible, turned)
        return turned

    ticker._turn = turn  # type: ignore[method-assign]
    assert ticker._fast_path is not None
    assert await ticker._take_turns(ticker._fast_path)
    assert not await ticker._take_turns(ticker._fast_path)
    assert claiming == [True, False, False]


async def test_with_others_stuck_a_run_that_comes_to_an_idle_node_takes_one_turn(
    house: House, monkeypatch: pytest.MonkeyPatch
):
    """The look at those who are stuck comes after it."""
    orchestrator = house.orchestrator(lease=60)
    orchestrator.register_worker("it", nothing, **TRIGGERED)
    orchestrator.register_worker("off", nothing, **TRIGGERED)
    await orchestrator.start()
    await orchestrator.disable_worker("off")
    await orchestrator.trigger_many("off", [None] * 5)
    await orchestrator.trigger_worker("it")
    await house.attempts(1, "it")
    await orchestrator.wait_idle()
    await asyncio.sleep(3 * LOOK_AGAIN_SECONDS)
    given: list[int] = []

    async def counted(*arguments: Any) -> Any:
        claimed = await claim_due(*arguments)
        given.append(len(claimed.claims))
        return claimed

    monkeypatch.setattr(tick, "claim_due", counted)
    await orchestrator.trigger_worker("it")
    await house.attempts(2, "it")
    await house.until(lambda: given)
    assert sum(given) == 0


async def lateness(house: House, enqueue: Callable[[], Awaitable[None]], times: int = 5) -> list[float]:
    """How many seconds after the end of `enqueue` the run's code starts."""
    orchestrator = house.orchestrator(lease=60)
    started: list[float] = []

    async def it() -> None:
        started.append(time.monotonic())

    orchestrator.register_worker("it", it, **TRIGGERED)
    await orchestrator.start()
    await orchestrator.wait_idle()
    late = []
    for count in range(1, times + 1):
        await asyncio.sleep(0.05)  # so that each wakes a node that sleeps
        await enqueue()
        done = time.monotonic()
        await house.attempts(count)
        late.append(started[-1] - done)
    return late


def tell(house: House, what: str, late: list[float]) -> None:
    """Show the figure; assert the generous bound on the best of them: one is enough to prove the wake-up."""
    figures = ", ".join(f"{seconds * 1000:.1f}" for seconds in late)
    print(f"{what} on {house.db.dialect.name}: {figures} ms")  # with pytest -s
    assert min(late) < GENEROUS_SECONDS


async def test_a_trigger_by_another_process_is_seen_at_once(house: House):
    program = (
        "import sys\nfrom jobrunner import WorkerOrchestrator\n"
        "o = WorkerOrchestrator(sys.argv[1])\n"
        "for line in sys.stdin:\n    print(o.trigger_sync('it', {}), flush=True)\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, house.url, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ}
    )
    assert process.stdin is not None
    assert process.stdout is not None

    async def enqueue() -> None:
        process.stdin.write(b"go\n")  # type: ignore[union-attr]  # it is a pipe
        await process.stdout.readline()  # type: ignore[union-attr]  # it is a pipe

    try:
        tell(house, "trigger by another process", await lateness(house, enqueue))
    finally:
        process.stdin.close()
        await process.wait()


async def test_a_plain_insert_by_another_program_is_seen_at_once(house: House):
    """By the `sqlite3` module or asyncpg, knowing nothing of jobrunner."""
    url = make_url(house.url)

    async def into_sqlite() -> None:
        def insert() -> None:
            with closing(sqlite3.connect(url.database or "", isolation_level=None)) as connection:
                connection.execute("INSERT INTO runs (worker, payload) VALUES ('it', '{}')")

        await asyncio.to_thread(insert)

    async def into_postgres() -> None:
        connection = await asyncpg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))
        await connection.execute("INSERT INTO jobrunner.runs (worker, payload) VALUES ('it', '{}')")
        await connection.close()

    tell(house, "plain INSERT", await lateness(house, into_sqlite if house.db.is_sqlite else into_postgres))


async def test_a_trigger_in_a_callers_transaction_counts_from_its_commit_and_not_after_a_rollback(house: House):
    orchestrator = house.orchestrator()
    orchestrator.register_worker("it", nothing, **TRIGGERED)
    await orchestrator.start()
    engine = create_async_engine(house.url)
    try:
        async with engine.connect() as connection:
            await connection.begin()
            await orchestrator.trigger_worker("it", connection=connection)
            await connection.rollback()
            await connection.begin()
            run_id = await orchestrator.trigger_worker("it", connection=connection)
            await orchestrator.wait_idle()
            assert house.ended() == []
            await connection.commit()
        (end,) = await house.attempts(1)
        assert end.run.id == run_id
    finally:
        await engine.dispose()


async def test_a_cancellation_from_outside_is_heard_at_once(house: House):
    orchestrator = house.orchestrator(lease=60)
    forever = asyncio.Event()

    async def it() -> None:
        await forever.wait()

    orchestrator.register_worker("it", it, **TRIGGERED)
    await orchestrator.start()
    run_id = await orchestrator.trigger_worker("it")
    await house.until(lambda: any(isinstance(event, e.RunStarted) for event in house.seen))
    await asyncio.sleep(0.3)
    began = time.monotonic()
    await cancelling.cancel(house.db, run_id, ManualClock().now(), "ann@desk", "not needed")
    await house.attempts(1)
    assert time.monotonic() - began < 3
    (row,) = await house.history()
    assert (row["outcome"], row["ends_run"]) == ("cancelled", "cancelled")


async def test_a_database_that_is_away_for_a_while_is_waited_for_and_told_of_once(
    house: House, monkeypatch: pytest.MonkeyPatch
):
    failures = 0

    async def claim(*arguments: Any) -> Any:
        nonlocal failures
        failures += 1
        if failures <= 4:
            raise DatabaseUnavailable("gone fishing")
        return await claim_due(*arguments)

    monkeypatch.setattr(tick, "claim_due", claim)
    orchestrator = house.orchestrator(lease=60)
    orchestrator.register_worker("it", nothing, interval_seconds=3600)
    await orchestrator.start()
    await house.attempts(1)
    assert failures > 4
    said = [type(event).__name__ for event in house.seen if isinstance(event, e.DatabaseLost | e.DatabaseBack)]
    assert said[-1] == "DatabaseBack"
    assert said.count("DatabaseLost") <= 2  # the heartbeat's success may come between

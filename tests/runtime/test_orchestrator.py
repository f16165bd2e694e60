"""The orchestrator as a program uses it, on both databases; first what the original sketch got wrong."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jobrunner import RunContext, WorkerOrchestrator
from jobrunner.errors import (
    DependencyCycle,
    InvalidPayload,
    InvalidSetting,
    InvalidWorker,
    Refused,
    SchemaAhead,
    SchemaDamaged,
    SchemaMissing,
    WorkerNotFound,
)
from jobrunner.telemetry import events as e
from jobrunner.testing import ManualClock
from tests.runtime.conftest import House

TRIGGERED: dict[str, Any] = {"execution_mode": "triggered", "max_retries": 0}


async def nothing() -> None:
    pass


async def fails() -> None:
    raise ValueError("no luck")


class Gauge:
    """A handler that counts how many of it run at once, and ends when it is let go."""

    def __init__(self) -> None:
        self.running = self.most = self.total = 0
        self.let_go = asyncio.Event()

    async def work(self) -> None:
        self.running += 1
        self.total += 1
        self.most = max(self.most, self.running)
        try:
            await self.let_go.wait()
            await asyncio.sleep(0.001)
        finally:
            self.running -= 1


# --- what the original sketch got wrong ---------------------------------------------------------------------------


async def test_one_tick_never_starts_more_runs_than_the_limits_allow(house: House):
    node, few = Gauge(), Gauge()
    orchestrator = house.orchestrator(max_concurrent=7)
    orchestrator.register_worker("few", few.work, max_running=2, **TRIGGERED)
    for number in range(10):
        orchestrator.register_worker(f"w{number}", node.work, max_retries=0, interval_seconds=3600)
    await orchestrator.start()
    await orchestrator.trigger_many("few", [None] * 10)
    await house.until(lambda: node.running + few.running == 7)
    node.let_go.set()
    few.let_go.set()
    await house.attempts(20)
    assert node.most + few.most >= 7
    assert node.most <= 7
    assert few.most == 2
    assert (node.total, few.total) == (10, 10)


async def test_a_timeout_is_recorded_with_an_error_that_says_so(house: House):
    async def slow() -> None:
        await asyncio.sleep(60)

    orchestrator = house.orchestrator()
    orchestrator.register_worker("slow", slow, timeout_seconds=0.02, max_retries=0)
    await orchestrator.start()
    await house.attempts(1)
    (row,) = await house.history()
    assert (row["outcome"], row["error_type"], row["error"]) == ("timed_out", "TimeoutError", "timed out after 0.02 s")
    assert (await house.state("slow"))["last_error"] == "timed out after 0.02 s"


async def test_a_dependency_is_not_met_by_a_worker_that_never_ran(house: House):
    orchestrator = house.orchestrator()
    orchestrator.register_worker("first", nothing, **TRIGGERED)
    orchestrator.register_worker("second", nothing, max_retries=0, depends_on=["first"])
    await orchestrator.start()
    await orchestrator.wait_idle()
    assert await house.history() == []
    await orchestrator.trigger_worker("first")
    await house.attempts(2)
    assert [row["worker"] for row in await house.history()] == ["first", "second"]


async def test_a_dependency_is_not_met_by_a_worker_that_failed_last(house: House):
    broken = False

    async def first() -> None:
        if broken:
            raise ValueError("no luck")

    orchestrator = house.orchestrator()
    orchestrator.register_worker("first", first, **TRIGGERED)
    orchestrator.register_worker("second", nothing, depends_on=["first"], **TRIGGERED)
    await orchestrator.start()
    for step in range(3):
        broken = step == 1
        await orchestrator.trigger_worker("first")
        await house.attempts(step + 1, "first")
        await orchestrator.trigger_worker("second")
        await orchestrator.wait_idle()
    assert [(row["worker"], row["outcome"]) for row in await house.history()] == [
        ("first", "succeeded"),
        ("second", "succeeded"),
        ("first", "failed"),
        ("first", "succeeded"),
        ("second", "succeeded"),
        ("second", "succeeded"),
    ]


@pytest.mark.parametrize("order", [("blocker", "blocked"), ("blocked", "blocker")])
async def test_blocked_counterparts_never_run_together_whichever_starts_first(house: House, order: tuple[str, str]):
    gauge = Gauge()
    orchestrator = house.orchestrator()
    orchestrator.register_worker("blocker", gauge.work, blocks=["blocked"], **TRIGGERED)
    orchestrator.register_worker("blocked", gauge.work, **TRIGGERED)
    await orchestrator.start()
    await orchestrator.trigger_worker(order[0])
    await house.until(lambda: gauge.running == 1)
    ticker = orchestrator._node._ticker  # type: ignore[union-attr]  # it runs
    await orchestrator.trigger_worker(order[1])
    await orchestrator.trigger_worker(order[1], force=True)
    ticks = ticker.ticks
    await house.until(lambda: ticker.ticks > ticks and not ticker.is_ticking)  # it looked, and started none
    gauge.let_go.set()
    await house.attempts(3)
    assert gauge.most == 1
    assert [row["worker"] for row in await house.history()] == [order[0], order[1], order[1]]


async def test_hours_pass_and_each_mode_has_run_as_it_should(house: House):
    """`triggered` never by itself, `continuous` a pause after its end, `scheduled` on its grid, cron in its zone."""
    clock = ManualClock(datetime(2026, 3, 28, 23, 59, tzinfo=UTC))
    starts: dict[str, list[datetime]] = {"loop": [], "grid": [], "cron": [], "asked": []}

    def noting(name: str) -> Any:
        async def work() -> None:
            starts[name].append(clock.now())

        return work

    orchestrator = house.orchestrator(clock=clock, tick_interval=86400)
    orchestrator.register_worker("asked", noting("asked"), **TRIGGERED)
    orchestrator.register_worker("loop", noting("loop"), execution_mode="continuous", interval_seconds=5400)
    orchestrator.register_worker("grid", noting("grid"), interval_seconds=7200)
    orchestrator.register_worker("cron", noting("cron"), cron="30 2 * * *", timezone="Europe/Berlin")  # a skipped hour
    await orchestrator.start()
    began, due = clock.now(), clock.now()
    while due - began < timedelta(hours=6, seconds=1):
        clock.advance((due - clock.now()).total_seconds())
        await house.settled(orchestrator, clock)
        due = house.time((await house.rows("SELECT min(next_run_at) AS due FROM {p}worker_state"))[0]["due"])
    assert starts["asked"] == []
    minutes = {name: [round((at - began).total_seconds() / 60) for at in times] for name, times in starts.items()}
    assert minutes["grid"] == [0, 120, 240, 360]
    assert minutes["loop"] == [0, 90, 180, 270, 360]
    assert minutes["cron"] == [61]  # 01:00 UTC is 03:00 in Berlin, right after the gap


async def test_max_retries_is_read_and_delays_grow(house: House):
    clock = ManualClock()
    attempts: list[tuple[int, datetime]] = []

    async def broken(run: RunContext) -> None:
        attempts.append((run.attempt, clock.now()))
        raise ValueError(f"attempt {run.attempt}")

    orchestrator = house.orchestrator(clock=clock, tick_interval=3600)
    orchestrator.register_worker(
        "broken", broken, execution_mode="triggered", max_retries=2, retry_delay_seconds=10, retry_backoff=3
    )
    await orchestrator.start()
    await orchestrator.trigger_worker("broken")
    waits = []
    for count in (1, 2, 3):
        await house.attempts(count)
        waits.append(attempts[-1][1])
        if count < 3:
            (row,) = await house.rows("SELECT due_at, attempt, scheduled_for FROM {p}runs")
            assert row["attempt"] == count + 1
            clock.advance(10 * 3 ** (count - 1) * 1.11)
    assert [number for number, _ in attempts] == [1, 2, 3]
    assert [(row["attempt"], row["ends_run"]) for row in await house.history()] == [
        (1, None),
        (2, None),
        (3, "exhausted"),
    ]
    (letter,) = await house.rows("SELECT attempts, errors FROM {p}dead_letters")
    assert letter["attempts"] == 3
    assert (await house.state("broken"))["consecutive_failures"] == 1  # runs count, not attempts


async def test_a_manual_trigger_waits_for_every_limit(house: House):
    gauge = Gauge()
    orchestrator = house.orchestrator(max_concurrent=3)
    orchestrator.register_worker("it", gauge.work, max_running=2, **TRIGGERED)
    orchestrator.register_worker("off", gauge.work, **TRIGGERED)
    await orchestrator.start()
    await orchestrator.disable_worker("off", "not now")
    for _ in range(4):
        await orchestrator.trigger_worker("it")
        await orchestrator.trigger_worker("off")
    await house.until(lambda: gauge.running == 2)
    gauge.let_go.set()
    await house.attempts(4)
    await orchestrator.wait_idle()
    assert gauge.most == 2
    (waiting,) = await house.rows("SELECT count(*) AS n FROM {p}runs WHERE worker = 'off' AND state = 'pending'")
    assert waiting["n"] == 4
    await orchestrator.enable_worker("off")
    await house.attempts(4, "off")
    assert gauge.most == 2


async def test_stopping_forgets_nothing_that_ran_and_the_next_start_runs_it(house: House):
    gauge = Gauge()
    first = house.orchestrator()
    first.register_worker("it", gauge.work, max_running=3, **TRIGGERED)
    await first.start()
    ids = await first.trigger_many("it", [None] * 3)
    await house.until(lambda: gauge.running == 3)
    await first.stop(drain_timeout=0.0)
    assert gauge.running == 0
    rows = await house.history()
    assert [(row["run_id"], row["outcome"], row["ends_run"], row["attempt"]) for row in rows] == [
        (run_id, "interrupted", None, 1) for run_id in ids
    ]
    waiting = await house.rows("SELECT id, state, attempt FROM {p}runs ORDER BY id")
    assert waiting == [{"id": run_id, "state": "pending", "attempt": 1} for run_id in ids]
    gauge.let_go.set()
    second = house.orchestrator()
    second.register_worker("it", gauge.work, max_running=3, **TRIGGERED)
    await second.start()
    await house.attempts(6)
    assert [(row["outcome"], row["attempt"]) for row in (await house.history())[3:]] == [("succeeded", 1)] * 3
    assert await house.rows("SELECT id FROM {p}runs") == []


async def test_times_are_utc_whatever_the_local_zone_is(house: House, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")  # UTC+14
    time.tzset()
    try:
        seen: list[datetime] = []

        async def it(run: RunContext) -> None:
            seen.extend([run.scheduled_for, run.deadline])

        orchestrator = house.orchestrator()
        orchestrator.register_worker("it", it, **TRIGGERED)
        await orchestrator.start()
        before = datetime.now(UTC)
        await orchestrator.trigger_worker("it", at=datetime.now().astimezone())
        await house.attempts(1)
        with pytest.raises(InvalidSetting, match="aware"):
            await orchestrator.trigger_worker("it", at=datetime(2026, 1, 1))  # noqa: DTZ001 - naive on purpose
        (row,) = await house.history()
        for moment in seen:
            assert moment.utcoffset() == timedelta(0)
            assert abs((moment - before).total_seconds()) < 90
        for column in ("scheduled_for", "started_at", "finished_at"):
            assert abs((house.time(row[column]) - before).total_seconds()) < 10
    finally:
        monkeypatch.undo()
        time.tzset()


async def test_nothing_is_lost_at_a_restart(house: House):
    """Schedule, streak, disabled state, waiting runs, letters: all of it is there for the next process."""
    clock = ManualClock()

    def registered(**settings: Any) -> WorkerOrchestrator:
        made = house.orchestrator(clock=clock, **settings)
        made.register_worker("daily", nothing, interval_seconds=86400)
        made.register_worker("broken", fails, max_consecutive_failures=2, **TRIGGERED)
        made.register_worker("later", nothing, **TRIGGERED)
        return made

    first = registered()
    await first.start()
    await first.trigger_worker("broken")
    later = await first.trigger_worker("later", {}, delay=7200)
    await house.attempts(2)
    await first.stop()
    clock.advance(3600)
    second = registered()
    await second.start()
    await second.wait_idle()
    assert len(house.ended("daily")) == 1  # not due again
    assert (await house.state("broken"))["consecutive_failures"] == 1
    await second.trigger_worker("broken")
    await house.attempts(2, "broken")
    await second.stop()
    third = registered()
    await third.start()
    status = await third.get_status()
    assert status["worker_states"]["broken"]["enabled"] is False
    assert status["worker_states"]["broken"]["failures"] == 2
    clock.advance(3600)
    await house.attempts(1, "later")
    assert house.ended("later")[0].run.id == later
    assert len(await house.rows("SELECT * FROM {p}dead_letters")) == 2


# --- starting -----------------------------------------------------------------------------------------------------


async def test_two_orchestrators_may_share_a_worker_but_not_its_name_for_other_code(house: House):
    first, second = house.orchestrator(), house.orchestrator()
    first.register_worker("it", nothing, **TRIGGERED)
    second.register_worker("it", nothing, **TRIGGERED)
    with pytest.raises(InvalidWorker, match="registered already by another"):
        house.orchestrator().register_worker("it", fails, **TRIGGERED)
    with pytest.raises(InvalidWorker, match="registered already"):
        first.register_worker("it", fails, **TRIGGERED)
    await first.start()
    await second.start()
    await first.trigger_many("it", [None] * 10)
    await house.attempts(10)
    assert len({row["run_id"] for row in await house.history()}) == 10


async def test_a_schema_that_is_ahead_is_refused_and_nothing_is_written(house: House):
    await house.sql("UPDATE {p}jobrunner_schema_version SET version_num = '9999'")
    orchestrator = house.orchestrator()
    orchestrator.register_worker("it", nothing)
    with pytest.raises(SchemaAhead):
        await orchestrator.start()
    assert await house.rows("SELECT * FROM {p}nodes") == []
    assert await house.rows("SELECT * FROM {p}workers") == []
    await orchestrator.stop()  # of what never started: nothing happens


async def test_an_empty_postgres_is_refused_and_an_empty_sqlite_is_created(empty_database_url: str):
    orchestrator = WorkerOrchestrator(empty_database_url, tick_interval=60)
    orchestrator.register_worker("it", nothing)
    if empty_database_url.startswith("postgres"):
        with pytest.raises(SchemaMissing, match="jobrunner db upgrade"):
            await orchestrator.start()
    else:
        await orchestrator.start()
        await orchestrator.wait_idle()
    await orchestrator.stop()


async def test_a_start_that_fails_leaves_no_thread_and_can_be_tried_again(house: House):
    threads = Counter(thread.name for thread in threading.enumerate())
    orchestrator = house.orchestrator()
    orchestrator.register_worker("it", nothing, depends_on=["gone"])
    with pytest.raises(InvalidWorker, match="depends on 'gone'"):
        await orchestrator.start()
    assert await house.rows("SELECT * FROM {p}nodes") == []
    other = house.orchestrator()
    other.register_worker("a", nothing, depends_on=["b"])
    other.register_worker("b", nothing, depends_on=["a"])
    with pytest.raises(DependencyCycle, match="a -> b -> a"):
        await other.start()
    left = Counter(thread.name for thread in threading.enumerate()) - threads
    assert [name for name in left if name.startswith("jobrunner")] == []


async def test_a_start_on_a_damaged_schema_names_what_is_missing_and_leaves_no_live_node(house: House):
    orchestrator = house.orchestrator()
    orchestrator.register_worker("it", nothing, interval_seconds=1)
    part = "table node_handlers" if house.db.is_sqlite else "function wake_nodes"  # needed before it joins, and after
    await house.sql(f"DROP {part.replace(' ', ' {p}')}")
    with pytest.raises(SchemaDamaged, match=f"it has no {part}"):
        await orchestrator.start()
    assert await house.rows("SELECT id FROM {p}nodes WHERE state <> 'stopped'") == []


async def test_what_is_refused_before_and_after_the_start(house: House):
    orchestrator = house.orchestrator()
    with pytest.raises(Refused):
        await orchestrator.wait_idle()
    orchestrator.register_worker("it", nothing, **TRIGGERED)
    await orchestrator.start()
    with pytest.raises(Refused):
        await orchestrator.start()
    with pytest.raises(Refused):
        orchestrator.configure(lease=1)
    with pytest.raises(InvalidWorker):
        orchestrator.register_worker("late", nothing)
    with pytest.raises(WorkerNotFound):
        await orchestrator.trigger_worker("nobody")
    with pytest.raises(WorkerNotFound):
        await orchestrator.trigger_many("nobody", [{}])
    with pytest.raises(WorkerNotFound):
        await orchestrator.disable_worker("nobody")


# --- triggers -----------------------------------------------------------------------------------------------------


async def test_a_payload_that_does_not_fit_is_refused_at_the_trigger(house: House):
    async def mail(run: RunContext, to: str, count: int = 1) -> None: ...

    orchestrator = house.orchestrator()
    orchestrator.register_worker("mail", mail, **TRIGGERED)
    await orchestrator.start()
    for payload in ({}, {"to": 5}, {"to": "a", "count": "2"}, {"to": "a", "unknown": 1}, {"to": None}, None):
        with pytest.raises(InvalidPayload):
            await orchestrator.trigger_worker("mail", payload)
    with pytest.raises(InvalidPayload):
        await orchestrator.trigger_many("mail", [{"to": "a"}, {"to": 5}])
    for wrong in ("text", ["to"], {"to": "\0"}, {"to": float("nan")}, {"to": "x" * 1_100_000}):
        with pytest.raises(InvalidPayload):
            await orchestrator.trigger_worker("mail", wrong)  # type: ignore[arg-type]  # what is refused
    assert await house.rows("SELECT id FROM {p}runs") == []


async def test_a_payload_by_sql_that_does_not_fit_fails_and_ends_discarded(house: House):
    async def mail(run: RunContext, to: str) -> None: ...

    orchestrator = house.orchestrator()
    orchestrator.register_worker("mail", mail, execution_mode="triggered", max_retries=1, retry_delay_seconds=0)
    await orchestrator.start()
    await house.sql("""INSERT INTO {p}runs (worker, payload) VALUES ('mail', '{"to": 5}')""")
    await house.attempts(2)
    rows = await house.history()
    assert [(row["outcome"], row["ends_run"], row["attempt"]) for row in rows] == [
        ("failed", None, 1),
        ("failed", "discarded", 2),
    ]
    assert rows[0]["error_type"] == "InvalidPayload"
    assert "to: " in rows[0]["error"]
    assert (await house.state("mail"))["consecutive_failures"] == 0
    (letter,) = await house.rows("SELECT status, attempts FROM {p}dead_letters")
    assert letter == {"status": "open", "attempts": 2}


async def test_a_key_is_unique_among_runs_that_have_not_started(house: House):
    gauge = Gauge()
    orchestrator = house.orchestrator(max_concurrent=1)
    orchestrator.register_worker("it", gauge.work, **TRIGGERED)
    await orchestrator.start()
    running = await orchestrator.trigger_worker("it", key="k")
    await house.until(lambda: gauge.running == 1)
    waiting = await orchestrator.trigger_worker("it", key="k")
    assert waiting != running
    assert await orchestrator.trigger_worker("it", key="k") == waiting
    live = await orchestrator.trigger_worker("it", key="live", key_scope="live")
    assert await orchestrator.trigger_worker("it", key="live") == live
    gauge.let_go.set()
    await house.attempts(3)
    assert [end.run.id for end in house.ended()] == [running, waiting, live]


async def test_a_thread_handler_may_trigger_others(house: House):
    """`trigger_sync` from a thread while the node runs: another thread, another loop, the same database."""
    orchestrator = house.orchestrator()

    def parent() -> int:
        return orchestrator.trigger_sync("child", {})

    orchestrator.register_worker("parent", parent, **TRIGGERED)
    orchestrator.register_worker("child", nothing, **TRIGGERED)
    await orchestrator.start()
    await orchestrator.trigger_worker("parent")
    await house.attempts(2)
    assert {(row["worker"], row["outcome"]) for row in await house.history()} == {
        ("parent", "succeeded"),
        ("child", "succeeded"),
    }
    with pytest.raises(Refused, match="await trigger_worker"):
        orchestrator.trigger_sync("child", {})


async def test_another_loop_may_use_a_running_orchestrator(house: House):
    orchestrator = house.orchestrator()
    orchestrator.register_worker("it", nothing, **TRIGGERED)
    await orchestrator.start()

    def elsewhere() -> dict[str, Any]:
        async def use() -> dict[str, Any]:
            await orchestrator.trigger_worker("it")
            return await orchestrator.get_status()

        return asyncio.run(use())

    status = await asyncio.to_thread(elsewhere)
    assert status["worker_states"]["it"]["enabled"] is True
    await house.attempts(1)


async def test_a_program_without_a_node_may_trigger(house: House):
    node, program = house.orchestrator(), house.orchestrator()
    node.register_worker("it", nothing, **TRIGGERED)
    await node.start()
    run_id = await program.trigger_worker("it", {})
    other_id = await asyncio.to_thread(program.trigger_sync, "it", {})
    ends = await house.attempts(2)
    assert {end.run.id for end in ends} == {run_id, other_id}


async def test_status_has_the_keys_of_the_contract(house: House):
    gauge = Gauge()
    orchestrator = house.orchestrator()
    orchestrator.register_worker("it", gauge.work, **TRIGGERED)
    orchestrator.register_worker("broken", fails, **TRIGGERED)
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    await orchestrator.trigger_worker("broken")
    await house.attempts(1)
    await house.until(lambda: gauge.running == 1)
    status = await orchestrator.get_status()
    assert (status["state"], status["workers"], status["running"]) == ("running", 2, ["it"])
    assert set(status["worker_states"]["it"]) == {"enabled", "running", "failures", "last_run", "last_error"}
    assert status["worker_states"]["it"]["running"] is True
    assert status["worker_states"]["broken"]["failures"] == 1
    assert status["worker_states"]["broken"]["last_error"] == "no luck"
    assert status["worker_states"]["broken"]["last_run"].utcoffset() == timedelta(0)
    gauge.let_go.set()


# --- stopping -----------------------------------------------------------------------------------------------------


async def test_a_drain_lets_runs_end_and_claims_nothing_more(house: House):
    gauge = Gauge()
    orchestrator = house.orchestrator(max_concurrent=2)
    orchestrator.register_worker("it", gauge.work, max_running=5, **TRIGGERED)
    await orchestrator.start()
    await orchestrator.trigger_many("it", [None] * 5)
    await house.until(lambda: gauge.running == 2)
    stopping = asyncio.ensure_future(orchestrator.stop(drain_timeout=10))
    await house.until(lambda: any(isinstance(event, e.NodeDraining) for event in house.seen))
    gauge.let_go.set()
    await stopping
    assert [row["outcome"] for row in await house.history()] == ["succeeded", "succeeded"]
    assert gauge.total == 2
    (node,) = await house.rows("SELECT state FROM {p}nodes")
    assert node["state"] == "stopped"
    assert await house.rows("SELECT * FROM {p}node_handlers") == []


async def test_work_that_returns_because_the_node_told_it_to_stop_is_given_back(house: House):
    started = asyncio.Event()

    def it(run: RunContext) -> str:
        orchestrator._node.loop.call_soon_threadsafe(started.set)  # type: ignore[union-attr]  # it runs
        while not run.should_stop:
            time.sleep(0.002)
        return "half"

    orchestrator = house.orchestrator()
    orchestrator.register_worker("it", it, **TRIGGERED)
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    await started.wait()
    await orchestrator.stop(drain_timeout=0.0)
    (row,) = await house.history()
    assert (row["outcome"], row["ends_run"]) == ("interrupted", None)


async def test_a_stop_in_the_middle_of_a_claim_leaves_no_claim_without_code(house: House):
    """Whatever moment the stop comes: a run is given back, ended, or never was claimed; none is left `running`."""
    for moment in range(12):
        orchestrator = house.orchestrator(max_concurrent=20)
        orchestrator.register_worker("it", nothing, max_running=20, **TRIGGERED)
        await orchestrator.start()
        await orchestrator.trigger_many("it", [None] * 20)
        for _ in range(moment * 7):
            await asyncio.sleep(0)
        await orchestrator.stop(drain_timeout=5)
        assert await house.rows("SELECT id, state FROM {p}runs WHERE state <> 'pending'") == []


async def test_run_drains_at_sigterm_and_a_second_signal_cuts_it_short(house: House):
    gauge = Gauge()
    orchestrator = house.orchestrator(drain_timeout=60)
    orchestrator.register_worker("it", gauge.work, **TRIGGERED)
    running = asyncio.ensure_future(orchestrator.run())
    await house.until(lambda: any(isinstance(event, e.NodeStarted) for event in house.seen))
    await orchestrator.trigger_worker("it")
    await house.until(lambda: gauge.running == 1)
    os.kill(os.getpid(), signal.SIGTERM)
    await house.until(lambda: any(isinstance(event, e.NodeDraining) for event in house.seen))
    assert not running.done()
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.wait_for(running, 10)
    (row,) = await house.history()
    assert (row["outcome"], row["attempt"], row["ends_run"]) == ("interrupted", 1, None)
    (waiting,) = await house.rows("SELECT state, attempt FROM {p}runs")
    assert waiting == {"state": "pending", "attempt": 1}


async def test_run_until_idle_does_what_there_is_retries_too_and_leaves(house: House):
    attempts: list[int] = []

    async def flaky(run: RunContext) -> None:
        attempts.append(run.attempt)
        if run.attempt < 3:
            raise ValueError("not yet")

    orchestrator = house.orchestrator()
    orchestrator.register_worker("flaky", flaky, max_retries=3, retry_delay_seconds=0.05, interval_seconds=3600)
    orchestrator.register_worker("after", nothing, depends_on=["flaky"], interval_seconds=3600)
    async with asyncio.timeout(20):
        await orchestrator.run(until_idle=True)
    assert attempts == [1, 2, 3]
    assert [row["outcome"] for row in await house.history("after")] == ["succeeded"]
    assert await house.rows("SELECT id FROM {p}runs") == []


async def test_a_service_that_breaks_ends_the_run_with_its_error(house: House, monkeypatch: pytest.MonkeyPatch):
    orchestrator = house.orchestrator()
    orchestrator.register_worker("it", nothing, **TRIGGERED)
    running = asyncio.ensure_future(orchestrator.run())
    await house.until(lambda: any(isinstance(event, e.NodeStarted) for event in house.seen))

    async def broken(*_: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("jobrunner.runtime.tick.Ticker._pass", broken)
    await orchestrator.trigger_worker("it")
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(running, 10)
    (node,) = await house.rows("SELECT state FROM {p}nodes")
    assert node["state"] == "stopped"
    # What a turn had claimed before the loop broke has ended, and that is written all the same.
    assert [row["outcome"] for row in await house.history()] in ([], ["succeeded"])
    assert await house.rows("SELECT id FROM {p}runs WHERE state <> 'pending'") == []


async def test_a_node_whose_tables_are_gone_ends_and_says_that(
    house: House, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("jobrunner.runtime.orchestrator.end_process", lambda _: None)  # the outcome cannot be written
    gauge = Gauge()
    orchestrator = house.orchestrator(lease=1.2)  # and nothing to tick for: the heartbeat finds out
    orchestrator.register_worker("it", gauge.work, **TRIGGERED)
    running = asyncio.ensure_future(orchestrator.run())
    await house.until(lambda: any(isinstance(event, e.NodeStarted) for event in house.seen))
    await orchestrator.trigger_worker("it")
    await house.until(lambda: gauge.running == 1)
    if house.db.is_sqlite:
        with closing(sqlite3.connect(str(house.db.url.database), timeout=5)) as bare:
            found = bare.execute("SELECT type, name FROM sqlite_master WHERE type IN ('view', 'table')").fetchall()
            for kind, name in found:
                if not name.startswith("sqlite_"):
                    bare.execute(f"DROP {kind} {name}")
            bare.commit()
    else:
        await house.sql("DROP SCHEMA jobrunner CASCADE")
    with pytest.raises(SchemaMissing):
        await asyncio.wait_for(running, 15)
    assert not any(isinstance(event, e.NodeCrashed) for event in house.seen)
    assert any(isinstance(event, e.Warned) and "this node leaves" in event.message for event in house.seen)
    assert not any(record.exc_info for record in caplog.records)


def test_a_process_that_must_be_ended_says_why_in_a_line_with_the_errors_exit_code():
    code = "from jobrunner.errors import *; from jobrunner.runtime.process import end_process; end_process({})"
    for crash, exit_code, lines in (("SchemaMissing()", 4, 1), ("ZeroDivisionError()", 1, 1), ("None", 0, 0)):
        ended = subprocess.run([sys.executable, "-c", code.format(crash)], capture_output=True, text=True, check=False)
        assert (ended.returncode, len(ended.stderr.splitlines())) == (exit_code, lines)

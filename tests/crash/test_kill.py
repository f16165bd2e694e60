"""`kill -9`: what was accepted is still there, what was counted still counts, and nothing runs twice at a time."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from datetime import datetime
from typing import Any

import pytest

from jobrunner import WorkerOrchestrator
from tests.crash.conftest import Program
from tests.support.checker import check, read_tables

KILLS = int(os.environ.get("JOBRUNNER_TEST_KILLS", "8"))
"""How often the big one kills its node, on each database; 8 in the suite, 50 for a long look."""

FAILING = """
from jobrunner import WorkerOrchestrator

orchestrator = WorkerOrchestrator()


@orchestrator.worker("fetch-data", interval_seconds=2, max_retries=0, max_consecutive_failures=5)
async def fetch_data() -> None:
    raise ConnectionError("no route to example.org")
"""


@pytest.mark.crash
def test_the_streak_goes_on_after_a_kill_and_the_fifth_failure_disables(program: Program):
    program.write(FAILING)

    def failures() -> int:
        return sum(row["outcome"] == "failed" for row in read_tables(program.url).history)

    def status() -> dict[str, Any]:
        found = program.ask("status", "fetch-data", "--json")
        return found[0] if isinstance(found, list) else found

    first = program.start()
    program.until(lambda: failures() == 3, first)
    assert program.end(first, signal.SIGKILL) == -signal.SIGKILL
    assert status()["consecutive_failures"] == 3

    second = program.start()
    program.until(lambda: failures() == 5, second)
    time.sleep(2.3)  # the next firing would come in this time
    after = status()
    assert failures() == 5
    assert (after["consecutive_failures"], after["is_enabled"], after["disabled_by"]) == (5, False, "circuit")
    assert after["disabled_reason"] == "5 runs in a row failed; the last: ConnectionError: no route to example.org"

    program.ask("admin", "enable", "fetch-data")
    program.until(lambda: failures() >= 6, second)
    assert program.end(second) == 0
    assert status()["consecutive_failures"] == failures() - 5

    history = [row for row in program.ask("history", "fetch-data", "--limit", "100", "--json") if row["run_id"]]
    assert {row["outcome"] for row in history} <= {"failed", "interrupted"}
    for row in history:
        if row["outcome"] == "failed":
            assert (row["error_type"], row["error"]) == ("ConnectionError", "no route to example.org")
            assert isinstance(row["duration_ms"], int)
            assert (row["attempt"], row["ends_run"]) == (1, "exhausted")
    letters = program.ask("dead-letters", "list", "--limit", "100", "--json")
    assert {row["run_id"] for row in letters} == {row["run_id"] for row in history if row["outcome"] == "failed"}
    assert {row["status"] for row in letters} == {"open"}
    assert check(program.url) == []


EVERYTHING = """
import asyncio, os, random, time
from jobrunner import Discard, RunContext, Snooze, WorkerOrchestrator

orchestrator = WorkerOrchestrator(tick_interval=1.0, max_concurrent=12, drain_timeout=2.0)
rng = random.Random(os.getpid())


async def quick() -> None:
    await asyncio.sleep(rng.uniform(0, 0.1))


async def slow() -> None:
    await asyncio.sleep(rng.uniform(0.1, 0.4))


async def hanging() -> None:
    await asyncio.sleep(30)


async def flaky(run: RunContext) -> None:
    await asyncio.sleep(rng.uniform(0, 0.05))
    if rng.random() < 0.4:
        raise ValueError(f"attempt {run.attempt} had no luck")


async def broken() -> None:
    raise RuntimeError("always")


async def moody(run: RunContext) -> None:
    match rng.randrange(4):
        case 0:
            raise Snooze(0.1)
        case 1:
            raise Discard("not today")
        case 2:
            raise ValueError("no luck")


def in_thread(run: RunContext) -> None:
    time.sleep(rng.uniform(0, 0.2))


async def mail(run: RunContext, to: str, count: int = 1) -> str:
    await asyncio.sleep(rng.uniform(0, 0.05))
    return f"{count} to {to}"


def add(name, handler, **options):
    orchestrator.register_worker(name, handler, retry_delay_seconds=0.1, **options)


for n in range(6):
    add(f"tick-{n}", [quick, slow, in_thread][n % 3], interval_seconds=0.2 + 0.3 * n,
        misfire=["run_once", "run_all", "skip"][n % 3], priority=n % 4)
add("cron-1", quick, cron="* * * * *")
add("cron-2", in_thread, cron="* * * * *", timezone="Asia/Kolkata", jitter_seconds=20)
for n in range(3):
    add(f"loop-{n}", [quick, flaky, slow][n], execution_mode="continuous", interval_seconds=0.1 * n, max_retries=n)
add("mail", mail, execution_mode="triggered", max_running=4)
add("bulk", quick, execution_mode="triggered", max_running=3, priority="LOW")
add("asked", flaky, execution_mode="triggered", max_retries=2, max_consecutive_failures=1000)
add("mood", moody, execution_mode="triggered", max_retries=1, max_running=2, max_consecutive_failures=1000)
add("thread", in_thread, execution_mode="triggered", max_running=2)
add("first", flaky, interval_seconds=0.5, max_retries=1, max_consecutive_failures=1000)
add("second", quick, interval_seconds=0.5, depends_on=["first"])
add("third", quick, interval_seconds=0.4, depends_on=["second", "first"])
add("fresh", quick, interval_seconds=0.3, depends_on=[{"depends_on": "tick-0", "condition": "fresh"}])
add("reader", slow, interval_seconds=0.6, blocks=["writer"])
add("writer", quick, interval_seconds=0.7)
add("cleanup", in_thread, interval_seconds=0.9, blocks=["writer", "reader", "first"])
add("loop-blocked", quick, execution_mode="continuous", interval_seconds=0.05, blocks=["cleanup"])
add("flaky", flaky, interval_seconds=0.3, max_retries=3)
add("broken", broken, interval_seconds=0.3, max_retries=1, max_consecutive_failures=3)
add("probing", broken, interval_seconds=0.3, max_retries=0, max_consecutive_failures=2, cooldown_seconds=0.5)
add("healing", flaky, interval_seconds=0.2, max_retries=0, max_consecutive_failures=1, cooldown_seconds=0.3)
add("hanging", hanging, interval_seconds=1.0, timeout_seconds=0.3, max_retries=1, max_consecutive_failures=1000)
add("once", slow, interval_seconds=0.4, max_retries=0, max_consecutive_failures=1000)
assert len(orchestrator.workers) == 30, len(orchestrator.workers)
"""


async def feed(orchestrator: WorkerOrchestrator, rng: random.Random) -> list[int]:
    """Trigger some of everything that waits for it; return the ids of the runs that were accepted."""
    accepted = []
    for _ in range(rng.randrange(1, 6)):
        name = rng.choice(["mail", "bulk", "asked", "mood", "thread", "first", "writer", "once", "loop-0"])
        payload = {"to": "a@example.org", "count": rng.randrange(9)} if name == "mail" else {}
        if rng.random() < 0.3:
            accepted += await orchestrator.trigger_many(name, [payload] * rng.randrange(2, 10))
        else:
            delay, forced = rng.choice([None, 0.2, 2.0]), rng.random() < 0.2
            accepted.append(await orchestrator.trigger_worker(name, payload, delay=delay, force=forced))
    return accepted


async def kill_again_and_again(program: Program, kills: int) -> set[int]:
    rng = random.Random(kills)
    outside = WorkerOrchestrator(program.url)
    accepted: set[int] = set()
    for _ in range(kills):
        began, lines = time.monotonic(), program.said().count("runs 30 workers")
        process = program.start()
        if rng.random() < 0.85:  # else anywhere in its start
            while program.said().count("runs 30 workers") == lines:
                assert process.poll() is None, program.said()[-3000:]
                assert time.monotonic() - began < 30
                await asyncio.sleep(0.01)
            accepted.update(await feed(outside, rng))
        await asyncio.sleep(rng.uniform(0, 0.9))
        process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(process.wait)
        if rng.random() < 0.3:
            accepted.update(await feed(outside, rng))
    return accepted


@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.timeout(60 + 20 * KILLS)
def test_killed_at_any_moment_nothing_is_lost_doubled_overlapped_or_out_of_order(program: Program):
    """Killed `KILLS` times (`JOBRUNNER_TEST_KILLS`), at any moment: nothing is lost and nothing doubled."""
    program.write(EVERYTHING)
    program.ask("db", "upgrade")
    process = program.start()
    program.until(lambda: "runs 30 workers" in program.said(), process)
    accepted = asyncio.run(kill_again_and_again(program, KILLS - 1)) if program.end(process, signal.SIGKILL) else set()
    starts = program.said().count("runs 30 workers")
    last = program.start()
    program.until(lambda: program.said().count("runs 30 workers") > starts, last)
    time.sleep(2.0)
    assert program.end(last) == 0, program.said()[-3000:]
    assert check(program.url, accepted=accepted) == []
    tables = read_tables(program.url)
    outcomes = {row["outcome"] for row in tables.history}
    print(
        f"{KILLS} kills: {len(tables.history)} attempts, {len(tables.letters)} letters, {len(accepted)} triggers,"
        f" {sum(row['outcome'] == 'lost' for row in tables.history)} lost"
    )
    assert {"succeeded", "failed", "lost"} <= outcomes
    assert [run for run in tables.runs if run["state"] != "pending"] == []
    seen = program.said()
    assert "Traceback" not in seen, seen[seen.index("Traceback") - 500 :][:3000]


# --- SIGTERM ------------------------------------------------------------------------------------------------------

WAITING = """
import asyncio, os, time
from jobrunner import RunContext, WorkerOrchestrator

orchestrator = WorkerOrchestrator(tick_interval=1.0)
is_slow = os.environ.get("SLOW") == "1"


@orchestrator.worker("async", execution_mode="triggered")
async def in_loop() -> None:
    if is_slow:
        await asyncio.sleep(3600)


@orchestrator.worker("stuck", execution_mode="triggered")
def in_thread() -> None:
    if is_slow:
        time.sleep(3600)
"""


def running(program: Program) -> set[str]:
    return {run["worker"] for run in read_tables(program.url).active}


@pytest.mark.crash
def test_sigterm_drains_and_gives_back_and_the_next_start_runs_it(program: Program):
    program.write(WAITING)
    first = program.start("--drain-timeout", "0.3", SLOW="1")
    program.until(lambda: "runs 2 workers" in program.said(), first)
    program.ask("trigger", "async")
    program.until(lambda: running(program) == {"async"}, first)
    assert program.end(first, signal.SIGTERM) == 0
    (row,) = read_tables(program.url).history
    assert (row["outcome"], row["attempt"], row["ends_run"]) == ("interrupted", 1, None)
    (run,) = read_tables(program.url).runs
    assert (run["state"], run["attempt"]) == ("pending", 1)
    assert program.start("--until-idle", SLOW="0").wait(30) == 0
    rows = read_tables(program.url).history
    assert [(row["outcome"], row["attempt"]) for row in rows] == [("interrupted", 1), ("succeeded", 1)]
    assert check(program.url) == []


@pytest.mark.crash
def test_a_node_with_a_stuck_thread_still_leaves_and_another_takes_the_run_five_seconds_later(program: Program):
    program.write(WAITING)
    first = program.start("--drain-timeout", "0.3", SLOW="1")
    program.until(lambda: "runs 2 workers" in program.said(), first)
    program.ask("trigger", "stuck")
    program.until(lambda: running(program) == {"stuck"}, first)
    began = time.monotonic()
    assert program.end(first) == 0
    assert time.monotonic() - began < 0.3 + 2.0 + 3.0  # the drain, the grace, and a slow machine
    assert running(program) == {"stuck"}
    left_at = time.monotonic()
    other = program.start("--lease", "3", SLOW="0")
    program.until(lambda: len(read_tables(program.url).history) == 2, other)
    assert time.monotonic() - left_at > 4.5
    rows = read_tables(program.url).history
    assert [(row["outcome"], row["attempt"]) for row in rows] == [("interrupted", 1), ("succeeded", 1)]
    interrupted, succeeded = rows
    assert isinstance(succeeded["started_at"], datetime)
    assert succeeded["started_at"] >= interrupted["finished_at"]
    assert program.end(other) == 0
    assert check(program.url) == []

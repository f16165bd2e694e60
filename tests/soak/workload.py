"""What the nodes of the soak run: every kind of handler, well-behaved or not.

Handlers note their starts and ends in the file `SOAK_NOTES`, as those of `tests.support.node` do: on the machine's
monotonic clock, which no step of `SOAK_CLOCK` touches. Workers named `victim-…` are those whose rows get spoilt.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import text

from jobrunner import Discard, RetryAfter, RunContext, Snooze, WorkerOrchestrator
from tests.soak.clock import SteppedClock
from tests.soak.odd import ERRORS, RESULTS

NOTES, CLOCK = os.environ.get("SOAK_NOTES", os.devnull), Path(os.environ.get("SOAK_CLOCK", "no-clock"))
orchestrator = WorkerOrchestrator(clock=SteppedClock(CLOCK))
_TRIGGERED: dict[str, Any] = {"execution_mode": "triggered", "retry_delay_seconds": 0.2, "max_retries": 20}
_NEVER_TRIPS: dict[str, Any] = {"max_consecutive_failures": 1_000_000}


def _note(what: str, run: RunContext) -> None:
    handle = os.open(NOTES, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, f"{what} {run.worker} {run.id} {run.fence} {os.getpid()} {time.monotonic():.6f}\n".encode())
    os.close(handle)


@contextlib.contextmanager
def _noted(run: RunContext) -> Iterator[None]:
    _note("start", run)
    try:
        yield
    finally:
        _note("end", run)


async def brief(run: RunContext) -> None:
    with _noted(run):
        await asyncio.sleep(random.uniform(0.01, 0.2))


def brief_thread(run: RunContext) -> None:
    with _noted(run):
        time.sleep(random.uniform(0.01, 0.3))


async def chatty(run: RunContext, text: str = "x") -> dict[str, Any]:
    with _noted(run):
        for step in range(10):
            run.progress(step / 10, f"step {step}")
            run.log(text * 400)
            await asyncio.sleep(0.01)
        return {"said": 10}


def apart(run: RunContext) -> int:
    with _noted(run):
        print("from a process of its own")
        run.progress(0.5)
        time.sleep(random.uniform(0.05, 0.5))
        return os.getpid()


async def snoozes(run: RunContext) -> None:
    if random.random() < 0.6:
        raise Snooze(random.uniform(0.2, 2.0))


async def again(run: RunContext) -> None:
    if random.random() < 0.6:
        raise RetryAfter(random.uniform(0.2, 2.0), "not yet")


async def gives_up() -> None:
    raise Discard("nothing to be done")


async def fails() -> None:
    raise RuntimeError("as always")


async def books(run: RunContext) -> None:
    """Exactly one row for each run: its end is written with it."""
    async with run.transaction() as connection:
        await connection.execute(text("INSERT INTO soak_bookings (run_id) VALUES (:id)"), {"id": run.id})


async def odd_result(run: RunContext) -> Any:
    return random.choice(RESULTS)()


async def odd_error(run: RunContext) -> None:
    raise random.choice(ERRORS)()  # noqa: RSE102 - some are functions that make an error


async def too_long() -> None:
    await asyncio.sleep(60)


def too_long_thread(run: RunContext) -> None:
    while not run.should_stop:
        time.sleep(0.05)


def too_long_process() -> None:
    time.sleep(60)


def leaves_things_behind() -> None:
    """A thread and a child that both would go on for a minute."""
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    subprocess.Popen(["sleep", "60"], start_new_session=random.random() < 0.5)


def forks() -> None:
    """Fork the node itself from a thread, and end the child as `multiprocessing` does."""
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    time.sleep(random.uniform(0.0, 0.2))
    child.terminate()
    child.join(20)
    if child.exitcode is None:
        child.kill()
        child.join()
        raise RuntimeError("a forked child did not end on SIGTERM")


async def picky(number: int) -> None: ...


def _register() -> None:
    add = orchestrator.register_worker
    add("beat", brief, interval_seconds=2.0, max_retries=0, **_NEVER_TRIPS)
    add("beat-thread", brief_thread, interval_seconds=3.0, jitter_seconds=1.0, misfire="skip", **_NEVER_TRIPS)
    add("cron", brief, cron="* * * * *", timezone="Europe/Berlin", **_NEVER_TRIPS)
    add("loop", brief, execution_mode="continuous", interval_seconds=0.5, retry_delay_seconds=0.5, **_NEVER_TRIPS)
    add("left", brief, execution_mode="continuous", interval_seconds=0.3, blocks=["right"], **_NEVER_TRIPS)
    add("right", brief_thread, execution_mode="continuous", interval_seconds=0.3, **_NEVER_TRIPS)
    add("source", brief, interval_seconds=3.0, max_retries=20, retry_delay_seconds=0.2, **_NEVER_TRIPS)
    add("sink", brief_thread, interval_seconds=3.0, depends_on=["source"], **_NEVER_TRIPS)
    add("steered", brief, interval_seconds=2.0, **_NEVER_TRIPS)
    add("quick", brief, max_running=4, priority="HIGH", **_TRIGGERED)
    add("alone", brief, **_TRIGGERED)
    add("threaded", brief_thread, max_running=3, **_TRIGGERED)
    add("chatty", chatty, max_running=2, **_TRIGGERED)
    add("apart", apart, isolation="process", max_running=3, **_TRIGGERED)
    add("keyed", brief, **_TRIGGERED)
    add("snoozes", snoozes, max_running=3, **_TRIGGERED)
    add("again", again, max_running=3, retry_backoff=1.0, **_TRIGGERED)
    add("books", books, max_running=3, **_TRIGGERED)
    few: dict[str, Any] = {"execution_mode": "triggered", "max_retries": 1, "retry_delay_seconds": 0.2, **_NEVER_TRIPS}
    add("gives-up", gives_up, **few)
    add("fails", fails, **{**few, "max_consecutive_failures": 3}, cooldown_seconds=5.0)
    add("odd-result", odd_result, max_running=2, **few)
    add("odd-error", odd_error, max_running=2, **few)
    add("too-long", too_long, timeout_seconds=0.5, **few)
    add("too-long-thread", too_long_thread, timeout_seconds=0.5, **few)
    add("too-long-process", too_long_process, isolation="process", timeout_seconds=1.0, **few)
    add("leaves", leaves_things_behind, isolation="process", **few)
    add("forks", forks, **few)
    add("picky", picky, **few)
    add("victim-run", brief, max_running=2, **few)
    add("victim-state", brief, interval_seconds=2.0, max_retries=1)
    add("victim-definition", brief, interval_seconds=2.0, max_retries=1)
    add("victim-loop", brief_thread, execution_mode="continuous", interval_seconds=1.0, max_retries=1)
    add("victim-edge", brief, interval_seconds=2.0, max_retries=1, depends_on=["victim-state"])


_register()

"""A process of the pool that is not as it was when it was made is not used again, on both databases."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobrunner.runtime.executors.process import IDLE_SECONDS, ProcessPool
from jobrunner.testing import ManualClock
from tests.runtime.conftest import House
from tests.runtime.test_process import PROCESS, document
from tests.support import tasks
from tests.support.processes import alive, is_alive


async def pids(house: House, handler: Any, payload: dict[str, Any]) -> tuple[int, int]:
    """Return the process that ran `handler`, and the one that ran the next."""
    orchestrator = house.orchestrator()
    orchestrator.register_worker("it", handler, payload=payload, **PROCESS)
    orchestrator.register_worker("next", tasks.pid, blocks=["it"], **PROCESS)
    await orchestrator.start()
    for worker in ("it", "next"):
        await orchestrator.trigger_worker(worker)
        await house.attempts(1, worker)
    (mine,), (other,) = await house.history("it"), await house.history("next")
    assert (mine["outcome"], other["outcome"]) == ("succeeded", "succeeded"), mine["traceback"]
    return document(mine["result"]), document(other["result"])


@pytest.mark.parametrize("what", [what for what in tasks.TRACES if what not in tasks.NO_TRACES])
async def test_a_process_that_was_changed_is_not_used_again(house: House, what: str):
    mine, other = await pids(house, tasks.leave_trace, {"what": what})
    assert mine != other
    assert not is_alive(mine)


@pytest.mark.parametrize("what", tasks.NO_TRACES)
async def test_a_process_that_is_as_it_was_is_used_again(house: House, what: str):
    mine, other = await pids(house, tasks.leave_trace, {"what": what})
    assert mine == other


async def test_a_thread_that_is_left_has_ended_before_the_end_of_its_run_is_told(house: House, tmp_path: Path):
    folder = tmp_path / "pids"
    folder.mkdir()
    orchestrator = house.orchestrator(max_concurrent=1)
    orchestrator.register_worker("it", tasks.leave_thread, payload={"folder": str(folder)}, **PROCESS)
    orchestrator.register_worker("next", tasks.talk, blocks=["it"], **PROCESS)
    seen_alive: list[list[int]] = []

    async def look() -> None:
        seen_alive.append(alive(folder))

    orchestrator.register_worker("look", look, blocks=["it"], execution_mode="triggered")
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    await house.attempts(1, "it")
    assert alive(folder) == []
    for worker in ("look", "next"):
        await orchestrator.trigger_worker(worker)
        await house.attempts(1, worker)
    assert seen_alive == [[]]
    (row,) = await house.history("next")
    assert "thread" not in row["output"]
    assert (await house.history("it"))[0]["outcome"] == "succeeded"


async def test_a_crash_takes_a_daemon_along_that_nobody_has_seen(house: House, tmp_path: Path):
    folder = tmp_path / "pids"
    folder.mkdir()
    orchestrator = house.orchestrator()
    orchestrator.register_worker("it", tasks.crash_with_daemon, payload={"folder": str(folder)}, **PROCESS)
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    (ended,) = await house.attempts(1)
    assert ended.outcome.error == "its process ended with exit code 9"
    assert list(folder.iterdir())
    assert alive(folder) == []


@pytest.mark.parametrize("killed", ["guard", "keeper"])
async def test_whichever_of_its_watchers_is_killed_nothing_gets_away(house: House, tmp_path: Path, killed: str):
    folder = tmp_path / "pids"
    folder.mkdir()
    orchestrator = house.orchestrator()
    orchestrator.register_worker("it", tasks.parent, timeout_seconds=2, payload={"folder": str(folder)}, **PROCESS)
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    await house.until(lambda: len(alive(folder)) == 4)
    (guard,) = {psutil.Process(pid).ppid() for pid in alive(folder)} - {*alive(folder)}
    os.kill(guard if killed == "guard" else psutil.Process(guard).ppid(), signal.SIGKILL)
    (ended,) = await house.attempts(1)
    expected = {"guard": ("failed", "its process ended with a signal"), "keeper": ("timed_out", "timed out after 2 s")}
    assert (ended.outcome.kind, ended.outcome.error) == expected[killed]
    assert alive(folder) == []  # now, when the run's end is told
    await house.until(lambda: not is_alive(guard))


@pytest.mark.parametrize("killed", ["guard", "keeper"])
def test_a_process_without_its_guard_is_not_used_again(killed: str):
    pool = ProcessPool()
    pool.warm(["tests.support.tasks"])
    try:
        child = pool.take()
        keeper = psutil.Process(child._process.pid)
        (guard,) = keeper.children()
        (main,) = guard.children()
        pool.give_back(child)
        (guard if killed == "guard" else keeper).kill()
        gone = main if killed == "guard" else keeper
        deadline = time.monotonic() + 30
        while is_alive(gone):
            assert time.monotonic() < deadline
        again = pool.take()
        assert (again is child) == (killed == "keeper")
        pool.discard(again)
        assert not is_alive(main)
    finally:
        pool.close()


def test_an_idle_process_is_ended_after_a_minute():
    pool = ProcessPool()
    pool.warm(["tests.support.tasks"])
    older, newer = pool.take(), pool.take()
    try:
        pool.give_back(older)
        assert pool.take_expired(1000.0) == []
        pool.give_back(newer)
        assert pool.take_expired(1000.0 + IDLE_SECONDS - 1) == []
        assert pool.take_expired(1000.0 + IDLE_SECONDS) == [older]
        assert pool.take() is newer  # its minute begins anew when it is given back
        pool.give_back(newer)
        assert pool.take_expired(5000.0) == []
        assert pool.take_expired(5000.0 + IDLE_SECONDS) == [newer]
    finally:
        pool.discard(older)
        pool.discard(newer)
    assert older.line.is_over
    assert newer.line.is_over
    pool.close()


async def test_a_node_ends_the_processes_that_it_does_not_need(house: House):
    clock = ManualClock()
    orchestrator = house.orchestrator(clock=clock)
    orchestrator.register_worker("it", tasks.pid, **PROCESS)
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    await house.attempts(1)
    pid = document((await house.history())[0]["result"])
    assert is_alive(pid)

    def has_ended() -> bool:
        clock.advance(1.0)
        return not is_alive(pid)

    await house.until(has_ended)
    assert clock.monotonic() >= IDLE_SECONDS

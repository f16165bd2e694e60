"""Isolation `process`, on both databases: a handler that misbehaves is gone for good, and the node lives on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobrunner.errors import InvalidWorker
from jobrunner.runtime.executors import code
from tests.runtime.conftest import House
from tests.support import tasks
from tests.support.processes import alive, is_alive

PROCESS: dict[str, Any] = {"isolation": "process", "execution_mode": "triggered", "max_retries": 0}


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    from jobrunner.runtime.executors.command import CommandCode
    from jobrunner.runtime.executors.process import ProcessCode

    assert code.LONGEST_GRACE_SECONDS == 5.0
    monkeypatch.setattr(ProcessCode, "grace_seconds", 0.5)
    monkeypatch.setattr(CommandCode, "grace_seconds", 0.5)


def is_pool(process: psutil.Process) -> bool:
    """Say whether it is alive, and neither multiprocessing's own nor the database server."""
    try:
        command = " ".join(process.cmdline())
        others = ("forkserver import main", "resource_tracker", "postgres", "jobrunner-pg")
        return is_alive(process) and not any(other in command for other in others)
    except psutil.Error:
        return False


def document(value: Any) -> Any:
    """Read a JSON column: SQLite gives its text, PostgreSQL its value."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        return value


async def end_of(house: House, handler: Any, payload: Any = None, **options: Any) -> dict[str, Any]:
    """Run `handler` in a process once and return its history row; another must run afterwards."""
    orchestrator = house.orchestrator()
    orchestrator.register_worker("it", handler, **{**PROCESS, **options})
    orchestrator.register_worker("proof", tasks.add, payload={"a": 1}, **PROCESS)
    await orchestrator.start()
    await orchestrator.trigger_worker("it", payload)
    await house.attempts(1, "it")
    await orchestrator.trigger_worker("proof")
    await house.attempts(1, "proof")
    (proof,) = await house.history("proof")
    assert document(proof["result"]) == 2
    return (await house.history("it"))[0]


@pytest.mark.parametrize("handler", [tasks.spin, tasks.sleep, tasks.stubborn, tasks.swallow, tasks.parent])
async def test_it_is_gone_with_all_its_children_within_timeout_and_grace(house: House, handler: Any, tmp_path: Path):
    folder = tmp_path / "pids"
    folder.mkdir()
    orchestrator = house.orchestrator(max_concurrent=1)
    orchestrator.register_worker("it", handler, timeout_seconds=1, payload={"folder": str(folder)}, **PROCESS)

    gone_when_free = []

    async def other() -> None:
        gone_when_free.append(not alive(folder))

    orchestrator.register_worker("other", other, blocks=["it"], execution_mode="triggered")
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    await house.until(lambda: len(alive(folder)) >= (4 if handler is tasks.parent else 1))
    seen = time.monotonic()
    await orchestrator.trigger_worker("other")
    (ended,) = await house.attempts(1, "it")
    assert time.monotonic() - seen < 1 + 0.5 + 3.0  # the last is for a busy machine
    assert alive(folder) == []
    assert (ended.outcome.kind, ended.outcome.error) == ("timed_out", "timed out after 1 s")
    await house.attempts(1, "other")
    assert gone_when_free == [True]
    first, second = await house.history()
    assert second["started_at"] >= first["finished_at"]


async def test_a_memory_hog_under_a_cap_is_a_failed_attempt_that_says_so(house: House):
    row = await end_of(house, tasks.hog, memory_limit_mb=256)
    assert (row["outcome"], row["error_type"]) == ("failed", "MemoryError")
    assert "over its memory limit of 256 MiB" in row["error"]


@pytest.mark.parametrize("handler", [tasks.segfault, tasks.kill_me])
async def test_a_segmentation_fault_is_a_failed_attempt_that_names_the_signal(house: House, handler: Any):
    row = await end_of(house, handler)
    assert (row["outcome"], row["error_type"]) == ("failed", "ProcessDied")
    assert row["error"] == "its process ended with signal SIGSEGV"
    assert row["output"] == ("before the crash" if handler is tasks.segfault else None)


async def test_leaving_the_process_is_a_failed_attempt_that_names_the_exit_code(house: House):
    row = await end_of(house, tasks.leave)
    assert (row["outcome"], row["error"]) == ("failed", "its process ended with exit code 7")


async def test_a_killed_pool_process_fails_one_attempt_only(house: House, tmp_path: Path):
    orchestrator = house.orchestrator()
    orchestrator.register_worker("sleep", tasks.sleep, max_running=4, **PROCESS)
    orchestrator.register_worker("pid", tasks.pid, **PROCESS)
    await orchestrator.start()
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
        await orchestrator.trigger_worker("sleep", {"folder": str(folder)})
    await house.until(lambda: all(alive(folder) for folder in folders))
    os.kill(alive(folders[1])[0], signal.SIGSEGV)
    (ended,) = await house.attempts(1)
    assert ended.outcome.error == "its process ended with signal SIGSEGV"
    assert alive(folders[0]) != []
    assert alive(folders[2]) != []
    await orchestrator.trigger_worker("pid")
    await house.attempts(1, "pid")
    idle = document((await house.history("pid"))[0]["result"])
    os.kill(idle, signal.SIGSEGV)  # an idle one
    await house.until(lambda: not is_alive(idle))
    await orchestrator.trigger_worker("pid")
    await house.attempts(2, "pid")
    assert [row["outcome"] for row in await house.history("pid")] == ["succeeded", "succeeded"]


async def test_what_it_says_is_kept_whatever_way_it_is_said(house: House):
    row = await end_of(house, tasks.talk)
    said = row["output"].splitlines()
    assert said[:4] == ["logged", "printed", "raw \ufffd\ufffd bytes", "to stderr"]
    assert said[4:] == ["no end of line"]
    assert len(document(row["result"])["big"]) == 60_000
    assert row["reason"] is None


async def test_output_and_result_larger_than_a_pipe_come_over(house: House):
    row = await end_of(house, tasks.late_words)
    assert len(document(row["result"])) == 60_000
    assert "y" * 60_000 in row["output"]


async def test_a_million_lines_keep_their_tail_and_their_count(house: House):
    orchestrator = house.orchestrator()
    orchestrator.register_worker("it", tasks.lines, payload={"count": 200_000}, **PROCESS)
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    await house.attempts(1)
    (row,) = await house.history()
    first, *_, last = row["output"].splitlines()
    assert "of 200,000 lines are not kept" in first
    assert last == "199999"
    assert len(row["output"].encode()) <= 64 * 1024


async def test_a_coroutine_function_runs_in_a_process_too(house: House):
    row = await end_of(house, tasks.asynchronous, {"a": 5})
    result = document(row["result"])
    assert (result["a"], result["worker"], result["attempt"]) == (5, "it", 1)


async def test_nested_arguments_cross_the_boundary(house: House):
    home = {"street": "Main", "number": 5}
    row = await end_of(house, tasks.nested, {"home": home, "others": [home, home]})
    assert document(row["result"]) == "Main 5 2"


@pytest.mark.parametrize("handler", [tasks.give_up, tasks.give_up_our_way])
async def test_discard_crosses_the_boundary(house: House, handler: Any):
    row = await end_of(house, handler, max_retries=3)
    assert (row["outcome"], row["ends_run"], row["error_type"]) == ("failed", "discarded", "Discard")
    assert row["reason"] in {"no such customer", "ours"}
    assert (await house.state("it"))["consecutive_failures"] == 0


async def test_snooze_crosses_the_boundary(house: House):
    row = await end_of(house, tasks.snooze)
    assert (row["outcome"], row["ends_run"], row["reason"]) == ("snoozed", None, "not now")
    (run,) = await house.rows("SELECT attempt FROM {p}runs")
    assert run["attempt"] == 1


async def test_retry_after_crosses_the_boundary(house: House):
    row = await end_of(house, tasks.retry_after, max_retries=1)
    assert (row["outcome"], row["error"]) == ("failed", "busy")
    (ended,) = house.ended("it")
    assert ended.retry_at is not None
    assert ended.outcome.delay_seconds == 4321


async def test_an_error_that_does_not_unpickle_is_told_all_the_same(house: House):
    row = await end_of(house, tasks.awkward)
    assert (row["outcome"], row["error_type"], row["error"]) == ("failed", "Awkward", "awkward 1 2")
    assert "raise Awkward(1, 2)" in row["traceback"]


@pytest.mark.parametrize("handler", [tasks.returns_what_does_not_unpickle, tasks.returns_a_lambda])
async def test_a_result_that_is_no_json_is_not_kept_and_said_so(house: House, handler: Any):
    row = await end_of(house, handler)
    assert (row["outcome"], document(row["result"])) == ("succeeded", None)
    assert "its result is not kept, since it is no JSON" in row["reason"]


async def test_a_result_can_be_set(house: House):
    assert document((await end_of(house, tasks.sets_result))["result"]) == {"set": True}


async def test_a_process_that_leaves_children_behind_is_ended_with_them(house: House, tmp_path: Path):
    orchestrator = house.orchestrator()
    folder = tmp_path / "pids"
    folder.mkdir()
    orchestrator.register_worker("it", tasks.leaves_a_child, payload={"folder": str(folder)}, **PROCESS)
    orchestrator.register_worker("pid", tasks.pid, **PROCESS)
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    (ended,) = await house.attempts(1)
    assert ended.outcome.kind == "succeeded"
    assert alive(folder) == []
    await orchestrator.trigger_worker("pid")
    await house.attempts(1, "pid")
    assert document((await house.history("pid"))[0]["result"]) != ended.outcome.result


async def test_cancelling_ends_it_within_a_second(house: House, tmp_path: Path):
    folder = tmp_path / "pids"
    folder.mkdir()
    orchestrator = house.orchestrator()
    orchestrator.register_worker("it", tasks.sleep, payload={"folder": str(folder)}, **PROCESS)
    await orchestrator.start()
    run_id = await orchestrator.trigger_worker("it")
    await house.until(lambda: alive(folder))
    from datetime import UTC, datetime

    from jobrunner.storage.runs import cancelling

    asked = time.monotonic()
    await cancelling.cancel(house.db, run_id, datetime.now(UTC), "ada")
    (ended,) = await house.attempts(1)
    assert time.monotonic() - asked < 2
    assert (ended.outcome.kind, ended.ends_run) == ("cancelled", "cancelled")
    assert alive(folder) == []


async def test_two_hundred_runs_leak_neither_processes_nor_files(house: House):
    others = set(psutil.Process().children(recursive=True))  # of tests before
    orchestrator = house.orchestrator(max_concurrent=4)
    orchestrator.register_worker("pid", tasks.pid, max_running=4, **PROCESS)
    orchestrator.register_worker("leave", tasks.leave, max_running=4, max_consecutive_failures=1000, **PROCESS)
    await orchestrator.start()
    await orchestrator.trigger_many("pid", [None] * 10)
    await orchestrator.trigger_many("leave", [None] * 10)
    await house.attempts(20)
    me = psutil.Process()
    files, threads = me.num_fds(), me.num_threads()
    await orchestrator.trigger_many("pid", [None] * 160)
    await orchestrator.trigger_many("leave", [None] * 40)
    await house.attempts(220)
    await asyncio.sleep(0.05)
    children = [p for p in me.children(recursive=True) if p not in others and is_alive(p)]
    assert me.num_fds() <= files + 18  # the pool may have grown by three, six files each
    assert me.num_threads() <= threads + 4
    assert len({document(r["result"]) for r in await house.history("pid")}) <= 10 + 50
    await orchestrator.stop()
    await house.until(lambda: not any(is_pool(process) for process in children))  # killed is not gone yet


async def test_a_function_that_no_other_process_can_find_is_refused(house: House):
    def local() -> None: ...

    with pytest.raises(InvalidWorker, match="top level of a module"):
        house.orchestrator().register_worker("it", local, **PROCESS)

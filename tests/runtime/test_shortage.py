"""What the node itself could not start is given back, a moment later and without using up a try."""

from __future__ import annotations

import errno
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobrunner import WorkerOptions
from jobrunner.model.run import OutcomeKind
from jobrunner.runtime.executors import process
from jobrunner.runtime.executors.guards import Guards, Line
from jobrunner.runtime.shortage import Shortage
from jobrunner.telemetry import events as e
from jobrunner.testing import ManualClock
from tests.runtime.conftest import House
from tests.runtime.test_command import add
from tests.support import tasks

ROOT = Path(__file__).resolve().parents[2]
ONCE: WorkerOptions = {"execution_mode": "triggered", "max_retries": 0}


def short_of_descriptors(*_: Any, **__: Any) -> Any:
    raise OSError(errno.EMFILE, "Too many open files")


class Failing:
    """A function that fails a number of times before it does what it does."""

    def __init__(self, times: int, fail: Callable[..., Any], real: Callable[..., Any], is_meant: Callable[..., bool]):
        self.left, self.fail, self.real, self.is_meant = times, fail, real, is_meant

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.left and self.is_meant(*args, **kwargs):
            self.left -= 1
            return self.fail(*args, **kwargs)
        return self.real(*args, **kwargs)


def patched(patch: pytest.MonkeyPatch, owner: Any, name: str, fail: Any, is_meant: Any = lambda *_, **__: True) -> None:
    failing = Failing(2, fail, getattr(owner, name), is_meant)
    patch.setattr(owner, name, lambda *args, **kwargs: failing(*args, **kwargs))


def no_thread(*_: Any) -> None:
    raise RuntimeError("can't start new thread")


def is_ours(thread: threading.Thread) -> bool:
    return thread.name == "jobrunner:it"


def gone(*_: Any) -> None:
    raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")


CASES: dict[str, tuple[str, Any, str, Any, Any]] = {
    "thread": ("thread", threading.Thread, "start", no_thread, is_ours),
    "thread of a process": ("process", threading.Thread, "start", no_thread, is_ours),
    "descriptors of a process": ("process", process, "_check_spare_descriptors", short_of_descriptors, None),
    "fork server": ("process", process, "Child", gone, None),
    "guard of a process": ("process", Line, "__init__", short_of_descriptors, None),
    "guard of a command": ("command", Line, "__init__", short_of_descriptors, None),
    "command": ("command", Guards, "start", short_of_descriptors, None),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_start_that_the_node_cannot_make_is_given_back_and_tried_again(
    house: House, monkeypatch: pytest.MonkeyPatch, case: str
):
    isolation, owner, name, fail, is_meant = CASES[case]
    monkeypatch.setattr("jobrunner.runtime.shortage.FIRST_SECONDS", 0.05)
    orchestrator = house.orchestrator(allow_commands=True)
    if isolation == "thread":
        orchestrator.register_worker("it", lambda: None, **ONCE)
    elif isolation == "process":
        orchestrator.register_worker("it", tasks.pid, isolation="process", **ONCE)
    await orchestrator.start()
    if isolation == "command":
        await add(house, ["date"])
    patched(monkeypatch, owner, name, fail, is_meant or (lambda *_, **__: True))
    await orchestrator.trigger_worker("it")
    ends = await house.attempts(3)
    assert [(end.outcome.kind, end.run.attempt) for end in ends] == [
        (OutcomeKind.INTERRUPTED, 1),
        (OutcomeKind.INTERRUPTED, 1),
        (OutcomeKind.SUCCEEDED, 1),
    ]
    assert all((end.outcome.reason or "").startswith("the node could not start it: ") for end in ends[:2])
    told = [event.message for event in house.seen if isinstance(event, e.Warned)]
    assert len(told) == 1
    assert "given back and tried again, no attempt is used up" in told[0]


async def test_a_command_that_does_not_exist_is_failed(house: House):
    orchestrator = house.orchestrator(allow_commands=True)
    await orchestrator.start()
    await add(house, ["/no/such/program"])
    await orchestrator.trigger_worker("it")
    (ended,) = await house.attempts(1)
    assert (ended.outcome.kind, ended.outcome.error_type) == ("failed", "FileNotFoundError")


def test_the_pause_doubles_while_the_trouble_lasts_and_what_fails_together_waits_together():
    clock, events = ManualClock(), e.Events()
    seen: list[e.Event] = []
    events.subscribe(seen.append)
    shortage = Shortage(clock, events)
    pauses = []
    for _ in range(8):
        pauses.append(shortage.failed("no thread"))
        assert shortage.failed("no thread") == pauses[-1]
        assert shortage.is_waiting
        clock.advance(pauses[-1])
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert len(seen) == 2  # at most once a minute
    shortage.worked()
    assert shortage.failed("no thread") == 1.0


MODULE = """
import time
from jobrunner import WorkerOrchestrator
orchestrator = WorkerOrchestrator("sqlite:///few.db", max_concurrent=30)

@orchestrator.worker("it", execution_mode="triggered", max_running=30, isolation="process", max_retries=0)
def it():
    time.sleep(0.2)
"""
FILL = """
import asyncio, few
async def main():
    await few.orchestrator.start()
    await few.orchestrator.stop(0.0)
    await few.orchestrator.trigger_many("it", [{} for _ in range(30)])
    await few.orchestrator.stop()
asyncio.run(main())
"""


def test_under_few_descriptors_every_run_succeeds_in_the_end(tmp_path: Path):
    (tmp_path / "few.py").write_text(MODULE)
    run = {"cwd": tmp_path, "env": {"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": "/usr/bin:/bin"}, "text": True}
    subprocess.run([sys.executable, "-c", FILL], check=True, timeout=120, **run)  # type: ignore[call-overload]
    shell = f"ulimit -n 64; exec {sys.executable} -m jobrunner run few --until-idle"
    done = subprocess.run(  # type: ignore[call-overload]
        ["/bin/sh", "-c", shell], capture_output=True, check=False, timeout=240, **run
    )
    assert done.returncode == 0, done.stderr
    db = sqlite3.connect(tmp_path / "few.db")
    counted = dict(db.execute("SELECT outcome, count(*) FROM run_history GROUP BY outcome").fetchall())
    db.close()
    assert counted["succeeded"] == 30
    assert set(counted) == {"succeeded", "interrupted"}
    assert done.stderr.count("tried again, no attempt is used up") <= 4

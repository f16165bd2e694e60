"""A node that is killed takes all it started with it, and code that cannot be ended is given back by others only."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from tests.cli.program import jobrunner, start_jobrunner
from tests.support.processes import alive, is_alive

pytestmark = pytest.mark.crash

SLEEPER = (
    "import os, pathlib, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "pathlib.Path('pids', str(os.getpid())).touch(); time.sleep(3600)"
)
APP = f"""
import os, pathlib, subprocess, sys, time
from jobrunner import WorkerOrchestrator

orchestrator = WorkerOrchestrator(tick_interval=0.2)
SLEEPER = {SLEEPER!r}


@orchestrator.worker("process", execution_mode="triggered", isolation="process")
def process() -> None:
    pathlib.Path("pids", str(os.getpid())).touch()
    subprocess.Popen([sys.executable, "-c", SLEEPER])
    subprocess.Popen([sys.executable, "-c", SLEEPER], start_new_session=True)
    time.sleep(3600)


@orchestrator.worker("quick", execution_mode="triggered", isolation="process")
def quick() -> int:
    return os.getpid()


@orchestrator.worker("thread", execution_mode="triggered", timeout_seconds=0.5)
def thread() -> None:
    while True:
        pass


@orchestrator.worker("blocked", execution_mode="triggered", blocks=["thread"])
async def blocked() -> None: ...
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "pids").mkdir()
    yield tmp_path
    for pid in alive(tmp_path / "pids"):
        os.kill(pid, signal.SIGKILL)


def rows(folder: Path, sql: str) -> list[tuple]:
    try:
        with closing(sqlite3.connect(folder / "jobrunner.db")) as connection:
            return connection.execute(sql).fetchall()
    except sqlite3.OperationalError:  # its tables are being made
        return []


def until(is_so, seconds: float = 30, node: subprocess.Popen[str] | None = None) -> float:
    """Wait; return how long it took."""
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < seconds
        assert node is None or node.poll() is None, node.communicate()
        time.sleep(0.01)
    return time.monotonic() - began


def test_children_and_grandchildren_die_with_their_node(folder: Path):
    node = start_jobrunner("run app --allow-commands", folder)
    until(lambda: rows(folder, "SELECT 1 FROM nodes WHERE state = 'active'"), node=node)
    start = f"subprocess.Popen([sys.executable, '-c', {SLEEPER!r}], start_new_session=True)"
    script = f"import subprocess, sys\n{start}\n{SLEEPER}"
    (folder / "command.py").write_text(script)
    added = jobrunner(f"admin add command --triggered --command '{sys.executable} command.py'", folder)
    assert added.returncode == 0, added.stderr
    for worker in ("process", "command"):
        assert jobrunner(f"trigger {worker}", folder).returncode == 0
    until(lambda: len(alive(folder / "pids")) == 5, node=node)
    relatives = psutil.Process(node.pid).children(recursive=True)
    node.kill()
    node.communicate()
    assert until(lambda: not alive(folder / "pids")) < 1
    until(lambda: not [p for p in relatives if is_alive(p)], 5)


def test_a_pool_process_of_jobrunner_run_finds_the_module(folder: Path):
    node = start_jobrunner("run app", folder)
    until(lambda: rows(folder, "SELECT 1 FROM nodes WHERE state = 'active'"), node=node)
    done = jobrunner("trigger quick --wait", folder)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "succeeded"), done.stderr
    node.send_signal(signal.SIGTERM)
    _, err = node.communicate(timeout=20)
    assert node.returncode == 0, err
    assert "Traceback" not in err


def test_an_endless_loop_in_a_thread_is_stopping_until_its_node_exits_and_then_given_back_by_others(folder: Path):
    node = start_jobrunner("run app --drain-timeout 1s", folder)
    until(lambda: rows(folder, "SELECT 1 FROM nodes WHERE state = 'active'"), node=node)
    assert jobrunner("trigger thread", folder).returncode == 0
    until(lambda: rows(folder, "SELECT 1 FROM runs WHERE state = 'stopping'"), node=node)
    assert jobrunner("trigger blocked", folder).returncode == 0
    ((slot,),) = rows(folder, "SELECT slot FROM runs WHERE worker = 'thread'")
    assert slot == 0
    assert rows(folder, "SELECT * FROM run_history") == []
    node.send_signal(signal.SIGTERM)
    began = time.monotonic()
    node.communicate(timeout=20)
    assert node.returncode == 0
    assert time.monotonic() - began < 1 + 2 + 2 + 1.5  # the drain, the grace for code, what is left to write
    assert rows(folder, "SELECT state FROM runs WHERE worker = 'thread'") == [("stopping",)]
    assert rows(folder, "SELECT * FROM run_history") == []
    other = start_jobrunner("run app", folder)
    until(lambda: rows(folder, "SELECT 1 FROM run_history WHERE worker = 'thread'"), node=other)
    other.kill()
    other.communicate()

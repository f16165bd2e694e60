"""SQLite's file is removed, replaced, moved or emptied under those who use it: one line, exit 1, promptly."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.program import jobrunner, start_jobrunner

APP = """
import asyncio
from jobrunner import WorkerOrchestrator

orchestrator = WorkerOrchestrator(tick_interval=1, drain_timeout=600)


@orchestrator.worker("often", interval_seconds=1)
async def often() -> None:
    pass


@orchestrator.worker("long", execution_mode="triggered", timeout_seconds=600)
async def long() -> None:
    await asyncio.sleep(500)
"""
PROMPT_SECONDS = 40.0  # a beat is 5 s; the rest is for a busy machine, and far below the 500 s of the code that runs


def wait_until(is_so: Callable[[], object], process: subprocess.Popen[str]) -> None:
    give_up = time.monotonic() + PROMPT_SECONDS
    while not is_so():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < give_up
        time.sleep(0.05)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    (home / "app.py").write_text(APP)
    return home


def start_node(home: Path) -> subprocess.Popen[str]:
    """Start a node, and have it run something that takes long."""
    process = start_jobrunner("run app", home)
    wait_until(lambda: jobrunner("status long", home).returncode == 0, process)
    assert jobrunner("trigger long", home).returncode == 0
    wait_until(lambda: '"running"' in jobrunner("runs --json", home).stdout, process)
    return process


def remove(home: Path) -> None:
    (home / "jobrunner.db").unlink()


def replace_by_a_copy(home: Path) -> None:
    shutil.copy(home / "jobrunner.db", home / "copy.db")
    (home / "copy.db").rename(home / "jobrunner.db")


def replace_by_another(home: Path) -> None:
    assert jobrunner("db upgrade --database-url sqlite:///other.db", home).returncode == 0
    (home / "other.db").rename(home / "jobrunner.db")


def remove_the_wal(home: Path) -> None:
    (home / "jobrunner.db-wal").unlink()


def remove_the_shm(home: Path) -> None:
    (home / "jobrunner.db-shm").unlink()


def empty(home: Path) -> None:
    os.truncate(home / "jobrunner.db", 0)


def move_the_folder(home: Path) -> None:
    home.rename(home.with_name("moved"))


WAYS = {
    remove: "jobrunner.db was removed or moved",
    replace_by_a_copy: "jobrunner.db was replaced by another file",
    replace_by_another: "jobrunner.db was replaced by another file",
    remove_the_wal: "jobrunner.db-wal, a part of the database, was removed",
    remove_the_shm: "jobrunner.db-shm, a part of the database, was removed",
    empty: "jobrunner.db was emptied",
    move_the_folder: "jobrunner.db was removed or moved",
}


def left(process: subprocess.Popen[str]) -> str:
    """Wait until the process has left by itself, with exit 1; return the one line it said that is no mere note."""
    _, said = process.communicate(timeout=PROMPT_SECONDS)
    assert process.returncode == 1, said
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if " INFO jobrunner: " not in line and " waits: " not in line]
    assert len(lines) == 1, said
    return lines[0]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_node_whose_file_is_gone_says_so_in_one_line_stops_its_code_and_exits_1(home: Path, way):
    process = start_node(home)
    way(home)
    line = left(process)
    assert line.startswith("error: ")
    assert WAYS[way] in line
    assert line.endswith(" while it was in use; put the file back or restore a backup, then start again")


def test_a_node_that_drains_leaves_at_once_when_its_file_is_gone(home: Path):
    process = start_node(home)
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: '"draining"' in jobrunner("admin nodes --json", home).stdout, process)
    remove(home)
    line = left(process)
    assert "was removed or moved" in line


def test_a_node_whose_file_may_no_longer_be_written_by_others_goes_on(home: Path):
    process = start_node(home)
    (home / "jobrunner.db").chmod(0o400)
    before = (home / "jobrunner.db-wal").stat().st_mtime_ns
    wait_until(lambda: (home / "jobrunner.db-wal").stat().st_mtime_ns != before, process)
    process.kill()
    _, said = process.communicate()
    assert " ERROR " not in said


@pytest.mark.parametrize("command", ["runs --follow", "trigger long --wait"])
def test_a_command_that_watches_says_in_one_line_that_the_file_is_gone(home: Path, command):
    assert jobrunner("run app --until-idle", home).returncode == 0
    process = start_jobrunner(command, home)
    if command.startswith("trigger"):
        wait_until(lambda: "long" in jobrunner("runs --json", home).stdout, process)
    else:
        assert jobrunner("trigger long", home).returncode == 0
        assert process.stdout is not None
        assert "long" in process.stdout.readline()
    replace_by_another(home)
    line = left(process)
    assert line.startswith("error: ")
    assert "jobrunner.db was replaced by another file while it was in use" in line


def test_a_new_database_is_its_owners_alone(home: Path):
    process = start_node(home)
    modes = {path.name: path.stat().st_mode & 0o777 for path in home.glob("jobrunner.db*")}
    assert modes == dict.fromkeys(("jobrunner.db", "jobrunner.db-wal", "jobrunner.db-shm"), 0o600)
    process.kill()
    process.communicate()

"""A release that changes nothing but the turn: its nodes and those of the one before work side by side."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.checker import check
from tests.support.cluster import ROOT, PlainSql, until

APP = """
import asyncio
from jobrunner import WorkerOrchestrator

orchestrator = WorkerOrchestrator(max_concurrent=10)


@orchestrator.worker("work", execution_mode="triggered", max_running=30)
async def work() -> None:
    await asyncio.sleep(0.005)
"""
IN_THE_OLD, IN_THE_NEW = "e.finished_at, e.ms, e.reason,", "e.finished_at, e.ms, 'by the new turn',"
RUNS = 400


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = folder.glob("*.whl")
    return found


def release(wheel: Path, folder: Path, *, is_new: bool) -> Path:
    """Unpack the wheel; in the new release a turn leaves its mark in the history that it writes."""
    zipfile.ZipFile(wheel).extractall(folder)
    if is_new:
        rules = folder / "jobrunner/storage/turns/rules.py"
        text = rules.read_text()
        assert text.count(IN_THE_OLD) == 1
        rules.write_text(text.replace(IN_THE_OLD, IN_THE_NEW))
    return folder


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.cluster
def test_nodes_of_two_releases_each_take_their_own_turns(
    database_url: str, tmp_path: Path, wheel: Path, started: list[subprocess.Popen[str]]
):
    (tmp_path / "app.py").write_text(APP)
    shell = PlainSql(database_url)

    def start(release: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobrunner", "run", "app", "--database-url", database_url],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(release)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    def written(by_whom: str) -> int:
        history = f"{shell.prefix}run_history WHERE outcome = 'succeeded'"
        (row,) = shell.rows(f"SELECT count(*) AS n FROM {history} AND reason IS {by_whom}")
        return int(row["n"])

    def trigger() -> None:
        rows = ", ".join(["('work')"] * RUNS)
        shell.rows(f"INSERT INTO {shell.prefix}runs (worker) VALUES {rows}")

    def is_idle() -> bool:
        assert all(process.poll() is None for process in started)
        (row,) = shell.rows(f"SELECT count(*) AS n FROM {shell.prefix}runs")
        return bool(row["n"] == 0)

    try:
        start(release(wheel, tmp_path / "old", is_new=False))
        known = f"SELECT name FROM {shell.prefix}workers"
        until(lambda: len(shell.rows(known)) == 1, what="the worker is registered")
        trigger()
        until(is_idle, what="the old release has done its share")
        assert (written("NULL"), written("NOT NULL")) == (RUNS, 0)
        start(release(wheel, tmp_path / "new", is_new=True))
        nodes = f"SELECT id FROM {shell.prefix}nodes WHERE state = 'active'"
        until(lambda: len(shell.rows(nodes)) == 2, what="the new release runs")
        rounds = 1
        while not (written("NULL") > RUNS and written("NOT NULL")):
            assert rounds < 30, "one of the two takes no turns"
            trigger()
            until(is_idle, what="both have done their share")
            rounds += 1
        assert written("NULL") + written("NOT NULL") == rounds * RUNS
        for process in started:
            process.send_signal(signal.SIGTERM)
            said, _ = process.communicate(timeout=30)
            assert process.returncode == 0, said
            assert "leaves" not in said
        assert check(database_url) == []
    finally:
        shell.close()

"""`jobrunner run --reload`: a node that starts again when the code changes, and waits where it cannot be imported."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import psutil

from tests.cli.program import jobrunner, start_jobrunner

PROGRAM = """
import time
from pathlib import Path
from jobrunner import WorkerOrchestrator

orchestrator = WorkerOrchestrator()

@orchestrator.worker("slow", execution_mode="triggered")
def slow() -> None:
    Path("began").touch()
    while not Path("go").exists():
        time.sleep(0.01)
"""
ONE_MORE = """
@orchestrator.worker("more", execution_mode="triggered")
def more() -> None: ...
"""


def end(node: subprocess.Popen[str]) -> None:
    """Kill what is left of it."""
    left = psutil.Process(node.pid).children() if node.poll() is None else []
    for process in (node, *left):
        process.kill()
    node.communicate()


def wait_for(node: subprocess.Popen[str], words: str) -> str:
    assert node.stderr is not None
    for line in node.stderr:
        if words in line:
            return line
    raise AssertionError(f"it has ended without saying {words!r}")


def test_a_node_starts_again_when_its_code_changes_and_waits_while_it_cannot_be_imported(tmp_path):
    module = tmp_path / "work.py"
    module.write_text(PROGRAM)
    node = start_jobrunner("run work --reload --max-concurrent 2", tmp_path)
    try:
        wait_for(node, "runs 1 worker")
        module.write_text(PROGRAM + "def broken(:\n")
        assert wait_for(node, "changed").endswith("work.py changed; the node starts again\n")
        wait_for(node, "cannot be imported")
        wait_for(node, "the node has ended with exit code 2; it starts again with the next change")
        (tmp_path / "notes.txt").write_text("no code")
        module.write_text(PROGRAM + ONE_MORE)
        wait_for(node, "runs 2 workers")
        (child,) = psutil.Process(node.pid).children()
        node.send_signal(signal.SIGTERM)
        assert node.wait(timeout=30) == 0
        assert not psutil.pid_exists(child.pid)
    finally:
        end(node)


def test_running_work_ends_before_the_node_starts_again(tmp_path):
    module = tmp_path / "work.py"
    module.write_text(PROGRAM)
    node = start_jobrunner("run work --reload", tmp_path)
    try:
        wait_for(node, "runs 1 worker")
        assert jobrunner("trigger slow", tmp_path).returncode == 0
        _until(tmp_path / "began")
        module.write_text(PROGRAM + ONE_MORE)
        wait_for(node, "drains: 1 running")
        (tmp_path / "go").touch()
        wait_for(node, "runs 2 workers")
        with closing(sqlite3.connect(tmp_path / "jobrunner.db")) as db:
            assert db.execute("SELECT outcome FROM run_history").fetchall() == [("succeeded",)]
        node.send_signal(signal.SIGINT)
        assert node.wait(timeout=30) == 0
    finally:
        end(node)


def _until(file: Path) -> None:
    import time

    while not file.exists():
        time.sleep(0.01)


def test_without_watchfiles_it_says_what_to_install(tmp_path):
    (tmp_path / "watchfiles.py").write_text("raise ImportError('not there')\n")
    refused = jobrunner("run work --reload", tmp_path)
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: --reload needs watchfiles; `pip install 'jobrunner[reload]'` installs it\n",
    )


def test_reloading_has_no_end_of_its_own(tmp_path):
    refused = jobrunner("run work --reload --until-idle", tmp_path)
    assert refused.returncode == 2
    assert "keep one" in refused.stderr

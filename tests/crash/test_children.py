"""A node that is killed takes all it started with it, and code that cannot be ended is given back by others only."""

from __future__ import annotations

import json
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
import multiprocessing, os, pathlib, subprocess, sys, time
from jobrunner import WorkerOrchestrator

orchestrator = WorkerOrchestrator(tick_interval=0.2)
SLEEPER = {SLEEPER!r}


@orchestrator.worker("process", execution_mode="triggered", isolation="process")
def process() -> None:
    pathlib.Path("pids", str(os.getpid())).touch()
    subprocess.Popen([sys.executable, "-c", SLEEPER])
    subprocess.Popen([sys.executable, "-c", SLEEPER], start_new_session=True)
    time.sleep(3600)


@orchestrator.worker("forks", execution_mode="triggered")
def forks() -> list:
    codes = []
    for _ in range(20):
        process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(3600,))
        process.start()
        process.terminate()
        process.join()
        codes.append(process.exitcode)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.map(abs, [1, 2])
    return codes


@orchestrator.worker("orphans", execution_mode="triggered")
def orphans() -> None:
    for _ in range(5):
        subprocess.run(["/bin/sh", "-c", "sleep 0.01 & sleep 0.01 &"])


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


DAEMON = f"""
import os, pathlib, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve(sys.executable, [sys.executable, "-c", {SLEEPER!r}], {{}})
    os._exit(0)
os.wait()
pathlib.Path("pids", str(os.getpid())).touch()
time.sleep(3600 if len(sys.argv) == 1 else 0)
"""


@pytest.mark.parametrize("killed_before", ["nobody", "post"])
def test_a_daemon_with_an_environment_of_its_own_dies_with_the_node(folder: Path, killed_before: str):
    (folder / "daemon.py").write_text(DAEMON)
    node = start_jobrunner("run app --allow-commands", folder)
    until(lambda: rows(folder, "SELECT 1 FROM nodes WHERE state = 'active'"), node=node)
    for name, words in (("stays", ""), ("ends", " ends")):  # what a command leaves when it ends, too
        command = f"{sys.executable} daemon.py{words}"
        assert jobrunner(f"admin add {name} --triggered --command '{command}'", folder).returncode == 0
        assert jobrunner(f"trigger {name}", folder).returncode == 0
    until(lambda: rows(folder, "SELECT 1 FROM run_history WHERE outcome = 'succeeded'"), node=node)
    until(lambda: len(alive(folder / "pids")) == 3, node=node)
    if killed_before == "post":
        (post,) = [p for p in psutil.Process(node.pid).children() if any("guard.py" in word for word in p.cmdline())]
        post.kill()
        until(lambda: not is_alive(post))
    node.kill()
    node.communicate()
    until(lambda: not alive(folder / "pids"), 5)


def test_a_signal_for_what_a_handler_forks_does_not_stop_the_node(folder: Path):
    node = start_jobrunner("run app", folder)
    until(lambda: rows(folder, "SELECT 1 FROM nodes WHERE state = 'active'"), node=node)
    for worker in ("forks", "quick"):
        done = jobrunner(f"trigger {worker} --wait", folder)
        assert done.returncode == 0, done.stderr
    ((result,),) = rows(folder, "SELECT result FROM run_history WHERE worker = 'forks'")
    assert json.loads(result) == [-signal.SIGTERM] * 20
    assert node.poll() is None
    assert not [p for p in psutil.Process(node.pid).children() if "run app" in " ".join(p.cmdline())]  # no copy lives
    node.send_signal(signal.SIGTERM)
    _, err = node.communicate(timeout=20)
    assert node.returncode == 0, err


@pytest.mark.parametrize("place", ["namespace", "subreaper"])
def test_as_process_1_it_reaps_passes_signals_on_and_ends_with_the_nodes_code(folder: Path, place: str):
    """In a PID namespace where one can be had; else, and in any case once, a subreaper plays process 1's part."""
    run = [sys.executable, "-m", "jobrunner", "run", "app"]
    play = (
        "import sys; from jobrunner.runtime import first; from jobrunner.runtime.executors import guard; "
        "guard.adopt_orphans(); first.stand_aside(); "
        "from jobrunner.cli.main import main; sys.argv[1:] = ['run', 'app']; main()"
    )
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    can_unshare = subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode == 0
    can_unshare = can_unshare and place == "namespace"
    words = [*unshare, *run] if can_unshare else [sys.executable, "-c", play]
    started = subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: rows(folder, "SELECT 1 FROM nodes WHERE state = 'active'"), node=started)
        first = psutil.Process(started.pid)
        if can_unshare:
            (first,) = first.children()
        (node,) = first.children()
        assert jobrunner("trigger orphans --wait", folder).returncode == 0
        until(lambda: first.children() == [node], node=started)
        assert [p for p in first.children(recursive=True) if p.status() == psutil.STATUS_ZOMBIE] == []
        first.send_signal(signal.SIGTERM)
        _, err = started.communicate(timeout=30)
        assert started.returncode == 0, err
        assert rows(folder, "SELECT state FROM nodes") == [("stopped",)]
    finally:
        started.kill()
        started.communicate()


def test_a_pool_process_of_jobrunner_run_finds_the_module(folder: Path):
    node = start_jobrunner("run app", folder)
    until(lambda: rows(folder, "SELECT 1 FROM nodes WHERE state = 'active'"), node=node)
    done = jobrunner("trigger quick --wait", folder)
    assert (done.returncode, "succeeded" in done.stdout.splitlines()) == (0, True), done.stderr
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

"""Guards and their post: whoever is killed, nothing that was started gets away."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from jobrunner.runtime.executors.guards import Guards, Line, without_ours
from tests.support.processes import alive

NOTE = "import os, pathlib, signal, sys, time; folder = sys.argv[1]\n"
HERE = "pathlib.Path(folder, str(os.getpid())).touch()\n"
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
DAEMON = f"""
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.environ.clear()
        {DEAF}        {HERE}        time.sleep(3600)
    os._exit(0)
"""
LEAVES = NOTE + DAEMON + "while not os.listdir(folder): time.sleep(0.001)\n"
STAYS = LEAVES + HERE + "time.sleep(3600)\n"


@pytest.fixture
def guards() -> Iterator[Guards]:
    made = Guards()
    yield made
    made.close()
    for line in [*made._lines]:
        made.forget(line)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    made = tmp_path / "pids"
    made.mkdir()
    yield made
    for pid in alive(made):
        os.kill(pid, signal.SIGKILL)


def start(guards: Guards, script: str, *arguments: object) -> Line:
    with Path(os.devnull).open("r+b") as nothing:
        words = [sys.executable, "-c", script, *map(str, arguments)]
        return guards.start(words, without_ours(os.environ), nothing.fileno(), nothing.fileno())


def until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def guard_of(line: Line) -> psutil.Process:
    assert line.pid is not None
    parent = psutil.Process(line.pid).parent()
    assert parent is not None
    return parent


def test_a_kill_reaches_a_daemon_with_an_environment_of_its_own(guards: Guards, folder: Path):
    line = start(guards, STAYS, folder)
    until(lambda: len(alive(folder)) == 2)
    line.kill()
    line.wait_over()
    assert alive(folder) == []
    assert line.code == -signal.SIGKILL
    guards.forget(line)


def test_a_stop_is_told_to_all_and_who_ignores_it_is_still_there(guards: Guards, folder: Path):
    line = start(guards, STAYS, folder)
    until(lambda: len(alive(folder)) == 2)
    line.ask_to_stop()
    while line.code is None:
        line.read()
    assert (line.code, line.is_alone) == (-signal.SIGTERM, False)
    assert len(alive(folder)) == 1  # the daemon is deaf
    line.kill()
    line.wait_over()
    assert alive(folder) == []
    guards.forget(line)


def test_a_process_whose_first_thread_has_ended_is_killed_like_others(guards: Guards, folder: Path):
    script = (
        f"{NOTE}import ctypes, threading\nthreading.Thread(target=time.sleep, args=(3600,)).start()\n"
        f"{HERE}ctypes.CDLL(None).pthread_exit(0)"
    )
    line = start(guards, script, folder)
    assert line.pid is not None
    until(lambda: [*folder.iterdir()] and not alive(folder))  # it seems dead
    assert not line.has_news()
    line.kill()
    try:
        until(line.has_news)
    finally:
        if not line.has_news():
            os.kill(line.pid, signal.SIGKILL)
    line.wait_over()
    assert line.code == -signal.SIGKILL
    guards.forget(line)


def test_a_killed_guard_takes_all_that_it_guards_along(guards: Guards, folder: Path):
    line = start(guards, STAYS, folder)
    until(lambda: len(alive(folder)) == 2)
    guard_of(line).kill()
    line.wait_over()
    assert line.code is None
    until(lambda: not alive(folder))
    guards.forget(line)


def test_a_killed_post_is_replaced_and_its_guards_go_on(guards: Guards, folder: Path):
    line = start(guards, STAYS, folder)
    until(lambda: len(alive(folder)) == 2)
    post = guard_of(line).parent()
    assert post is not None
    assert not guards.needs_care()
    post.kill()
    until(guards.needs_care)
    guards.look_after()
    assert not guards.needs_care()
    assert len(alive(folder)) == 2
    other = start(guards, "")
    while other.code is None:
        other.read()
    assert other.code == 0
    line.close()  # as when the node ends
    until(lambda: not alive(folder))


def test_a_command_starts_although_the_post_was_killed_a_moment_ago(guards: Guards):
    line = start(guards, "")
    line.wait_over()
    assert guards._process is not None
    os.kill(guards._process.pid, signal.SIGKILL)
    again = start(guards, "raise SystemExit(4)")
    again.wait_over()
    assert again.code == 4


def test_what_is_left_behind_lives_as_long_as_the_node_and_is_forgotten_when_it_ends(guards: Guards, folder: Path):
    lines = [start(guards, LEAVES, folder), start(guards, LEAVES, folder)]
    for line in lines:
        while line.code is None:
            line.read()
        guards.leave(line)
    until(lambda: len(alive(folder)) == 2)
    assert not guards.needs_care()
    os.kill(alive(folder)[0], signal.SIGKILL)
    until(guards.needs_care)
    guards.look_after()
    assert [line.fileno() for line in lines].count(-1) == 1
    guards.close()
    until(lambda: not alive(folder))


def test_a_guard_outlives_the_signals_that_a_service_is_sent_and_its_command_does_not(guards: Guards, folder: Path):
    line = start(guards, NOTE + HERE + "time.sleep(3600)", folder)
    until(lambda: alive(folder))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        guard_of(line).send_signal(number)
    assert line.pid is not None
    os.kill(line.pid, signal.SIGTERM)
    line.wait_over()
    assert line.code == -signal.SIGTERM


def test_a_program_that_is_not_there_is_refused_with_its_name(guards: Guards):
    with Path(os.devnull).open("r+b") as nothing, pytest.raises(FileNotFoundError, match="/no/such"):
        guards.start(["/no/such/program"], {}, nothing.fileno(), nothing.fileno())
    with Path(os.devnull).open("r+b") as nothing, pytest.raises(OSError, match="null byte"):
        guards.start(["true", "\0"], {}, nothing.fileno(), nothing.fileno())


def test_a_dead_guard_leaves_no_zombie(guards: Guards):
    lines = [start(guards, "") for _ in range(5)]
    for line in lines:
        line.wait_over()
        guards.leave(line)
    assert guards._process is not None
    post = psutil.Process(guards._process.pid)
    until(lambda: not post.children())


def test_our_settings_are_nobody_elses():
    environment = {
        "PATH": "/bin",
        "PGPASSWORD": "theirs",
        "JOBRUNNER_DATABASE_URL": "postgresql://u:secret@h/d",
        "JOBRUNNER_HTTP_TOKEN": "secret",
        "JOBRUNNER_KEYS": "secret",
    }
    assert without_ours(environment) == {"PATH": "/bin", "PGPASSWORD": "theirs"}

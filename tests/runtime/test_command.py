"""Command workers, on both databases: programs that misbehave are gone for good, and what they say is kept."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobrunner import WorkerConfig, WorkerExecutionMode, WorkerOrchestrator
from jobrunner.model.worker import Isolation
from jobrunner.runtime.executors.command import CommandCode
from jobrunner.storage.workers import commands
from tests.runtime.conftest import House
from tests.support.processes import alive, is_alive

MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CommandCode, "grace_seconds", 0.5)


async def add(house: House, command: str | list[str], name: str = "it", **options: Any) -> None:
    """Store a command worker; text is for the shell."""
    handler = json.dumps({"command": command, "shell": isinstance(command, str)})
    config = WorkerConfig(
        name,
        handler=handler,
        execution_mode=WorkerExecutionMode.TRIGGERED,
        isolation=Isolation.COMMAND,
        **{"max_retries": 0, **options},
    )
    await commands.add(house.db, config, datetime.now(UTC), "ada")


async def started(house: House, **options: Any) -> WorkerOrchestrator:
    orchestrator = house.orchestrator(**{"allow_commands": True, **options})
    await orchestrator.start()
    return orchestrator


async def end_of(house: House, command: str | list[str], payload: Any = None, **options: Any) -> dict[str, Any]:
    await add(house, command, **options)
    orchestrator = await started(house)
    await orchestrator.trigger_worker("it", payload)
    await house.attempts(1, "it")
    return (await house.history("it"))[0]


def python(script: str) -> list[str]:
    return [sys.executable, "-c", script]


NOTE = "import os, pathlib, signal, subprocess, sys, time; pathlib.Path(sys.argv[1], str(os.getpid())).touch()\n"
IGNORE = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
SPIN, SLEEP = "while True: pass\n", "time.sleep(3600)\n"
SLEEPER = f"[sys.executable, '-c', {NOTE + IGNORE + SLEEP!r}, sys.argv[1]]"
PARENT = (
    f"subprocess.Popen({SLEEPER})\n"
    f"subprocess.Popen({SLEEPER}, start_new_session=True)\n"
    "if os.fork() == 0:\n"  # a daemon: its parent has ended
    "    os.setsid()\n"
    "    if os.fork() == 0:\n"
    f"        os.execve(sys.executable, {SLEEPER}, {{}})\n"  # in an environment of its own
    "    os._exit(0)\n"
    "os.wait()\n"
)


@pytest.mark.parametrize(
    ("script", "count"),
    [(NOTE + SPIN, 1), (NOTE + SLEEP, 1), (NOTE + IGNORE + SPIN, 1), (NOTE + PARENT + SLEEP, 4)],
    ids=["spins", "sleeps", "ignores SIGTERM", "forks"],
)
async def test_it_is_gone_with_all_its_children_within_timeout_and_grace(
    house: House, tmp_path: Path, script: str, count: int
):
    folder = tmp_path / "pids"
    folder.mkdir()
    await add(house, [*python(script), str(folder)], timeout_seconds=1.5)
    orchestrator = house.orchestrator(max_concurrent=1, allow_commands=True)
    gone_when_free = []

    async def other() -> None:
        gone_when_free.append(not alive(folder))

    orchestrator.register_worker("other", other, blocks=["it"], execution_mode="triggered")
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    began = time.monotonic()
    await house.until(lambda: len(alive(folder)) >= count)
    await orchestrator.trigger_worker("other")
    (ended,) = await house.attempts(1, "it")
    assert time.monotonic() - began < 1.5 + 0.5 + 3.0  # the last is for a busy machine
    assert alive(folder) == []
    assert (ended.outcome.kind, ended.outcome.error) == ("timed_out", "timed out after 1.5 s")
    await house.attempts(1, "other")
    assert gone_when_free == [True]


async def test_it_gets_the_run_in_its_environment_and_the_payload_on_standard_input(house: House):
    row = await end_of(house, "cat; echo $JOBRUNNER_WORKER $JOBRUNNER_RUN_ID $JOBRUNNER_ATTEMPT", {"a": [1, "ü"]})
    payload, environment = row["output"].splitlines()
    assert json.loads(payload) == {"a": [1, "ü"]}
    assert environment == f"it {row['run_id']} 1"
    assert (row["outcome"], row["ends_run"]) == ("succeeded", "succeeded")


async def test_it_gets_no_setting_of_ours_and_so_no_secret(house: House, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JOBRUNNER_DATABASE_URL", "postgresql://ada:hunter2@host/db")
    monkeypatch.setenv("JOBRUNNER_HTTP_TOKEN", "hunter2")
    monkeypatch.setenv("OPERATORS_OWN", "kept")
    row = await end_of(house, ["env"])
    names = {line.partition("=")[0] for line in row["output"].splitlines()}
    ours = {name for name in names if name.startswith("JOBRUNNER")}
    assert ours == {"JOBRUNNER_RUN_ID", "JOBRUNNER_WORKER", "JOBRUNNER_ATTEMPT"}
    assert "OPERATORS_OWN" in names
    assert "hunter2" not in row["output"]


async def test_it_starts_where_the_node_is_and_with_the_bytes_of_its_environment(
    house: House, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ODD", "a\udcff")
    row = await end_of(house, 'pwd; printf %s "$ODD" | od -An -tx1')
    assert row["output"].split() == [str(tmp_path), "61", "ff"]


async def test_one_whose_guard_is_killed_has_ended_with_all_that_it_started(house: House, tmp_path: Path):
    folder = tmp_path / "pids"
    folder.mkdir()
    await add(house, [*python(NOTE + PARENT + SLEEP), str(folder)], name="it")
    orchestrator = await started(house)
    await orchestrator.trigger_worker("it")
    await house.until(lambda: len(alive(folder)) == 4)
    guards = [p for p in psutil.Process().children(recursive=True) if {c.pid for c in p.children()} & {*alive(folder)}]
    next(p for p in guards if "guard.py" in " ".join(p.cmdline())).kill()
    (ended,) = await house.attempts(1, "it")
    assert ended.outcome.error == "the command was killed, since the process that guards it was"
    await house.until(lambda: not alive(folder))


async def test_a_large_payload_need_not_be_read(house: House):
    row = await end_of(house, ["true"], {"big": "x" * 900_000})
    assert row["outcome"] == "succeeded"


async def test_an_exit_code_other_than_0_is_a_failure_that_names_it(house: House):
    row = await end_of(house, "echo no luck >&2; exit 3")
    assert (row["outcome"], row["error_type"]) == ("failed", "CommandFailed")
    assert (row["error"], row["output"]) == ("the command ended with exit code 3", "no luck")


async def test_a_signal_is_a_failure_that_names_it(house: House):
    assert (await end_of(house, "kill -SEGV $$"))["error"] == "the command ended with signal SIGSEGV"


async def test_a_program_that_is_not_there_is_a_failure_that_names_it(house: House):
    row = await end_of(house, ["/no/such/program", "--really"])
    assert (row["outcome"], row["error_type"]) == ("failed", "FileNotFoundError")
    assert "/no/such/program" in row["error"]


async def test_words_are_not_read_by_a_shell_unless_asked(house: House):
    assert (await end_of(house, ["echo", "$HOME", "; exit 1"]))["output"] == "$HOME ; exit 1"


async def test_a_million_lines_keep_their_tail_and_their_count_in_bounded_memory(house: House):
    before = psutil.Process().memory_info().rss
    row = await end_of(house, python("import sys\nfor n in range(1000000): sys.stdout.write(f'line {n}\\n')"))
    first, *_, last = row["output"].splitlines()
    assert first.startswith("... ")
    assert "of 1,000,000 lines are not kept" in first
    dropped = int(first.split()[1].replace(",", ""))
    assert dropped + len(row["output"].splitlines()) - 1 == 1_000_000
    assert last == "line 999999"
    assert len(row["output"].encode()) <= 64 * 1024
    assert psutil.Process().memory_info().rss - before < 30 * MIB


async def test_bytes_that_are_no_utf8_are_made_safe(house: House):
    row = await end_of(house, r"printf 'a\377\000b\n'")
    assert row["output"] == "a\ufffd\\0b"


async def test_a_memory_hog_under_a_cap_is_a_failed_attempt_that_says_so(house: House):
    hog = python("kept = []\nwhile True: kept.append(bytearray(8 * 1024 * 1024))")
    row = await end_of(house, hog, memory_limit_mb=256)
    assert (row["outcome"], row["error_type"]) == ("failed", "CommandFailed")
    assert row["error"] == "the command ended with exit code 1 under its memory limit of 256 MiB"
    assert "MemoryError" in row["output"]


async def test_what_it_leaves_in_the_background_does_not_hold_up_its_end(house: House, tmp_path: Path):
    began = time.monotonic()
    row = await end_of(house, "sleep 30 & echo $!")
    assert time.monotonic() - began < 5
    assert row["outcome"] == "succeeded"
    stray = psutil.Process(int(row["output"]))
    assert is_alive(stray)  # it lives on: the command ended by itself
    await house.close()
    await house.until(lambda: not is_alive(stray))  # and ends with its node


async def test_cancelling_ends_it_within_a_second(house: House):
    from jobrunner.storage.runs import cancelling

    await add(house, "echo here; sleep 3600")
    orchestrator = await started(house)
    run_id = await orchestrator.trigger_worker("it")
    await house.until_row("SELECT id FROM {p}runs WHERE state = 'running'")
    asked = time.monotonic()
    await cancelling.cancel(house.db, run_id, datetime.now(UTC), "ada")
    (ended,) = await house.attempts(1)
    assert time.monotonic() - asked < 2
    assert ended.ends_run == "cancelled"


async def test_a_node_that_does_not_allow_commands_runs_none(house: House):
    await add(house, ["true"])
    orchestrator = await started(house, allow_commands=False)
    await orchestrator.trigger_worker("it")
    await orchestrator.wait_idle()
    assert await house.history() == []


async def test_two_hundred_commands_leak_neither_processes_nor_files(house: House):
    await add(house, ["true"], max_running=4)
    orchestrator = await started(house)
    await orchestrator.trigger_many("it", [None] * 10)
    await house.attempts(10)
    me = psutil.Process()
    files, threads = me.num_fds(), me.num_threads()
    await orchestrator.trigger_many("it", [None] * 200)
    await house.attempts(210)
    await asyncio.sleep(0.05)
    assert me.num_fds() <= files + 4
    assert me.num_threads() <= threads + 4
    await house.until(lambda: all(is_alive(child) for child in me.children()))


def test_a_command_with_a_cap_keeps_its_words() -> None:
    from jobrunner.runtime.executors.command import arguments_of

    words = arguments_of(json.dumps({"command": ["echo", "a b", "$c"], "shell": False}), 64)
    assert words[:2] == ["/bin/sh", "-c"]
    assert words[-3:] == ["echo", "a b", "$c"]
    assert shlex.split(words[2])[:3] == ["ulimit", "-d", str(64 * 1024)]

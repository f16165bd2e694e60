"""Looking at runs while they live: `runs --follow`, `trigger --wait`, progress and probes in `status`."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobrunner.policy.showing import show_progress
from tests.cli.conftest import NODE
from tests.cli.program import jobrunner, start_jobrunner

APP = """
import pathlib, time
from jobrunner import RunContext, WorkerOrchestrator

orchestrator = WorkerOrchestrator(tick_interval=0.2)


@orchestrator.worker("copy", execution_mode="triggered", max_retries=1, retry_delay_seconds=0.1)
def copy(run: RunContext, fails: bool = False) -> None:
    run.log(f"try {run.attempt}")
    if run.attempt == 1:
        raise OSError("disk is busy")
    run.progress(0.4, "of 10 files")
    while not pathlib.Path("go").exists():
        time.sleep(0.01)
    print("not the run's: a thread's prints are the node's")
    run.log("last words")
    if fails:
        raise ValueError("no luck")
"""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    (tmp_path / "app.py").write_text(APP)
    process = start_jobrunner("run app --allow-commands", tmp_path)
    give_up = time.monotonic() + 30
    while jobrunner("status copy", tmp_path).returncode != 0:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < give_up
    yield process
    process.kill()
    process.communicate()


def read_until(stream: subprocess.Popen[str], words: str) -> list[str]:
    lines = []
    assert stream.stdout is not None
    for line in stream.stdout:
        lines.append(line.rstrip("\n"))
        if words in line:
            return lines
    raise AssertionError(lines)


@pytest.mark.slow
def test_waiting_streams_progress_and_output_and_following_shows_every_change(
    node: subprocess.Popen[str], tmp_path: Path
):
    jobrunner("trigger copy --in 1h", tmp_path)
    follower = start_jobrunner("runs --follow", tmp_path)
    read_until(follower, "run 1  copy")  # it has looked once
    waiter = start_jobrunner("trigger copy --wait", tmp_path)
    before = read_until(waiter, "40 % of 10 files")
    tries = ["  try 1", "attempt 1 failed, to be tried again: OSError: disk is busy", "  try 2"]
    assert before == ["run 2", *tries, "  40 % of 10 files"]
    assert "40 % of 10 files" in jobrunner("status", tmp_path).stdout
    assert "40 % of 10 files" in jobrunner("runs", tmp_path).stdout
    followed = [line.split("  ", 1)[1] for line in read_until(follower, "| try 2")]
    assert followed.count("run 2  copy  | try 1") == 1
    assert followed.index("run 2  copy  | try 1") + 1 == followed.index(
        "run 2  copy  failed, to be tried again: OSError: disk is busy"
    )
    assert "run 2  copy  running 40 % of 10 files, attempt 2" in followed
    (tmp_path / "go").touch()
    rest, err = waiter.communicate(timeout=20)
    assert (waiter.returncode, rest.splitlines()) == (0, ["  last words", "succeeded"]), err
    assert read_until(follower, "succeeded")[-1].endswith("run 2  copy  succeeded")
    follower.send_signal(signal.SIGINT)
    _, err = follower.communicate(timeout=20)
    assert (follower.returncode, "Traceback" in err) == (130, False)
    failed = jobrunner("""trigger copy --wait --payload '{"fails": true}'""", tmp_path)
    assert (failed.returncode, failed.stdout.splitlines()[-2]) == (1, "exhausted: ValueError: no luck")
    assert failed.stdout.splitlines()[-1].startswith("dead letter 1")
    as_json = start_jobrunner("runs --follow --json", tmp_path)
    (line,) = read_until(as_json, "copy")
    assert json.loads(line)["state"] == "pending"
    as_json.kill()
    as_json.communicate()


@pytest.mark.slow
def test_a_command_worker_is_added_with_all_its_options_and_run(node: subprocess.Popen[str], tmp_path: Path):
    script = f'{sys.executable} -c "import sys; print(sys.stdin.read()); bytearray(10**9)"'
    added = jobrunner(
        f"""admin add hog --triggered --command '{script}' --memory 200 --timeout 20s --max-retries 0 """
        """--payload '{"a": 1}' --cooldown 1m --priority HIGH --description 'eats'""",
        tmp_path,
    )
    assert added.returncode == 0, added.stderr
    shown = json.loads(jobrunner("admin show hog --json", tmp_path).stdout)
    wanted = {"memory_limit_mb": 200, "timeout_seconds": 20, "cooldown_seconds": 60, "payload": {"a": 1}, "priority": 2}
    assert {key: shown[key] for key in wanted} == wanted
    done = jobrunner("trigger hog --wait", tmp_path)
    assert done.returncode == 1
    assert '  {"a": 1}' in done.stdout.splitlines()
    assert "MemoryError" in done.stdout
    said = "the command ended with exit code 1 under its memory limit of 200 MiB"
    assert re.search(rf"^exhausted: (\w+: )?{said}$", done.stdout, re.MULTILINE)


def test_explain_says_that_only_nodes_which_allow_commands_run_them(cli):
    cli.ok("admin", "add", "backup", "--command", "true", "--triggered")
    cli.ok("trigger", "backup")
    cli.join("fetch")
    said = cli.ok("explain", "backup").out
    assert "a command: only nodes started with --allow-commands run it, and none of these is live" in said
    cli.join("fetch", node=NODE.__class__(**{**_fields(NODE), "id": "node-two", "allows_commands": True}))
    assert cli.ok("explain", "backup", "--json").json["starts"] is True


def _fields(node):
    return {name: getattr(node, name) for name in node.__dataclass_fields__}


def test_status_shows_the_probe_of_a_half_open_circuit(cli):
    import sqlalchemy as sa

    from jobrunner.storage.tables import define as t

    async def half_open(db, conn):
        values = {"is_enabled": False, "disabled_by": "circuit", "disabled_reason": "it kept failing"}
        values |= {"circuit_state": "half_open", "probe_run_id": 7}
        await conn.execute(sa.update(t.worker_state).where(t.worker_state.c.worker == "mail").values(values))

    cli.use(half_open)
    (line,) = [line for line in cli.ok("status").lines if line.startswith("mail")]
    assert "half open" in line
    assert "disabled by its circuit: it kept failing; only its probe, run 7, may start" in line


@pytest.mark.parametrize(
    ("progress", "shown"),
    [(None, ""), ({"fraction": 0.4, "message": "of 10"}, "40 % of 10"), ({"fraction": 1.0}, "100 %"), ({"x": 1}, "")],
)
def test_progress_is_shown_in_a_few_words(progress, shown):
    assert show_progress(progress) == shown

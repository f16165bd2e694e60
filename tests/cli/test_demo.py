"""`jobrunner demo`, as a newcomer runs it: in an empty folder, without a terminal."""

from __future__ import annotations

import re
import signal
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.cli.program import jobrunner, start_jobrunner

SECONDS = 12


def rows(path: Path, sql: str) -> list[tuple]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """What the demo printed, and the folder it ran in; run once for all the tests that only look at it."""
    folder = tmp_path_factory.mktemp("demo")
    return jobrunner(f"demo --seconds {SECONDS}", folder, timeout=100), folder


@pytest.mark.slow
def test_the_demo_keeps_its_promises(shown):
    done, folder = shown
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert [path.name for path in folder.iterdir()] == ["jobrunner-demo.db"]
    assert "  NO  " not in done.stdout


@pytest.mark.slow
def test_the_file_of_the_demo_tells_the_same_story(shown):
    path = shown[1] / "jobrunner-demo.db"
    assert {outcome for (outcome,) in rows(path, "SELECT DISTINCT outcome FROM run_history")} >= {
        "failed",
        "missed",
        "succeeded",
    }
    tables = {name for (name,) in rows(path, "SELECT name FROM sqlite_master")}
    assert tables >= {"demo_readings", "demo_summary", "demo_outbox", "run_history", "worker_status"}
    assert {sensor for (sensor,) in rows(path, "SELECT sensor FROM demo_summary")} == {"cpu", "disk", "memory"}
    assert rows(path, "SELECT worker, count(*) FROM dead_letters GROUP BY worker ORDER BY worker") == [
        ("broken-import", 3),
        ("send-email", 2),
    ]
    assert rows(path, "SELECT name FROM worker_status WHERE disabled_by = 'circuit'") == [("broken-import",)]
    assert rows(path, "SELECT count(*) FROM runs WHERE state <> 'pending'") == [(0,)]


@pytest.mark.slow
def test_the_demo_shows_events_answers_and_the_sql_for_them(shown):
    out = shown[0].stdout
    assert "\x1b" not in out, "no terminal, no escape sequences"
    assert "fetch-data     succeeded" in out
    assert "a payload that does not fit is refused" in out
    for sql in ("FROM worker_status ORDER BY name;", "FROM dead_letters WHERE", "WHERE outcome = 'missed'"):
        assert sql in out
    assert "  sqlite3 jobrunner-demo.db " in out


@pytest.mark.slow
def test_being_told_to_stop_ends_the_demo_early_and_in_order(tmp_path: Path):
    demo = start_jobrunner("demo", tmp_path)
    assert demo.stdout is not None
    while "fetch-data     succeeded" not in demo.stdout.readline():
        assert demo.poll() is None
    demo.send_signal(signal.SIGINT)
    out, err = demo.communicate(timeout=30)
    assert (demo.returncode, err) == (0, "")
    assert "not yet" in out
    assert rows(tmp_path / "jobrunner-demo.db", "SELECT state FROM nodes") == [("stopped",)]


def test_a_file_that_is_not_the_demos_is_left_alone(tmp_path: Path):
    precious = tmp_path / "jobrunner-demo.db"
    precious.write_text("precious")
    refused = jobrunner("demo", tmp_path)
    assert refused.returncode == 1
    assert "was not made by the demo" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert precious.read_text() == "precious"


def test_a_folder_that_is_not_there_is_said_in_one_line(tmp_path: Path):
    refused = jobrunner("demo --file nowhere/demo.db", tmp_path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("error: there is no folder nowhere")


def test_a_demo_too_short_for_its_story_is_refused(tmp_path: Path):
    refused = jobrunner("demo --seconds 1", tmp_path)
    assert refused.returncode == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_with_http_the_demo_opens_the_console_and_stays_until_it_is_interrupted(tmp_path: Path):
    demo = start_jobrunner("demo --http 127.0.0.1:0", tmp_path)
    assert demo.stdout is not None
    assert demo.stderr is not None
    line = demo.stderr.readline()
    link = re.match(r"open (http://127\.0\.0\.1:\d+/)login\?token=\S+ \(the token is of this start", line)
    assert link is not None, line
    assert "until Ctrl-C" in demo.stdout.readline()
    while "succeeded" not in demo.stdout.readline():
        assert demo.poll() is None
    with httpx.Client(base_url=link[1], trust_env=False, timeout=20) as client:
        assert client.get("/livez").status_code == 200
        names = {worker["name"] for worker in client.get("/api/workers").json()}
        assert names >= {"fetch-data", "send-email"}
    demo.send_signal(signal.SIGINT)
    out, err = demo.communicate(timeout=30)
    assert (demo.returncode, err) == (0, "")
    assert "The dead letters" in out
    assert "What was promised" not in out
    assert rows(tmp_path / "jobrunner-demo.db", "SELECT state FROM nodes") == [("stopped",)]


def test_an_address_without_http_is_refused(tmp_path: Path):
    refused = jobrunner("demo 127.0.0.1:0", tmp_path)
    assert refused.returncode == 2
    assert "write --http 127.0.0.1:0" in refused.stderr
    assert list(tmp_path.iterdir()) == []

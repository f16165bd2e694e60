"""`jobrunner serve` and `jobrunner run --http` as processes: what they print, how they refuse and how they end."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from jobrunner.cli.main import main

MODULE = """
from jobrunner import WorkerOrchestrator

orchestrator = WorkerOrchestrator(tick_interval=60)


@orchestrator.worker("mail", execution_mode="triggered")
def mail(to: str) -> None:
    print(to)
"""


@contextmanager
def program(folder: Path, *arguments: str, **environ: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """A `jobrunner` command, and the first line it writes; it is told to stop at the end, and must end well."""
    import os

    command = [sys.executable, "-m", "jobrunner", *arguments]
    pythonpath = os.pathsep.join([str(Path(__file__).parents[2]), str(folder)])
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": pythonpath, **environ},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        yield process, process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(20) == 0, rest
        assert "Traceback" not in rest
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_serve_prints_a_link_that_lets_its_reader_in(tmp_path, sqlite_url):
    arguments = ("serve", "--http", "127.0.0.1:0", "--database-url", sqlite_url)
    with program(tmp_path, *arguments) as (_, line):
        link = re.match(r"open (http://127\.0\.0\.1:\d+/login\?token=\S+) \(the token is of this start", line)
        assert link is not None, line
        with httpx.Client(follow_redirects=True, trust_env=False) as client:
            page = client.get(link[1])
            assert (page.status_code, page.url.path) == (200, "/")
            assert client.get(page.url.join("/readyz")).status_code == 200
            assert client.post(page.url.join("/api/workers/none/enable")).status_code == 404
        with httpx.Client(trust_env=False) as stranger:
            assert stranger.get(page.url.join("/api/workers")).status_code == 200
            assert stranger.post(page.url.join("/api/workers/none/enable")).status_code == 403


def test_a_node_answers_beside_its_work_and_no_secret_is_printed(tmp_path, sqlite_url):
    (tmp_path / "jobs_here.py").write_text(MODULE)
    arguments = ("run", "jobs_here", "--http", "127.0.0.1:0", "--database-url", sqlite_url)
    with program(tmp_path, *arguments, JOBRUNNER_HTTP_TOKEN="hush-hush") as (_, line):
        url = re.match(r"answers HTTP at (http://127\.0\.0\.1:\d+/)$", line)
        assert url is not None, line
        headers = {"Authorization": "Bearer hush-hush"}
        with httpx.Client(base_url=url[1], headers=headers, trust_env=False, timeout=20) as client:
            while client.get("/readyz").status_code != 200:
                assert client.get("/livez").status_code == 200
            made = client.post("/api/workers/mail/trigger", json={"payload": {"to": "ann"}}).json()
            while client.get(f"/api/runs/{made['run_id']}").json()["state"] != "succeeded":
                pass
            assert 'jobrunner_runs_total{outcome="succeeded",worker="mail"} 1.0' in client.get("/metrics").text


@pytest.mark.parametrize("command", [["serve"], ["run", "jobs_here"]])
def test_what_would_be_open_to_others_is_refused_in_one_line(tmp_path, monkeypatch, sqlite_url, capsys, command):
    (tmp_path / "jobs_here.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "jobs_here", raising=False)
    assert main([*command, "--http", "0.0.0.0:0", "--database-url", sqlite_url]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: 0.0.0.0:0 can be reached from other machines, and no token is set; set JOBRUNNER_")


def test_an_address_that_is_taken_is_told_in_one_line(sqlite_url, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--http", f"127.0.0.1:{port}", "--database-url", sqlite_url]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: cannot listen on 127.0.0.1:{port}: address already in use; ")


def test_an_address_that_is_none_is_bad_input(sqlite_url, capsys):
    assert main(["serve", "--http", "8484", "--database-url", sqlite_url]) == 2
    assert "write HOST:PORT" in capsys.readouterr().err

"""The command line where standard files, locales and arguments are not what one wishes."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from jobrunner.cli.main import main
from tests.cli.conftest import NOW, Cli

ROOT = Path(__file__).resolve().parents[2]
TEXT = "é 日本 🎉"
LOCALES = {
    "ascii": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ascii output": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "UTF-8": {"PYTHONUTF8": "1"},
}


def run(*args: str, env: dict[str, str] | None = None, **more: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a process of its own, without the developer's locale."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHON"))}
    more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **more}
    command = [sys.executable, "-m", "jobrunner", *args]
    environ |= {"PYTHONPATH": str(ROOT), **(env or {})}
    return subprocess.run(command, env=environ, timeout=120, check=False, **more)


def shell(script: str, url: str) -> subprocess.CompletedProcess[str]:
    """Run a shell's script in which `$J` is the program."""
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "J": f"{sys.executable} -m jobrunner",
        "JOBRUNNER_DATABASE_URL": url,
    }
    return subprocess.run(
        ["/bin/bash", "-c", script], env=environ, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def texts(sqlite_cli: Cli) -> Cli:
    """A letter, a run and history with text from all over the world."""
    sqlite_cli.ok("trigger", "mail", "--payload", json.dumps({"to": TEXT}), "--key", TEXT)
    past = {"worker": "mail", "trigger": "manual", "attempt": 1, "finished_at": NOW, "run_id": 900, "fence": 1}
    sqlite_cli.insert("run_history", {**past, "outcome": "failed", "ends_run": "discarded", "error": TEXT})
    return sqlite_cli


@pytest.mark.parametrize("locale", LOCALES)
def test_json_can_be_read_in_any_locale(texts: Cli, locale: str):
    done = run("runs", "--json", "--database-url", texts.url, env=LOCALES[locale])
    assert (done.returncode, done.stderr) == (0, b"")
    encoding = "latin-1" if locale == "latin-1" else "utf-8"
    assert json.loads(done.stdout.decode(encoding))[0]["payload"] == {"to": TEXT}


@pytest.mark.parametrize("locale", LOCALES)
def test_a_table_can_be_read_in_any_locale(texts: Cli, locale: str):
    done = run("history", "--database-url", texts.url, env=LOCALES[locale])
    assert (done.returncode, done.stderr) == (0, b"")
    shown = {
        "ascii": rb"\xe9 \u65e5\u672c \U0001f389",
        "ascii output": rb"\xe9 \u65e5\u672c \U0001f389",
        "latin-1": b"\xe9 \\u65e5\\u672c \\U0001f389",
        "UTF-8": TEXT.encode(),
    }
    assert shown[locale] in done.stdout


@pytest.mark.parametrize("locale", ["ascii", "UTF-8"])
def test_what_is_typed_is_utf_8_in_any_locale(texts: Cli, tmp_path: Path, locale: str):
    (tmp_path / f"{TEXT}.json").write_text(json.dumps({"to": TEXT}))
    more: dict[str, Any] = {"env": LOCALES[locale], "cwd": tmp_path}
    for payload in (json.dumps({"to": TEXT}, ensure_ascii=False), f"@{TEXT}.json"):
        done = run("trigger", "mail", "--payload", payload, "--json", "--database-url", texts.url, **more)
        assert done.returncode == 0, done.stderr
        assert texts.row("runs", id=json.loads(done.stdout)["run_id"])["payload"] == {"to": TEXT}


def test_a_lone_surrogate_from_a_database_is_escaped(sqlite_cli: Cli):
    sqlite_cli.ok("trigger", "mail")

    async def plant(db, conn):
        await conn.exec_driver_sql('UPDATE runs SET payload = \'{"x": "\\ud800"}\'')

    sqlite_cli.use(plant)
    done = run("runs", "--json", "--database-url", sqlite_cli.url, env=LOCALES["UTF-8"])
    assert json.loads(done.stdout)[0]["payload"] == {"unreadable": '{"x": "\\ud800"}'}
    assert run("runs", "--database-url", sqlite_cli.url).returncode == 0


def test_an_argument_that_is_no_text_is_one_line(sqlite_cli: Cli):
    for args in (("explain", "caf\udce9"), ("history", "a\0b"), ("trigger", "mail", "--payload", '{"a": "\udcff"}')):
        line = sqlite_cli.refused(2, *args)
        assert "argument" in line


BAD_INPUT = [
    ("history", "--limit", "9" * 5000),
    ("history", "--limit", "-3"),
    ("history", "--since", "the other day"),
    ("history", "--since", "99999999d"),
    ("history", "--since", "9999-12-31T23:59:59-14:00"),
    ("history", "--run", "9" * 30),
    ("trigger", "mail", "--in", "-5m"),
    ("trigger", "mail", "--in", "1e400"),
    ("trigger", "mail", "--in", "999999999999w"),
    ("trigger", "mail", "--at", "10000-01-01"),
    ("trigger", "mail", "--at", "9999-12-31T23:59:59-14:00"),
    ("trigger", "mail", "--at", "0001-01-01T00:00:00+14:00"),
    ("trigger", "mail", "--payload", '{"a": "\\u0000"}'),
    ("trigger", "mail", "--payload", '{"a": "\\ud800"}'),
    ("trigger", "mail", "--payload", "{" * 100_000),
    ("trigger", "mail", "--payload", '{"a": ' + "9" * 5000 + "}"),
    ("trigger", "mail", "--payload", '{"a": 1e999}'),
    ("trigger", "mail", "--payload", "@/nowhere"),
    ("trigger", "mail", "--payload", "@/"),
    ("trigger", "mail", "--key", "a\x1b[31m"),
    ("admin", "pause", "mail", "--for", "999999999999w"),
    ("admin", "set", "mail", "max_retries=" + "9" * 5000),
    ("admin", "set", "mail", "max_retries=9999999999999999999"),
    ("admin", "set", "mail", "timeout_seconds=nan"),
    ("upcoming", "--for", "-1h"),
    ("upcoming", "--for", "200000d"),
    ("db", "verify", "--tolerance", "much"),
    ("dead-letters", "show", "9" * 30),
]


@pytest.mark.parametrize("args", BAD_INPUT, ids=lambda args: " ".join(args)[:60].replace("\x1b", "ESC"))
def test_bad_input_is_one_line_and_exit_code_2(cli: Cli, args: tuple[str, ...]):
    assert cli.refused(2, *args)


def test_a_payload_file_that_may_not_be_read_is_one_line(
    sqlite_cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "x").write_text("{}")
    monkeypatch.setattr(
        "builtins.open", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    assert "Permission denied" in sqlite_cli.refused(2, "trigger", "mail", "--payload", f"@{tmp_path / 'x'}")


# --- standard files -----------------------------------------------------------------------------------------------


def fill_history(cli: Cli, count: int) -> None:
    rows = (
        {"worker": "mail", "trigger": "manual", "attempt": 1, "finished_at": NOW, "run_id": 1000 + n, "fence": n + 1}
        for n in range(count)
    )
    cli.insert("run_history", *({**row, "outcome": "succeeded", "ends_run": "succeeded"} for row in rows))


def test_a_reader_that_has_enough_is_no_error(sqlite_cli: Cli):
    fill_history(sqlite_cli, 3000)  # more than a pipe holds
    for options in ("--json", "--limit 3000", "--limit 3000 --json"):
        done = shell(f"$J history {options} | head -1", sqlite_cli.url)
        assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 1)


@pytest.mark.parametrize("command", ["status", "status --json", "history --json", "--help", "--version", "db check"])
def test_a_full_standard_output_is_one_line_and_exit_code_1(sqlite_cli: Cli, command: str):
    done = shell(f"$J {command} > /dev/full", sqlite_cli.url)
    assert done.returncode == 1
    assert done.stderr == "error: standard output cannot be written: No space left on device\n"


def test_closed_standard_files_are_no_traceback_and_no_harm(sqlite_cli: Cli):
    for closed in (">&-", "2>&-", "<&-", ">&- 2>&- <&-", "> /dev/full 2>&-"):
        done = shell(f"$J trigger mail {closed}; echo $?", sqlite_cli.url)
        assert "Traceback" not in done.stdout + done.stderr
        assert done.stdout.splitlines()[-1] == ("1" if "full" in closed else "0")
    assert "no JSON" in shell("$J trigger mail --payload - <&-", sqlite_cli.url).stderr
    assert shell("$J nonsense 2>&-; echo $?", sqlite_cli.url).stdout == "2\n"
    with closing(sqlite3.connect(sqlite_cli.url.partition(":///")[2])) as file:
        assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize("command", ["runs --follow", "trigger mail --wait"])
def test_ctrl_c_while_it_waits_is_exit_code_130_without_a_traceback(sqlite_cli: Cli, command: str):
    sqlite_cli.ok("trigger", "mail")
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "JOBRUNNER_DATABASE_URL": sqlite_cli.url, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "jobrunner", *command.split()],
        env=environ,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()  # it is at work
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in {130, -signal.SIGINT}
    assert "Traceback" not in err


# --- lists --------------------------------------------------------------------------------------------------------


def test_lists_in_json_are_whole_unless_a_limit_is_given(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jobrunner.storage.reading.pages.PAGE_ROWS", 7)
    fill_history(cli, 120)
    letter = {"trigger": "manual", "priority": 1, "scheduled_for": NOW, "payload": {}, "attempts": 1, "errors": []}
    cli.insert("dead_letters", *({**letter, "worker": "mail", "run_id": n, "died_at": NOW} for n in range(1, 121)))
    cli.insert("audit_log", *({"at": NOW, "actor": "ann", "action": "set", "worker": "mail"} for _ in range(120)))
    rows = {"history": 120, "dead-letters list": 120, "admin audit --worker mail": 120}
    for command, count in rows.items():
        found = cli(*command.split(), "--json").json
        assert [row["id"] for row in found] == sorted((row["id"] for row in found), reverse=True)
        assert len({row["id"] for row in found}) == count
        assert cli(*command.split(), "--json", "--limit", "60").json == found[:60]
        assert cli(*command.split(), "--json").out == json.dumps(found, indent=2, ensure_ascii=False) + "\n"
        assert "the newest 50; --limit shows more" in cli.ok(*command.split()).err


def test_history_in_pages_is_narrowed_as_history_is(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jobrunner.storage.reading.pages.PAGE_ROWS", 7)
    fill_history(cli, 40)
    for options in (
        ["mail"],
        ["--since", "1h"],
        ["--outcome", "succeeded"],
        ["mail", "--since", "1h"],
        ["--run", "1001"],
    ):
        whole = cli("history", *options, "--json").json
        assert whole == cli("history", *options, "--json", "--limit", "1000").json
        assert len(whole) == (1 if "--run" in options else 40)
    assert cli("history", "--outcome", "failed", "--json").json == []
    assert cli("history", "fetch", "--json").out == "[]\n"


def test_all_live_runs_come_in_order_whatever_is_due_at_one_time(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jobrunner.storage.reading.pages.PAGE_ROWS", 7)
    waiting = [{"worker": name, "due_at": NOW, "priority": n % 4} for n, name in enumerate(["mail", "fetch"] * 20)]
    later = [{"worker": "mail", "due_at": NOW.replace(year=2099, second=n), "priority": 1} for n in range(10)]
    claim = {"state": "running", "fence": 1, "node_id": "n", "started_at": NOW}
    cli.insert("runs", *waiting, *later, *({"worker": "mail", "slot": n, "priority": 1, **claim} for n in range(9)))
    found = cli("runs", "--json").json
    assert len({row["id"] for row in found}) == len(found) == 59
    assert [row["state"] for row in found] == ["running"] * 9 + ["pending"] * 50
    assert [row["id"] for row in found[9:]] == list(range(1, 51))
    mine = cli("runs", "--worker", "mail", "--json").json
    assert [row["id"] for row in mine] == [row["id"] for row in found if row["worker"] == "mail"]
    assert "the first 50; --limit shows more" in cli.ok("runs").err


def test_all_that_is_upcoming_comes_in_order(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jobrunner.storage.reading.pages.PAGE_ROWS", 7)
    for minutes in (30, 30, 200, 3000):
        cli.ok("trigger", "mail", "--in", f"{minutes}m")
    cli.ok("admin", "add", "off", "--command", "true", "--interval", "60s")
    cli.ok("admin", "disable", "off")
    rows = cli("upcoming", "--for", "5h", "--json").json
    assert len(rows) > 300
    times = [row["due_at"] for row in rows if row["due_at"] is not None]
    assert times == sorted(times)
    assert [row["run_id"] for row in rows if row["run_id"] is not None] == [1, 2, 3]
    assert rows[-1]["worker"] == "off"
    again = cli("upcoming", "--for", "5h", "--json", "--limit", "1000").json
    for row in (*rows, *again):
        if row["note"] == "due now":
            del row["starts_at"]  # when it was asked
    assert again == rows
    assert len(cli("upcoming", "--for", "5h", "--json", "--limit", "9").json) == 9


def test_a_violation_each_is_one_of_an_array(sqlite_cli: Cli):
    letter = {"trigger": "manual", "priority": 1, "scheduled_for": NOW, "payload": {}, "attempts": 1, "errors": []}
    rows = [{**letter, "worker": "mail", "run_id": n, "died_at": NOW} for n in range(1, 1201)]
    sqlite_cli.insert("dead_letters", *rows)
    result = sqlite_cli("db", "verify", "--json")
    assert (result.code, len(json.loads(result.out))) == (1, 1200)
    assert "at least 1000 violations" in sqlite_cli("db", "verify").err


def test_an_interrupt_while_a_list_is_written_is_exit_code_130(sqlite_cli: Cli, monkeypatch: pytest.MonkeyPatch):
    fill_history(sqlite_cli, 3)

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jobrunner.cli.output._write", interrupt)
    assert main(["history", "--json", "--database-url", sqlite_cli.url]) == 130

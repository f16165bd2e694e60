"""What the database refuses at the door: what no node could read, and what a client may not say of a run."""

from __future__ import annotations

import sqlite3

import pytest

from jobrunner.model.limits import LONGEST_SECONDS
from tests.storage.test_schema import A_WORKER
from tests.support.shell import Shell, ShellError

NOT_REAL = (
    "2020-02-30",
    "2021-02-29",
    "2020-13-01",
    "2020-00-10",
    "2020-01-00",
    "2020-04-31",
    "1969-12-31",
    "0001-01-01",
)
NOT_A_CLIENTS = {
    "state": "'running'",
    "trigger": "'schedule'",
    "attempt": "2",
    "is_forced": "true",
    "lost_in_a_row": "1",
    "first_started_at": "{time}",
    "cancel_requested_at": "{time}",
    "cancel_reason": "'x'",
    "progress": "'{{}}'",
    "output": "'x'",
    "output_lines": "1",
    "replay_of": "1",
    "id": "77",
}
OUT_OF_RANGE = (
    ("workers", "timeout_seconds", "0"),
    ("workers", "timeout_seconds", str(LONGEST_SECONDS + 1)),
    ("workers", "retry_backoff", "1e300"),
    ("workers", "cooldown_seconds", "1e300"),
    ("workers", "jitter_seconds", "-1"),
    ("workers", "definition", "'[]'"),
    ("workers", "overrides", "'5'"),
    ("worker_state", "last_fence", "-1"),
    ("worker_state", "last_fence", "9223372036854775807"),
    ("worker_state", "consecutive_failures", "-1"),
    ("worker_state", "cooldown_current_seconds", "0"),
    ("worker_state", "circuit_state", "'ajar'"),
    ("runs", "attempt", "0"),
    ("runs", "attempt", "2000000000"),
    ("runs", "key", "''"),
    ("runs", "key", f"'{'k' * 201}'"),
)
NOT_FINITE = ("timeout_seconds", "retry_delay_seconds", "retry_max_delay_seconds", "retry_backoff", "interval_seconds")


@pytest.fixture
def hurt(database_url: str, request: pytest.FixtureRequest) -> Shell:
    """A bare shell on a database with a worker, its state, and a run."""
    server = None if database_url.startswith("sqlite") else request.getfixturevalue("postgres")
    shell = Shell(database_url, server)
    shell.run(A_WORKER)
    shell.run("INSERT INTO {p}worker_state (worker) SELECT name FROM {p}workers WHERE name = 'w'")
    shell.run("INSERT INTO {p}runs (worker) VALUES ('w')")
    return shell


@pytest.mark.parametrize("date", NOT_REAL)
def test_a_time_that_is_none_is_refused(date: str, hurt: Shell):
    zone = "" if hurt.is_sqlite else "+00"
    with pytest.raises(ShellError, match=r"_times?\b|out of range"):
        hurt.run(f"INSERT INTO {{p}}runs (worker, due_at) VALUES ('w', '{date} 00:00:00.000000{zone}')")
    with pytest.raises(ShellError, match=r"_times?\b|out of range"):
        hurt.run(f"UPDATE {{p}}worker_state SET next_run_at = '{date} 00:00:00.000000{zone}'")


@pytest.mark.parametrize("clock", ["29:00:00", "24:00:00", "12:60:00", "12:00:60"])
def test_an_hour_or_minute_that_is_none_is_refused_on_sqlite(clock: str, sqlite_url: str):
    shell = Shell(sqlite_url)
    shell.run(A_WORKER)
    with pytest.raises(ShellError, match="ck_runs_due_at_time"):
        shell.run(f"INSERT INTO runs (worker, due_at) VALUES ('w', '2020-02-01 {clock}.000000')")


@pytest.mark.parametrize("moment", ["infinity", "-infinity", "10001-01-01", "294276-12-31"])
def test_a_time_without_end_is_refused_on_postgresql(moment: str, postgres_url: str, postgres):
    shell = Shell(postgres_url, postgres)
    shell.run(A_WORKER)
    with pytest.raises(ShellError, match="ck_runs_times"):
        shell.run(f"INSERT INTO {{p}}runs (worker, due_at) VALUES ('w', '{moment}')")


@pytest.mark.parametrize(
    "moment",
    [
        "1970-01-01 00:00:00.000000",
        "9999-12-31 23:59:59.999998",
        "2024-02-29 23:59:59.999999",
        "2026-11-27 07:59:59.9995",
    ],
)
def test_a_real_time_is_taken_whatever_its_fraction(moment: str, hurt: Shell):
    moment = moment.ljust(26, "0") + ("" if hurt.is_sqlite else "+00")
    hurt.run(f"INSERT INTO {{p}}runs (worker, due_at) VALUES ('w', '{moment}')")
    hurt.run(f"UPDATE {{p}}worker_state SET next_run_at = '{moment}'")


@pytest.mark.parametrize("column", NOT_A_CLIENTS)
def test_a_client_may_not_say_it(column: str, hurt: Shell):
    time = "'2026-01-01 00:00:00.000000'" if hurt.is_sqlite else "'2026-01-01 00:00:00+00'"
    value = NOT_A_CLIENTS[column].format(time=time)
    with pytest.raises(ShellError, match=r"a client gives a run|GENERATED ALWAYS|cannot insert"):
        hurt.run(f"INSERT INTO {{p}}runs (worker, {column}) VALUES ('w', {value})")


def test_what_a_client_may_say_is_taken(hurt: Shell):
    moment = "'2026-01-01 00:00:00.000000'" if hurt.is_sqlite else "'2026-01-01 00:00:00+00'"
    hurt.run(
        "INSERT INTO {p}runs (worker, payload, priority, due_at, scheduled_for, key, key_scope)"
        f" VALUES ('w', '{{\"a\": 1}}', 3, {moment}, {moment}, 'k', 'live')"
    )


@pytest.mark.parametrize(("table", "column", "value"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_refused(table: str, column: str, value: str, hurt: Shell):
    with pytest.raises(ShellError, match=r"ck_|out of range"):
        hurt.run(f"UPDATE {{p}}{table} SET {column} = {value}")


@pytest.mark.parametrize("column", NOT_FINITE)
@pytest.mark.parametrize("number", ["NaN", "Infinity"])
def test_a_number_that_is_none_is_refused_on_postgresql(column: str, number: str, postgres_url: str, postgres):
    shell = Shell(postgres_url, postgres)
    shell.run(A_WORKER)
    with pytest.raises(ShellError, match="ck_workers_"):
        shell.run(f"UPDATE {{p}}workers SET {column} = '{number}'")


@pytest.mark.parametrize("value", ["'x'", "1.5", "x'00'", "9e999"])
@pytest.mark.parametrize("column", ["attempt", "priority", "slot", "fence", "is_forced"])
def test_sqlite_takes_no_value_of_another_type(column: str, value: str, sqlite_url: str):
    shell = Shell(sqlite_url)
    shell.run(A_WORKER)
    shell.run("INSERT INTO runs (worker) VALUES ('w')")
    with pytest.raises(ShellError, match="cannot store"):
        shell.run(f"UPDATE runs SET {column} = {value}")


@pytest.mark.parametrize("table", ["worker_dependencies (worker, depends_on)", "worker_blocks (worker, blocks)"])
def test_a_bare_sqlite_shell_relates_no_worker_to_one_that_is_not_there(table: str, sqlite_url: str):
    shell = Shell(sqlite_url)
    shell.run(A_WORKER)
    with pytest.raises(ShellError, match="unknown worker"):
        shell.run(f"INSERT INTO {table} VALUES ('w', 'nobody')")


def test_a_run_keeps_a_priority(hurt: Shell):
    hurt.run("UPDATE {p}runs SET priority = NULL")
    assert hurt.one("SELECT priority FROM {p}runs") == "1"


def test_a_new_id_is_minus_one_to_sqlites_trigger():
    """What the trigger on `runs` rests on, where SQLite's documentation leaves the value open."""
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE a (id INTEGER PRIMARY KEY AUTOINCREMENT, x TEXT) STRICT")
    connection.execute("CREATE TABLE seen (id)")
    connection.execute("CREATE TRIGGER t BEFORE INSERT ON a BEGIN INSERT INTO seen VALUES (NEW.id); END")
    connection.execute("INSERT INTO a (x) VALUES ('a'), ('b')")
    connection.execute("INSERT INTO a (id, x) VALUES (NULL, 'c')")
    connection.execute("INSERT INTO a (x) SELECT x FROM a")
    assert {row[0] for row in connection.execute("SELECT id FROM seen")} == {-1}


def test_no_run_has_the_id_that_means_a_new_one(sqlite_url: str):
    shell = Shell(sqlite_url, None)
    shell.run(A_WORKER)
    with pytest.raises(ShellError, match="ck_runs_numbers"):
        shell.run("INSERT INTO runs (worker, id) VALUES ('w', -1)")

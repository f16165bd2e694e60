"""What `history` and `admin audit` show is narrowed by time, outcome, worker, action and actor."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from jobrunner.cli.inputs import read_past
from tests.cli.conftest import NOW
from tests.cli.test_reads import ended


@pytest.fixture
def told(cli):
    cli.insert(
        "run_history",
        ended(1, finished_at=NOW - timedelta(hours=5)),
        ended(2, outcome="failed", ends_run=None, finished_at=NOW - timedelta(hours=4)),
        ended(3, outcome="timed_out", ends_run="exhausted", finished_at=NOW - timedelta(hours=3)),
        ended(4, outcome="failed", ends_run="discarded", worker="mail", finished_at=NOW - timedelta(hours=2)),
        ended(5, outcome="lost", ends_run="exhausted", worker="mail", finished_at=NOW - timedelta(hours=1)),
        ended(6),
    )

    def runs_of(*args):
        return [row["run_id"] for row in cli("history", *args, "--json").json]

    return runs_of


def test_history_ends_where_until_says(told):
    assert told("--until", "150m") == [3, 2, 1]
    assert told("--since", "4h30m", "--until", "90m") == [4, 3, 2]
    assert told("--until", "90m", "--limit", "1") == [4]
    assert told("fetch", "--until", "210m") == [2, 1]
    assert told("--until", "90m", "--outcome", "failed") == [4, 2]
    assert told("--until", (NOW - timedelta(minutes=270)).isoformat()) == [1]


def test_history_shows_several_outcomes_and_how_runs_ended(told):
    assert told("--outcome", "lost", "--outcome", "timed_out") == [5, 3]
    assert told("--outcome", "exhausted") == [5, 3]
    assert told("--outcome", "exhausted", "--outcome", "discarded") == [5, 4, 3]
    assert told("--outcome", "failed", "--outcome", "exhausted") == [5, 4, 3, 2]
    assert told("--outcome", "succeeded", "--outcome", "lost", "--limit", "2") == [6, 5]
    assert told("--outcome", "exhausted", "--worker", "mail") == [5]
    assert told("--outcome", "exhausted", "--since", "2h") == [5]


def test_several_outcomes_come_in_pages_each_row_once(told, monkeypatch):
    monkeypatch.setattr("jobrunner.storage.reading.pages.PAGE_ROWS", 2)
    assert told("--outcome", "failed", "--outcome", "exhausted") == [5, 4, 3, 2]
    assert told("--since", "6h", "--until", "90m") == [4, 3, 2, 1]


def test_history_begins_at_the_old_end_of_what_fits_when_it_is_asked_to(cli, told):
    assert told("--oldest-first") == [1, 2, 3, 4, 5, 6]
    assert told("--oldest-first", "--limit", "2") == [1, 2]
    assert told("--oldest-first", "--since", "4h30m", "--until", "90m") == [2, 3, 4]
    assert told("--oldest-first", "--outcome", "failed", "--outcome", "exhausted") == [2, 3, 4, 5]
    assert told("--oldest-first", "fetch", "--since", "210m") == [3, 6]
    assert told("--oldest-first", "worker:m*", "outcome:failed,lost") == [4, 5]
    assert told("--oldest-first", "--run", "4") == [4]
    shown = cli.ok("history", "--oldest-first", "--limit", "2")
    assert [line.split()[1] for line in shown.lines[1:]] == ["1", "2"]
    assert shown.err == "the oldest 2; --limit shows more\n"


def test_all_of_history_comes_in_pages_from_the_old_end(cli, told, monkeypatch):
    monkeypatch.setattr("jobrunner.cli.searching._PAGE_ROWS", 2)
    assert told("--oldest-first") == [1, 2, 3, 4, 5, 6]
    assert told("--oldest-first", "--since", "6h", "--until", "90m") == [1, 2, 3, 4]


def test_history_takes_its_worker_either_way(cli, told):
    assert told("--worker", "mail") == told("mail") == told("mail", "--worker", "mail") == [5, 4]
    assert "two workers are given, 'mail' and 'fetch'" in cli.refused(2, "history", "mail", "--worker", "fetch")
    assert "no worker named 'nobody'" in cli.refused(3, "history", "--worker", "nobody")
    assert "--since is later than --until" in cli.refused(2, "history", "--since", "1h", "--until", "2h")


@pytest.fixture
def berlin(monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("given", "now", "moment"),
    [
        ("03:00", (2026, 1, 10, 12), (2026, 1, 10, 2)),
        ("3:00:30", (2026, 1, 10, 12), (2026, 1, 10, 2, 0, 30)),
        ("03:00", (2026, 1, 10, 1), (2026, 1, 9, 2)),
        ("03:00", (2026, 3, 29, 12), (2026, 3, 29, 1)),  # summer time began that night
        ("00:00", (2026, 7, 1, 12), (2026, 6, 30, 22)),
    ],
)
def test_a_time_of_day_is_the_last_such_time_of_this_machines_clock(berlin, capsys, given, now, moment):
    assert read_past("--since", given, datetime(*now, tzinfo=UTC)) == datetime(*moment, tzinfo=UTC)
    assert capsys.readouterr().err == f"--since {given} is {datetime(*moment, tzinfo=UTC):%Y-%m-%d %H:%M:%S} UTC\n"


def test_a_time_of_day_narrows_history_and_the_audit_log(cli, told):
    assert "--since 00:00 is 20" in cli.ok("history", "--since", "00:00").err
    assert "is neither a time nor a duration" in cli.refused(2, "history", "--since", "24:00")
    assert "is neither a time nor a duration" in cli.refused(2, "admin", "audit", "--since", "3:0")


def test_the_audit_log_is_narrowed(cli):
    cli.ok("admin", "disable", "fetch", "--actor", "ann@desk")
    cli.ok("admin", "enable", "fetch", "--actor", "ann@phone")
    cli.ok("admin", "pause", "mail", "--actor", "annabel@desk")
    cli.insert("audit_log", {"at": NOW - timedelta(days=2), "actor": "bob", "action": "set", "worker": "mail"})

    def actions(*args):
        return [row["action"] for row in cli("admin", "audit", *args, "--json").json if row["action"] != "upgrade"]

    assert actions("--actor", "ann") == ["enable", "disable"]
    assert actions("--actor", "ann@desk") == ["disable"]
    assert actions("--action", "pause", "--action", "enable") == ["pause", "enable"]
    assert actions("--since", "1h") == ["pause", "enable", "disable"]
    assert actions("--since", "3d", "--worker", "mail") == ["set", "pause"]
    assert cli.ok("admin", "audit", "--actor", "an").out == "nothing decided that fits\n"
    assert "--action: 'sleep' is none of enable, disable" in cli.refused(2, "admin", "audit", "--action", "sleep")


def test_the_audit_log_is_told_in_words_and_written_to_programs_as_it_is(cli):
    cli.ok("admin", "set", "fetch", "interval_seconds=30", "--actor", "ann")
    cli.ok("admin", "pause", "mail", "--reason", "their maintenance", "--actor", "bob")
    newest, other = cli.ok("admin", "audit", "--limit", "2").lines[1:]
    assert newest.endswith("paused mail until it is resumed: their maintenance")
    assert other.endswith("changed fetch: interval_seconds from 60 to 30")
    (row,) = cli("admin", "audit", "fetch", "--json").json
    assert row["detail"] == {"old": {"interval_seconds": 60.0}, "new": {"interval_seconds": 30.0}}


def test_why_a_worker_was_enabled_or_resumed_is_in_the_audit_log(cli):
    cli.ok("admin", "disable", "fetch")
    cli.ok("admin", "enable", "fetch", "--reason", "the API is up again")
    cli.ok("admin", "enable", "fetch")
    cli.ok("admin", "resume", "fetch", "mail", "--reason", "done")
    details = [row["detail"] for row in cli("admin", "audit", "fetch", "--json").json]
    assert [detail.get("reason") for detail in details] == ["done", None, "the API is up again", "no reason given"]
    assert cli.row("audit_log", action="resume", worker="mail")["detail"]["reason"] == "done"
    assert cli.ok("admin", "audit", "fetch").lines[3].endswith("enabled fetch: the API is up again")


def test_the_audit_log_takes_its_worker_either_way(cli):
    cli.ok("admin", "disable", "fetch")
    cli.ok("admin", "disable", "mail")
    for words in (["mail"], ["--worker", "mail"], ["mail", "--worker", "mail"]):
        assert [row["worker"] for row in cli("admin", "audit", *words, "--json").json] == ["mail"]
    assert "two workers are given" in cli.refused(2, "admin", "audit", "mail", "--worker", "fetch")


def test_why_times_were_missed_is_said_whole(cli):
    reason = f"paused by {'x' * 200}: it answered 503 Service Unavailable"
    missed = ended(None, "fetch", fence=None, outcome="missed", ends_run=None, occurrences=7, reason=reason)
    failed = ended(1, "mail", outcome="failed", error_type="OSError", error=reason)
    cli.insert("run_history", {**missed, "duration_ms": None}, failed)
    said = cli.ok("history").out
    assert f"7 times: {reason}" in said
    assert f"OSError: {reason}"[:147] + "..." in said


def test_history_takes_terms_that_say_the_same_as_options(told):
    assert told("worker:mail") == told("worker:m*") == told("mail", "since:3h") == [5, 4]
    assert told("outcome:exhausted", "--worker", "mail") == told("worker:mail", "--outcome", "exhausted") == [5]
    assert told("outcome:failed,exhausted", "--limit", "1") == [5]
    assert told("run:3") == told("until:150m", "--since", "200m") == [3]


def test_a_term_that_cannot_be_read_shows_nothing(cli, told):
    assert "did you mean outcome?" in cli.refused(2, "history", "outcom:failed")
    assert "has no value" in cli.refused(2, "dead-letters", "list", "worker:,")

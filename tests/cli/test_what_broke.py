"""What the terminal answers at 3 a.m.: what broke first, which letters have one cause, what became slower."""

from __future__ import annotations

import shlex
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from jobrunner.storage.tables import define as t
from tests.cli.conftest import NODE, NOW, scheduled, triggered
from tests.cli.test_dead_letters import letter
from tests.cli.test_reads import ended


@pytest.fixture
def broken(cli):
    """`fetch` fails since 3 h; `mail` was disabled before and `late-one` paused after that; `fine` is well."""
    cli.register(triggered("late-one"), triggered("fine"))
    cli.join("fetch", "mail", "late-one", "fine")
    cli.insert(
        "run_history",
        ended(1, finished_at=NOW - timedelta(hours=4)),
        ended(2, outcome="failed", ends_run=None, finished_at=NOW - timedelta(hours=3)),
        ended(3, outcome="failed", ends_run="exhausted", finished_at=NOW - timedelta(hours=2)),
    )
    failing = {"last_run_outcome": "failed", "consecutive_failures": 1, "last_success_at": NOW - timedelta(hours=4)}
    _put(cli, sa.update(t.worker_state).where(t.worker_state.c.worker == "fetch").values(failing))
    cli.ok("admin", "disable", "mail", "--reason", "it is Sunday")
    cli.ok("admin", "pause", "late-one")
    for worker, hours in (("mail", 5), ("late-one", 1)):
        at = NOW - timedelta(hours=hours)
        _put(cli, sa.update(t.audit_log).where(t.audit_log.c.worker == worker).values(at=at))
    return cli


def _put(cli, statement):
    cli.use(lambda db, conn: conn.execute(statement))


def test_status_says_since_when_a_worker_is_in_trouble(broken):
    since = {row["name"]: row["since"] for row in broken("status", "--json").json}
    assert datetime.fromisoformat(since["fetch"]) == NOW - timedelta(hours=3)
    assert datetime.fromisoformat(since["mail"]) == NOW - timedelta(hours=5)
    assert since["fine"] is None
    assert broken("status", "fetch", "--json").json["since"] == since["fetch"]
    lines = {line.split()[0]: line for line in broken.ok("status").lines if line}
    assert "3 h ago" in lines["fetch"]
    assert "5 h ago" in lines["mail"]


def test_what_broke_first_is_at_the_top_and_who_is_well_is_left_out(broken):
    def names(*words):
        return [row["name"] for row in broken("status", "--oldest-first", *words, "--json").json]

    assert names() == ["mail", "fetch", "late-one"]
    assert names("--limit", "1") == ["mail"]
    assert names("worker:f*") == ["fetch"]
    assert names("health:failing,paused") == ["fetch", "late-one"]
    assert [line.split()[0] for line in broken.ok("status", "--oldest-first").lines[1:4]] == [
        "mail",
        "fetch",
        "late-one",
    ]
    assert "--oldest-first" in broken.refused(2, "status", "fetch", "--oldest-first")


def test_where_nothing_is_broken_nothing_is_first(cli):
    cli.join("fetch", "mail")
    assert cli.ok("status", "--oldest-first").lines[0] == "no worker is in trouble"


@pytest.fixture
def died(cli):
    """Three letters of one cause, of two workers, and one of another."""
    hours = {101: 5, 102: 4, 103: 3, 104: 2}
    cli.insert(
        "dead_letters",
        *(
            letter(number, worker, error=error, error_type="OSError", died_at=NOW - timedelta(hours=hours[number]))
            for number, worker, error in (
                (101, "mail", "the shop's host 10.0.0.7 is gone"),
                (102, "fetch", "the shop's host 10.0.0.8 is gone"),
                (103, "mail", "the shop's host 10.0.0.9 is gone"),
                (104, "mail", "no space left"),
            )
        ),
    )
    return cli


def test_letters_of_one_cause_are_a_line_with_the_command_that_replays_them(died):
    first, second = died("dead-letters", "list", "--by-error", "--json").json
    assert (first["count"], first["workers"], first["error"]) == (3, ["mail", "fetch"], "the shop's host … is gone")
    assert datetime.fromisoformat(first["oldest_at"]) == NOW - timedelta(hours=5)
    assert datetime.fromisoformat(first["newest_at"]) == NOW - timedelta(hours=3)
    assert (second["count"], second["workers"], second["newest_id"]) == (1, ["mail"], first["newest_id"] + 1)
    listed = died(*shlex.split(first["list"])[1:], "--json").json
    assert [row["run_id"] for row in listed] == [103, 102, 101]
    shown = died.ok("dead-letters", "list", "--by-error")
    assert [line.split()[0] for line in shown.lines] == ["LETTERS", "3", "1"]
    command = shown.lines[1][shown.lines[0].index("REPLAY") :]
    assert command == first["replay"]
    died.ok(*shlex.split(command)[1:], "--yes")
    assert {row["run_id"]: row["status"] for row in died.rows("dead_letters")} == {
        101: "replayed",
        102: "replayed",
        103: "replayed",
        104: "open",
    }


def test_causes_are_narrowed_by_a_worker_and_by_nothing_else(died):
    (only,) = died("dead-letters", "list", "fetch", "--by-error", "--json").json
    assert (only["count"], only["workers"]) == (1, ["fetch"])
    assert len(died("dead-letters", "list", "--by-error", "--limit", "1", "--json").json) == 1
    assert "1 cause more" in died.ok("dead-letters", "list", "--by-error", "--limit", "1").err
    for narrowed in ("--all", "error:gone", "--status=replayed"):
        assert "--by-error is of the open letters" in died.refused(2, "dead-letters", "list", "--by-error", narrowed)


def test_of_many_workers_with_one_cause_none_is_named(cli):
    names = [f"w{number}" for number in range(6)]
    cli.register(*map(triggered, names))
    cli.insert("dead_letters", *(letter(number, name, error="disk full") for number, name in enumerate(names, 1)))
    (cause,) = cli("dead-letters", "list", "--by-error", "--json").json
    assert cause["filter"] == 'status:open error:"ValueError: disk full"'
    assert len(cli(*shlex.split(cause["list"])[1:], "--json").json) == 6


def test_without_open_letters_there_is_no_cause(cli):
    assert cli.ok("dead-letters", "list", "--by-error").out == "no open dead letters\n"
    assert cli("dead-letters", "list", "--by-error", "--json").json == []


def test_a_filter_may_be_one_word_with_all_its_terms(died):
    word = 'worker:mail status:open error:"is gone"'
    assert [row["run_id"] for row in died("dead-letters", "list", word, "--json").json] == [103, 101]
    assert len(died("dead-letters", "list", "error:is gone", "--json").json) == 3


def test_a_worker_is_shown_day_by_day(cli):
    today = NOW.replace(hour=0, minute=0, second=0, microsecond=0)
    yesterday = today - timedelta(hours=12)
    cli.insert(
        "run_history",
        *(ended(number, duration_ms=number * 100, finished_at=yesterday) for number in range(1, 11)),
        ended(11, outcome="failed", finished_at=yesterday),
        ended(12, outcome="cancelled", finished_at=yesterday),
        ended(13, duration_ms=1900, finished_at=today),
        ended(14, "mail", finished_at=today),
    )
    before, now = cli("history", "fetch", "--by-day", "--limit", "2", "--json").json
    assert before == {
        "date": f"{yesterday:%Y-%m-%d}",
        "ended": 12,
        "succeeded": 10,
        "failed": 1,
        "others": 1,
        "p50_ms": 500,
        "p95_ms": 1000,
    }
    assert (now["date"], now["ended"], now["p95_ms"]) == (f"{today:%Y-%m-%d}", 1, 1900)
    lines = cli.ok("history", "fetch", "--by-day").lines
    assert len(lines) == 15
    assert lines[-2].split() == [f"{yesterday:%Y-%m-%d}", "12", "10", "1", "1", "500", "ms", "1.0", "s"]
    assert lines[-3].split()[1:] == ["-"] * 6
    assert cli.ok("history", "mail", "--by-day", "--limit", "1").lines[1].split()[1] == "1"


def test_by_day_is_of_one_worker_and_says_where_it_could_not_read_all(cli, monkeypatch):
    for words in ([], ["fetch", "--since", "2h"], ["worker:f*"], ["fetch", "run:7"]):
        assert "--by-day is of one worker" in cli.refused(2, "history", *words, "--by-day")
    cli.refused(3, "history", "nobody", "--by-day")
    assert cli.ok("history", "fetch", "--by-day").out == "nothing of fetch ended in the last 14 days\n"
    monkeypatch.setattr("jobrunner.storage.reading.days.MOST_ROWS", 2)
    cli.insert("run_history", *(ended(number) for number in range(1, 4)))
    assert cli.ok("history", "fetch", "--by-day").err.startswith("of the newest 2 attempts, since ")


@pytest.fixture
def crowded(cli):
    """Three workers that are due at once, a node with one slot, and runs that take ten seconds."""
    cli.register(scheduled("one", interval_seconds=60), scheduled("two", interval_seconds=60))
    cli.join("one", "two", "fetch", "mail", node=replace(NODE, max_concurrent=1))
    names = ("one", "two", "fetch")
    cli.insert("run_history", *(ended(number, name, duration_ms=10_000) for number, name in enumerate(names, 1)))
    _plan(cli, *names)
    return cli


def _plan(cli, *names):
    """Let the workers be due in ten minutes, on a grid that has begun."""
    now = datetime.now(UTC)
    times = {"next_run_at": now + timedelta(seconds=600), "last_due_at": now - timedelta(seconds=60)}
    _put(cli, sa.update(t.worker_state).where(t.worker_state.c.worker.in_(names)).values(times))


def test_what_will_be_late_is_listed_alone_with_why(crowded):
    everything = crowded("upcoming", "--for", "601s", "--json").json
    assert sorted(row["worker"] for row in everything) == ["fetch", "one", "two"]
    late = crowded("upcoming", "--for", "601s", "--late", "--json").json
    assert late == [row for row in everything if row["starts_at"] != row["due_at"]]
    assert [row["note"] for row in late] == ["waits for a free slot"] * 2
    assert len(crowded.ok("upcoming", "--for", "601s", "--late").lines) == 3
    cut = crowded.ok("upcoming", "--for", "601s", "--late", "--limit", "1")
    assert (len(cut.lines), cut.err) == (2, "the first 1; --limit shows more\n")
    assert len(crowded("upcoming", "two", "--for", "601s", "--late", "--json").json) == 0
    assert "--ics and --late" in crowded.refused(2, "upcoming", "--late", "--ics")


def test_what_will_be_in_time_is_not_late(cli):
    cli.join("fetch", "mail")
    _plan(cli, "fetch")
    assert len(cli("upcoming", "--for", "20m", "--json").json) == 11
    assert cli.ok("upcoming", "--for", "20m", "--late").out == "nothing of the next 20m will be late\n"


def test_lost_nodes_come_with_the_question_what_they_held(cli):
    cli.join("fetch")
    _put(cli, sa.update(t.nodes).values(state="lost"))
    cli.insert("run_history", ended(7, outcome="lost", node_id=NODE.id), ended(8, node_id=NODE.id))
    command = cli.ok("admin", "nodes", "--all").err.split("`")[1]
    assert [row["run_id"] for row in cli(*shlex.split(command)[1:], "--json").json] == [7]


@pytest.fixture
def slowed(cli):
    """`fetch` takes three times as long as ten days ago, `mail` as long, `new` is not known from before."""
    cli.register(triggered("new"), triggered("seldom"))
    lengths = {"fetch": (1000, 3000), "mail": (1000, 1010), "new": (None, 5000), "seldom": (1000, 9000)}
    rows, number = [], 0
    for place in range(12):
        for worker, (before, now) in lengths.items():
            for length, days in ((before, 10), (now, 1)):
                if length is not None and (worker != "seldom" or place < 4):
                    number += 1
                    at = NOW - timedelta(days=days) + timedelta(minutes=place)
                    rows.append(ended(number, worker, duration_ms=length + place, finished_at=at))
    cli.insert("run_history", *sorted(rows, key=lambda row: row["finished_at"]))
    return cli


def test_who_became_slower_is_told_with_how_much(slowed):
    (found,) = slowed("history", "--slower", "--json").json
    assert found == {
        "worker": "fetch",
        "ratio": 2.99,
        "p50_before_ms": 1005,
        "p50_now_ms": 3005,
        "p95_before_ms": 1011,
        "p95_now_ms": 3011,
    }
    shown = slowed.ok("history", "--slower")
    assert shown.lines[1].split()[:3] == ["fetch", "3.0", "times"]
    assert shown.err == "`jobrunner history fetch --by-day` shows it day by day\n"


def test_who_became_slower_is_narrowed_by_workers_and_a_time(slowed, monkeypatch):
    assert slowed("history", "--slower", "worker:m*", "--json").json == []
    assert len(slowed("history", "fetch", "--slower", "--since", "5d", "--json").json) == 1
    assert slowed("history", "--slower", "--since", "1h", "--json").json == []
    assert "there is no history from before" in slowed.ok("history", "--slower", "--since", "20d").err
    for words in (["--outcome", "failed"], ["error:x"], ["--run", "7"]):
        assert "--slower takes workers and --since" in slowed.refused(2, "history", "--slower", *words)
    assert "keep one" in slowed.refused(2, "history", "fetch", "--slower", "--by-day")
    monkeypatch.setattr("jobrunner.storage.reading.slower.MOST_ASKED", 1)
    assert "looked at the first 1 workers" in slowed.ok("history", "--slower").err

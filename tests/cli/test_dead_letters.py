from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest

from tests.cli.conftest import NOW, triggered

SCHEDULED_FOR = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def letter(run_id, worker="mail", **values):
    return {
        "run_id": run_id,
        "worker": worker,
        "trigger": "manual",
        "priority": 2,
        "scheduled_for": SCHEDULED_FOR,
        "payload": {"to": f"person {run_id}"},
        "attempts": 2,
        "error_type": "ValueError",
        "error": "it broke\nbadly",
        "traceback": "Traceback\n  line one",
        "errors": [{"attempt": 1, "outcome": "failed", "error_type": "E", "error": "x", "finished_at": "2026"}],
        "died_at": NOW,
        **values,
    }


@pytest.fixture
def letters(cli):
    cli.insert("dead_letters", letter(101), letter(102), letter(103, worker="fetch"))
    return cli


def test_letters_are_listed_newest_first(letters):
    assert [row["run_id"] for row in letters("dead-letters", "list", "--json").json] == [103, 102, 101]
    (row,) = letters("dead-letters", "list", "--worker", "fetch", "--json").json
    assert (row["worker"], row["status"], row["payload"]) == ("fetch", "open", {"to": "person 103"})
    assert "ValueError: it broke" in letters.ok("dead-letters", "list").out
    assert letters.ok("dead-letters", "list", "--status", "replayed").out == "no replayed dead letters\n"
    assert letters("dead-letters", "list", "--status", "discarded", "--json").json == []


def test_a_letter_is_shown_with_the_error_of_every_attempt(letters):
    shown = letters("dead-letters", "show", "1", "--json").json
    assert (shown["id"], shown["run_id"], len(shown["errors"])) == (1, 101, 1)
    text = letters.ok("dead-letters", "show", "1").out
    assert "line one" in text
    assert "attempts:" in text
    assert re.search(r"^priority +HIGH$", text, re.MULTILINE)


def test_what_can_be_done_with_an_open_letter_is_said(letters):
    said = "`jobrunner dead-letters replay {0}` makes a new run of it, `jobrunner dead-letters discard {0}` closes it\n"
    assert letters.ok("dead-letters", "show", "1").err == said.format(1)
    assert letters.ok("dead-letters", "list").err == said.format("LETTER")
    assert letters.ok("dead-letters", "list", "--json").err == ""
    letters.ok("dead-letters", "discard", "1", "2", "3")
    assert letters.ok("dead-letters", "show", "1").err == letters.ok("dead-letters", "list", "--all").err == ""


def test_a_replay_is_a_new_run_linked_to_its_letter(letters):
    assert letters.ok("dead-letters", "replay", "1", "--actor", "ann").out.startswith(
        "replayed letter 1 of mail as run"
    )
    run, row = letters.row("runs"), letters.row("dead_letters", id=1)
    assert (row["status"], row["replay_run_id"], row["resolved_by"]) == ("replayed", run["id"], "ann")
    assert row["resolved_at"] is not None
    assert (run["worker"], run["trigger"], run["priority"], run["payload"]) == (
        "mail",
        "replay",
        2,
        {"to": "person 101"},
    )
    assert (run["replay_of"], run["scheduled_for"], run["attempt"]) == (1, SCHEDULED_FOR, 1)
    audit = letters.audits()[0]
    assert (audit["action"], audit["worker"], audit["actor"]) == ("replay", "mail", "ann")
    assert audit["detail"] == {"letter_id": 1, "run_id": run["id"], "is_edited": False}


def test_a_letter_is_replayed_once(letters):
    letters.ok("dead-letters", "replay", "1")
    run_id = letters.row("runs")["id"]
    assert f"letter 1 is already replayed as run {run_id}" in letters.refused(1, "dead-letters", "replay", "1")
    assert f"letter 1 is already replayed as run {run_id}" in letters.refused(1, "dead-letters", "discard", "1")
    assert len(letters.rows("runs")) == 1


def test_named_letters_are_replayed_all_or_none(letters):
    letters.ok("dead-letters", "discard", "2")
    letters.refused(1, "dead-letters", "replay", "1", "2", "3")
    letters.refused(3, "dead-letters", "replay", "1", "99")
    assert letters.rows("runs") == []
    assert letters.row("dead_letters", id=1)["status"] == "open"


def test_a_replay_may_carry_another_payload(letters):
    letters.ok("dead-letters", "replay", "1", "--payload", '{"to": "bob"}')
    assert letters.row("runs")["payload"] == {"to": "bob"}
    assert letters.row("dead_letters", id=1)["payload"] == {"to": "person 101"}
    assert letters.audits()[0]["detail"]["is_edited"]


def test_all_open_letters_of_a_worker_are_replayed_in_order(letters, monkeypatch):
    monkeypatch.setattr("jobrunner.storage.runs.dead_letters.BATCH", 2)
    letters.insert("dead_letters", *(letter(number) for number in range(104, 109)))
    letters.ok("dead-letters", "discard", "2")
    done = letters("dead-letters", "replay", "--worker", "mail", "--json").json
    assert [item["letter_id"] for item in done] == [1, 4, 5, 6, 7, 8]
    assert [run["replay_of"] for run in letters.rows("runs")] == [1, 4, 5, 6, 7, 8]
    assert [row["status"] for row in letters.rows("dead_letters", worker="fetch")] == ["open"]
    assert "no open letters" in letters.ok("dead-letters", "replay", "--worker", "mail").out


def test_a_dry_run_changes_nothing(letters):
    text = letters.ok("dead-letters", "replay", "--worker", "mail", "--dry-run").out
    assert text == "would replay letter 1 of mail\nwould replay letter 2 of mail\n"
    assert "would discard letter 3" in letters.ok("dead-letters", "discard", "3", "--dry-run").out
    assert {row["status"] for row in letters.rows("dead_letters")} == {"open"}
    assert letters.rows("runs") == letters.audits() == []


def test_discarding_closes_a_letter_and_keeps_it(letters):
    letters.ok("dead-letters", "discard", "1", "3", "--actor", "ann")
    row = letters.row("dead_letters", id=3)
    assert (row["status"], row["resolved_by"], row["replay_run_id"]) == ("discarded", "ann", None)
    assert [audit["action"] for audit in letters.audits()] == ["discard", "discard"]
    assert "letter 1 is already discarded" in letters.refused(1, "dead-letters", "replay", "1")
    assert len(letters("dead-letters", "list", "--all", "--json").json) == 3


def test_a_letter_whose_worker_is_gone_is_not_replayed_but_may_be_discarded(cli):
    cli.insert("dead_letters", letter(101, worker="gone"))
    assert "its worker 'gone' is not in the database any more" in cli.refused(1, "dead-letters", "replay", "1")
    assert "'gone'" in cli.refused(1, "dead-letters", "replay", "--worker", "gone")
    cli.ok("dead-letters", "discard", "--worker", "gone")
    assert cli.row("dead_letters")["status"] == "discarded"


def test_a_key_that_waits_keeps_a_letter_open(cli):
    cli.insert("dead_letters", letter(101, key="k"), letter(102, key="k"))
    assert "has its key 'k'" in cli.refused(1, "dead-letters", "replay", "1", "2")
    assert cli.rows("runs") == []
    result = cli.ok("dead-letters", "replay", "--worker", "mail")
    assert "1 letter stays open" in result.err
    assert [row["status"] for row in cli.rows("dead_letters")] == ["replayed", "open"]


def test_a_replayed_run_keeps_its_workers_other_defaults(cli):
    cli.register(triggered("other", payload={"a": 1}))
    cli.insert("dead_letters", letter(101, worker="other", payload={}))
    cli.ok("dead-letters", "replay", "1")
    assert cli.row("runs")["payload"] == {}


@pytest.fixture
def firings(cli):
    """Three firings of a schedule, of which the latest died first, and two runs that were triggered."""
    for number, minute in ((201, 7), (202, 3), (203, 5)):
        at = SCHEDULED_FOR + timedelta(minutes=minute)
        cli.insert("dead_letters", letter(number, worker="fetch", trigger="schedule", payload={}, scheduled_for=at))
    cli.insert("dead_letters", letter(204, worker="fetch"), letter(205, trigger="replay"))
    return cli


def test_open_letters_of_schedules_are_counted_apart(firings):
    assert firings.ok("status").lines[-1].endswith("5 open dead letters (3 of schedules, 2 triggered)")
    shown = firings.ok("dead-letters", "list").lines
    assert shown[-1] == "5 open dead letters (3 of schedules, 2 triggered)"
    assert "TRIGGER" in shown[0]
    assert firings.ok("dead-letters", "list", "--worker", "mail").lines[-1] == "1 open dead letter"
    firings.ok("dead-letters", "discard", "1")
    assert "(2 of schedules, 2 triggered)" in firings.ok("dead-letters", "list", "--all").out
    assert "triggered)" not in firings.ok("dead-letters", "list", "--status", "discarded").out


def test_more_than_the_latest_firing_of_a_schedule_is_not_replayed_unasked(firings):
    line = firings.refused(2, "dead-letters", "replay", "--worker", "fetch")
    assert line == (
        "this replays 3 firings of the schedule of fetch, and there is nobody to ask; pass --yes, or "
        "`jobrunner dead-letters replay 1` replays the latest alone"
    )
    assert firings.rows("runs") == []
    assert len(firings.ok("dead-letters", "replay", "--worker", "fetch", "--dry-run").lines) == 4
    assert len(firings.ok("dead-letters", "replay", "--worker", "fetch", "--yes").lines) == 4


def test_what_was_triggered_or_is_named_and_a_single_firing_is_replayed_without_a_question(firings):
    firings.ok("dead-letters", "replay", "--worker", "mail")
    firings.ok("dead-letters", "replay", "1", "2")
    assert len(firings.ok("dead-letters", "replay", "--worker", "fetch").lines) == 2


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("show", "9"), 3, "no dead letter 9"),
        (("replay", "9"), 3, "no dead letter 9"),
        (("discard", "9"), 3, "no dead letter 9"),
        (("replay",), 2, "give the ids"),
        (("replay", "1", "--worker", "mail"), 2, "or --worker WORKER for all open ones of a worker, not both"),
        (("replay", "x"), 2, "LETTER"),
        (("replay", "--worker", "nobody"), 3, "no worker named 'nobody'"),
        (("list", "--worker", "nobody"), 3, "no worker named 'nobody'"),
        (("list", "--status", "lost"), 2, "none of open, replayed, discarded"),
        (("replay", "1", "--payload", "7"), 2, "JSON object"),
    ],
)
def test_bad_input_is_one_line(sqlite_cli, args, code, words):
    assert words in sqlite_cli.refused(code, "dead-letters", *args)


def test_without_arguments_it_is_said_what_to_give(sqlite_cli):
    for verb in ("replay", "discard"):
        said = sqlite_cli.refused(2, "dead-letters", verb)
        assert said == "give the ids of letters, or --worker WORKER for all open ones of a worker"
    said = sqlite_cli.refused(2, "admin", "cancel")
    assert said == "give the ids of runs, or --worker WORKER for all live ones of a worker"
    for verb in ("enable", "disable", "pause", "resume"):
        assert (
            sqlite_cli.refused(2, "admin", verb)
            == "give the names of workers or a pattern such as 'send-*', or --all for every one"
        )
        assert sqlite_cli.refused(2, "admin", verb, "mail", "--all").endswith(", or --all for every one, not both")

"""`jobrunner alerts`: rules, incidents and a test message, as an operator uses them."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.cli.conftest import NOW, Cli
from tests.support.receiver import Receiver


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def test_a_rule_is_added_shown_and_removed_and_all_of_it_is_in_the_audit_log(cli: Cli):
    added = cli.ok(
        "alerts", "add", "ops", "--kinds", "tripped,failing", "--workers", "send-*, fetch", "--repeat", "30m",
        "--webhook", "https://x.example/hook", "--secret", "env:HOOK_SECRET", "--actor", "ann",
    )  # fmt: skip
    assert added.out == "added ops: webhook https://x.example/hook, signed\n"
    assert added.err == "`jobrunner alerts test ops` sends a test message\n"
    (shown,) = cli.ok("alerts", "rules", "--json").json
    assert (shown["kinds"], shown["workers"], shown["repeat_seconds"]) == (["failing", "tripped"], "send-*,fetch", 1800)
    assert shown["channel"] == {"type": "webhook", "url": "https://x.example/hook", "secret": "env:HOOK_SECRET"}
    assert (shown["created_by"], shown["waiting"], shown["last_error"]) == ("ann", 0, None)
    assert "failing, tripped" in cli.ok("alerts", "rules").out
    assert cli.ok("alerts", "remove", "ops", "--actor", "ann").out == "removed ops\n"
    assert [(row["action"], row["actor"]) for row in cli.audits()] == [("alert_add", "ann"), ("alert_remove", "ann")]
    assert cli.ok("alerts", "rules").out == "no alert rules; `jobrunner alerts add NAME --webhook URL` adds one\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give one of --webhook, --command and --apprise"),
        (["--webhook", "https://x.example/", "--apprise", "env:A"], "give one of"),
        (["--command", "true", "--secret", "env:A"], "--secret goes with --webhook"),
        (["--webhook", "https://ann:hush@x.example/"], "a URL with a user or password is not stored"),
        (["--webhook", "https://x.example/", "--secret", "hush"], "--secret must be env:NAME"),
        (["--apprise", "slack://hush"], "--apprise must be env:NAME"),
        (["--command", "'"], "--command cannot be split into words"),
        (["--webhook", "https://x.example/", "--kinds", "failling"], "did you mean failing?"),
        (["--webhook", "https://x.example/", "--kinds", ","], "--kinds names none"),
        (["--webhook", "https://x.example/", "--workers", ","], "--workers must be patterns"),
        (["--webhook", "https://x.example/", "--repeat", "0"], "--repeat must be more than 0"),
    ],
)
def test_what_cannot_be_a_rule_is_refused_in_one_line_without_the_secret(
    sqlite_cli: Cli, options: list[str], said: str
):
    line = sqlite_cli.refused(2, "alerts", "add", "ops", *options)
    assert said in line
    assert "hush" not in line


def test_a_rule_that_is_there_or_not_there_is_said(sqlite_cli: Cli):
    sqlite_cli.ok("alerts", "add", "ops", "--webhook", "https://x.example/")
    assert "there is an alert rule 'ops' already" in sqlite_cli.refused(
        1, "alerts", "add", "ops", "--webhook", "https://x.example/"
    )
    for verb in ("remove", "test"):
        assert sqlite_cli.refused(3, "alerts", verb, "nobody").startswith("no alert rule 'nobody'")


def test_incidents_are_listed_the_open_ones_unless_all_are_wanted(cli: Cli):
    assert cli.ok("alerts", "list").out == "no open incidents\n"
    common = {"subject": "fetch", "worker": "fetch", "opened_at": NOW, "last_at": NOW, "count": 3}
    cli.insert("alerts", {"kind": "failing", "summary": "fetch fails", **common})
    over = {"closed_at": NOW, "recovered": "fetch: recovered after 12 min (slow): fetch is healthy"}
    cli.insert("alerts", {"kind": "slow", "summary": "fetch is slow", **common, **over})
    (shown,) = cli.ok("alerts", "list", "--json").json
    assert (shown["kind"], shown["worker"], shown["count"], shown["closed_at"]) == ("failing", "fetch", 3, None)
    assert [row["kind"] for row in cli.ok("alerts", "list", "--all", "--json").json] == ["slow", "failing"]
    text = cli.ok("alerts", "list", "--all")
    assert "recovered after 12 min" in text.out
    assert "no rule asks for any" in text.err
    assert cli.ok("alerts", "list", "--worker", "mail").out == "no open incidents\n"


def test_a_test_message_is_sent_at_once_and_what_came_back_is_said(sqlite_cli: Cli, receiver: Receiver):
    sqlite_cli.ok("alerts", "add", "ops", "--webhook", receiver.url)
    sent = sqlite_cli.ok("alerts", "test", "ops")
    assert sent.out == f"sent to webhook {receiver.url}: 200 OK\n"
    (body,) = receiver.bodies
    assert (body["message"], body["rule"]) == ("test", "ops")
    assert body["summary"] == "a test of the alert rule ops: nothing is wrong"
    assert sqlite_cli.ok("alerts", "test", "ops", "--json").json["answer"] == "200 OK"
    receiver.status = 403
    assert sqlite_cli.refused(1, "alerts", "test", "ops") == "127.0.0.1 answered 403 Forbidden"


def test_a_command_is_tested_only_where_that_is_allowed(sqlite_cli: Cli):
    sqlite_cli.ok("alerts", "add", "ops", "--command", f"{sys.executable} -c pass")
    assert "only nodes started with --allow-commands run it" in sqlite_cli.refused(1, "alerts", "test", "ops")
    assert "exit code 0" in sqlite_cli.ok("alerts", "test", "ops", "--allow-commands").out

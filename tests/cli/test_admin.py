from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from jobrunner.policy.missed import UNTIL_RESUMED
from tests.cli.conftest import NOW, scheduled, triggered


def last_audit(cli):
    row = cli.audits()[-1]
    return row["action"], row["worker"], row["actor"], row["detail"]


def test_disabling_and_enabling_are_audited(cli):
    assert cli.ok("admin", "disable", "fetch", "--reason", "it is Sunday", "--actor", "ann").out == "disabled fetch\n"
    state = cli.row("worker_state", worker="fetch")
    assert (state["is_enabled"], state["disabled_by"], state["disabled_reason"]) == (False, "operator", "it is Sunday")
    assert state["next_run_at"] is None
    assert last_audit(cli) == ("disable", "fetch", "ann", {"reason": "it is Sunday"})

    cli.ok("admin", "enable", "fetch", "--actor", "bob")
    state = cli.row("worker_state", worker="fetch")
    assert (state["is_enabled"], state["disabled_by"], state["consecutive_failures"]) == (True, None, 0)
    assert state["next_run_at"] is not None
    assert last_audit(cli)[:3] == ("enable", "fetch", "bob")


def test_who_acts_is_user_at_host_by_default(sqlite_cli, monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "kim")
    monkeypatch.setattr("socket.gethostname", lambda: "desk")
    sqlite_cli.ok("admin", "disable", "fetch")
    assert last_audit(sqlite_cli)[2] == "kim@desk"


def test_several_workers_are_switched_at_once_or_none(cli):
    assert cli.ok("admin", "disable", "mail", "fetch", "--yes").lines == ["disabled 2 workers: fetch, mail"]
    assert [(row["action"], row["worker"]) for row in cli.audits()] == [("disable", "fetch"), ("disable", "mail")]
    assert [row["is_enabled"] for row in cli.rows("worker_state")] == [False, False]
    assert "'nobody'" in cli.refused(3, "admin", "enable", "fetch", "nobody")
    assert [row["is_enabled"] for row in cli.rows("worker_state")] == [False, False]


def test_all_workers_are_switched_with_one_word(cli):
    said = cli.ok("admin", "disable", "--all", "--yes", "--reason", "moving").lines
    assert said == ["disabled 2 workers: fetch, mail"]
    assert {row["disabled_reason"] for row in cli.rows("worker_state")} == {"moving"}
    cli.ok("admin", "enable", "--all", "--yes")
    assert [row["is_enabled"] for row in cli.rows("worker_state")] == [True, True]
    said = cli.ok("admin", "pause", "--all", "--yes").lines
    assert said == ["paused until resumed: 2 workers: fetch, mail"]
    assert cli.ok("admin", "resume", "--all", "--yes").lines == ["resumed 2 workers: fetch, mail"]


def test_a_pattern_means_the_workers_whose_names_fit(cli):
    cli.register(*(triggered(f"send-{number}") for number in range(9)))
    said = cli.ok("admin", "pause", "send-*", "fetch", "--yes", "--for", "2h", "--reason", "moving").lines
    assert said[0].endswith("10 workers: fetch, send-0, send-1, send-2, send-3 and 5 others")
    paused = {row["worker"] for row in cli.rows("worker_state") if row["paused_reason"] == "moving"}
    assert paused == {"fetch", *(f"send-{number}" for number in range(9))}
    assert len(cli.audits()) == 10
    assert cli.ok("admin", "resume", "f*").out == "resumed fetch\n"


def test_more_than_one_worker_is_changed_only_with_yes_where_nobody_can_be_asked(cli):
    for words, what in (
        (("disable", "*"), "disable 2 workers: fetch, mail"),
        (("enable", "--all"), "enable 2 workers: fetch, mail"),
        (("pause", "--all"), "pause until resumed: 2 workers: fetch, mail"),
        (("resume", "fe*", "ma*"), "resume 2 workers: fetch, mail"),
    ):
        said = cli.refused(2, "admin", *words)
        assert said == f"this would {what}, and there is nobody to ask; pass --yes"
    assert cli.audits() == []


def test_workers_that_are_spelled_out_are_switched_without_a_question(cli):
    assert cli.ok("admin", "disable", "mail", "fetch").lines == ["disabled 2 workers: fetch, mail"]


def test_a_pattern_that_fits_nothing_changes_nothing(cli):
    said = cli.refused(3, "admin", "disable", "fetch", "send-*", "--yes")
    assert said == "no worker's name fits 'send-*'; `jobrunner admin list` shows the names"
    assert "a name or a pattern is of letters" in cli.refused(2, "admin", "disable", "se?d*", "--yes")
    assert cli.audits() == []


def test_hundreds_of_workers_are_switched_in_a_few_transactions(cli, monkeypatch):
    monkeypatch.setattr("jobrunner.storage.workers.switching.MOST_AT_ONCE", 4)
    cli.register(*(scheduled(f"w{number}") for number in range(9)))
    cli.use(
        lambda db, conn: conn.exec_driver_sql(
            f"UPDATE {db.schema_prefix}worker_state SET next_run_at = '2026-03-02 12:00:00.000000'"
        )
    )
    cli.ok("admin", "disable", "w*", "--yes")
    assert sum(not row["is_enabled"] for row in cli.rows("worker_state")) == 9
    missed = cli.rows("run_history", outcome="missed")
    assert [row["worker"] for row in missed] == [f"w{number}" for number in range(9)]
    assert len(cli.audits()) == 9


def test_a_second_disable_keeps_the_reason_of_the_first_unless_another_is_given(cli):
    def reason():
        return cli.row("worker_state", worker="fetch")["disabled_reason"]

    cli.ok("admin", "disable", "fetch", "--reason", "it is Sunday")
    cli.ok("admin", "disable", "fetch")
    assert reason() == "it is Sunday"
    assert last_audit(cli)[3]["reason"] == "it is Sunday"
    cli.ok("admin", "disable", "fetch", "--reason", "still broken")
    assert reason() == "still broken"
    cli.ok("admin", "enable", "fetch")
    cli.ok("admin", "disable", "fetch")
    assert reason() == "no reason given"


def test_a_pause_has_an_end_or_none(cli):
    cli.ok("admin", "pause", "fetch", "--for", "2h", "--reason", "moving")
    until = cli.row("worker_state", worker="fetch")["paused_until"]
    assert timedelta(minutes=119) < until - NOW < timedelta(hours=4)  # so long ago the tests have begun at most
    assert last_audit(cli)[3]["reason"] == "moving"

    cli.ok("admin", "pause", "fetch", "--until", "2040-01-01")
    assert cli.row("worker_state", worker="fetch")["paused_until"] == datetime(2040, 1, 1, tzinfo=UTC)

    assert "until resumed" in cli.ok("admin", "pause", "fetch").out
    assert cli.row("worker_state", worker="fetch")["paused_until"] == UNTIL_RESUMED

    cli.ok("admin", "resume", "fetch")
    state = cli.row("worker_state", worker="fetch")
    assert state["paused_until"] is None
    assert state["next_run_at"] is not None
    assert [row["action"] for row in cli.audits()] == ["pause", "pause", "pause", "resume"]


def test_set_lays_values_over_the_definition_and_unset_takes_them_back(cli):
    cli.ok("admin", "set", "fetch", "interval_seconds=1m30s", "priority=critical", 'payload={"a": 1}', "max_retries=0")
    worker = cli.row("workers", name="fetch")
    assert (worker["interval_seconds"], worker["priority"], worker["max_retries"]) == (90, 3, 0)
    assert worker["payload"] == {"a": 1}
    assert worker["overrides"]["interval_seconds"] == 90
    assert worker["definition"]["interval_seconds"] == 60
    action, name, _, detail = last_audit(cli)
    assert (action, name, detail["old"]["interval_seconds"]) == ("set", "fetch", 60)

    cli.ok("admin", "unset", "fetch", "interval_seconds", "priority")
    worker = cli.row("workers", name="fetch")
    assert (worker["interval_seconds"], worker["priority"], worker["max_retries"]) == (60, 1, 0)
    assert last_audit(cli)[0] == "unset"
    assert "no override of priority" in cli.refused(1, "admin", "unset", "fetch", "priority")


def test_null_clears_what_may_be_empty(sqlite_cli):
    sqlite_cli.ok("admin", "set", "fetch", "cooldown_seconds=60", "memory_limit_mb=100")
    sqlite_cli.ok("admin", "set", "fetch", "cooldown_seconds=null", "memory_limit_mb=null")
    worker = sqlite_cli.row("workers", name="fetch")
    assert (worker["cooldown_seconds"], worker["memory_limit_mb"]) == (None, None)


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (("interval_seconds",), "no assignment"),
        (("=1",), "no assignment"),
        (("interval_seconds=abc",), "interval_seconds must be a number"),
        (("interval_seconds=0",), "interval_seconds must be"),
        (("interval_seconds=nan",), "must be a number"),
        (("max_retries=-1",), "max_retries must be"),
        (("max_retries=1.5",), "must be a whole number"),
        (("timeout_seconds=null",), "must be a number"),
        (("cron=61 * * * *",), "cron"),
        (("timezone=Mars/Base",), "Mars/Base"),
        (("cron=* * * * *", "interval_seconds=5"), "both interval_seconds and cron"),
        (("priority=9",), "priority '9'"),
        (("misfire=never",), "misfire 'never' is none of"),
        (("payload=[]",), "JSON object"),
        (("handler=os:system",), "cannot be set"),
        (("max_retries=1", "max_retries=2"), "twice"),
    ],
)
def test_a_value_that_cannot_be_is_one_line_and_changes_nothing(sqlite_cli, assignments, words):
    before = sqlite_cli.row("workers", name="fetch")
    assert words in sqlite_cli.refused(2, "admin", "set", "fetch", *assignments)
    assert sqlite_cli.row("workers", name="fetch") == before
    assert sqlite_cli.audits() == []


@pytest.mark.parametrize(
    "args",
    [
        ("enable", "nobody"),
        ("disable", "nobody"),
        ("pause", "nobody"),
        ("resume", "nobody"),
        ("set", "nobody", "max_retries=1"),
        ("unset", "nobody", "max_retries"),
        ("show", "nobody"),
        ("remove", "nobody"),
        ("cancel", "77"),
    ],
)
def test_what_does_not_exist_is_exit_code_3(sqlite_cli, args):
    assert "no " in sqlite_cli.refused(3, "admin", *args)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("pause", "fetch", "--for", "2h", "--until", "2040-01-01"), "keep one"),
        (("pause", "fetch", "--until", "2020-01-01"), "future"),
        (("pause", "fetch", "--for", "0"), "future"),
        (("pause", "fetch", "--for", "a while"), "--for: 'a while' is no duration"),
        (("disable", "fetch", "--actor", " "), "--actor"),
        (("cancel", "x"), "'[RUN]...'"),
        (("cancel", "0"), "RUN"),
        (("disable",), "give the names of workers or a pattern such as 'send-*', or --all for every one"),
        (("enable", "fetch", "--all"), "not both"),
    ],
)
def test_bad_arguments_are_exit_code_2(sqlite_cli, args, words):
    assert words in sqlite_cli.refused(2, "admin", *args)


def test_a_waiting_run_is_cancelled_at_once(cli):
    run_id = cli("trigger", "mail", "--json").json["run_id"]
    assert cli.ok("admin", "cancel", str(run_id), "--reason", "wrong address").out == f"cancelled run {run_id}\n"
    assert cli.rows("runs") == []
    ended = cli.row("run_history")
    assert (ended["outcome"], ended["ends_run"], ended["reason"]) == ("cancelled", "cancelled", "wrong address")
    assert last_audit(cli)[:2] == ("cancel", "mail")


def test_show_and_list_tell_both_layers(cli):
    cli.ok("admin", "set", "fetch", "interval_seconds=30")
    shown = cli("admin", "show", "fetch", "--json").json
    assert shown["name"] == "fetch"
    assert shown["definition"]["interval_seconds"] == 60
    assert shown["overrides"] == {"interval_seconds": 30}
    assert {"depends_on", "blocks", "blocked_by", "nodes", "is_enabled", "payload"} <= set(shown)
    assert [row["name"] for row in cli("admin", "list", "--json").json] == ["fetch", "mail"]
    assert cli.ok("admin", "list").lines[0].startswith("NAME")
    assert "interval_seconds" in cli.ok("admin", "show", "fetch").out


def test_nodes_and_audit_are_listed(cli):
    assert cli.ok("admin", "nodes").out == "no live nodes\n"
    cli.join("fetch")
    (node,) = cli("admin", "nodes", "--json").json
    assert (node["id"], node["state"], node["max_concurrent"]) == ("node-one", "active", 5)
    cli.ok("admin", "disable", "fetch", "--actor", "ann")
    cli.ok("admin", "disable", "mail", "--actor", "ann")
    assert [row["worker"] for row in cli("admin", "audit", "--json").json][:2] == ["mail", "fetch"]
    (row,) = cli("admin", "audit", "--worker", "fetch", "--json").json
    assert (row["action"], row["actor"]) == ("disable", "ann")
    assert row["at"].endswith("Z")


def test_a_command_worker_is_added_and_removed(cli):
    cli.ok(
        "admin", "add", "backup", "--command", "pg_dump 'my db'", "--cron", "0 3 * * *", "--timezone", "Europe/Berlin"
    )
    worker = cli.row("workers", name="backup")
    assert json.loads(worker["handler"]) == {"command": ["pg_dump", "my db"], "shell": False}
    assert (worker["isolation"], worker["cron"], worker["interval_seconds"]) == ("command", "0 3 * * *", None)
    assert worker["definition"]["handler"] == worker["handler"]
    assert cli.row("worker_state", worker="backup")["next_run_at"] is not None
    assert last_audit(cli)[:2] == ("add", "backup")
    assert "already" in cli.refused(1, "admin", "add", "backup", "--command", "true")

    cli.ok("admin", "remove", "backup")
    assert cli.rows("workers", name="backup") == []
    assert last_audit(cli)[:2] == ("remove", "backup")


def test_a_command_worker_may_use_a_shell_and_wait_for_others(cli):
    cli.ok(
        "admin",
        "add",
        "a",
        "--command",
        "ls | wc",
        "--shell",
        "--triggered",
        "--depends-on",
        "fetch",
        "--blocks",
        "mail",
    )
    worker = cli.row("workers", name="a")
    assert json.loads(worker["handler"]) == {"command": "ls | wc", "shell": True}
    assert worker["execution_mode"] == "triggered"
    assert cli.row("worker_dependencies")["depends_on"] == "fetch"
    assert cli.row("worker_blocks")["blocks"] == "mail"
    gates = {gate["gate"]: gate for gate in cli("explain", "a", "--json").json["gates"]}
    assert not gates["handler"]["open"]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("a b", "--command", "true"), 2, "a name is 1 to 200"),
        (("a/b", "--command", "true"), 2, "a name is 1 to 200"),
        (("a",), 2, "missing option '--command'"),
        (("a", "--command", ""), 2, "--command must be a command"),
        (("a", "--command", "echo 'x"), 2, "cannot be split"),
        (("a", "--command", "true", "--cron", "* * *"), 2, "cron"),
        (("a", "--command", "true", "--cron", "* * * * *", "--timezone", "Mars"), 2, "Mars"),
        (("a", "--command", "true", "--interval", "0"), 2, "interval_seconds"),
        (("a", "--command", "true", "--interval", "5", "--cron", "* * * * *"), 2, "both"),
        (("a", "--command", "true", "--interval", "5", "--triggered"), 2, "triggered"),
        (("a", "--command", "true", "--max-retries", "-1"), 2, "max_retries"),
        (("a", "--command", "true", "--depends-on", "a"), 2, "depends on itself"),
        (("a", "--command", "true", "--blocks", "a"), 2, "blocks itself"),
        (("a", "--command", "true", "--blocks", "nobody"), 2, "known neither"),
        (("a", "--command", "true", "--priority", "urgent"), 2, "urgent"),
    ],
)
def test_a_bad_command_worker_is_refused(sqlite_cli, args, code, words):
    assert words in sqlite_cli.refused(code, "admin", "add", *args)
    assert len(sqlite_cli.rows("workers")) == 2


def test_a_worker_that_a_node_has_or_others_need_is_not_removed(cli):
    cli.register(triggered("needs", depends_on=("fetch",)), scheduled("held"))
    cli.join("held")
    assert "depends on 'fetch'" in cli.refused(1, "admin", "remove", "fetch")
    assert "has the code" in cli.refused(1, "admin", "remove", "held")
    cli.ok("trigger", "mail")
    assert "has 1 live run; " in cli.refused(1, "admin", "remove", "mail")


def test_set_and_unset_answer_in_words(sqlite_cli):
    cli = sqlite_cli
    said = cli.ok("admin", "set", "fetch", "priority=3", "cooldown_seconds=60", "memory_limit_mb=null").lines
    assert said == ["fetch: priority is CRITICAL", "fetch: cooldown_seconds is 60", "fetch: memory_limit_mb is unset"]
    assert cli.ok("admin", "unset", "fetch", "cooldown_seconds").lines == ["fetch: cooldown_seconds is unset again"]
    assert "CRITICAL" in cli.ok("admin", "list").out


def test_an_interval_that_takes_the_place_of_a_cron_says_so_and_the_other_way_round(cli):
    cli.register(scheduled("nightly", cron="0 3 * * *"))

    def said(*words: str) -> list[str]:
        return cli.ok("admin", *words).lines

    taken = "nightly: interval_seconds is 30, instead of cron 0 3 * * *"
    assert said("set", "nightly", "interval_seconds=30") == [taken]
    assert said("unset", "nightly", "interval_seconds") == [
        "nightly: interval_seconds is unset again; cron is 0 3 * * *"
    ]
    assert said("set", "fetch", "cron=0 0 * * *", "max_retries=1") == [
        "fetch: cron is 0 0 * * *, instead of interval_seconds 60",
        "fetch: max_retries is 1",
    ]
    assert said("unset", "fetch", "cron") == ["fetch: cron is unset again; interval_seconds is 60"]
    assert said("set", "nightly", "cron=0 4 * * *") == ["nightly: cron is 0 4 * * *"]
    assert said("set", "nightly", "cron=null") == ["nightly: cron is unset; interval_seconds is 300"]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ((), "every 300 s"),
        (("--interval", "1h"), "every 3600 s"),
        (("--cron", "0 3 * * *"), "0 3 * * * (UTC)"),
        (("--triggered",), "when triggered"),
    ],
)
def test_adding_answers_when_it_will_run(sqlite_cli, how, said):
    assert sqlite_cli.ok("admin", "add", "x", "--command", "true", *how).out == f"added x: {said}\n"


def test_times_inside_documents_look_like_those_of_columns(cli):
    cli.ok("admin", "pause", "fetch", "--until", "2099-01-31T12:00+02:00")
    cli.ok("admin", "resume", "fetch")
    resumed, paused = cli("admin", "audit", "--limit", "2", "--json").json
    assert paused["detail"]["until"] == resumed["detail"]["was_paused_until"] == "2099-01-31T10:00:00.000000Z"


def test_why_a_worker_is_paused_is_shown_wherever_it_is_while_it_is(cli):
    cli.ok("admin", "pause", "mail", "--for", "2h", "--reason", "moving house", "--actor", "ann")
    (line,) = [line for line in cli.ok("status").lines if line.startswith("mail")]
    assert line.endswith("UTC, by ann: moving house")
    assert "paused until " in line
    assert "moving house" in cli.ok("explain", "mail").out
    assert "moving house" in cli.ok("trigger", "mail").err
    for words in (("status", "mail"), ("admin", "show", "mail")):
        assert "moving house" in cli.ok(*words).out
        assert cli(*words, "--json").json["paused_reason"] == "moving house"
    assert {row["name"]: row["paused_reason"] for row in cli("status", "--json").json} == {
        "fetch": None,
        "mail": "moving house",
    }
    cli.ok("admin", "resume", "mail")
    assert "moving house" not in cli.ok("status").out
    assert cli.row("worker_state", worker="mail")["paused_reason"] is None


def test_the_reason_of_a_pause_that_is_over_is_not_shown(cli):
    import sqlalchemy as sa

    from jobrunner.storage.tables import define as t

    async def pause_in_the_past(db, conn):
        values = {"paused_until": datetime(2020, 1, 1, tzinfo=UTC), "paused_reason": "moving house"}
        await conn.execute(sa.update(t.worker_state).values(values))

    cli.use(pause_in_the_past)
    assert cli("status", "mail", "--json").json["paused_reason"] is None
    assert "moving house" not in cli.ok("status").out + cli.ok("explain", "mail").out + cli.ok("upcoming").out


def test_upcoming_says_why_a_schedule_is_paused(cli):
    cli.ok("admin", "pause", "fetch", "--reason", "moving house", "--actor", "ann")
    (row,) = cli("upcoming", "--json").json
    assert (row["due_at"], row["note"]) == (None, "paused until resumed, by ann: moving house")


def test_a_mistyped_worker_or_field_is_told_with_the_one_that_was_meant(cli):
    cli.register(triggered("pay-bill"))
    for words in (
        ("trigger", "pay-bil"),
        ("status", "pay-bil"),
        ("explain", "pay-bil"),
        ("upcoming", "pay-bil"),
        ("history", "pay-bil"),
        ("runs", "--worker", "pay-bil"),
        ("dead-letters", "list", "--worker", "pay-bil"),
        ("dead-letters", "replay", "--worker", "pay-bil"),
        ("admin", "enable", "fetch", "pay-bil"),
        ("admin", "cancel", "--worker", "pay-bil"),
        ("admin", "show", "pay-bil"),
        ("admin", "set", "pay-bil", "max_retries=1"),
    ):
        assert cli.refused(3, *words) == "no worker named 'pay-bil'; did you mean 'pay-bill'?", words
    unlike = "no worker named 'weather'; `jobrunner admin list` shows the names"
    assert cli.refused(3, "trigger", "weather") == unlike
    for words, meant in (
        (("set", "pay-bill", "max_retires=1"), "'max_retires' cannot be set; did you mean max_retries?"),
        (("set", "pay-bill", "timeout=1m"), "'timeout' cannot be set; did you mean timeout_seconds?"),
        (("unset", "pay-bill", "max_retires"), "'max_retires' cannot be set; did you mean max_retries?"),
        (("set", "pay-bill", "handler=x"), "'handler' cannot be set; there are interval_seconds, cron, "),
    ):
        assert meant in cli.refused(2, "admin", *words)

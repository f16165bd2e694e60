from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from jobrunner.storage.tables import define as t
from tests.cli.conftest import NODE, NOW, hourly, scheduled, triggered
from tests.cli.test_dead_letters import letter


def ended(number, worker="fetch", **values):
    return {
        "run_id": number,
        "fence": number,
        "worker": worker,
        "trigger": "schedule",
        "attempt": 1,
        "outcome": "succeeded",
        "ends_run": "succeeded",
        "finished_at": NOW,
        "duration_ms": 12,
        **values,
    }


def test_status_is_a_row_of_the_view_for_each_worker(cli):
    rows = cli("status", "--json").json
    assert [row["name"] for row in rows] == ["fetch", "mail"]
    fetch = rows[0]
    assert (fetch["is_enabled"], fetch["is_running"], fetch["pending_runs"]) == (True, False, 0)
    assert (fetch["interval_seconds"], fetch["consecutive_failures"], fetch["circuit_state"]) == (60, 0, "closed")
    assert datetime.fromisoformat(fetch["next_run_at"]).tzinfo == UTC
    assert "definition" not in fetch


def test_status_of_one_worker_is_one_object(cli):
    assert cli("status", "mail", "--json").json["name"] == "mail"
    assert "no worker named 'nobody'" in cli.refused(3, "status", "nobody")


def test_status_says_why_a_worker_is_disabled(cli):
    cli.ok("admin", "disable", "fetch", "--reason", "it is Sunday")
    (line,) = [line for line in cli.ok("status").lines if line.startswith("fetch")]
    assert "disabled" in line
    assert "it is Sunday" in line
    cli.ok("admin", "pause", "mail")
    assert "until resumed" in cli.ok("status").out


def test_a_table_names_its_columns_and_is_aligned(sqlite_cli):
    lines = sqlite_cli.ok("status").lines
    assert lines[0].split()[:3] == ["NAME", "HEALTH", "SCHEDULE"]
    assert lines[1].index("every 60 s") == lines[0].index("SCHEDULE")
    assert lines[-1] == "2 workers, 0 running, 0 waiting; 0 live nodes, 0 open dead letters"


def test_one_of_a_thing_is_not_said_to_be_several(cli):
    cli.register(triggered("mail"))
    cli.ok("trigger", "mail")
    cli.join("mail")
    cli.insert("dead_letters", letter(7))
    assert cli.ok("status").lines[-1] == "2 workers, 0 running, 1 waiting; 1 live node, 1 open dead letter"


def test_one_worker_has_the_name_of_its_priority_and_its_number_for_programs(cli):
    for command in ("status", "admin show"):
        assert re.search(r"^priority +NORMAL$", cli.ok(*command.split(), "mail").out, re.MULTILINE)
        found = cli(*command.split(), "mail", "--json").json
        assert (found if isinstance(found, dict) else found[0])["priority"] == 1


def test_runs_show_the_name_of_a_priority_and_its_number_to_programs(cli):
    cli.ok("trigger", "mail", "--priority", "critical")
    assert cli.ok("runs").lines[1].split()[4] == "CRITICAL"
    assert cli("runs", "--json").json[0]["priority"] == 3


def test_nothing_stored_reaches_the_terminal_as_a_control_sequence(sqlite_cli):
    error = "\x1b[31mred\nsecond line"
    sqlite_cli.insert("run_history", ended(1, outcome="failed", ends_run=None, error=error, error_type="E"))
    text = sqlite_cli.ok("history").out
    assert "\x1b" not in text
    assert "second" not in text
    assert sqlite_cli("history", "--json").json[0]["error"] == error


def test_runs_are_the_live_ones_active_first(cli):
    assert cli.ok("runs").out == "no live runs\n"
    cli.ok("trigger", "mail", "--in", "1h")
    cli.ok("trigger", "mail")
    claim = {"state": "running", "slot": 0, "fence": 1, "node_id": "n", "started_at": NOW}
    cli.insert("runs", {"worker": "fetch", "trigger": "schedule", **claim})
    rows = cli("runs", "--json").json
    assert [(row["id"], row["state"]) for row in rows] == [(3, "running"), (2, "pending"), (1, "pending")]
    assert {"worker", "trigger", "payload", "due_at", "fence", "is_forced"} <= set(rows[0])
    assert [row["id"] for row in cli("runs", "--worker", "mail", "--limit", "1", "--json").json] == [2]
    assert "--limit shows more" in cli.ok("runs", "--limit", "1").err
    cli.refused(3, "runs", "--worker", "nobody")


def test_history_is_narrowed_by_what_is_given(cli):
    old = NOW - timedelta(hours=3)
    cli.insert(
        "run_history",
        ended(1, finished_at=old),
        ended(2, outcome="failed", ends_run=None, error="oh", error_type="E"),
        ended(3, worker="mail"),
        ended(None, outcome="missed", ends_run=None, occurrences=7, reason="paused", fence=None, duration_ms=None),
    )

    def runs_of(*args):
        return [row["run_id"] for row in cli("history", *args, "--json").json]

    assert runs_of() == [None, 3, 2, 1]
    assert runs_of("fetch") == [None, 2, 1]
    assert runs_of("--outcome", "failed") == [2]
    assert runs_of("--since", "1h") == [None, 3, 2]
    assert runs_of("--since", (NOW - timedelta(hours=4)).isoformat(), "fetch", "--limit", "1") == [None]
    assert runs_of("--run", "3") == [3]
    text = cli.ok("history").out
    assert "E: oh" in text
    assert "7 times: paused" in text


def test_history_knows_a_worker_that_was_removed(cli):
    cli.insert("run_history", ended(1, worker="gone"))
    assert len(cli("history", "gone", "--json").json) == 1
    assert cli("history", "gone", "--outcome", "lost", "--json").json == []
    cli.refused(3, "history", "nobody")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("history", "--outcome", "died"), "--outcome: 'died' is none of succeeded"),
        (("history", "--since", "yesterday"), "--since: 'yesterday' is neither a time nor a duration"),
        (("history", "--limit", "0"), "--limit"),
        (("history", "--limit", "many"), "--limit"),
        (("history", "--run", "99999999999999999999"), "--run"),
        (("upcoming", "--for", "-1h"), "--for: '-1h' is no duration"),
        (("upcoming", "--limit", "x"), "--limit"),
        (("explain",), "missing argument 'WORKER'"),
        (("status", "a", "b"), "b"),
        (("stats",), "did you mean"),
        (("status", "--jsn"), "--jsn"),
    ],
)
def test_bad_arguments_are_one_line_that_names_the_help(sqlite_cli, args, words):
    line = sqlite_cli.refused(2, *args)
    assert words.lower() in line.lower()


def gates_of(cli, worker):
    found = cli("explain", worker, "--json").json
    return found, {gate["gate"]: gate for gate in found["gates"]}


def test_explain_shows_every_gate_in_order(cli):
    cli.join("fetch")
    found, gates = gates_of(cli, "fetch")
    assert list(gates) == [
        "enabled",
        "paused",
        "due",
        "handler",
        "max_running",
        "key",
        "rate",
        "limits",
        "dependencies",
        "blocks",
        "slot",
    ]
    assert found["starts"]
    assert found["node_id"] == "node-one"
    assert found["candidate"]["run_id"] is None
    assert all(gate["open"] for gate in found["gates"])
    assert "can start now" in cli.ok("explain", "fetch").out


def test_explain_says_that_no_node_has_the_code(cli):
    found, gates = gates_of(cli, "fetch")
    assert not found["starts"]
    assert "no node is running" in gates["handler"]["reason"]
    cli.join("mail")
    _, gates = gates_of(cli, "fetch")
    assert gates["handler"] == {
        "gate": "handler",
        "open": False,
        "forced": False,
        "reason": "no live node has the handler: node node-one runs other workers only (another MODULE, or --workers)",
    }


def test_explain_says_what_an_operator_did(cli):
    cli.join("fetch", "mail")
    cli.ok("trigger", "mail", "--force")
    cli.ok("admin", "disable", "mail", "--reason", "too loud")
    found, gates = gates_of(cli, "mail")
    assert found["starts"]
    assert gates["enabled"]["forced"]
    cli.ok("admin", "pause", "fetch", "--for", "1h")
    found, gates = gates_of(cli, "fetch")
    assert not gates["paused"]["open"]
    assert "does not start now: paused until" in cli.ok("explain", "fetch").out


def test_explain_names_who_holds_it(cli):
    cli.register(triggered("a", blocks=("b",)), triggered("b"), triggered("c", depends_on=("fetch",)))
    cli.join("a", "b", "c", "fetch")
    claim = {"state": "running", "slot": 0, "fence": 1, "node_id": "node-one", "started_at": NOW}
    cli.insert("runs", {"worker": "a", **claim}, {"worker": "b"}, {"worker": "c"})
    _, gates = gates_of(cli, "b")
    assert gates["blocks"]["reason"].startswith("blocked by a, run 1 on node node-one")
    _, gates = gates_of(cli, "c")
    assert gates["dependencies"]["reason"].startswith("waits for fetch: it has not succeeded yet, next try")


def test_explain_counts_the_slots_of_the_nodes_that_have_the_code(cli):
    """A busy node with the code has no slot to give, whatever the free one beside it without the code has."""
    import dataclasses

    cli.register(triggered("other"))
    cli.join("mail", node=dataclasses.replace(NODE, max_concurrent=1))
    cli.join("other", node=dataclasses.replace(NODE, id="node-two", max_concurrent=4))
    claim = {"state": "running", "slot": 0, "fence": 1, "node_id": "node-one", "started_at": NOW}
    cli.insert("runs", {"worker": "mail", **claim}, {"worker": "mail"})
    found, gates = gates_of(cli, "mail")
    assert not found["starts"]
    assert not gates["slot"]["open"]


def test_explain_lets_others_go_first_when_slots_are_short(cli):
    import dataclasses

    cli.register(triggered("urgent", priority="critical"), triggered("small", priority="low"))
    cli.join("urgent", "small", node=dataclasses.replace(NODE, max_concurrent=1))
    cli.insert("runs", {"worker": "small"}, {"worker": "urgent"})
    assert gates_of(cli, "urgent")[0]["starts"]
    found, gates = gates_of(cli, "small")
    assert not found["starts"]
    assert [name for name, gate in gates.items() if not gate["open"]] == ["slot"]


def test_explain_names_the_run_that_waits_for_its_time(cli):
    cli.register(triggered("berlin", timezone="Europe/Berlin"))
    cli.join("berlin")
    said = cli.ok("trigger", "berlin", "--at", "2099-07-01 10:00")
    assert said.lines == ["run 1"]
    assert said.err == "run 1 is due at 2099-07-01 10:00:00 UTC (12:00:00 CEST)\n"
    when = "not due until 2099-07-01 10:00:00 UTC (12:00:00 CEST): run 1"
    assert cli.ok("explain", "berlin").lines[0] == f"berlin: run 1 does not start now: {when}"
    found, gates = gates_of(cli, "berlin")
    assert (found["candidate"]["run_id"], found["why"], gates["due"]["reason"]) == (1, when, when)


def test_explain_says_first_what_somebody_has_to_mend(cli):
    cli.register(triggered("late", depends_on=("mail",)))
    cli.join("late", "mail")
    cli.ok("admin", "disable", "mail", "--reason", "maintenance")
    cli.ok("trigger", "late", "--in", "1h")
    (first, *_) = cli.ok("explain", "late").lines
    assert first.endswith("waits for mail: it has not succeeded yet, and it is disabled (maintenance)")


def test_status_shows_the_next_time_of_a_run_that_waits_and_its_failing_attempt(cli):
    cli.register(triggered("berlin", timezone="Europe/Berlin"))
    due = datetime(2099, 7, 1, 10, tzinfo=UTC)
    cli.insert("runs", {"worker": "berlin", "due_at": due, "attempt": 2, "first_started_at": NOW})
    cli.insert("run_history", ended(1, "berlin", outcome="failed", ends_run=None, error="smtp down"))
    cli.ok("trigger", "mail", "--at", "2099-01-01")
    rows = {row["name"]: row for row in cli("status", "--json").json}
    assert rows["berlin"]["next_at"] == "2099-07-01T10:00:00.000000Z"
    assert rows["berlin"]["why"] == "attempt 2 at 2099-07-01 10:00:00 UTC (12:00:00 CEST): smtp down"
    assert rows["mail"]["next_at"] == "2099-01-01T00:00:00.000000Z"
    table = {line.split()[0]: line for line in cli.ok("status").lines if line}
    assert "2099-07-01 10:00:00 UTC (12:00:00 CEST)" in table["berlin"]
    assert "attempt 2 at" in table["berlin"]
    assert "2099-01-01 00:00:00 UTC" in table["mail"]
    assert "2099-07-01 10:00:00 UTC (12:00:00 CEST)" in cli.ok("status", "berlin").out


def test_status_says_that_no_node_runs_the_commands_that_are_due(cli):
    cli.ok("admin", "add", "x", "--command", "true", "--interval", "1m")
    cli.use(lambda db, conn: conn.exec_driver_sql(f"UPDATE {db.schema_prefix}worker_state SET next_run_at = {_AGO}"))
    cli.join("fetch", "mail")
    (line,) = [line for line in cli.ok("status").lines if line.startswith("x ")]
    assert "a command: only nodes started with --allow-commands run it" in line


_AGO = "'2026-03-02 12:00:00.000000'"


def test_explain_refuses_an_unknown_worker(cli):
    cli.refused(3, "explain", "nobody")


def test_upcoming_lists_the_firings_in_order(cli):
    cli.register(scheduled("hourly", cron=hourly(), timezone="Europe/Berlin"))
    cli.ok("trigger", "mail", "--in", "90m")
    rows = cli("upcoming", "--for", "3h", "--limit", "1000", "--json").json
    assert {row["worker"] for row in rows} == {"fetch", "hourly", "mail"}
    times = [row["due_at"] for row in rows]
    assert times == sorted(times)
    assert sum(row["worker"] == "hourly" for row in rows) == 3
    assert [row["run_id"] for row in rows if row["worker"] == "mail"] == [1]


def test_upcoming_of_one_worker(cli):
    cli.register(scheduled("hourly", cron=hourly()))
    cli.ok("trigger", "mail", "--in", "90m")
    for name, count in (("fetch", 60), ("hourly", 1), ("mail", 1)):
        rows = cli("upcoming", name, "--for", "2h", "--json").json
        assert {row["worker"] for row in rows} == {name}
        assert len(rows) >= count
    cli.refused(3, "upcoming", "nobody")


def test_upcoming_is_bounded_and_marks_what_will_not_fire(cli):
    cli.ok("admin", "disable", "fetch", "--reason", "Sunday")
    (row,) = cli("upcoming", "--json").json
    assert (row["worker"], row["due_at"], row["note"]) == (
        "fetch",
        None,
        f"disabled by {cli.audits()[-1]['actor']}: Sunday",
    )
    cli.ok("admin", "enable", "fetch")
    result = cli.ok("upcoming", "--limit", "5")
    assert len(result.lines) == 6
    assert "--limit shows more" in result.err


def test_runs_say_why_a_run_waits_whose_time_has_come(cli):
    cli.ok("trigger", "mail")
    cli.ok("trigger", "mail", "--in", "2h")
    assert cli.ok("runs").lines[1].endswith("  no node is running; `jobrunner run MODULE` starts one")
    cli.join("mail", "fetch")
    cli.ok("admin", "disable", "mail", "--reason", "API is down", "--actor", "ann")
    titles, due, later = cli.ok("runs").lines
    assert titles.endswith("WHY")
    assert due.endswith("disabled by ann: API is down")
    assert later.endswith("  -")
    assert "why" not in cli("runs", "--json").json[0]
    assert "why" not in cli("runs", "--json", "--limit", "1").json[0]


def test_a_node_that_was_not_heard_of_for_its_lease_is_silent_wherever_it_shows(cli):
    gone = replace(NODE, id="0badcafe-gone", lease_seconds=30.0)
    cli.register(triggered("mail"))
    cli.join("mail", node=gone)
    cli.ok("trigger", "mail")
    running = {"state": "running", "slot": 0, "fence": 1, "node_id": gone.id, "started_at": NOW, "is_ours": True}
    cli.insert("runs", {"worker": "mail", **running})

    async def beat(db, conn, at):
        await conn.execute(sa.update(t.nodes).values(heartbeat_at=at))

    cli.use(lambda db, conn: beat(db, conn, datetime.now(UTC) - timedelta(seconds=95)))
    said = re.compile(r"node 0badcafe was last heard of (9\d|10\d) s ago")
    for words in ("status", "explain mail", "runs", "trigger mail"):
        result = cli.ok(*words.split())
        assert said.search(result.out + result.err), result
    assert "0 live nodes" in cli.ok("status").out
    assert "running, silent" in cli.ok("runs").out
    (row,) = cli("admin", "nodes", "--json").json
    assert (row["state"], 90 < row["silent_seconds"] < 120) == ("active", True)
    assert " silent " in cli.ok("admin", "nodes").out
    cli.use(lambda db, conn: beat(db, conn, datetime.now(UTC)))
    assert "1 live node," in cli.ok("status").out
    assert "last heard" not in cli.ok("status").out + cli.ok("runs").out + cli.ok("explain", "mail").out


def test_status_shows_the_worst_first_and_says_how_each_is(cli):
    cli.register(triggered("a"), triggered("b"), triggered("send-1"), triggered("send-2"))
    cli.join("a", "b", "fetch", "mail", "send-1", "send-2")
    cli.ok("admin", "disable", "send-2")
    cli.ok("admin", "pause", "b")
    rows = cli("status", "--json").json
    healths = [(row["name"], row["health"]) for row in rows]
    assert healths[:2] == [("send-2", "disabled"), ("b", "paused")]
    assert {health for _, health in healths[2:]} == {"unknown"}
    assert [name for name, _ in healths[2:]] == sorted(name for name, _ in healths[2:])
    lines = cli.ok("status").lines
    assert lines[1].split()[:2] == ["send-2", "disabled"]
    assert lines[2].split()[:2] == ["b", "paused"]


def test_status_takes_terms_and_shows_those_that_fit(cli):
    cli.register(triggered("send-1"), triggered("send-2"))
    cli.ok("admin", "disable", "send-*", "--yes")
    cli.ok("admin", "disable", "fetch")

    def names(*words):
        return [row["name"] for row in cli("status", *words, "--json").json]

    assert names("health:disabled") == ["fetch", "send-1", "send-2"]
    assert names("health:disabled", "worker:send-*") == ["send-1", "send-2"]
    assert names("worker:send-*,fetch", "mode:scheduled") == ["fetch"]
    assert names("health:disabled", "--limit", "1") == ["fetch"]
    assert cli.ok("status", "health:slow").lines[0] == "no worker fits"
    assert "health:sick" in cli.refused(2, "status", "health:sick")
    assert "cannot be filtered by 'outcome'" in cli.refused(2, "status", "outcome:failed")
    assert "'mail' stands beside other words" in cli.refused(2, "status", "health:slow", "mail")

"""`jobrunner explain` of a past moment and of a run, and `upcoming` as a calendar."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from jobrunner.cli.calendar import calendar_lines, escape, fold_line
from tests.cli.conftest import NOW, hourly, scheduled
from tests.cli.test_reads import ended

HOUR = timedelta(hours=1)


def known_since(cli, moment: datetime, *names: str) -> None:
    """Let the workers be as old as `moment`, and their node, too."""
    cli.join(*names)

    async def age(db, conn):
        shown = f"{moment:%Y-%m-%d %H:%M:%S.%f}" + ("" if db.is_sqlite else "+00")
        for table, column in (("workers", "created_at"), ("workers", "updated_at"), ("nodes", "started_at")):
            await conn.exec_driver_sql(f"UPDATE {db.schema_prefix}{table} SET {column} = '{shown}'")

    cli.use(age)


def test_a_past_moment_is_judged_and_what_came_of_its_time_is_said(cli):
    nightly = NOW.replace(microsecond=0) - HOUR
    cli.register(scheduled("nightly", cron=f"{nightly.minute} {nightly.hour} * * *"))
    known_since(cli, NOW - 3 * HOUR, "nightly")
    due = nightly.replace(second=0)
    start = due + timedelta(minutes=12)
    row = ended(7, "nightly", scheduled_for=due, due_at=due, started_at=start, finished_at=start + timedelta(seconds=5))
    cli.insert("run_history", row)
    found = cli("explain", "nightly", "--at", due.isoformat(), "--json").json
    assert datetime.fromisoformat(found["at"]) == due
    assert (found["starts"], found["why"], found["assumed"]) == (True, None, [])
    assert (found["served"]["run_id"], found["served"]["late_seconds"]) == (7, 720)
    lines = cli.ok("explain", "nightly", "--at", due.isoformat()).lines
    assert lines[0].startswith("nightly: its next run could start at ")
    assert lines[1].startswith("its time then: run 7, for ")
    assert "12 min late, and ended succeeded" in lines[1]


def test_a_worker_that_an_operator_had_disabled_says_by_whom(cli):
    known_since(cli, NOW - 3 * HOUR, "mail")
    for hours, action, detail in ((2, "disable", {"reason": "moving house"}), (1, "enable", {})):
        audit = {"at": NOW - hours * HOUR, "actor": "ann@desk", "action": action, "worker": "mail", "detail": detail}
        cli.insert("audit_log", audit)
    (first, *_) = cli.ok("explain", "mail", "--at", "90m").lines
    assert first.endswith("disabled by ann@desk: moving house")
    assert "disabled" not in cli.ok("explain", "mail", "--at", "30m").lines[0]


def test_missed_times_are_said_with_their_reason(cli):
    known_since(cli, NOW - 30 * HOUR, "fetch")
    first, last = NOW - 2 * HOUR, NOW - HOUR
    missed = {
        "run_id": None,
        "fence": None,
        "attempt": None,
        "outcome": "missed",
        "ends_run": None,
        "duration_ms": None,
    }
    times = {"scheduled_for": first, "due_at": last, "occurrences": 61, "reason": "no live node could run it"}
    cli.insert("run_history", ended(1, "fetch", **missed, **times))
    found = cli("explain", "fetch", "--at", "90m", "--json").json
    assert found["served"]["outcome"] == "missed"
    assert found["served"]["said"].startswith("61 times from ")
    assert found["served"]["said"].endswith("were missed: no live node could run it")


def test_what_cannot_be_known_of_a_moment_is_said(cli):
    found = cli("explain", "mail", "--at", "2h", "--json").json
    reasons = {gate["gate"]: gate["reason"] for gate in found["gates"] if not gate["open"]}
    assert reasons["handler"] == reasons["slot"] == "no node lived then"
    (said,) = found["assumed"]
    assert said.startswith("mail is registered since ")
    assert "assumed: mail is registered since " in cli.ok("explain", "mail", "--at", "2h").out


def test_a_moment_ahead_and_two_questions_at_once_are_refused(cli):
    ahead = (NOW + HOUR).isoformat()
    assert "lies ahead; `jobrunner upcoming mail`" in cli.refused(2, "explain", "mail", "--at", ahead)
    cli.refused(2, "explain", "mail", "--run", "1")
    cli.refused(2, "explain")
    cli.refused(3, "explain", "nobody", "--at", "1h")


def test_a_time_of_day_says_which_moment_it_is(cli):
    result = cli.ok("explain", "mail", "--at", "00:00")
    assert result.err.startswith("--at 00:00 is 20")


def test_a_run_that_waits_says_why(cli):
    cli.ok("trigger", "mail")
    (line, *_) = cli.ok("explain", "--run", "1").lines
    assert line == "run 1 of mail waits, and does not start now: no node is running; `jobrunner run MODULE` starts one"
    found = cli("explain", "--run", "1", "--json").json
    assert (found["state"], found["attempts"]) == ("pending", [])
    assert [gate["gate"] for gate in found["gates"] if not gate["open"]] == ["handler", "slot"]
    cli.refused(3, "explain", "--run", "99")


def test_a_run_that_has_ended_says_how_attempt_by_attempt(cli):
    failed = {"outcome": "failed", "error_type": "OSError", "error": "no route\nto host", "node_id": "node-one"}
    for number, end in ((1, None), (2, "exhausted")):
        times = {"started_at": NOW - timedelta(seconds=9), "due_at": NOW, "scheduled_for": NOW}
        cli.insert(
            "run_history", {**ended(5, "mail", **failed, **times), "fence": number, "attempt": number, "ends_run": end}
        )
    lines = cli.ok("explain", "--run", "5").lines
    assert lines[0].startswith("run 5 of mail ended exhausted at ")
    assert [line.split(",")[0] for line in lines[1:]] == ["attempt 1: failed", "attempt 2: failed"]
    assert lines[2].endswith("took 12 ms, on node node-one: OSError: no route")
    assert [each["outcome"] for each in cli("explain", "--run", "5", "--json").json["attempts"]] == ["failed", "failed"]


def test_a_worker_that_runs_names_its_run_and_since_when(cli):
    cli.join("mail")
    claim = {"state": "running", "fence": 1, "slot": 0, "node_id": "node-one", "started_at": NOW}
    cli.insert("runs", {"worker": "mail", "priority": 1, **claim})
    since = f"{NOW:%Y-%m-%d %H:%M:%S} UTC, on node node-one"
    lines = cli.ok("explain", "mail").lines
    assert lines[0] == f"mail: run 1 runs since {since}"
    assert lines[1].startswith("mail: its next run does not start now: ")
    assert [run["run_id"] for run in cli("explain", "mail", "--json").json["running"]] == [1]
    assert cli.ok("explain", "--run", "1").lines == [f"run 1 of mail runs since {since}"]


def test_upcoming_says_when_a_firing_starts_that_waits(cli):
    cli.register(scheduled("first", cron="0 3 * * *"), scheduled("then", cron="0 3 * * *", depends_on=["first"]))
    known_since(cli, NOW - 3 * HOUR, "first", "then")
    took = {"started_at": NOW - HOUR, "duration_ms": 600_000}
    cli.insert("run_history", ended(1, "first", **took))

    async def succeed(db, conn):
        state = f"{db.schema_prefix}worker_state"
        await conn.exec_driver_sql(f"UPDATE {state} SET last_run_outcome = 'succeeded' WHERE worker = 'first'")

    cli.use(succeed)
    (row,) = cli("upcoming", "then", "--json").json
    due, starts = (datetime.fromisoformat(row[key]) for key in ("due_at", "starts_at"))
    assert starts - due == timedelta(minutes=10)
    assert row["note"] == "waits for first, usually 10 min"


def test_the_calendar_holds_every_firing_and_keeps_its_ids(cli):
    cli.register(scheduled("hourly", cron=hourly()))
    texts = [cli.ok("upcoming", "hourly", "--for", "3h", "--ics").out for _ in range(2)]
    lines = texts[0].split("\r\n")
    assert (lines[0], lines[-2:]) == ("BEGIN:VCALENDAR", ["END:VCALENDAR", ""])
    assert "\n" not in "".join(lines)
    assert lines.count("BEGIN:VEVENT") == 3
    uids = [[line for line in text.split("\r\n") if line.startswith("UID:")] for text in texts]
    assert uids[0] == uids[1]
    assert len(set(uids[0])) == 3


def test_a_calendar_and_json_at_once_are_refused(cli):
    cli.refused(2, "upcoming", "--ics", "--json")


def test_lines_of_a_calendar_are_folded_at_75_octets_and_no_letter_is_cut():
    line = "DESCRIPTION:" + "é" * 100
    pieces = list(fold_line(line))
    assert all(len(piece.encode()) <= 75 for piece in pieces)
    assert pieces[0] + "".join(piece.removeprefix(" ") for piece in pieces[1:]) == line
    assert escape("a;b,c\\d\ne\x1b") == "a\\;b\\,c\\\\d\\ne"


def test_times_of_a_calendar_are_utc():
    due = datetime(2026, 3, 2, 3, 0, tzinfo=UTC).astimezone()
    row = {"worker": "a", "due_at": due, "starts_at": None, "run_id": None, "note": "DST starts", "timezone": "UTC"}
    lines = list(calendar_lines([row], due))
    assert "DTSTART:20260302T030000Z" in lines
    assert "DESCRIPTION:DST starts" in lines


def test_of_a_disabled_worker_it_says_what_enabling_leads_to(cli):
    cli.register(scheduled("nightly", interval_seconds=3600))
    cli.ok("admin", "disable", "nightly", "--reason", "too loud")
    cli.ok("admin", "pause", "nightly", "--for", "2h")
    said = " ".join(cli.ok("explain", "nightly").lines)
    assert "once enabled: It stays paused, if its pause is not over. No live node has its code" in said
    cli.ok("admin", "enable", "nightly")
    assert "once enabled" not in " ".join(cli.ok("explain", "nightly").lines)


def test_of_a_disabled_worker_it_says_when_enabling_would_let_it_run(cli):
    cli.register(scheduled("nightly", cron="0 3 * * *"))
    cli.join("nightly")
    cli.ok("admin", "disable", "nightly")
    said = " ".join(cli.ok("explain", "nightly").lines)
    cli.ok("admin", "enable", "nightly")
    (row,) = [row for row in cli.rows("worker_state") if row["worker"] == "nightly"]
    assert f"It runs at the next time of its schedule, {row['next_run_at']:%Y-%m-%d %H:%M:%S} UTC; " in said

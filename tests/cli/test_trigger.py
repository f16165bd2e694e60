from __future__ import annotations

import io
import json
import signal
import time
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from jobrunner import WorkerOrchestrator
from jobrunner.cli import trigger
from jobrunner.runtime.clock import SystemClock
from jobrunner.storage.database.database import Database
from jobrunner.storage.tables import define as t
from tests.cli.conftest import NOW, Cli, triggered
from tests.cli.program import start_jobrunner


def test_a_trigger_makes_a_waiting_run(cli):
    result = cli.ok("trigger", "mail", "--payload", '{"to": "ann"}', "--priority", "high")
    run = cli.row("runs")
    assert result.out == f"run {run['id']}\n"
    assert (run["worker"], run["trigger"], run["state"], run["priority"]) == ("mail", "manual", "pending", 2)
    assert run["payload"] == {"to": "ann"}
    assert not run["is_forced"]


def test_a_trigger_tells_programs_its_run_as_json(cli):
    found = cli("trigger", "mail", "--json").json
    assert found == {"run_id": cli.row("runs")["id"], "worker": "mail", "is_new": True}


def test_a_payload_comes_from_a_file_or_from_standard_input(sqlite_cli, tmp_path, monkeypatch):
    file = tmp_path / "payload.json"
    file.write_text('{"to": "ä"}')
    sqlite_cli.ok("trigger", "mail", "--payload", f"@{file}")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"to": "bob"}')))
    sqlite_cli.ok("trigger", "mail", "--payload", "-")
    assert [row["payload"] for row in sqlite_cli.rows("runs")] == [{"to": "ä"}, {"to": "bob"}]


def test_a_trigger_for_later_is_due_later(cli):
    now = datetime.now(UTC)
    cli.ok("trigger", "mail", "--in", "1h30m")
    cli.ok("trigger", "mail", "--at", "2031-03-01T12:00:00+02:00")
    cli.ok("trigger", "mail", "--at", "2031-03-01T12:00")
    first, second, third = (row["due_at"] for row in cli.rows("runs"))
    assert timedelta(minutes=89) < first - now < timedelta(minutes=95)
    assert second == datetime(2031, 3, 1, 10, tzinfo=UTC)
    assert third == datetime(2031, 3, 1, 12, tzinfo=UTC)


def test_the_run_that_has_the_key_is_replaced_or_put_off_as_asked(cli):
    def told(*more: str) -> str:
        return cli.ok("trigger", "mail", "--key", "k", *more).out

    told("--payload", '{"n": 1}')
    assert "; it has this payload now)" in told("--payload", '{"n": 2}', "--on-duplicate", "replace")
    assert "; it is put off)" in told("--in", "1h", "--on-duplicate", "postpone", "--at-most", "2h")
    assert "; nothing of it was changed)" in told("--in", "1m", "--on-duplicate", "postpone")
    row = cli.row("runs")
    assert row["payload"] == {"n": 2}
    assert row["due_at"] > datetime.now(UTC) + timedelta(minutes=50)


def test_a_key_that_waits_answers_with_the_run_already_there(cli):
    first = cli("trigger", "mail", "--key", "k", "--json").json
    second = cli("trigger", "mail", "--key", "k", "--json").json
    assert second == {**first, "is_new": False}
    assert len(cli.rows("runs")) == 1
    assert "already" in cli.ok("trigger", "mail", "--key", "k", "--key-scope", "live").out


def test_a_forced_trigger_is_marked(sqlite_cli):
    sqlite_cli.ok("trigger", "fetch", "--force")
    assert sqlite_cli.row("runs")["is_forced"]


def test_a_disabled_worker_takes_a_trigger(sqlite_cli):
    sqlite_cli.ok("admin", "disable", "mail")
    sqlite_cli.ok("trigger", "mail")
    assert sqlite_cli.row("runs")["state"] == "pending"


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("nobody",), 3, "no worker named 'nobody'"),
        (("mail", "--payload", "[1]"), 2, "must be a JSON object, not a list"),
        (("mail", "--payload", "null"), 2, "must be a JSON object, not null"),
        (("mail", "--payload", "{to: 1}"), 2, "no JSON"),
        (("mail", "--payload", '{"x": NaN}'), 2, "NaN"),
        (("mail", "--payload", '{"x": 1e999}'), 2, "cannot be written as JSON"),
        (("mail", "--payload", '{"x": "\\ud800"}'), 2, "cannot be written as JSON"),
        (("mail", "--payload", '{"x": "\\u0000"}'), 2, "NUL"),
        (("mail", "--payload", "[" * 100_000), 2, "no JSON"),
        (("mail", "--payload", "@/nowhere/at/all.json"), 2, "cannot be read: No such file"),
        (("mail", "--payload", '{"x": "' + "y" * 1024 * 1024 + '"}'), 2, "1 MiB"),
        (("mail", "--at", "tomorrow"), 2, "--at: 'tomorrow' is no time"),
        (("mail", "--in", "soon"), 2, "--in: 'soon' is no duration"),
        (("mail", "--in", "-5"), 2, "--in: '-5' is no duration"),
        (("mail", "--in", "1h", "--at", "2031-01-01"), 2, "keep one"),
        (("mail", "--priority", "urgent"), 2, "priority 'urgent' is none of LOW (0)"),
        (("mail", "--key-scope", "live"), 2, "--key-scope needs --key"),
        (("mail", "--key", "k", "--key-scope", "ever"), 2, "none of waiting, live"),
        (("mail", "--on-duplicate", "replace"), 2, "--on-duplicate replace needs --key"),
        (("mail", "--key", "k", "--on-duplicate", "drop"), 2, "'drop' is none of keep, replace, postpone"),
        (("mail", "--key", "k", "--on-duplicate", "postpone"), 2, "--on-duplicate postpone needs --in"),
        (("mail", "--key", "k", "--in", "5", "--at-most", "9"), 2, "--at-most goes with --on-duplicate postpone"),
        (("mail", "--key", ""), 2, "a key is 1 to 200"),
        (("mail", "--key", "k" * 5000), 2, "a key is 1 to 200"),
    ],
)
def test_a_bad_trigger_is_one_line_and_changes_nothing(sqlite_cli, args, code, words):
    assert words in sqlite_cli.refused(code, "trigger", *args)
    assert sqlite_cli.rows("runs") == []


def test_a_payload_over_1_mib_from_a_file_is_refused_however_long_the_file(sqlite_cli, tmp_path):
    file = tmp_path / "payload.json"
    file.write_bytes(b" " * (9 * 1024 * 1024) + b"{}")
    assert "1 MiB" in sqlite_cli.refused(2, "trigger", "mail", "--payload", f"@{file}")
    file.write_bytes(b"\xff\xfe")
    assert "UTF-8" in sqlite_cli.refused(2, "trigger", "mail", "--payload", f"@{file}")


@pytest.mark.parametrize(
    ("outcome", "ends_run", "error", "code"),
    [("succeeded", "succeeded", None, 0), ("failed", "exhausted", "it broke", 1)],
)
def test_waiting_ends_with_the_run(cli, monkeypatch, outcome, ends_run, error, code):
    """A node that lives in the waiting command's sleep: it ends the run at the first look."""
    import sqlalchemy as sa

    from jobrunner.runtime.clock import SystemClock
    from jobrunner.storage.database.database import Database
    from jobrunner.storage.tables import define as t

    async def end_it(clock, seconds):
        db = Database.open(cli.url)
        async with db.write() as conn:
            (run_id,) = (await conn.execute(sa.delete(t.runs).returning(t.runs.c.id))).scalars()
            row = {"run_id": run_id, "fence": 1, "worker": "mail", "trigger": "manual", "outcome": outcome}
            row |= {"ends_run": ends_run, "error": error, "finished_at": NOW, "attempt": 1}
            await conn.execute(sa.insert(t.run_history), row)
        await db.close()

    monkeypatch.setattr(SystemClock, "sleep", end_it)
    result = cli("trigger", "mail", "--wait")
    assert result.code == code
    assert result.out.splitlines()[1] == (f"{ends_run}: {error}" if error else ends_run)
    assert (
        result.err
        == "mail waits: no node is running; `jobrunner run MODULE` starts one (`jobrunner explain mail` tells more)\n"
    )

    as_json = json.loads(cli("trigger", "mail", "--wait", "--json").out)
    assert (as_json["outcome"], as_json["ends_run"]) == (outcome, ends_run)


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        (
            {"outcome": "succeeded", "ends_run": "succeeded", "result": {"rows": 3}},
            ["succeeded", 'result: {"rows": 3}'],
        ),
        ({"outcome": "succeeded", "ends_run": "succeeded", "result": "done"}, ["succeeded", 'result: "done"']),
        (
            {"outcome": "failed", "ends_run": "exhausted", "error_type": "ValueError", "error": "it broke"},
            ["exhausted: ValueError: it broke", "dead letter 1; `jobrunner dead-letters show 1` tells more"],
        ),
    ],
)
def test_waiting_tells_the_result_or_what_broke_and_where_its_letter_is(cli, monkeypatch, ended, said):
    import sqlalchemy as sa

    from jobrunner.runtime.clock import SystemClock
    from jobrunner.storage.database.database import Database
    from jobrunner.storage.tables import define as t
    from tests.cli.test_dead_letters import letter

    async def end_it(clock, seconds):
        db = Database.open(cli.url)
        async with db.write() as conn:
            (run_id,) = (await conn.execute(sa.delete(t.runs).returning(t.runs.c.id))).scalars()
            row = {
                "run_id": run_id,
                "fence": 1,
                "worker": "mail",
                "trigger": "manual",
                "finished_at": NOW,
                "attempt": 1,
            }
            await conn.execute(sa.insert(t.run_history), {**row, **ended})
            if ended["ends_run"] == "exhausted":
                await conn.execute(sa.insert(t.dead_letters), letter(run_id))
        await db.close()

    monkeypatch.setattr(SystemClock, "sleep", end_it)
    assert cli("trigger", "mail", "--wait").lines[1:] == said
    if "error" not in ended:
        as_json = cli("trigger", "mail", "--wait", "--json").json
        assert (as_json["result"], as_json["dead_letter_id"]) == (ended["result"], None)


def test_a_trigger_says_why_its_run_will_wait(cli):
    def said(*more):
        result = cli.ok("trigger", "mail", *more)
        assert len(result.lines) == 1 or "--json" in more
        return result.err

    assert (
        said()
        == "mail waits: no node is running; `jobrunner run MODULE` starts one (`jobrunner explain mail` tells more)\n"
    )
    cli.join("mail")
    assert said() == ""
    cli.ok("admin", "pause", "mail", "--for", "2h")
    assert said().startswith("mail waits: paused until 2")
    cli.ok("admin", "pause", "mail")
    cli.ok("admin", "disable", "mail", "--reason", "API is down")
    why = f"mail waits: disabled by {cli.audits()[-1]['actor']}: API is down ("
    assert said().startswith(why)
    assert said("--json").startswith(why)
    assert said("--key", "k").startswith(why)
    assert said("--key", "k") == ""  # no new run
    assert said("--force") == ""


def test_a_command_waits_for_a_node_that_may_run_it(cli):
    cli.ok("admin", "add", "x", "--command", "true", "--triggered")
    cli.join("mail")
    assert "a command: only nodes started with --allow-commands run it" in cli.ok("trigger", "x").err


def test_a_role_with_the_rights_that_the_readme_names_can_trigger(postgres_url, postgres, capsys):
    found = Cli(postgres_url, capsys)
    found.register(triggered("mail"))
    url = make_url(postgres_url)
    role, name = f"enqueuer_{url.database}", url.database or ""
    p = "jobrunner."
    rights = "USAGE ON SCHEMA jobrunner", f"INSERT ON {p}runs", f"SELECT ON {p}workers"
    postgres.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'", name)
    try:
        for right in rights:
            postgres.execute(f"GRANT {right} TO {role}", name)
        by_hand = f"SET ROLE {role}; INSERT INTO jobrunner.runs (worker) VALUES ('mail')"
        postgres.execute(by_hand, name)
        theirs = url.set(username=role, password="x").render_as_string(hide_password=False)
        assert "permission denied for table runs" in Cli(theirs, capsys).refused(1, "trigger", "mail")
        postgres.execute(f"GRANT SELECT ON {p}runs TO {role}", name)
        said = Cli(theirs, capsys).ok("trigger", "mail", "--key", "k").out
        assert said == f"run {WorkerOrchestrator(theirs).trigger_sync('mail', key='k')}\n"
    finally:
        postgres.execute(f"DROP OWNED BY {role}; DROP ROLE {role}", name)


def test_a_wait_with_an_end_says_that_the_run_stays(cli):
    cli.ok("admin", "disable", "mail")
    result = cli("trigger", "mail", "--wait", "--timeout", "0.3")
    run = cli.row("runs")
    *_, last = result.err.splitlines()
    stays = (
        f"run {run['id']} of mail has not ended after 0.3 s, and stays: `jobrunner runs --worker mail` shows it, "
        f"`jobrunner explain mail` says why it waits, `jobrunner admin cancel {run['id']}` cancels it"
    )
    assert (result.code, last, run["state"]) == (1, f"error: {stays}", "pending")
    result = cli("trigger", "mail", "--wait", "--wait-timeout", "0", "--json")
    assert (result.code, result.out) == (1, "")
    assert "--timeout needs --wait" in cli.refused(2, "trigger", "mail", "--timeout", "5s")
    assert "--timeout: 'soon' is no duration" in cli.refused(2, "trigger", "mail", "--wait", "--timeout", "soon")
    assert len(cli.rows("runs")) == 2


def test_an_interrupted_wait_says_so_too(cli, tmp_path):
    cli.ok("admin", "disable", "mail")
    process = start_jobrunner(f"trigger mail --wait --database-url {cli.url}", tmp_path)
    assert process.stdout is not None
    said = process.stdout.readline()
    assert process.stderr is not None
    assert process.stderr.readline().startswith("mail waits: disabled")
    time.sleep(0.5)  # until it waits
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    run = cli.row("runs")
    assert (process.returncode, said, run["state"]) == (130, f"run {run['id']}\n", "pending")
    (line,) = err.splitlines()
    assert line.startswith(f"run {run['id']} of mail has not ended, and stays: `jobrunner runs --worker mail` shows it")


def test_a_failed_attempt_is_told_before_the_time_of_the_next(cli, monkeypatch):
    """The first attempt fails before the trigger has looked at its run, the second at the next look."""
    due_at = datetime(2090, 1, 1, tzinfo=UTC)
    ends = iter([("failed", None), ("failed", "exhausted")])

    async def end_it(clock=None, seconds=0.0):
        outcome, ends_run = next(ends)
        db = Database.open(cli.url)
        async with db.write() as conn:
            run_id = (await conn.execute(sa.select(t.runs.c.id))).scalar_one()
            row = {"run_id": run_id, "fence": 1, "worker": "mail", "trigger": "manual", "error": "no luck"}
            attempt = 1 if ends_run is None else 2
            row |= {"outcome": outcome, "ends_run": ends_run, "finished_at": NOW, "attempt": attempt, "fence": attempt}
            await conn.execute(sa.insert(t.run_history), row)
            tried = {"attempt": 2, "due_at": due_at, "first_started_at": NOW}
            await conn.execute(sa.delete(t.runs) if ends_run else sa.update(t.runs).values(tried))
        await db.close()

    why_waits = trigger.why_waits

    async def fails_meanwhile(db, run_id, now):
        why = await why_waits(db, run_id, now)
        await end_it()
        return why

    said: list[str] = []
    monkeypatch.setattr(trigger, "why_waits", fails_meanwhile)
    monkeypatch.setattr(SystemClock, "sleep", end_it)
    monkeypatch.setattr(trigger, "note", said.append)
    monkeypatch.setattr(trigger, "say_folded", said.append)
    assert cli("trigger", "mail", "--wait").code == 1
    number = said[0].removeprefix("run ")
    assert said == [
        f"run {number}",
        "attempt 1 failed, to be tried again: no luck",
        f"run {number} is due at 2090-01-01 00:00:00 UTC",
        "exhausted: no luck",
    ]


def test_a_trigger_continues_the_trace_of_whoever_started_it(cli, monkeypatch):
    cli.register(triggered("mail"))
    context = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    for said, kept in ((context, context), ("nonsense", None)):
        monkeypatch.setenv("TRACEPARENT", said)
        cli.ok("trigger", "mail")
        assert cli.rows("runs")[-1]["trace_context"] == kept


def test_what_the_handler_would_refuse_is_refused_at_once(cli):
    schema = {"properties": {"to": {"type": "string"}}, "required": ["to"], "additionalProperties": False}
    cli.register(triggered("letter", payload={"to": "ada"}, payload_schema=schema))
    refused = cli.refused(2, "trigger", "letter", "--payload", '{"to": 5, "cc": "x"}')
    assert refused == "to: must be text; cc: is not known (the payload does not fit the handler of 'letter')"
    assert cli.rows("runs") == []
    cli.ok("trigger", "letter")  # the worker's own
    cli.ok("trigger", "letter", "--payload", '{"to": "bob"}')

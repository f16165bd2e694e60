"""Incidents and their messages: what opens them, who is told, what closes them."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from jobrunner.errors import AlertRuleNotFound, DatabaseUnavailable, ReadTooLong, Refused
from jobrunner.model.alerts import AlertKind, AlertRule, Incident
from jobrunner.model.run import OutcomeKind
from jobrunner.storage import nodes
from jobrunner.storage.alerts import deliveries, message, rules
from jobrunner.storage.alerts import look as looks
from jobrunner.storage.alerts.look import Look
from jobrunner.storage.reading import incidents
from jobrunner.storage.runs import dead_letters, retention
from jobrunner.storage.runs.finishes import Ended, finish
from jobrunner.storage.workers import operations
from tests.support.stage import ACTOR, Stage, triggered

CALM, SURE = 30.0, 10.0


def rule(name: str = "ops", kinds: Any = AlertKind, **more: Any) -> AlertRule:
    channel = {"type": "webhook", "url": "http://127.0.0.1:9/hook"}
    return AlertRule(name, frozenset(kinds), **{"channel": channel, **more})


async def add(stage: Stage, *made: AlertRule) -> None:
    for each in made:
        await rules.add(stage.db, each, stage.now, ACTOR)


def raised(error: Exception) -> None:
    raise error


def looking(stage: Stage, on_trouble: Callable[[Exception], None] = raised) -> Look:
    return Look(stage.db, 5.0, CALM, SURE, on_trouble)


async def look(stage: Stage, seconds: float = 5.0) -> None:
    stage.after(seconds)
    assert await looking(stage).look(stage.now)


async def look_twice(stage: Stage) -> None:
    """Look, and again when what was seen has lasted."""
    one = looking(stage)
    for seconds in (5.0, SURE):
        assert await one.look(stage.after(seconds))


async def settle(stage: Stage) -> None:
    """Look until what is over has been over for long enough."""
    await look(stage)
    await look(stage, CALM + 1)


async def told(stage: Stage, name: str = "ops") -> list[tuple[str, str]]:
    """The messages of a rule: why it is sent, and the kind of the incident."""
    rows = await stage.rows(
        "SELECT d.message, a.kind FROM {p}alert_deliveries d JOIN {p}alerts a ON a.id = d.alert_id"
        " WHERE d.rule = :rule ORDER BY d.id",
        rule=name,
    )
    return [(row["message"], row["kind"]) for row in rows]


async def send_all(stage: Stage) -> None:
    time = "'2026-03-02 12:00:00.000000'" if stage.db.is_sqlite else "now()"
    await stage.sql(f"UPDATE {{p}}alert_deliveries SET sent_at = {time} WHERE sent_at IS NULL")


async def open_kinds(stage: Stage) -> list[tuple[str, str]]:
    rows = await stage.rows("SELECT kind, subject FROM {p}alerts WHERE closed_at IS NULL ORDER BY kind, subject")
    return [(row["kind"], row["subject"]) for row in rows]


async def exhaust(stage: Stage, worker: str) -> None:
    await stage.trigger(worker)
    await stage.fail(await stage.start_one())


async def test_without_a_rule_nothing_is_noted_and_a_look_does_nothing(stage: Stage):
    await stage.register(triggered("mail", max_retries=0, max_consecutive_failures=1))
    await stage.join("n1")
    await exhaust(stage, "mail")
    assert await looking(stage).look(stage.now) is False
    assert await stage.value("SELECT count(*) FROM {p}alerts") == 0


async def test_a_dead_letter_is_told_in_the_transaction_that_writes_it(stage: Stage):
    await stage.register(triggered("mail", max_retries=0))
    await stage.join("n1")
    await add(stage, rule(kinds=[AlertKind.DEAD_LETTER]))
    await exhaust(stage, "mail")
    assert await told(stage) == [("open", "dead_letter")]
    (row,) = await stage.rows("SELECT * FROM {p}alerts")
    assert row["summary"] == "run 1 of mail was given up after 1 attempt: ValueError: no luck"
    assert (row["worker"], row["subject"], row["count"]) == ("mail", "mail", 1)


async def test_ten_thousand_failures_are_one_message_with_their_number(stage: Stage):
    await stage.register(triggered("mail", max_retries=0, max_running=1000, max_consecutive_failures=100_000))
    await stage.register(triggered("post", max_retries=0, max_running=1000, max_consecutive_failures=100_000))
    await stage.join("n1", max_concurrent=1000)
    await add(stage, rule(kinds=[AlertKind.DEAD_LETTER]))
    values = "('mail'), ('post')"
    for _ in range(10):
        await stage.sql(f"INSERT INTO {{p}}runs (worker) VALUES {', '.join([values] * 500)}")
        await stage.sql(
            "UPDATE {p}runs SET due_at = "
            + ("'2026-03-02 11:00:00.000000'" if stage.db.is_sqlite else "'2026-03-02 11:00:00+00'")
            + " WHERE state = 'pending'"
        )
        runs = await stage.tick(slots=1000)
        assert len(runs) == 1000
        await finish(stage.db, [Ended(run, stage.outcome(OutcomeKind.FAILED)) for run in runs])
    counts = await stage.rows("SELECT worker, count FROM {p}alerts ORDER BY worker")
    assert [tuple(row.values()) for row in counts] == [("mail", 5000), ("post", 5000)]
    assert await told(stage) == [("open", "dead_letter")] * 2


async def test_rows_that_a_hand_has_spoilt_keep_no_end_from_being_written(stage: Stage):
    await stage.register(triggered("mail", max_retries=0, max_consecutive_failures=1000))
    await stage.join("n1")
    await add(stage, rule(kinds=[AlertKind.DEAD_LETTER]), rule("odd"))
    await exhaust(stage, "mail")
    await stage.sql("UPDATE {p}alerts SET count = 4611686018427387904")
    await stage.sql("""UPDATE {p}alert_rules SET kinds = '["dead_letter", "of a later release", 7]', workers = '[a-'""")
    await stage.sql("UPDATE {p}alert_rules SET channel = '{{}}' WHERE name = 'odd'".replace("{{}}", "{}"))
    await exhaust(stage, "mail")
    await stage.sql("UPDATE {p}alert_rules SET workers = '*'")
    await exhaust(stage, "mail")
    assert await stage.outcomes("mail") == ["failed"] * 3
    await look(stage)


async def test_what_is_asked_of_every_second_is_found_through_indexes(stage: Stage):
    await stage.register(triggered("mail", max_retries=0))
    await stage.join("n1")
    await add(stage, rule())
    many = ", ".join(["(1, 'ops', 'repeat', '{key}', '{at}', '{at}', '{at}')"] * 500)
    at = "2026-03-02 12:00:00.000000" if stage.db.is_sqlite else "2026-03-02 12:00:00+00"
    for _ in range(4):
        keyed = "".join(part + str(uuid.uuid4()) for part in many.split("{key}")[:-1]) + many.split("{key}")[-1]
        columns = "alert_id, rule, message, idempotency_key, created_at, next_at, sent_at"
        await stage.sql(f"INSERT INTO {{p}}alert_deliveries ({columns}) VALUES {keyed.replace('{at}', at)}")
    await stage.sql("ANALYZE" if stage.db.is_sqlite else "ANALYZE {p}alert_deliveries")
    waiting = "SELECT id FROM {p}alert_deliveries WHERE rule = 'ops' AND sent_at IS NULL AND given_up_at IS NULL"
    explain = "EXPLAIN QUERY PLAN " if stage.db.is_sqlite else "EXPLAIN "
    plan = "\n".join(str(list(row.values())[-1]) for row in await stage.rows(f"{explain}{waiting} ORDER BY id LIMIT 1"))
    assert "ix_alert_deliveries_waiting" in plan


async def test_an_incident_is_told_again_after_its_time_if_it_has_happened_again(stage: Stage):
    await stage.register(triggered("mail", max_retries=0, max_consecutive_failures=1000))
    await stage.join("n1")
    await add(stage, rule(kinds=[AlertKind.DEAD_LETTER], repeat_seconds=600))
    await exhaust(stage, "mail")
    await send_all(stage)
    await look(stage, 700)
    assert await told(stage) == [("open", "dead_letter")]  # nothing new
    await exhaust(stage, "mail")
    await look(stage, 60)
    assert await told(stage) == [("open", "dead_letter"), ("repeat", "dead_letter")]
    await send_all(stage)
    await exhaust(stage, "mail")
    await look(stage, 500)
    assert len(await told(stage)) == 2  # too soon
    await look(stage, 200)
    assert len(await told(stage)) == 3


async def test_a_message_that_waits_is_not_followed_by_another(stage: Stage):
    await stage.register(triggered("mail", max_retries=0, max_consecutive_failures=1000))
    await stage.join("n1")
    await add(stage, rule(kinds=[AlertKind.DEAD_LETTER], repeat_seconds=60))
    await exhaust(stage, "mail")
    for _ in range(3):
        await exhaust(stage, "mail")
        await look(stage, 100)
    assert await told(stage) == [("open", "dead_letter")]


async def test_an_incident_of_letters_closes_when_none_is_open_any_more(stage: Stage):
    await stage.register(triggered("mail", max_retries=0, max_consecutive_failures=1000))
    await stage.join("n1")
    await add(stage, rule(kinds=[AlertKind.DEAD_LETTER]))
    await exhaust(stage, "mail")
    await settle(stage)
    assert await open_kinds(stage) == [("dead_letter", "mail")]
    await dead_letters.discard(stage.db, dead_letters.Chosen((1,)), stage.now, ACTOR)
    await settle(stage)
    assert await told(stage) == [("open", "dead_letter"), ("close", "dead_letter")]
    said = await stage.value("SELECT recovered FROM {p}alerts")
    assert said == "mail: recovered after 72 s (dead_letter): its dead letters are replayed or discarded"


async def test_a_circuit_that_opens_is_told_and_its_closing_too(stage: Stage):
    await stage.register(triggered("mail", max_retries=0, max_consecutive_failures=1))
    await stage.join("n1")
    await add(stage, rule(kinds=[AlertKind.TRIPPED, AlertKind.CLOSED]))
    await exhaust(stage, "mail")
    assert await told(stage) == [("open", "tripped")]
    await settle(stage)
    assert await open_kinds(stage) == [("tripped", "mail")]
    await operations.enable(stage.db, "mail", stage.now, ACTOR)
    assert await told(stage) == [("open", "tripped"), ("open", "closed")]
    await settle(stage)
    assert await told(stage) == [("open", "tripped"), ("open", "closed"), ("close", "tripped")]
    assert await open_kinds(stage) == []


async def test_a_probe_that_succeeds_is_told(stage: Stage):
    await stage.register(triggered("mail", max_retries=0, max_consecutive_failures=1, cooldown_seconds=60))
    await stage.join("n1")
    await add(stage, rule(kinds=[AlertKind.TRIPPED, AlertKind.CLOSED]))
    await exhaust(stage, "mail")
    await stage.trigger("mail")
    stage.after(61)
    await stage.end(await stage.start_one())
    (row,) = await stage.rows("SELECT * FROM {p}alerts WHERE kind = 'closed'")
    assert row["summary"] == "the circuit of mail closed: the probe succeeded"
    assert row["closed_at"] is not None


async def test_a_lost_node_is_told_and_its_host_that_is_back(stage: Stage):
    await add(stage, rule(kinds=[AlertKind.NODE_LOST], workers="other"))
    seen = await stage.join("n1")
    async with stage.db.write() as conn:
        assert await nodes.declare_lost(conn, stage.db.dialect, seen, stage.now, "it is silent")
    assert await open_kinds(stage) == [("node_lost", "n1")]
    await settle(stage)
    assert await told(stage) == [("open", "node_lost")]
    await stage.sql("DELETE FROM {p}node_handlers")
    await stage.sql("UPDATE {p}nodes SET state = 'active'")
    await settle(stage)
    assert await told(stage) == [("open", "node_lost"), ("close", "node_lost")]


async def test_a_lost_node_is_no_incident_for_ever(stage: Stage):
    await add(stage, rule(kinds=[AlertKind.NODE_LOST]))
    seen = await stage.join("n1")
    async with stage.db.write() as conn:
        await nodes.declare_lost(conn, stage.db.dialect, seen, stage.now, "it is silent")
    stage.after(1000)
    await settle(stage)
    assert await told(stage) == [("open", "node_lost"), ("close", "node_lost")]


async def test_a_worker_that_fails_is_told_and_its_success(stage: Stage):
    await stage.register(triggered("mail", max_retries=0))
    await stage.join("n1")
    await add(stage, rule(kinds=[AlertKind.FAILING]))
    await exhaust(stage, "mail")
    await look(stage)
    assert await told(stage) == [("open", "failing")]
    assert await stage.value("SELECT summary FROM {p}alerts") == "mail fails: 1 run in a row; the last: no luck"
    await stage.trigger("mail")
    await stage.end(await stage.start_one())
    await settle(stage)
    assert await told(stage) == [("open", "failing"), ("close", "failing")]
    said = await stage.value("SELECT recovered FROM {p}alerts")
    assert said.startswith("mail: recovered after 36 s (failing): mail is ")


async def test_a_worker_whose_circuit_opens_has_not_recovered(stage: Stage):
    await stage.register(triggered("mail", max_retries=0, max_consecutive_failures=2))
    await stage.join("n1")
    await add(stage, rule(kinds=[AlertKind.FAILING]))
    await exhaust(stage, "mail")
    await look(stage)
    await exhaust(stage, "mail")
    await settle(stage)
    await settle(stage)
    assert await told(stage) == [("open", "failing")]
    assert await open_kinds(stage) == [("failing", "mail")]


async def test_a_worker_that_fails_every_other_time_is_one_incident(stage: Stage):
    await stage.register(triggered("mail", max_retries=0))
    await stage.join("n1")
    await add(stage, rule(kinds=[AlertKind.FAILING]))
    for _ in range(3):
        await exhaust(stage, "mail")
        await look(stage)
        await stage.trigger("mail")
        await stage.end(await stage.start_one())
        await look(stage)
    assert await told(stage) == [("open", "failing")]


async def test_a_worker_that_does_not_start_and_one_that_nobody_can_run_are_told(stage: Stage):
    await stage.register(triggered("mail"), triggered("lonely"))
    await stage.join("n1", ["mail"])
    await stage.trigger("mail")  # by the database's clock, months ago
    await add(stage, rule(kinds=[AlertKind.STALLED, AlertKind.NO_NODE]))
    await look_twice(stage)
    assert await open_kinds(stage) == [("no_node", "lonely"), ("stalled", "mail")]
    await stage.sql("DELETE FROM {p}runs")
    await stage.sql("INSERT INTO {p}node_handlers (worker, node_id) VALUES ('lonely', 'n1')")
    await settle(stage)
    assert await open_kinds(stage) == []
    assert sorted(await told(stage)) == sorted(
        [("open", "no_node"), ("open", "stalled"), ("close", "no_node"), ("close", "stalled")]
    )


async def test_a_worker_that_starts_late_is_told(stage: Stage):
    await stage.register(triggered("mail"))
    await stage.join("n1")
    await add(stage, rule(kinds=[AlertKind.LATE]))
    for _ in range(7):
        await stage.trigger("mail")
        await stage.end(await stage.start_one())
    await stage.trigger("mail")
    stage.after(40)
    await stage.end(await stage.start_one())
    await look_twice(stage)
    assert await told(stage) == [("open", "late")]


async def test_a_run_that_takes_too_long_is_told(stage: Stage):
    await stage.register(triggered("mail"))
    await stage.join("n1")
    await add(stage, rule(kinds=[AlertKind.SLOW]))
    for _ in range(7):
        await stage.trigger("mail")
        await stage.end(await stage.start_one())
    await stage.trigger("mail")
    await stage.start_one()  # by the database's clock, months ago
    await look_twice(stage)
    assert await told(stage) == [("open", "slow")]


async def test_a_backlog_is_told_to_whom_it_is_long_enough(stage: Stage):
    await stage.register(triggered("mail"), triggered("post"))
    await stage.join("n1")
    await add(
        stage,
        rule("few", [AlertKind.BACKLOG], backlog_runs=10),
        rule("many", [AlertKind.BACKLOG], backlog_runs=20),
    )
    await stage.sql(f"INSERT INTO {{p}}runs (worker) VALUES {', '.join([chr(40) + repr('mail') + chr(41)] * 15)}")
    await look_twice(stage)
    assert (await told(stage, "few"), await told(stage, "many")) == ([("open", "backlog")], [])
    assert await stage.value("SELECT summary FROM {p}alerts") == "15 runs of mail wait"
    await stage.sql(f"INSERT INTO {{p}}runs (worker) VALUES {', '.join([chr(40) + repr('mail') + chr(41)] * 15)}")
    await look(stage)
    assert await told(stage, "many") == [("open", "backlog")]
    await stage.sql("DELETE FROM {p}runs")
    await settle(stage)
    assert await told(stage, "many") == [("open", "backlog"), ("close", "backlog")]


async def test_a_rule_is_told_of_the_workers_that_fit_its_patterns(stage: Stage):
    await stage.register(*(triggered(name, max_retries=0) for name in ("send-mail", "report", "other")))
    await stage.join("n1")
    await add(stage, rule("mails", workers="send-*,report"), rule("all", [AlertKind.DEAD_LETTER]))
    for name in ("send-mail", "report", "other"):
        await exhaust(stage, name)
    assert len([each for each in await told(stage, "mails") if each[1] == "dead_letter"]) == 2
    assert len(await told(stage, "all")) == 3


async def test_a_rule_that_comes_later_is_told_of_what_is_open(stage: Stage):
    await stage.register(triggered("mail", max_retries=0))
    await stage.join("n1")
    await add(stage, rule("first", [AlertKind.DEAD_LETTER]))
    await exhaust(stage, "mail")
    await add(stage, rule("second", [AlertKind.DEAD_LETTER]))
    await look(stage)
    assert await told(stage, "second") == [("open", "dead_letter")]
    assert await told(stage, "first") == [("open", "dead_letter")]


async def test_of_two_looks_at_once_one_writes(stage: Stage, other_stage: Stage):
    await stage.register(triggered("mail", max_retries=0))
    await stage.join("n1")
    await add(stage, rule(kinds=[AlertKind.FAILING], repeat_seconds=1))
    await exhaust(stage, "mail")
    await look(stage)
    await send_all(stage)
    now = stage.after(10)
    first, second = looking(stage), looking(other_stage)
    assert await first.look(now)
    assert await second.look(now)
    assert await told(stage) == [("open", "failing"), ("repeat", "failing")]


async def test_looks_go_round_among_many_workers(stage: Stage):
    await stage.register(*(triggered(f"w{number:03}") for number in range(450)))
    await add(stage, rule(kinds=[AlertKind.NO_NODE]))
    one = looking(stage)
    for _ in range(6):
        await one.look(stage.after(5))
    assert len(await open_kinds(stage)) == 450


async def test_what_looks_bad_for_a_moment_is_not_told(stage: Stage):
    names = [f"w{number}" for number in range(5)]
    await stage.register(*(triggered(name) for name in names))
    await stage.join("n1", names)
    await add(stage, rule())
    await stage.sql("DELETE FROM {p}node_handlers")  # the only node starts anew
    one = looking(stage)
    await one.look(stage.after(5))
    assert await stage.value("SELECT count(*) FROM {p}worker_status WHERE health = 'no_node'") == 5
    values = ", ".join(f"('{name}', 'n1')" for name in names)
    await stage.sql(f"INSERT INTO {{p}}node_handlers (worker, node_id) VALUES {values}")
    for _ in range(4):
        await one.look(stage.after(SURE))
    assert await open_kinds(stage) == []


async def test_what_was_suspected_before_an_outage_must_last_anew(stage: Stage):
    await stage.register(triggered("mail"))
    await add(stage, rule(kinds=[AlertKind.NO_NODE]))
    one = looking(stage)
    await one.look(stage.after(5))
    one.forget()
    await one.look(stage.after(SURE))
    assert await open_kinds(stage) == []
    await one.look(stage.after(SURE))
    assert await open_kinds(stage) == [("no_node", "mail")]


async def test_a_part_of_a_look_that_fails_stops_no_other(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    await stage.register(triggered("mail", max_retries=0, max_consecutive_failures=1000))
    await stage.join("n1")
    await add(stage, rule())
    await exhaust(stage, "mail")
    troubles: list[Exception] = []

    async def too_long(*_: Any) -> Any:
        raise ReadTooLong(2.0)

    monkeypatch.setattr(looks, "_resolved", too_long)
    await looking(stage, troubles.append).look(stage.after(5))
    assert [type(each) for each in troubles] == [ReadTooLong]
    assert await open_kinds(stage) == [("dead_letter", "mail"), ("failing", "mail")]

    async def gone(*_: Any) -> Any:
        raise DatabaseUnavailable("the server is gone")

    monkeypatch.setattr(looks, "_resolved", gone)
    with pytest.raises(DatabaseUnavailable):
        await looking(stage, troubles.append).look(stage.after(5))


async def test_workers_that_cannot_be_read_are_not_taken_for_gone(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    await stage.register(triggered("mail"))
    await add(stage, rule(kinds=[AlertKind.NO_NODE]))
    await look_twice(stage)

    async def too_long(*_: Any) -> Any:
        raise ReadTooLong(2.0)

    monkeypatch.setattr(looks, "_read_seen", too_long)
    one = looking(stage, lambda _: None)
    for _ in range(3):
        await one.look(stage.after(CALM))
    assert await open_kinds(stage) == [("no_node", "mail")]


async def test_letters_of_one_end_are_over_only_when_all_of_them_are(stage: Stage):
    await stage.register(triggered("mail", max_retries=0, max_running=10, max_consecutive_failures=1000))
    await stage.join("n1")
    await add(stage, rule(kinds=[AlertKind.DEAD_LETTER]))
    for _ in range(2):
        await stage.trigger("mail")
    first, second = await stage.tick(slots=2)
    begun = stage.now
    early = stage.outcome(OutcomeKind.FAILED)
    stage.after(20)
    await finish(stage.db, [Ended(first, early), Ended(second, stage.outcome(OutcomeKind.FAILED))])
    async with stage.db.read() as conn:
        (incident,) = await incidents.list_incidents(conn, 10)
    assert (incident["opened_at"], incident["last_at"], incident["count"]) == (begun, stage.now, 2)
    late = await stage.value("SELECT max(id) FROM {p}dead_letters")
    await dead_letters.discard(stage.db, dead_letters.Chosen((late,)), stage.now, ACTOR)
    await settle(stage)
    assert await open_kinds(stage) == [("dead_letter", "mail")]


async def test_a_letter_that_is_written_later_than_it_died_keeps_its_incident_open(stage: Stage):
    await stage.register(triggered("mail", max_retries=0, max_running=10, max_consecutive_failures=1000))
    await stage.join("n1")
    await add(stage, rule(kinds=[AlertKind.DEAD_LETTER]))
    for _ in range(2):
        await stage.trigger("mail")
    kept, run = await stage.tick(slots=2)
    early = stage.outcome(OutcomeKind.FAILED)
    stage.after(20)
    await finish(stage.db, [Ended(run, stage.outcome(OutcomeKind.FAILED))])
    await finish(stage.db, [Ended(kept, early)])
    first = await stage.value("SELECT min(id) FROM {p}dead_letters")
    await dead_letters.discard(stage.db, dead_letters.Chosen((first,)), stage.now, ACTOR)
    await settle(stage)
    assert await open_kinds(stage) == [("dead_letter", "mail")]


async def test_of_thousands_of_open_letters_a_look_reads_a_few(stage: Stage):
    await stage.register(triggered("mail", max_retries=0), triggered("post", max_retries=0))
    await stage.join("n1")
    await add(stage, rule(kinds=[AlertKind.DEAD_LETTER]))
    await exhaust(stage, "mail")
    for worker in ("mail", "post"):
        await stage.sql(
            "INSERT INTO {p}dead_letters (run_id, worker, trigger, priority, scheduled_for, payload, attempts, errors,"
            f" died_at) SELECT h.n + {1000 if worker == 'mail' else 9000}, '{worker}', trigger, priority,"
            " scheduled_for, payload, attempts, errors, died_at FROM {p}dead_letters,"
            " (WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 5000) SELECT n FROM c) h"
            " WHERE id = 1"
        )
    if not stage.db.is_sqlite:
        await stage.sql("ANALYZE {p}dead_letters")
    what = Incident(1, AlertKind.DEAD_LETTER, "mail", "mail", stage.now, stage.now, 1)
    async with stage.db.read() as conn:
        asked: list[Any] = []

        def note(_: Any, __: Any, statement: str, values: Any, *___: Any) -> None:
            asked.append((statement, values))

        sa.event.listen(conn.sync_connection, "before_cursor_execute", note)
        assert await looks._resolved(conn, [what]) == frozenset()
        (statement, values) = asked[0]
        explain = "EXPLAIN QUERY PLAN " if stage.db.is_sqlite else "EXPLAIN (ANALYZE) "
        plan = [str(row[-1]) for row in (await conn.exec_driver_sql(explain + statement, values)).all()]
    assert any("ix_dead_letters_open" in line for line in plan), plan
    assert not any("TEMP B-TREE" in line or "Sort" in line for line in plan), plan


async def test_an_incident_of_a_worker_that_is_gone_closes(stage: Stage):
    await stage.register(triggered("mail"))
    await add(stage, rule(kinds=[AlertKind.NO_NODE]))
    await look_twice(stage)
    assert await open_kinds(stage) == [("no_node", "mail")]
    await operations.remove(stage.db, "mail", stage.now, ACTOR)
    await settle(stage)
    assert await stage.value("SELECT recovered FROM {p}alerts") == (
        "mail: recovered after 36 s (no_node): the worker was removed"
    )


async def test_a_message_says_what_is_wrong_why_and_where_but_nothing_of_the_payload(stage: Stage):
    hidden = {"max_retries": 0, "max_consecutive_failures": 1, "hidden_fields": ("card",)}
    await stage.register(triggered("mail", **hidden))
    await stage.join("n1")
    await add(stage, rule(kinds=[AlertKind.TRIPPED]))
    await stage.trigger("mail", payload={"card": "4111-1111"})
    output = "\n".join(f"line {number}" for number in range(30))
    await stage.fail(await stage.start_one(), output=output)
    await stage.trigger("mail")
    found = await deliveries.next_of(stage.db, "ops", stage.now)
    assert found is not None
    body = await message.make(stage.db, found, "https://jobs.example.org/", stage.now)
    assert (body["kind"], body["worker"]) == ("tripped", "mail")
    assert body["summary"].startswith("the circuit of mail opened: 1 run in a row failed")
    assert body["explain"].startswith("disabled by its circuit")
    assert body["last_error"] == "ValueError: no luck"
    assert body["output"] == [f"line {number}" for number in range(10, 30)]
    assert body["link"] == "https://jobs.example.org/workers/mail"
    assert (body["message"], body["rule"], body["count"], body["closed_at"]) == ("open", "ops", 1, None)
    assert body["opened_at"] == "2026-03-02T12:00:00.000000Z"
    assert "4111" not in str(body)


async def test_a_rule_is_taken_by_one_living_node_and_by_another_when_that_is_lost(stage: Stage):
    await stage.register(triggered("mail", max_retries=0))
    first = await stage.join("n1")
    await stage.join("n2")
    await add(stage, rule())
    await exhaust(stage, "mail")

    async def due(node: str) -> list[str]:
        async with stage.db.peek() as conn:
            return [name for name, _ in await deliveries.due_rules(conn, node, stage.now)]

    assert await due("n1") == await due("n2") == ["ops"]
    assert await deliveries.take(stage.db, "ops", "n1")
    assert not await deliveries.take(stage.db, "ops", "n2")
    assert (await due("n1"), await due("n2")) == (["ops"], [])
    async with stage.db.write() as conn:
        await nodes.declare_lost(conn, stage.db.dialect, first, stage.now, "it is silent")
    assert await due("n2") == ["ops"]
    assert await deliveries.take(stage.db, "ops", "n2")
    await deliveries.release(stage.db, "ops", "n1")  # too late: it is no longer its own
    assert not await deliveries.take(stage.db, "ops", "n1")


async def test_a_message_that_is_not_taken_waits_longer_each_time_and_is_given_up_in_the_end(stage: Stage):
    await stage.register(triggered("mail", max_retries=0))
    await stage.join("n1")
    await add(stage, rule(kinds=[AlertKind.DEAD_LETTER]))
    await exhaust(stage, "mail")
    waits = []
    for _ in range(4):
        found = await deliveries.next_of(stage.db, "ops", stage.now)
        assert found is not None
        await deliveries.note_failed(stage.db, found, OSError("away"), stage.now, 0.0)
        assert await deliveries.next_of(stage.db, "ops", stage.now) is None
        (row,) = await stage.rows("SELECT next_at, last_error, attempts FROM {p}alert_deliveries")
        waits.append((stage.time(row["next_at"]) - stage.now).total_seconds())
        stage.now = stage.time(row["next_at"])
    assert waits == [1, 2, 4, 8]
    stage.after(3 * 86400)
    found = await deliveries.next_of(stage.db, "ops", stage.now)
    assert found is not None
    await deliveries.note_failed(stage.db, found, OSError("away"), stage.now, 0.0)
    assert await stage.value("SELECT given_up_at IS NOT NULL FROM {p}alert_deliveries")
    assert await deliveries.next_of(stage.db, "ops", stage.now) is None


async def test_a_rule_can_be_removed_and_its_incidents_close_untold(stage: Stage):
    await stage.register(triggered("mail", max_retries=0))
    await stage.join("n1")
    await add(stage, rule("first", [AlertKind.DEAD_LETTER]), rule("second", [AlertKind.SLOW]))
    await exhaust(stage, "mail")
    assert await rules.remove(stage.db, "first", stage.now, ACTOR) == 1
    with pytest.raises(AlertRuleNotFound):
        await rules.remove(stage.db, "first", stage.now, ACTOR)
    await look(stage)
    assert await open_kinds(stage) == []
    assert await stage.value("SELECT count(*) FROM {p}alert_deliveries") == 0
    assert await stage.column("SELECT action FROM {p}audit_log WHERE action LIKE 'alert%' ORDER BY id") == [
        "alert_add",
        "alert_add",
        "alert_remove",
    ]
    with pytest.raises(Refused, match="there is an alert rule 'second' already"):
        await add(stage, rule("second"))


async def test_what_is_old_is_pruned_but_no_message_that_waits(stage: Stage):
    await stage.register(triggered("mail", max_retries=0, max_consecutive_failures=1))
    await stage.join("n1")
    await add(stage, rule(kinds=[AlertKind.CLOSED]))
    await exhaust(stage, "mail")
    await operations.enable(stage.db, "mail", stage.now, ACTOR)
    later = stage.after(100 * 86400)
    assert (await retention.prune(stage.db, later, 30, 90)).alerts == 0
    await send_all(stage)
    assert (await retention.prune(stage.db, later, 30, 90)).alerts == 1
    async with stage.db.peek() as conn:
        assert await incidents.list_incidents(conn, 10, is_all=True) == []
        assert await incidents.count_waiting(conn, 10) == 0
    assert await stage.value("SELECT count(*) FROM {p}alert_deliveries") == 0

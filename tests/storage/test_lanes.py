"""What `/upcoming`, `/nodes` and `/alerts` read: what ran lately, which runs nodes hold, whom an incident told."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa

from jobrunner.storage.reading.deliveries import MOST_OF_EACH, list_waiting, read_told, told_to
from jobrunner.storage.reading.held import read_held
from jobrunner.storage.reading.lanes import MOST_LANES, MOST_SPANS, MOST_TIMES, read_lanes, read_planned
from jobrunner.storage.tables import define as t
from jobrunner.storage.workers.switching import pausing, switch_one
from tests.support.stage import Stage, scheduled, triggered

HOURS = timedelta(hours=1)


async def lanes_of(stage: Stage, *names: str, past: timedelta = 6 * HOURS):
    async with stage.db.read() as conn:
        return await read_lanes(conn, stage.db.dialect, stage.now, stage.now - past, names)


async def planned_by(stage: Stage, ahead: timedelta = 24 * HOURS, worker: str | None = None):
    async with stage.db.read() as conn:
        return await read_planned(conn, stage.now, stage.now + ahead, worker)


async def test_a_lane_has_what_ended_since_then_and_what_runs(stage: Stage):
    await stage.register(scheduled("fetch", interval_seconds=3600, max_running=1), triggered("other"))
    await stage.join("n1")
    (old,) = await stage.tick()
    stage.after(10)
    await stage.end(old)
    planned = (await stage.state("fetch")).next_run_at
    assert planned is not None
    stage.after((planned - stage.now).total_seconds() + 2)
    (failed,) = await stage.tick()
    stage.after(30)
    await stage.fail(failed)
    stage.after(3 * 3600)
    (running,) = await stage.tick()
    stage.after(5)
    lane = (await lanes_of(stage, "fetch", past=stage.now - planned))["fetch"]
    spans = [(span.outcome, span.run_id) for span in lane.spans if span.outcome != "missed"]
    assert spans == [("failed", failed.id), ("running", running.id)]
    first = lane.spans[0]
    assert (first.planned_at, first.ends_at - first.begins_at) == (planned, timedelta(seconds=30))
    assert lane.spans[-1].ends_at == stage.now
    assert lane.cut_at is None


async def test_a_lane_is_of_the_named_workers_only(stage: Stage):
    await stage.register(triggered("one"), triggered("two"))
    await stage.join("n1")
    for name in ("one", "two"):
        await stage.trigger(name)
    await stage.run_once()
    found = await lanes_of(stage, "two", "gone")
    assert {name: len(lane.spans) for name, lane in found.items()} == {"two": 1, "gone": 0}
    assert await lanes_of(stage) == {}


async def test_of_many_attempts_the_newest_are_read_and_it_is_said_from_when_on(stage: Stage):
    await stage.register(triggered("busy"))
    rows = [
        {
            "run_id": number,
            "fence": number,
            "worker": "busy",
            "trigger": "manual",
            "attempt": 1,
            "outcome": "succeeded",
            "started_at": stage.now - timedelta(seconds=1000 - number),
            "finished_at": stage.now - timedelta(seconds=1000 - number),
        }
        for number in range(MOST_SPANS + 20)
    ]
    async with stage.db.write() as conn:
        await conn.execute(sa.insert(t.run_history), rows)
    lane = (await lanes_of(stage, "busy"))["busy"]
    assert len(lane.spans) == MOST_SPANS
    assert lane.cut_at == lane.spans[0].ends_at == stage.now - timedelta(seconds=1000 - 20)


async def test_the_plan_has_every_time_of_a_schedule_and_the_runs_that_wait_for_theirs(stage: Stage):
    await stage.register(
        scheduled("hourly", interval_seconds=3600), triggered("mail"), scheduled("fast", interval_seconds=1)
    )
    run_id = await stage.trigger("mail", due_at=stage.now + HOURS)
    planned = await planned_by(stage)
    assert [row.run_id for row in planned.times["mail"]] == [run_id]
    assert 24 <= len(planned.times["hourly"]) <= 25
    assert (len(planned.times["fast"]), planned.has_more) == (MOST_TIMES, {"fast"})
    assert not planned.is_cut
    assert set((await planned_by(stage, worker="hourly")).times) == {"hourly"}


async def test_more_workers_than_there_are_lanes_are_cut_and_that_is_said(stage: Stage):
    await stage.register(*(scheduled(f"w{number:02}", interval_seconds=3600) for number in range(MOST_LANES + 1)))
    planned = await planned_by(stage)
    assert (len(planned.times), planned.is_cut) == (MOST_LANES, True)


async def test_a_disabled_schedule_keeps_its_lane_and_says_why(stage: Stage):
    await stage.register(scheduled("off", interval_seconds=60))
    await stage.sql(
        "UPDATE {p}worker_state SET is_enabled = false, disabled_by = 'operator', disabled_actor = 'ann',"
        " next_run_at = NULL"
    )
    planned = await planned_by(stage)
    (row,) = planned.times["off"]
    assert planned.held == {"off": None}
    assert row.due_at is None
    assert "disabled" in (row.note or "")


async def test_the_runs_that_nodes_hold_are_found_by_node_and_bounded(stage: Stage):
    await stage.register(triggered("mail", max_running=5))
    await stage.join("n1")
    await stage.join("n2")
    for _ in range(3):
        await stage.trigger("mail")
    first = await stage.tick(slots=2, node="n1")
    (second,) = await stage.tick(slots=2, node="n2")
    async with stage.db.read() as conn:
        held = await read_held(conn, ["n1", "n2"])
        one = await read_held(conn, ["n1"], most=1)
        none = await read_held(conn, [])
    assert {name: [run.id for run in runs] for name, runs in held.runs.items()} == {
        "n1": [run.id for run in first],
        "n2": [second.id],
    }
    assert not held.is_cut
    assert (len(one.runs["n1"]), one.is_cut) == (1, True)
    assert none.runs == {}


def message(stage: Stage, incident: int, rule: str, number: int, **more: object) -> dict[str, object]:
    row = {
        "alert_id": incident,
        "rule": rule,
        "message": "repeat",
        "idempotency_key": f"{incident}-{rule}-{number}",
        "created_at": stage.now + timedelta(seconds=number),
        "next_at": stage.now,
        "attempts": 0,
        "sent_at": None,
        "given_up_at": None,
        "last_error": None,
    }
    return {**row, **more}


async def test_whom_an_incident_told_is_how_the_newest_message_of_each_rule_stands(stage: Stage):
    sent = stage.now + timedelta(minutes=1)
    async with stage.db.write() as conn:
        rows = [
            message(stage, 1, "mail", 1, last_error="refused"),
            message(stage, 1, "mail", 2, sent_at=sent),
            message(stage, 1, "chat", 3, last_error="no route"),
            message(stage, 1, "page", 4, given_up_at=sent),
            message(stage, 2, "mail", 5),
        ]
        await conn.execute(sa.insert(t.alert_deliveries), rows)
    async with stage.db.read() as conn:
        told = await read_told(conn, [1, 3])
        waiting = await list_waiting(conn, 2)
    assert set(told) == {1}
    assert [(rule, word, count) for rule, word, _, count, _ in told_to(told[1])] == [
        ("chat", "waits", 1),
        ("mail", "told", 2),
        ("page", "given up", 1),
    ]
    assert [(row["rule"], row["alert_id"]) for row in waiting] == [("chat", 1), ("mail", 1)]


async def test_messages_of_one_incident_are_bounded(stage: Stage):
    async with stage.db.write() as conn:
        rows = [message(stage, 1, "mail", number, sent_at=stage.now) for number in range(MOST_OF_EACH + 5)]
        await conn.execute(sa.insert(t.alert_deliveries), [*rows, message(stage, 1, "chat", 99)])
    async with stage.db.read() as conn:
        told = await read_told(conn, [1])
    assert len(told[1]) == MOST_OF_EACH
    assert [row["rule"] for row in told[1][:2]] == ["chat", "mail"]


async def test_a_paused_schedule_is_held_until_its_pause_ends(stage: Stage):
    await stage.register(scheduled("hourly", interval_seconds=3600), scheduled("other", interval_seconds=3600))
    until = stage.now + timedelta(hours=3)
    await switch_one(stage.db, "hourly", stage.now, "ann", pausing(until, None))
    assert (await planned_by(stage)).held == {"hourly": until}

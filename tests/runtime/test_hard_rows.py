"""Rows that cannot be read or used hurt their own run or worker, and are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import sqlalchemy as sa

from jobrunner import WorkerOptions, WorkerOrchestrator
from jobrunner.errors import Refused
from jobrunner.storage import nodes
from jobrunner.storage.reading.explain import explain
from jobrunner.storage.runs import dead_letters, finishes
from jobrunner.storage.runs.dead_letters import Chosen
from jobrunner.storage.tables import define as t
from jobrunner.telemetry import events as e
from jobrunner.testing import ManualClock
from tests.runtime.conftest import House

TRIGGERED: WorkerOptions = {"execution_mode": "triggered"}
DEEP = '{"n":' + "[" * 700 + "]" * 700 + "}"


async def nothing() -> None: ...


async def fails() -> None:
    raise ValueError("no luck")


def fails_after(let_go: asyncio.Event) -> Callable[[], Coroutine[Any, Any, None]]:
    async def handler() -> None:
        await let_go.wait()
        raise ValueError("no luck")

    return handler


def with_workers(house: House, **settings: object) -> WorkerOrchestrator:
    orchestrator = house.orchestrator(**settings)
    orchestrator.register_worker("hurt", nothing, **TRIGGERED)
    orchestrator.register_worker("healthy", nothing, **TRIGGERED)
    return orchestrator


def warnings(house: House) -> str:
    return "\n".join(event.message for event in house.seen if isinstance(event, e.Warned))


async def bad_run(house: House, payload: str = DEEP) -> None:
    await house.sql(f"INSERT INTO {{p}}runs (worker, payload) VALUES ('hurt', '{payload}')")


async def test_a_payload_that_cannot_be_read_ends_its_run_discarded_with_a_letter(house: House):
    orchestrator = with_workers(house)
    await orchestrator.start()
    await bad_run(house)
    await house.attempts(1, "hurt")
    (row,) = await house.history("hurt")
    assert (row["outcome"], row["ends_run"], row["error_type"]) == ("failed", "discarded", "Unreadable")
    assert row["error"] == "its payload cannot be read: it is nested 701 deep, the most is 500"
    (letter,) = await house.rows("SELECT * FROM {p}dead_letters")
    assert (letter["error"], letter["status"]) == (row["error"], "open")
    assert (await house.state("hurt"))["consecutive_failures"] == 0
    await orchestrator.trigger_worker("healthy")
    await house.attempts(1, "healthy")


async def test_it_is_the_same_under_load_where_runs_are_claimed_by_the_set(house: House):
    orchestrator = with_workers(house, max_concurrent=2)
    await orchestrator.start()
    await orchestrator.trigger_many("healthy", [{}] * 50)
    await orchestrator.trigger_many("hurt", [{}] * 5)
    await bad_run(house)
    await orchestrator.trigger_many("hurt", [{}] * 5)
    await house.attempts(50, "healthy")
    ends = await house.attempts(11, "hurt")
    assert sorted(end.outcome.error_type or "" for end in ends) == [""] * 10 + ["Unreadable"]


async def test_a_letter_without_a_readable_payload_is_replayed_with_another_one_only(house: House):
    orchestrator = with_workers(house)
    await orchestrator.start()
    await bad_run(house)
    await house.attempts(1, "hurt")
    (letter,) = await house.rows("SELECT id FROM {p}dead_letters")
    now = orchestrator.clock.now()
    with pytest.raises(Refused, match="no payload that can be read"):
        await dead_letters.replay(house.db, Chosen(ids=(letter["id"],)), now, "me")
    held = await dead_letters.replay(house.db, Chosen(worker="hurt"), now, "me")
    assert held.held_back == (letter["id"],)
    await dead_letters.replay(house.db, Chosen(ids=(letter["id"],)), now, "me", payload={"n": 1})
    ends = await house.attempts(2, "hurt")
    assert ends[-1].outcome.kind == "succeeded"


async def test_a_worker_whose_own_payload_cannot_be_read_is_set_aside_and_says_so(house: House):
    orchestrator = with_workers(house)
    await orchestrator.start()
    await house.sql(f"UPDATE {{p}}workers SET payload = '{DEEP}' WHERE name = 'hurt'")
    await house.sql("INSERT INTO {p}runs (worker) VALUES ('hurt')")
    await orchestrator.trigger_worker("healthy")
    await house.attempts(1, "healthy")
    answer = await explain(house.db, "hurt", orchestrator.clock.now())
    said = {gate["gate"]: gate["reason"] for gate in answer["gates"] if not gate["open"]}
    assert said["handler"].startswith("set aside: its payload cannot be read: it is nested 701 deep")
    await house.sql("UPDATE {p}workers SET payload = '{}' WHERE name = 'hurt'")
    await house.sql("INSERT INTO {p}runs (worker) VALUES ('hurt')")  # it wakes the node
    await house.attempts(2, "hurt")


@pytest.mark.parametrize(("column", "value"), [("cron", "nonsense"), ("timezone", "Mars/Nowhere")])
async def test_a_schedule_that_cannot_be_used_stops_itself_alone(column: str, value: str, house: House):
    clock = ManualClock()
    orchestrator = house.orchestrator(clock=clock)
    orchestrator.register_worker("hurt", nothing, cron="* * * * *")
    orchestrator.register_worker("healthy", nothing, cron="* * * * *")
    await orchestrator.start()
    await house.sql(f"UPDATE {{p}}workers SET {column} = '{value}' WHERE name = 'hurt'")
    clock.advance(60)
    await house.attempts(1, "healthy")
    await house.until_row("SELECT worker FROM {p}worker_state WHERE worker = 'hurt' AND next_run_at IS NULL")
    assert "its schedule cannot be used" in (await house.state("hurt"))["last_error"]
    answer = await explain(house.db, "hurt", clock.now())
    assert "its schedule cannot be used" in next(g["reason"] for g in answer["gates"] if g["gate"] == "due")
    await orchestrator.trigger_worker("hurt")  # a trigger asks no schedule
    await house.attempts(1, "hurt")


async def test_a_fence_that_cannot_grow_sets_its_worker_aside_and_nobody_else(house: House):
    orchestrator = with_workers(house)
    await orchestrator.start()
    await house.sql(f"UPDATE {{p}}worker_state SET last_fence = {2**62} WHERE worker = 'hurt'")
    await orchestrator.trigger_worker("hurt")
    await orchestrator.trigger_worker("healthy")
    await house.attempts(1, "healthy")
    answer = await explain(house.db, "hurt", orchestrator.clock.now())
    said = {gate["gate"]: gate["reason"] for gate in answer["gates"] if not gate["open"]}
    assert said["handler"] == f"set aside: its last_fence is {2**62}, and no larger one can be drawn"
    assert not any(isinstance(event, e.NodeCrashed) for event in house.seen)


async def test_counters_at_their_limit_stay_there(house: House):
    orchestrator = with_workers(house)
    orchestrator.register_worker("fails", fails, max_retries=0, **TRIGGERED)
    await orchestrator.start()
    full = f"total_runs = {2**62}, total_failures = {2**62}"
    await house.sql(f"UPDATE {{p}}worker_state SET {full}")
    await orchestrator.trigger_many("hurt", [{}] * 20)  # the short way, too
    await orchestrator.trigger_worker("fails")
    await house.attempts(20, "hurt")
    await house.attempts(1, "fails")
    assert (await house.state("fails"))["total_failures"] == 2**62
    assert warnings(house) == ""


async def test_rows_in_the_place_of_an_end_keep_no_run_from_ending(house: House):
    let_go = asyncio.Event()
    orchestrator = house.orchestrator()
    for name in ("letter", "history"):
        orchestrator.register_worker(name, fails_after(let_go), max_retries=0, **TRIGGERED)
    await orchestrator.start()
    of_letter, of_history = [await orchestrator.trigger_worker(name) for name in ("letter", "history")]
    await house.until_row("SELECT id FROM {p}runs WHERE state = 'running' AND worker = 'letter'")
    await house.until_row("SELECT id FROM {p}runs WHERE state = 'running' AND worker = 'history'")
    await house.sql(
        "INSERT INTO {p}dead_letters (run_id, worker, trigger, priority, scheduled_for, payload, attempts, errors,"
        f" died_at, status) SELECT id, 'other', 'manual', 1, due_at, payload, 1, '[]', due_at, 'open' FROM {{p}}runs"
        f" WHERE id = {of_letter}"
    )
    await house.sql(
        "INSERT INTO {p}run_history (run_id, fence, worker, trigger, attempt, outcome, finished_at)"
        f" SELECT id, fence, 'other', 'manual', 1, 'failed', due_at FROM {{p}}runs WHERE id = {of_history}"
    )
    let_go.set()
    await house.until(lambda: {event.run.worker for event in house.ended()} == {"letter", "history"})
    assert await house.rows("SELECT id FROM {p}runs") == []


async def test_a_beat_at_its_limit_goes_round(house: House):
    orchestrator = with_workers(house, lease=1.0)
    await orchestrator.start()
    await house.sql(f"UPDATE {{p}}nodes SET beat = {2**62}")
    await house.until_row(f"SELECT id FROM {{p}}nodes WHERE beat BETWEEN 1 AND {2**61}")
    await orchestrator.trigger_worker("healthy")
    await house.attempts(1, "healthy")
    assert warnings(house) == ""


async def test_one_claim_that_cannot_be_rescued_stops_no_other_rescue(house: House, monkeypatch: pytest.MonkeyPatch):
    orchestrator = with_workers(house)
    await orchestrator.start()
    await orchestrator.stop()
    claim = "'running', 0, 1, 'gone', {time}, {time}, true"
    time = "'9999-12-31 23:59:59.999998'" if house.db.is_sqlite else "'9999-12-31 23:59:59.999998+00'"
    columns = "worker, state, slot, fence, node_id, started_at, first_started_at, is_ours"
    real = finishes.finish_within

    async def refuses_the_hurt(conn, dialect, ended, *more):
        if any(item.run.worker == "hurt" for item in ended):
            raise sa.exc.DataError("UPDATE", {}, ValueError("a number is too large"))
        return await real(conn, dialect, ended, *more)

    monkeypatch.setattr(nodes, "finish_within", refuses_the_hurt)
    for name in ("hurt", "healthy"):
        await house.sql(f"INSERT INTO {{p}}runs ({columns}) VALUES ('{name}', {claim.format(time=time)})")
    now = orchestrator.clock.now()
    finished = await nodes.rescue(house.db, now, now)
    assert [run.worker for run, _ in finished.written] == ["healthy"]
    assert "of hurt cannot be rescued: " in finished.problems[0]


async def test_an_impossible_start_of_a_claim_stops_no_rescue(house: House):
    orchestrator = with_workers(house)
    await orchestrator.start()
    await orchestrator.stop()
    columns = "worker, state, slot, fence, node_id, started_at, first_started_at, is_ours"
    for name, start in (("hurt", "9999-12-31 23:59:59.999998"), ("healthy", "1970-01-01 00:00:00.000000")):
        moment = f"'{start}'" if house.db.is_sqlite else f"'{start}+00'"
        claim = f"'{name}', 'running', 0, 1, 'gone', {moment}, {moment}, true"
        await house.sql(f"INSERT INTO {{p}}runs ({columns}) VALUES ({claim})")
    now = orchestrator.clock.now()
    finished = await nodes.rescue(house.db, now, now)
    assert finished.problems == ()
    assert {run.worker for run, _ in finished.written} == {"hurt", "healthy"}


async def test_overrides_that_cannot_be_used_keep_no_node_from_its_start(house: House):
    first = with_workers(house)
    await first.start()
    await first.stop()
    overrides = '{"timeout_seconds": "x", "max_retries": 7, "cron": 5}'
    await house.sql(f"UPDATE {{p}}workers SET overrides = '{overrides}', definition = '{{\"depends_on\": [5]}}'")
    second = house.orchestrator(version=2)
    second.register_worker("hurt", nothing, **TRIGGERED, description="new")
    second.register_worker("healthy", nothing, **TRIGGERED, description="new")
    await second.start()
    (row,) = await house.rows("SELECT max_retries, timeout_seconds FROM {p}workers WHERE name = 'hurt'")
    assert (row["max_retries"], row["timeout_seconds"]) == (7, 60)
    assert "hurt.timeout_seconds" in warnings(house)


async def test_a_circle_that_others_were_written_into_keeps_no_node_from_its_start(house: House):
    first = house.orchestrator()
    for name in ("a", "b"):
        first.register_worker(name, nothing, **TRIGGERED)
    await first.start()
    await first.stop()
    await house.sql("INSERT INTO {p}worker_dependencies (worker, depends_on) VALUES ('a', 'b'), ('b', 'a')")
    second = house.orchestrator()
    second.register_worker("c", nothing, **TRIGGERED, depends_on=["a"])
    await second.start()


async def test_an_edge_to_a_worker_that_is_not_there_ties_to_nothing(house: House):
    """A shell that turned triggers or foreign keys off has written it."""
    if not house.db.is_sqlite:
        return  # a foreign key, which only the tables' owner could drop
    orchestrator = with_workers(house)
    await house.sql("DROP TRIGGER worker_blocks_refuse_unknown")
    await orchestrator.start()
    async with house.db.migrate() as conn:  # foreign keys are off there
        await conn.execute(sa.insert(t.worker_blocks), {"worker": "hurt", "blocks": "nobody"})
    await orchestrator.trigger_worker("hurt")
    await house.attempts(1, "hurt")


async def test_a_node_with_a_pid_that_no_process_can_have_stops_no_heartbeat(house: House):
    orchestrator = with_workers(house, lease=1.2)
    await orchestrator.start()
    (mine,) = await house.rows("SELECT id, beat, boot_id FROM {p}nodes")
    await house.sql(
        "INSERT INTO {p}nodes (id, hostname, pid, boot_id, process_started_at, started_at, heartbeat_at,"
        " max_concurrent, version) SELECT 'odd', hostname, 2147483647, boot_id, process_started_at, started_at,"
        " heartbeat_at, 1, '0'"
        f" FROM {{p}}nodes WHERE id = '{mine['id']}'"
    )
    await house.until_row(
        "SELECT id FROM {p}nodes WHERE id = :id AND beat > :beat", id=mine["id"], beat=mine["beat"] + 2
    )
    await house.until_row("SELECT id FROM {p}nodes WHERE id = 'odd' AND state = 'lost'")

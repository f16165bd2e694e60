"""What keeps nodes fast while PostgreSQL holds a snapshot: `claims`, its compaction, looks that read what is new."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import make_url

from jobrunner.model.run import OutcomeKind
from jobrunner.storage.reading.findings import Scope
from jobrunner.storage.reading.state_checks import check_slots
from jobrunner.storage.runs import compaction
from jobrunner.storage.runs.compaction import Compactor
from jobrunner.storage.turns.postgres import PostgresFastPath
from tests.storage.test_fast_path import NODE, eligible_of, ended, seconds, turn
from tests.support.checker import check
from tests.support.stage import Stage, scheduled, triggered


@pytest.fixture
async def stage(postgres_url: str) -> AsyncIterator[Stage]:
    stage = Stage(postgres_url)
    yield stage
    await stage.db.close()


@pytest.fixture
async def fast_path(stage: Stage) -> AsyncIterator[PostgresFastPath]:
    fast_path = PostgresFastPath(stage.db)
    yield fast_path
    await fast_path.close()


@pytest.fixture
def other(postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    """Somebody else's connection."""
    plain = make_url(postgres_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain) as connection:
        yield connection
        connection.rollback()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever has a page has grown, and any snapshot counts as held."""
    monkeypatch.setattr(compaction, "PAGES", {"claims": 0, "worker_state": 0})
    monkeypatch.setattr(compaction, "HELD_TRANSACTIONS", -1)


async def slots_of(stage: Stage) -> list[tuple[Any, ...]]:
    """Return what `claims` has, which is what `runs` says."""
    claims = [tuple(row.values()) for row in await stage.rows("SELECT * FROM {p}claims ORDER BY run_id")]
    active = await stage.rows("SELECT worker, slot, id FROM {p}runs WHERE slot IS NOT NULL ORDER BY id")
    assert claims == [tuple(row.values()) for row in active]
    return claims


async def test_claims_follow_runs_whoever_writes_them(stage: Stage):
    await stage.register(triggered("a", max_running=3), triggered("b"), scheduled("s"))
    await stage.join(NODE)
    for _ in range(4):
        await stage.trigger("a")
    runs = await stage.tick()
    assert [claim[:2] for claim in await slots_of(stage)] == [("a", 0), ("a", 1), ("a", 2), ("s", 0)]
    await stage.end(runs[0], OutcomeKind.SNOOZED)
    await stage.fail(runs[1])
    assert len(await slots_of(stage)) == 2
    await stage.sql("UPDATE {p}runs SET slot = slot + 5, worker = 'b' WHERE worker = 'a' AND slot IS NOT NULL")
    assert ("b", 7) in [claim[:2] for claim in await slots_of(stage)]
    await stage.sql("UPDATE {p}runs SET state = 'stopping', output = 'x' WHERE slot IS NOT NULL")
    assert len(await slots_of(stage)) == 2
    await stage.sql("DELETE FROM {p}runs WHERE worker = 'b'")
    assert [claim[0] for claim in await slots_of(stage)] == ["s"]


async def test_verify_reports_claims_that_are_not_what_runs_say(stage: Stage):
    await stage.register(triggered("a", max_running=3))
    await stage.join(NODE)
    await stage.trigger("a")
    (run,) = await stage.tick()
    await stage.sql(f"UPDATE {{p}}claims SET run_id = {run.id + 7}")
    async with stage.db.read() as conn:
        found = [found async for found in check_slots(conn, Scope(stage.now, 30, 90))]
    assert [violation.promise for violation in found] == [2, 2]
    assert f"run {run.id} is active, but not in claims" in found[0].problem
    assert f"claims has run {run.id + 7} in slot 0 of a" in found[1].problem


async def test_a_compaction_keeps_what_is_live_and_makes_the_tables_small(stage: Stage, small: None, other: Any):
    await stage.register(triggered("a", max_running=3), scheduled("s", interval_seconds=1))
    await stage.join(NODE)
    other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM jobrunner.run_history")
    for _ in range(300):
        await stage.run_once()
        stage.after(1)
    await stage.trigger("a")
    await stage.tick()
    held, states = await slots_of(stage), await stage.rows("SELECT * FROM {p}worker_state ORDER BY worker")
    assert len(held) == 2
    before = await stage.value("SELECT pg_relation_size('{p}worker_state')")
    assert set((await Compactor(stage.db).compact()).done) >= {"worker_state"}
    assert await slots_of(stage) == held
    assert await stage.rows("SELECT * FROM {p}worker_state ORDER BY worker") == states
    assert await stage.value("SELECT pg_relation_size('{p}worker_state')") < before / 2
    await stage.run_once()
    assert check(stage.url) == []


async def test_a_table_that_is_in_use_is_given_up_at_once_and_nobody_waits(stage: Stage, small: None, other: Any):
    await stage.register(triggered("a"))
    other.execute("BEGIN; SELECT * FROM jobrunner.worker_state; SELECT * FROM jobrunner.claims")
    began = time.monotonic()
    compacting = asyncio.ensure_future(Compactor(stage.db).compact())
    await asyncio.sleep(0.01)
    await stage.trigger("a")
    assert "worker_state" in (await compacting).in_use
    assert time.monotonic() - began < 1.0
    assert (await stage.state("a")).is_enabled


async def test_our_readers_see_the_rows_of_their_snapshot(stage: Stage, small: None):
    """As for `status`: reads something else first, then the table that a compaction empties meanwhile."""
    await stage.register(triggered("a"), triggered("b"))
    async with stage.db.read() as conn:
        await conn.exec_driver_sql("SELECT 1")
        assert "worker_state" in (await Compactor(stage.db).compact()).in_use
        assert (await conn.exec_driver_sql("SELECT count(*) FROM jobrunner.worker_state")).scalar() == 2


async def test_a_role_that_may_not_truncate_is_told_so_and_works(stage: Stage, small: None, monkeypatch: Any):
    await stage.register(triggered("a"))
    monkeypatch.setattr(compaction, "_LOOK", _refusing(compaction._LOOK))
    assert (await Compactor(stage.db).compact()).refused == ("worker_state",)


def _refusing(look: Any) -> Any:
    return type(look)(look.text.replace("has_table_privilege(c.oid, 'TRUNCATE')", "false"))


async def test_many_nodes_compact_and_claim_at_once(stage: Stage, small: None, other: Any):
    await stage.register(triggered("a", max_running=6), scheduled("s", interval_seconds=0.5))
    stages = [Stage(stage.url) for _ in range(3)]
    try:
        for number, each in enumerate(stages):
            each._names |= stage._names
            await each.join(f"n{number}")
        other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_current_xact_id()")
        until = time.monotonic() + 4

        async def work(number: int) -> int:
            done = 0
            while time.monotonic() < until:
                stages[number].after(0.05)
                await stages[number].trigger("a")
                for run in await stages[number].tick(node=f"n{number}"):
                    await stages[number].end(run)
                    done += 1
            return done

        async def compact(number: int) -> int:
            done = 0
            while time.monotonic() < until:
                done += len((await Compactor(stages[number].db).compact()).done)
                await asyncio.sleep(0.02)
            return done

        ran = await asyncio.gather(*(work(number) for number in range(3)))
        assert all(ran)
        until = time.monotonic() + 4
        *ran, one, two = await asyncio.gather(*(work(number) for number in range(3)), compact(0), compact(1))
        assert all(ran)
        assert min(one, two) > 0
    finally:
        for each in stages:
            await each.db.close()
    await slots_of(stage)
    assert check(stage.url) == []


@pytest.mark.parametrize("how", ["committed late", "put back", "due earlier", "more urgent"])
async def test_what_comes_before_the_place_of_the_last_turn_is_found_by_the_next_look(
    stage: Stage, fast_path: PostgresFastPath, other: Any, how: str
):
    await stage.register(triggered("a", max_running=9))
    await stage.join(NODE)
    for place in range(6):
        await stage.trigger("a", due_at=stage.now + seconds(place / 1000))
    stage.after(1)
    if how == "committed late":
        other.execute(
            "INSERT INTO jobrunner.runs (worker, due_at, priority) SELECT 'a', min(due_at), 1 FROM jobrunner.runs"
        )
    eligible = await eligible_of(stage)
    first = await turn(stage, fast_path, eligible, free=2)
    assert len(first.runs) == 2
    if how == "committed late":
        other.commit()
    elif how == "put back":
        await stage.end(first.runs[0], OutcomeKind.INTERRUPTED)
    elif how == "due earlier":
        earlier = "due_at - interval '1 hour'"
        await stage.sql(f"UPDATE {{p}}runs SET due_at = {earlier} WHERE id = (SELECT max(id) FROM {{p}}runs)")
    else:
        await stage.sql("UPDATE {p}runs SET priority = 3 WHERE id = (SELECT max(id) FROM {p}runs)")
    (newcomer,) = await stage.column(
        "SELECT id FROM {p}runs WHERE state = 'pending' ORDER BY priority DESC, due_at, id LIMIT 1"
    )
    stage.after(1)
    second = await turn(stage, fast_path, eligible, free=1)
    assert [run.id for run in second.runs] == [newcomer]
    rest = await turn(stage, fast_path, eligible, free=9)
    claimed = {run.id for run in (*first.runs, *second.runs, *rest.runs)}
    assert claimed == set(await stage.column("SELECT id FROM {p}runs"))


async def test_a_turn_that_leaves_slots_free_says_whether_that_was_all(
    stage: Stage, fast_path: PostgresFastPath, other: Any
):
    await stage.register(triggered("a", max_running=9), triggered("b", max_running=9))
    await stage.join(NODE)
    for _ in range(3):
        await stage.trigger("a")
    later = stage.now + seconds(60)
    await stage.trigger("b", due_at=later)
    eligible = await eligible_of(stage)
    assert not (await turn(stage, fast_path, eligible, free=2)).is_all
    (last,) = (await turn(stage, fast_path, eligible, free=5)).runs
    turned = await turn(stage, fast_path, eligible, free=5)
    assert (turned.runs, turned.is_all, turned.next_due_at) == ((), True, later)
    await stage.trigger("b")
    turned = await turn(stage, fast_path, eligible, free=5, ends=[ended(stage, last)])
    assert (turned.has_other, turned.is_all) == (True, False)
    other.execute("SELECT FROM jobrunner.worker_state WHERE worker = 'a' FOR NO KEY UPDATE")
    await stage.sql("DELETE FROM {p}runs WHERE worker = 'b' AND due_at <= now()")
    turned = await turn(stage, fast_path, eligible, free=5)
    assert (turned.has_locked, turned.is_all, turned.runs) == (True, False, ())


async def test_what_waits_is_found_at_its_time_also_after_the_clock_has_gone_back(
    stage: Stage, fast_path: PostgresFastPath
):
    await stage.register(triggered("a", max_running=9))
    await stage.join(NODE)
    await stage.trigger("a")
    eligible = await eligible_of(stage)
    assert len((await turn(stage, fast_path, eligible)).runs) == 1
    late = await stage.trigger("a", due_at=stage.now + seconds(30))
    stage.after(-7200)
    await stage.sql(f"UPDATE {{p}}runs SET due_at = due_at - interval '2 hours' WHERE id = {late}")
    assert (await turn(stage, fast_path, eligible)).runs == ()  # it sees that the run has come, which is not due yet
    stage.after(40)
    assert [run.id for run in (await turn(stage, fast_path, eligible)).runs] == [late]

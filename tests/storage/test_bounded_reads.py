"""What is read for a screen reads no more than the screen shows, and is what reading all would have given."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest

from jobrunner.policy.filters import parse_filter
from jobrunner.storage.reading import status, worst
from jobrunner.storage.reading.soon import read_few
from jobrunner.storage.reading.worst import read_worst
from jobrunner.storage.workers import operations
from tests.support.stage import ACTOR, Stage, scheduled, triggered


@pytest.mark.parametrize("seed", range(6))
async def test_the_first_firings_are_those_of_all_workers(stage: Stage, seed: int):
    draw = random.Random(seed)
    names = [f"w{n}" for n in range(12)]
    intervals = {name: draw.choice([1, 2, 5, 60]) for name in names}
    await stage.register(*(scheduled(name, interval_seconds=each) for name, each in intervals.items()))
    await stage.join("n1")
    for _ in range(3):
        await stage.run_once(slots=12)
        stage.after(draw.choice([0, 1, 7]))
    for name in draw.sample(names, 3):
        until = stage.now + timedelta(seconds=draw.choice([30, 1e6]))
        await operations.pause(stage.db, name, stage.now, ACTOR, until, None)
    await stage.sql("UPDATE {p}worker_state SET next_run_at = NULL WHERE worker IN ('w3', 'w7')")
    until = stage.now + timedelta(seconds=90)
    async with stage.db.read() as conn:
        everything = list(await status.read_firings(conn, stage.now, until))
        for limit in (1, 3, 8, 13, 50):
            found, is_cut = await status.read_upcoming(conn, stage.now, until, limit)
            assert found == everything[:limit]
            assert is_cut == (len(everything) > limit)
        assert (await read_few(conn, stage.now, until, 4)).is_cut


async def test_those_that_are_off_or_fail_come_first_then_who_may_be_in_trouble(stage: Stage):
    await stage.register(*(triggered(name, max_retries=0, max_consecutive_failures=1) for name in "abcdefgh"))
    await stage.join("n1")
    await stage.trigger("f")
    (run,) = await stage.tick()
    await stage.fail(run)
    await operations.pause(stage.db, "e", stage.now, ACTOR, stage.now + timedelta(seconds=60), None)
    await operations.disable(stage.db, "d", stage.now, ACTOR, None)
    await stage.sql(
        "UPDATE {p}worker_state SET consecutive_failures = 2, last_run_outcome = 'failed' WHERE worker = 'g'"
    )
    await stage.trigger("h")
    stage.after(61)
    await stage.trigger("b")
    async with stage.db.read() as conn:
        paused_then = stage.now - timedelta(seconds=61)
        found = await read_worst(conn, paused_then, 4)
        assert found.names == ("d", "f", "e", "g")  # disabled, paused, failing
        assert (await read_worst(conn, stage.now, 4)).names == ("d", "f", "g", "h")  # the pause is over, h waits
        assert (await read_worst(conn, stage.now, 6)).names == ("d", "f", "g", "h", "a", "b")
        assert len((await read_worst(conn, stage.now, 50)).names) == 8
        assert await status.read_totals(conn) == status.Totals(workers=8, running=0, waiting=2)


WAYS: dict[str, str] = {  # how a healthy worker `z` gets among the candidates, which come before the names
    "its schedule is overdue": "UPDATE {p}worker_state SET next_run_at = '2026-03-02 11:00:00.000000'"
    " WHERE worker = 'z'",
    "a run is due for long, of each priority": "INSERT INTO {p}runs (worker, priority, due_at)"
    " VALUES ('z', 3, '2026-03-02 11:00:00.000000')",
    "it failed": "INSERT INTO {p}run_history (run_id, fence, worker, trigger, attempt, outcome, finished_at)"
    " VALUES (7, 7, 'z', 'manual', 1, 'timed_out', '2026-03-02 11:00:00.000000')",
    "it ended last": "INSERT INTO {p}run_history (run_id, fence, worker, trigger, attempt, outcome, finished_at)"
    " VALUES (7, 7, 'z', 'manual', 1, 'succeeded', '2026-03-02 11:00:00.000000')",
}


@pytest.mark.parametrize("way", WAYS)
async def test_who_may_be_in_trouble_is_found_by_an_index(stage: Stage, way: str):
    await stage.register(*(triggered(name) for name in "abcdz"))
    await stage.sql(WAYS[way])
    async with stage.db.read() as conn:
        assert (await read_worst(conn, stage.now, 2)).names == ("z", "a")


async def test_who_has_something_due_is_found_behind_a_crowd(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worst, "_FEWEST", 2)
    await stage.register(*(triggered(name) for name in "abcdyz"))
    for _ in range(5):
        await stage.trigger("y")
    stage.after(1)
    await stage.trigger("z", priority=3)
    stage.after(3600)
    async with stage.db.read() as conn:
        assert set((await read_worst(conn, stage.now, 2)).names) == {"y", "z"}


async def test_a_worker_that_runs_is_asked_before_others(stage: Stage):
    await stage.register(*(triggered(name) for name in "abcz"))
    await stage.join("n1")
    await stage.trigger("z")
    await stage.start_one()
    async with stage.db.read() as conn:
        assert (await read_worst(conn, stage.now, 1)).names == ("z",)


async def test_of_more_candidates_than_places_the_worst_are_taken(stage: Stage):
    await stage.register(*(triggered(name) for name in "abcdef"))
    await stage.join("n1", [])  # nobody has their code
    await stage.sql(
        "INSERT INTO {p}runs (worker, due_at) VALUES ('e', '2026-01-01 00:00:00.000000'), "
        "('f', '2026-01-01 00:00:00.000000')"
    )
    for number, name in enumerate("abcd", 1):
        await stage.sql(
            "INSERT INTO {p}run_history (run_id, fence, worker, trigger, attempt, outcome, finished_at)"
            f" VALUES ({number}, 1, '{name}', 'manual', 1, 'failed', '2026-01-01 00:00:00.000000')"
        )
    async with stage.db.read() as conn:
        assert (await read_worst(conn, stage.now, 3)).names == ("e", "f", "a")


async def test_a_filter_finds_its_workers_wherever_they_are(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    names = [f"w{number:02}" for number in range(30)]
    await stage.register(*(triggered(name) for name in names), scheduled("planned"))
    await stage.join("n1")
    for name in ("w03", "w27", "w28"):
        await operations.disable(stage.db, name, stage.now, ACTOR, None)

    async def found(text: str, limit: int = 10) -> worst.Worst:
        async with stage.db.read() as conn:
            return await read_worst(conn, stage.now, limit, parse_filter(text, "workers", stage.now))

    assert (await found("health:disabled")).names == ("w03", "w27", "w28")
    assert (await found("health:disabled worker:w2*")).names == ("w27", "w28")
    assert (await found("worker:w2* mode:triggered", 3)).names == ("w27", "w28", "w20")
    assert (await found("mode:scheduled")).names == ("planned",)
    monkeypatch.setattr(worst, "_PAGE", 5)
    monkeypatch.setattr(worst, "MOST_ASKED", 10)
    assert (await found("health:unknown worker:w2*", 2)).names == ("w20", "w21")
    nothing = await found("health:slow")
    assert (nothing.names, nothing.asked) == ((), 10)

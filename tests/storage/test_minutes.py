"""What the console's first page counts: ends a minute, and whether anything has changed."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from jobrunner.storage.reading import minutes as counting
from jobrunner.storage.reading.minutes import Minutes
from jobrunner.storage.reading.pulse import read_pulse
from jobrunner.storage.tables import define as t
from tests.support.stage import Stage, triggered


def ended(stage: Stage, seconds_ago: float, outcome: str = "succeeded") -> dict:
    at = stage.now - timedelta(seconds=seconds_ago)
    is_missed = outcome == "missed"
    return {
        "run_id": None if is_missed else 1,
        "fence": None if is_missed else 1,
        "worker": "mail",
        "trigger": "manual",
        "attempt": 1,
        "outcome": outcome,
        "ends_run": None if is_missed else "succeeded",
        "due_at": at,
        "started_at": at,
        "finished_at": at,
        "duration_ms": 0,
    }


async def write(stage: Stage, *rows: dict) -> None:
    async with stage.db.write() as conn:
        known = (await conn.execute(sa.select(sa.func.count()).select_from(t.run_history))).scalar_one()
        for place, each in enumerate(rows, known + 1_000_000):
            await conn.execute(sa.insert(t.run_history).values({**each, "run_id": each["run_id"] and place}))


async def test_ends_are_counted_by_minute_and_outcome(stage: Stage):
    stage.now = stage.now.replace(second=30, microsecond=0)
    await stage.register(triggered("mail"))
    await write(stage, ended(stage, 1), ended(stage, 2), ended(stage, 61, "failed"), ended(stage, 3600))
    async with stage.db.read() as conn:
        found = await Minutes().look(conn, stage.now)
    assert len(found) == 60
    assert found[-1].counts == {"succeeded": 2}
    assert found[-2].counts == {"failed": 1}
    assert [minute.counts for minute in found[:-2]] == [{}] * 58
    assert found[-1].at == stage.now.replace(second=0)
    assert all(minute.is_known for minute in found)


async def test_a_minute_that_is_over_is_counted_once(stage: Stage):
    stage.now = stage.now.replace(second=30, microsecond=0)
    await stage.register(triggered("mail"))
    await write(stage, ended(stage, 1), ended(stage, 300))
    minutes = Minutes()
    async with stage.db.read() as conn:
        await minutes.look(conn, stage.now)
    await write(stage, ended(stage, 2), ended(stage, 301))
    async with stage.db.read() as conn:
        found = await minutes.look(conn, stage.now)
    assert found[-1].counts == {"succeeded": 2}
    assert found[-6].counts == {"succeeded": 1}
    async with stage.db.read() as conn:
        found = await minutes.look(conn, stage.now + timedelta(minutes=2))
    assert found[-3].counts == {"succeeded": 2}


async def test_of_very_many_ends_the_looks_count_on_and_estimate(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(counting, "_MOST_ROWS", 8)
    monkeypatch.setattr(counting, "_MOST_OF_ONE", 4)
    stage.now = stage.now.replace(second=59, microsecond=0)
    await stage.register(triggered("mail"))
    for place in range(8):
        rows = [ended(stage, 60 * (7 - place) + each, "failed" if each % 2 else "succeeded") for each in range(6)]
        await write(stage, *rows)
    minutes, known, found = Minutes(), [], []
    for _ in range(5):
        async with stage.db.read() as conn:
            found = await minutes.look(conn, stage.now)
        known.append(sum(minute.is_known for minute in found))
    assert known[0] < known[1] < 60
    assert found[-3].is_estimated
    assert sum(found[-3].counts.values()) == 6


async def test_the_pulse_changes_with_what_happens_and_with_nothing_else(stage: Stage):
    async def look() -> object:
        async with stage.db.read() as conn:
            return await read_pulse(conn)

    await stage.register(triggered("mail"))
    seen = [await look()]
    assert await look() == seen[-1]
    await stage.trigger("mail")
    seen.append(await look())
    await stage.join("n1")
    seen.append(await look())
    await stage.tick()
    seen.append(await look())
    async with stage.db.write() as conn:
        await conn.execute(sa.update(t.runs).values(progress={"fraction": 0.5, "message": "half"}))
    seen.append(await look())
    async with stage.db.write() as conn:
        await conn.execute(sa.update(t.runs).values(progress={"fraction": 0.6, "message": "half"}))
    seen.append(await look())
    async with stage.db.write() as conn:
        await conn.execute(sa.insert(t.audit_log).values(actor="ada", action="pause", worker="mail"))
    seen.append(await look())
    assert len(set(map(repr, seen))) == len(seen)
    assert await look() == seen[-1]

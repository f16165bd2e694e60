"""The recorder: outcomes are written once, in batches, through outages, whatever they hold; and slots are freed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from jobrunner.errors import DatabaseUnavailable
from jobrunner.model.run import ClaimKey, OutcomeKind, Run
from jobrunner.runtime import recorder as module
from jobrunner.runtime.clock import SystemClock
from jobrunner.runtime.outage import Outage
from jobrunner.runtime.outbox import Outbox
from jobrunner.runtime.recorder import Recorder
from jobrunner.storage.runs.finishes import Ended, finish
from jobrunner.telemetry import events as e
from tests.support.stage import Stage, triggered


class Desk:
    """A recorder at work on a stage's database."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.freed: list[ClaimKey] = []
        self.seen: list[e.Event] = []
        events = e.Events()
        events.subscribe(self.seen.append)
        self.recorder = Recorder(stage.db, Outage(SystemClock(), events), events, Outbox(), self.freed.extend)
        self.task = asyncio.ensure_future(self.recorder.run())

    def put(self, run: Run, kind: OutcomeKind = OutcomeKind.SUCCEEDED, **more: Any) -> None:
        self.recorder.outbox.put(Ended(run, self.stage.outcome(kind, **more)))

    async def drain(self) -> None:
        async with asyncio.timeout(10):
            await self.recorder.outbox.empty()


@pytest.fixture
async def desk(database_url: str) -> AsyncIterator[Desk]:
    stage = Stage(database_url)
    desk = Desk(stage)
    yield desk
    desk.task.cancel()
    await asyncio.wait([desk.task])
    await stage.db.close()


async def claims(stage: Stage, count: int) -> list[Run]:
    await stage.register(triggered("it", max_running=100))
    for _ in range(count):
        await stage.trigger("it")
    return await stage.tick(slots=count)


async def test_what_gathers_while_a_batch_is_written_is_written_together(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    batches: list[int] = []
    real = finish

    async def counted(db: Any, ended: Any) -> Any:
        batches.append(len(ended))
        return await real(db, ended)

    monkeypatch.setattr(module, "finish", counted)
    runs = await claims(desk.stage, 30)
    desk.put(runs[0])
    while not batches:
        await asyncio.sleep(0)
    for run in runs[1:]:
        desk.put(run)
    await desk.drain()
    assert batches == [1, 29]
    assert sorted(desk.freed) == sorted(run.claim_key for run in runs)
    assert await desk.stage.outcomes() == ["succeeded"] * 30


async def test_outcomes_are_kept_through_an_outage_and_written_once(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    tries = 0
    real = finish

    async def shaky(db: Any, ended: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries == 2:  # written, but nobody heard of it
            await real(db, ended)
        if tries <= 3:
            raise DatabaseUnavailable("the connection is gone")
        return await real(db, ended)

    monkeypatch.setattr(module, "finish", shaky)
    runs = await claims(desk.stage, 3)
    for run in runs:
        desk.put(run)
    assert desk.freed == []
    await desk.drain()
    assert await desk.stage.outcomes() == ["succeeded"] * 3
    assert sorted(desk.freed) == sorted(run.claim_key for run in runs)
    assert not any(isinstance(event, e.RunTakenAway) for event in desk.seen)  # it was ours, and it is written
    assert [type(event) for event in desk.seen if isinstance(event, e.DatabaseLost)] == [e.DatabaseLost]


async def test_the_outcome_of_a_claim_that_was_taken_away_writes_nothing(desk: Desk):
    (run,) = await claims(desk.stage, 1)
    await desk.stage.end(run, OutcomeKind.LOST)  # somebody rescued it
    desk.stage.after(60)
    (again,) = await desk.stage.tick()
    desk.put(run)
    await desk.drain()
    assert [type(event) for event in desk.seen if not isinstance(event, e.Timed)] == [e.RunTakenAway]
    assert desk.freed == [run.claim_key]
    assert await desk.stage.outcomes() == ["lost"]
    assert await desk.stage.column("SELECT fence FROM {p}runs") == [again.fence]


async def test_an_old_and_a_new_claim_of_one_run_that_end_together_are_told_apart(desk: Desk):
    """A thread that outlived its claim, and the next attempt at the same run, on the same node."""
    (old,) = await claims(desk.stage, 1)
    await desk.stage.end(old, OutcomeKind.LOST)
    desk.stage.after(60)
    (new,) = await desk.stage.tick()
    assert new.id == old.id
    desk.put(old, OutcomeKind.FAILED)
    desk.put(new)
    await desk.drain()
    assert await desk.stage.outcomes() == ["lost", "succeeded"]
    assert desk.freed == [old.claim_key, new.claim_key]
    assert await desk.stage.rows("SELECT id FROM {p}runs") == []


class Unstorable(dict):
    """What the encoder finds in it can be sent to no database."""

    def __iter__(self) -> Any:
        raise ValueError("not today")


async def test_one_outcome_that_cannot_be_stored_does_not_hold_up_the_others(desk: Desk):
    runs = await claims(desk.stage, 5)
    for number, run in enumerate(runs):
        if number == 2:
            desk.put(run, result={"bad": float("nan")}, error=None)
        elif number == 3:
            desk.put(run, OutcomeKind.FAILED, result=object())
        else:
            desk.put(run)
    await desk.drain()
    outcomes = await desk.stage.rows("SELECT run_id, outcome, reason FROM {p}run_history ORDER BY run_id")
    assert [row["outcome"] for row in outcomes] == ["succeeded", "succeeded", "succeeded", "failed", "succeeded"]
    assert [row["reason"] is not None for row in outcomes] == [False, False, True, True, False]
    assert len(desk.freed) == 5
    assert sum(isinstance(event, e.Warned) for event in desk.seen) == 2


async def test_a_claim_that_is_not_in_the_table_any_more_frees_its_slot(desk: Desk):
    (run,) = await claims(desk.stage, 1)
    await desk.stage.sql("DELETE FROM {p}runs")
    desk.put(replace(run))
    await desk.drain()
    assert desk.freed == [run.claim_key]
    assert await desk.stage.outcomes() == []

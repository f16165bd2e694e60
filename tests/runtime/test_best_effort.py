"""What is only shown, or can wait, never ends a node: the database may refuse it, whatever it says."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa

from jobrunner import RunContext
from jobrunner.runtime import housekeeper
from jobrunner.storage.database import wakeups
from jobrunner.storage.runs import live as runs
from jobrunner.storage.runs import retention
from jobrunner.telemetry import events as e
from tests.runtime.conftest import House

TRIGGERED: dict[str, Any] = {"execution_mode": "triggered", "max_retries": 0}


def refused() -> sa.exc.DBAPIError:
    """What a database without a way to write é says: an error of the statement, not of the connection."""
    return sa.exc.DBAPIError("UPDATE runs …", {}, Exception("character has no equivalent in encoding LATIN1"))


def warnings(house: House) -> list[str]:
    return [event.message for event in house.seen if isinstance(event, e.Warned)]


async def test_output_that_the_database_refuses_is_dropped_and_told_once_and_others_are_shown(
    house: House, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(housekeeper, "ROUND_SECONDS", 0.02)
    real, refusals = runs.show_news, 0

    async def show_news(conn: Any, dialect: Any, news: Any) -> Any:
        nonlocal refusals
        if any("é" in (each.output or "") for each in news):
            refusals += 1
            raise refused()
        return await real(conn, dialect, news)

    monkeypatch.setattr(runs, "show_news", show_news)
    let_go = asyncio.Event()
    node = house.orchestrator()

    @node.worker("says", max_running=2, **TRIGGERED)
    async def says(run: RunContext, word: str) -> None:
        while not let_go.is_set():
            run.log(word)
            await asyncio.sleep(0.05)

    await node.start()
    await node.trigger_many("says", [{"word": "é"}, {"word": "plain"}])
    await house.until_row("SELECT id FROM {p}runs WHERE output LIKE '%plain%'")
    await house.until(lambda: refusals >= 4)
    let_go.set()
    ends = await house.attempts(2)
    assert {str(end.outcome.kind) for end in ends} == {"succeeded"}
    (said,) = warnings(house)
    assert said.startswith("output or progress of a run could not be shown; this is said once: ")
    assert node.is_started


@pytest.mark.parametrize("what", ["cancel_requested", "set_stopping"])
async def test_a_look_or_a_note_that_the_database_refuses_does_not_end_a_node(
    house: House, monkeypatch: pytest.MonkeyPatch, what: str
):
    monkeypatch.setattr(housekeeper, "ROUND_SECONDS", 0.02)
    asked = 0

    async def refuse(*_: Any) -> Any:
        nonlocal asked
        asked += 1
        raise refused()

    monkeypatch.setattr(runs, what, refuse)
    let_go = asyncio.Event()
    node = house.orchestrator()

    @node.worker("stubborn", timeout_seconds=0.1, **TRIGGERED)
    async def stubborn() -> None:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                pass

    await node.start()
    await node.trigger_worker("stubborn")
    await house.until(lambda: asked and warnings(house))
    let_go.set()
    await house.attempts(1)
    assert len(warnings(house)) == 1
    assert node.is_started


async def test_pruning_that_fails_is_tried_again_and_does_not_end_a_node(house: House, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(housekeeper, "FIRST_PRUNE_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(housekeeper, "PRUNE_SECONDS", 0.02)
    tries = 0

    async def prune(*_: Any) -> Any:
        nonlocal tries
        tries += 1
        raise refused()

    monkeypatch.setattr(retention, "prune", prune)
    node = house.orchestrator()
    node.register_worker("it", lambda: None, **TRIGGERED)
    await node.start()
    await house.until(lambda: tries >= 3)
    (said,) = warnings(house)
    assert said.startswith("what is old could not be pruned; this is said once: ")
    assert node.is_started


async def test_runs_given_back_are_written_once_although_nobody_can_be_woken(
    house: House, monkeypatch: pytest.MonkeyPatch
):
    real, calls = wakeups.notify, 0
    started = asyncio.Event()

    async def notify(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if started.is_set():
            raise refused()
        await real(*arguments)

    monkeypatch.setattr(wakeups, "notify", notify)
    node = house.orchestrator()

    @node.worker("sleeper", **TRIGGERED)
    async def sleeper() -> None:
        started.set()
        await asyncio.sleep(3600)

    await node.start()
    await node.trigger_worker("sleeper")
    await started.wait()
    await node.stop()
    assert [row["outcome"] for row in await house.history()] == ["interrupted"]
    assert warnings(house) == []


async def test_what_a_handler_puts_on_its_run_hurts_its_own_attempt_only(house: House, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(housekeeper, "ROUND_SECONDS", 0.02)
    node = house.orchestrator()

    @node.worker("names-it-output", **TRIGGERED)
    async def names_it_output(run: RunContext) -> None:
        run.output = "some text"  # type: ignore[misc, assignment]

    @node.worker("breaks-it", **{**TRIGGERED, "timeout_seconds": 0.3})
    async def breaks_it(run: RunContext) -> None:
        for name in ("_output", "latest_progress", "request_stop"):
            setattr(run, name, 5)
        await asyncio.sleep(60)

    await node.start()
    for name in ("names-it-output", "breaks-it"):
        await node.trigger_worker(name)
    named, broke = [(await house.attempts(1, name))[0].outcome for name in ("names-it-output", "breaks-it")]
    assert (named.kind, named.error_type) == ("failed", "AttributeError")
    assert broke.kind == "timed_out"
    assert not any(isinstance(event, e.NodeCrashed) for event in house.seen)

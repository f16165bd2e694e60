"""A handler that blocks the node's event loop is named in the log, while it does."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest

from jobrunner.runtime.blockers import LoopWatch
from jobrunner.telemetry import events as e
from tests.runtime.conftest import House

TRIGGERED: dict[str, Any] = {"execution_mode": "triggered", "max_retries": 0}


async def wait(seconds: float) -> None:
    await asyncio.sleep(seconds)


async def nested(seconds: float) -> None:
    await asyncio.sleep(0)
    await _rude(seconds)


async def _rude(seconds: float) -> None:
    time.sleep(seconds)


async def compute(seconds: float) -> None:
    """Keep the interpreter: no other thread goes on meanwhile."""
    began = time.perf_counter()
    sum(range(2_000_000))
    sum(range(int(2_000_000 * seconds / (time.perf_counter() - began))))


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def blocked(house: House) -> list[e.LoopBlocked]:
    return [event for event in house.seen if isinstance(event, e.LoopBlocked)]


async def test_the_handler_that_blocks_the_loop_is_named_and_none_of_those_beside_it(
    house: House, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.WARNING, "jobrunner")
    orchestrator = house.orchestrator()
    orchestrator.register_worker("polite", wait, **TRIGGERED)
    orchestrator.register_worker("rude", nested, **TRIGGERED)
    await orchestrator.start()
    await orchestrator.trigger_worker("polite", {"seconds": 4.0})
    await orchestrator.trigger_worker("rude", {"seconds": 3.0})
    await house.attempts(1, "rude")
    said = blocked(house)
    assert {event.workers for event in said} == {("rude",)}
    assert 1.0 <= said[0].seconds < 2.0
    assert len(said) <= 3
    lines = [line for line in caplog.messages if "event loop" in line]
    assert len(lines) == len(said)
    assert lines[0].startswith(f"the event loop has been blocked for {said[0].seconds:.1f} s by the code of rude: ")
    await house.attempts(1, "polite")


async def test_so_is_code_that_keeps_the_whole_interpreter(house: House):
    orchestrator = house.orchestrator()
    orchestrator.register_worker("compute", compute, **TRIGGERED)
    await orchestrator.start()
    await orchestrator.trigger_worker("compute", {"seconds": 4.0})
    await house.attempts(1, "compute")
    await house.until(lambda: blocked(house))
    assert {event.workers for event in blocked(house)} == {("compute",)}


async def test_what_waits_or_has_a_thread_blocks_nothing(house: House):
    orchestrator = house.orchestrator()
    orchestrator.register_worker("wait", wait, **TRIGGERED)
    orchestrator.register_worker("sleep", sleep, **TRIGGERED)
    await orchestrator.start()
    for name in ("wait", "sleep"):
        await orchestrator.trigger_worker(name, {"seconds": 2.0})
    await house.attempts(2)
    assert blocked(house) == []


@pytest.fixture
async def watch() -> tuple[LoopWatch, list[e.Event]]:
    """A watch of a loop that does not come round, and what it says; its looks are made by hand."""
    seen: list[e.Event] = []
    events = e.Events()
    events.subscribe(seen.append)
    made = LoopWatch(asyncio.get_running_loop(), {}, events)
    made._inline = lambda: ["a", "b"]  # type: ignore[method-assign]
    made._looked_at = made._computed = 0.0
    return made, seen


async def test_it_is_said_at_one_second_and_then_each_time_it_has_doubled(watch: tuple[LoopWatch, list[e.Event]]):
    it, seen = watch
    for look in range(1, 51):
        it._look(look / 4, 0.0)
    said = [event.seconds for event in seen if isinstance(event, e.LoopBlocked)]
    assert said == pytest.approx([1.0, 2.0, 4.0, 8.0])


async def test_no_two_lines_come_within_a_second(watch: tuple[LoopWatch, list[e.Event]]):
    it, seen = watch
    for look in range(1, 51):
        it._look(look / 4, 0.0)
        if seen and it._answered is not None:
            it._answered.set()  # blocked anew at once
        it._said_at = it._said_at if not seen else look / 4
    assert len(seen) == 1


async def test_a_process_that_was_stopped_blames_nobody(watch: tuple[LoopWatch, list[e.Event]]):
    it, seen = watch
    it._look(0.2, 0.0)
    it._look(60.0, 0.1)
    it._look(60.2, 0.1)
    assert seen == []

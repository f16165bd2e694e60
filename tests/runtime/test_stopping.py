"""Code that was told to stop ends as it was told, whatever it returns; code that had returned before has succeeded."""

from __future__ import annotations

import asyncio
import json
import threading
from datetime import UTC, datetime
from typing import Any

import pytest

from jobrunner import RunContext, StopRequested, WorkerOptions
from jobrunner.runtime.attempt import Attempt, StopReason
from jobrunner.storage.runs import cancelling
from tests.runtime.conftest import House
from tests.support import tasks

ONCE: WorkerOptions = {"execution_mode": "triggered", "max_retries": 0}
PATIENCE_SECONDS = 30.0


def plain(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def until_told(run: RunContext) -> str:
    """Return as soon as the run is told to stop."""
    waiting = threading.Event()
    while not run.should_stop:
        waiting.wait(0.005)
    return "half"


def checks(run: RunContext) -> None:
    waiting = threading.Event()
    while True:
        try:
            run.check_stop()
        except Exception:
            pass
        waiting.wait(0.005)


async def swallows() -> str:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        pass
    return "half"


async def cancel(house: House, run_id: int, reason: str | None = None) -> None:
    await cancelling.cancel(house.db, run_id, datetime.now(UTC), "ada@desk", reason)


async def started(house: House, handler: Any, **options: Any) -> tuple[Any, int]:
    """Start a node and a run of `handler`, whose code runs when this returns."""
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    orchestrator = house.orchestrator()

    @orchestrator.middleware
    async def note(run: RunContext, call_next: Any) -> Any:
        loop.call_soon(begun.set)
        return await call_next()

    orchestrator.register_worker("it", handler, **{**ONCE, **options})
    await orchestrator.start()
    run_id = await orchestrator.trigger_worker("it")
    async with asyncio.timeout(PATIENCE_SECONDS):
        await begun.wait()
        await asyncio.sleep(0)
    return orchestrator, run_id


@pytest.mark.parametrize(("handler", "result"), [(until_told, "half"), (checks, None), (swallows, "half")])
async def test_code_that_returns_after_a_cancel_is_cancelled_with_its_result_and_the_reason(
    house: House, handler: Any, result: Any
):
    _, run_id = await started(house, handler)
    await cancel(house, run_id, "the wrong customer")
    (ended,) = await house.attempts(1)
    assert ended.ends_run == "cancelled"
    (row,) = await house.history()
    assert (row["outcome"], row["ends_run"], row["reason"]) == ("cancelled", "cancelled", "the wrong customer")
    assert plain(row["result"]) == result
    assert (await house.state("it"))["consecutive_failures"] == 0


async def test_without_a_reason_it_says_who_cancelled(house: House):
    _, run_id = await started(house, until_told)
    await cancel(house, run_id)
    await house.attempts(1)
    assert (await house.history())[0]["reason"] == "cancelled by ada@desk"


async def test_a_process_that_swallows_its_signal_and_returns_is_cancelled(house: House):
    _, run_id = await started(house, tasks.until_signalled, isolation="process")
    await house.until_row("SELECT 1 AS ready FROM {p}runs WHERE output LIKE '%ready%'")
    await cancel(house, run_id, "enough")
    await house.attempts(1)
    (row,) = await house.history()
    assert (row["outcome"], row["reason"], plain(row["result"])) == ("cancelled", "enough", "half")


@pytest.mark.parametrize("handler", [until_told, checks, swallows])
async def test_code_that_returns_after_its_time_is_timed_out(house: House, handler: Any):
    await started(house, handler, timeout_seconds=0.05)
    await house.attempts(1)
    (row,) = await house.history()
    assert (row["outcome"], row["error"]) == ("timed_out", "timed out after 0.05 s")
    assert plain(row["result"]) == (None if handler is checks else "half")


@pytest.mark.parametrize("handler", [until_told, checks, swallows])
async def test_code_that_returns_after_a_drain_asked_it_to_is_given_back(house: House, handler: Any):
    orchestrator, run_id = await started(house, handler)
    await orchestrator.stop(0.0)
    (row,) = await house.history()
    assert (row["outcome"], row["ends_run"], row["reason"]) == ("interrupted", None, "the node stops")
    (run,) = await house.rows("SELECT id, state, attempt FROM {p}runs")
    assert run == {"id": run_id, "state": "pending", "attempt": 1}


async def test_a_result_that_raises_does_not_keep_a_cancelled_run_from_being_cancelled(house: House):
    class Broken(dict):
        def items(self) -> Any:
            raise SystemExit

    def it(run: RunContext) -> Any:
        until_told(run)
        return Broken()

    _, run_id = await started(house, it)
    await cancel(house, run_id)
    await house.attempts(1)
    assert (await house.history())[0]["outcome"] == "cancelled"


async def test_code_that_has_returned_when_it_is_told_to_stop_has_succeeded(
    house: House,
):
    """The thread has returned, and the loop does not know yet: a request that comes between changes nothing."""
    orchestrator = house.orchestrator()
    begun, go = threading.Event(), threading.Event()

    def it() -> str:
        begun.set()
        go.wait(PATIENCE_SECONDS)
        return "whole"

    orchestrator.register_worker("it", it, **ONCE)
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    await house.until(begun.is_set)
    (attempt,) = orchestrator._node.held.values()  # type: ignore[union-attr]
    code: Any = attempt._code
    go.set()
    while not code.has_returned:  # in this very step of the loop, so that it cannot see the thread's word
        threading.Event().wait(0.001)
    assert not code.ended.done()
    attempt.stop(StopReason.CANCEL, "too late")
    await house.attempts(1)
    (row,) = await house.history()
    assert (row["outcome"], row["reason"], plain(row["result"])) == ("succeeded", None, "whole")


async def test_a_retry_that_is_not_made_because_of_a_cancel_says_why(house: House):
    let_go = asyncio.Event()

    async def it() -> None:
        await let_go.wait()
        raise ValueError("no")

    real = Attempt.stop
    asked: list[StopReason] = []

    def stop(self: Attempt, reason: StopReason, detail: str | None = None) -> None:
        asked.append(reason)  # told of too late: the code fails by itself
        if reason is not StopReason.CANCEL:
            real(self, reason, detail)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Attempt, "stop", stop)
        _, run_id = await started(house, it, max_retries=3)
        await cancel(house, run_id, "not wanted")
        let_go.set()
        await house.attempts(1)
    (row,) = await house.history()
    assert (row["outcome"], row["ends_run"], row["reason"]) == ("failed", "cancelled", "not wanted")


async def test_the_end_in_a_transaction_of_its_own_stands(house: House):
    ended = asyncio.Event()

    async def it(run: RunContext) -> None:
        async with run.transaction():
            run.set_result("whole")
        ended.set()
        await asyncio.Event().wait()

    _, run_id = await started(house, it, timeout_seconds=0.5)
    await house.attempts(1)
    (row,) = await house.history()
    assert (row["run_id"], row["outcome"], plain(row["result"])) == (run_id, "succeeded", "whole")


def test_check_stop_lets_code_go_on_until_it_is_told():
    assert issubclass(StopRequested, BaseException)
    assert not issubclass(StopRequested, Exception)
    run = RunContext(None, None)  # type: ignore[arg-type]
    run.check_stop()
    run.request_stop()
    with pytest.raises(StopRequested):
        run.check_stop()


async def test_code_that_cannot_be_asked_to_stop_is_told_of_once_and_killed_when_that_can_be_done(
    house: House, monkeypatch: pytest.MonkeyPatch
):
    from jobrunner.runtime import attempt
    from jobrunner.runtime.executors.guards import Line
    from jobrunner.telemetry import events as e

    monkeypatch.setattr(attempt, "INSIST_SECONDS", 0.05)
    monkeypatch.setattr("jobrunner.runtime.executors.process.ProcessCode.grace_seconds", 0.05)
    failures = iter(range(3))

    def failing(real: Any) -> Any:
        def call(self: Line) -> None:
            if next(failures, None) is not None:
                raise OSError(24, "Too many open files")
            real(self)

        return call

    _, run_id = await started(house, tasks.until_signalled, isolation="process")
    await house.until_row("SELECT 1 AS ready FROM {p}runs WHERE output LIKE '%ready%'")
    for name in ("ask_to_stop", "kill"):
        monkeypatch.setattr(Line, name, failing(getattr(Line, name)))
    await cancel(house, run_id)
    await house.attempts(1)
    assert (await house.history())[0]["outcome"] == "cancelled"
    told = [event.message for event in house.seen if isinstance(event, e.Warned)]
    assert told == [f"it: run {run_id} could not be stopped yet: OSError: [Errno 24] Too many open files"]

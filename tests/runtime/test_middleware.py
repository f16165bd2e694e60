"""Middleware, on both databases: layers around every attempt, wherever its code runs."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from typing import Any

import pytest

from jobrunner import RunContext, Snooze
from jobrunner.errors import InvalidPayload, InvalidSetting, Refused
from tests.runtime.conftest import House
from tests.support import tasks

ONCE: dict[str, Any] = {"execution_mode": "triggered", "max_retries": 0}
tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


async def run_once(house: House, orchestrator: Any, handler: Any, **options: Any) -> dict[str, Any]:
    orchestrator.register_worker("it", handler, **{**ONCE, **options})
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    await house.attempts(1)
    return (await house.history())[0]


async def test_layers_go_around_the_code_the_first_outermost(house: House):
    said: list[str] = []
    orchestrator = house.orchestrator()

    @orchestrator.middleware
    async def outer(run: RunContext, call_next: Any) -> Any:
        said.append(f"outer {run.worker} {run.attempt}")
        result = await call_next()
        said.append(f"outer {result}")
        return result + 1

    @orchestrator.middleware
    async def inner(run: RunContext, call_next: Any) -> Any:
        said.append("inner")
        return await call_next() * 2

    async def it() -> int:
        said.append("it")
        return 5

    row = await run_once(house, orchestrator, it)
    assert said == ["outer it 1", "inner", "it", "outer 10"]
    assert row["result"] in (11, "11")


def in_thread() -> str:
    return f"{tenant.get()} {threading.current_thread() is threading.main_thread()}"


async def inline() -> str:
    return f"{tenant.get()} {threading.current_thread() is threading.main_thread()}"


@pytest.mark.parametrize("handler", [in_thread, inline])
async def test_context_variables_reach_the_code(house: House, handler: Any):
    orchestrator = house.orchestrator()

    @orchestrator.middleware
    async def layer(run: RunContext, call_next: Any) -> Any:
        tenant.set("acme")
        return await call_next()

    row = await run_once(house, orchestrator, handler)
    assert row["result"].strip('"') == f"acme {handler is inline}"
    assert tenant.get() == "nobody"


async def test_it_wraps_the_waiting_for_a_process(house: House):
    seen: list[Any] = []
    orchestrator = house.orchestrator()

    @orchestrator.middleware
    async def layer(run: RunContext, call_next: Any) -> Any:
        try:
            seen.append(await call_next())
        except Exception as error:
            seen.append(str(error))
            raise

    orchestrator.register_worker("bad", tasks.awkward, isolation="process", **ONCE)
    await run_once(house, orchestrator, tasks.pid, isolation="process")
    await orchestrator.trigger_worker("bad")
    await house.attempts(2)
    assert isinstance(seen[0], int)
    assert seen[1] == "awkward 1 2"
    (row,) = await house.history("bad")
    assert (row["error_type"], row["error"]) == ("Awkward", "awkward 1 2")


async def test_errors_and_signals_pass_through_it(house: House):
    seen: list[str] = []
    orchestrator = house.orchestrator()

    @orchestrator.middleware
    async def layer(run: RunContext, call_next: Any) -> Any:
        try:
            return await call_next()
        except Exception as error:
            seen.append(type(error).__name__)
            raise

    async def it() -> None:
        raise Snooze(60)

    assert (await run_once(house, orchestrator, it))["outcome"] == "snoozed"
    assert seen == ["Snooze"]


async def test_its_own_error_is_a_failed_attempt(house: House):
    orchestrator = house.orchestrator()

    @orchestrator.middleware
    async def layer(run: RunContext, call_next: Any) -> Any:
        await call_next()
        return await call_next()

    row = await run_once(house, orchestrator, inline)
    assert (row["outcome"], row["error"]) == ("failed", "a middleware called call_next a second time")


@pytest.mark.parametrize("isolation", ["inline", "thread", "process", "layer"])
async def test_a_timeout_ends_the_code_and_the_layers_see_it(house: House, isolation: str, tmp_path: Any):
    seen: list[str] = []
    orchestrator = house.orchestrator()

    @orchestrator.middleware
    async def layer(run: RunContext, call_next: Any) -> Any:
        try:
            if isolation == "layer":
                await asyncio.sleep(60)
            return await call_next()
        finally:
            seen.append("left")

    async def sleeps() -> None:
        await asyncio.sleep(60)

    def waits(run: RunContext) -> None:
        while not run.should_stop:
            threading.Event().wait(0.01)

    handler: Any = {"inline": sleeps, "thread": waits, "process": tasks.sleep, "layer": sleeps}[isolation]
    options: dict[str, Any] = (
        {"payload": {"folder": str(tmp_path)}, "isolation": "process"} if isolation == "process" else {}
    )
    row = await run_once(house, orchestrator, handler, timeout_seconds=0.1, **options)
    assert (row["outcome"], row["error"]) == ("timed_out", "timed out after 0.1 s")
    assert seen == ["left"]


async def test_a_layer_that_gives_up_waiting_waits_for_the_end_of_the_code_all_the_same(house: House):
    order: list[str] = []
    orchestrator = house.orchestrator()

    @orchestrator.middleware
    async def layer(run: RunContext, call_next: Any) -> Any:
        try:
            async with asyncio.timeout(0.05):
                return await call_next()
        finally:
            order.append("layer")

    async def it() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            order.append("code")

    row = await run_once(house, orchestrator, it)
    assert row["outcome"] == "failed"
    assert order == ["code", "layer"]


async def test_what_is_no_coroutine_function_is_refused(house: House):
    orchestrator = house.orchestrator()
    with pytest.raises(InvalidSetting, match="async def"):
        orchestrator.middleware(lambda run, call_next: None)


async def test_after_the_start_it_is_too_late(house: House):
    orchestrator = house.orchestrator()
    await orchestrator.start()
    with pytest.raises(Refused, match="before"):

        @orchestrator.middleware
        async def layer(run: RunContext, call_next: Any) -> Any: ...


@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_it_sees_a_payload_that_does_not_fit(house: House, isolation: Any):
    seen: list[Any] = []
    orchestrator = house.orchestrator()

    @orchestrator.middleware
    async def layer(run: RunContext, call_next: Any) -> Any:
        try:
            return await call_next()
        except Exception as error:
            seen.append((run.worker, error))
            raise

    orchestrator.register_worker("it", tasks.sleep, isolation=isolation, **ONCE)
    await orchestrator.start()
    await house.sql("""INSERT INTO {p}runs (worker, payload) VALUES ('it', '{"folder": 5}')""")
    (end,) = await house.attempts(1)
    ((worker, error),) = seen
    assert worker == "it"
    assert isinstance(error, InvalidPayload)
    assert (end.outcome.does_not_fit, end.ends_run, end.outcome.traceback) == (True, "discarded", None)

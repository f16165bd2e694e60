"""How attempts end, on both databases: each way out of a handler, its outcome, and that the node lives on."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

from jobrunner import Discard, RetryAfter, RunContext, Snooze, WorkerOptions
from tests.runtime.conftest import House

ONCE: WorkerOptions = {"execution_mode": "triggered", "max_retries": 0}


async def end_of(house: House, handler: Any, **options: Any) -> dict[str, Any]:
    """Run `handler` once and return its history row; afterwards the node must still run another."""
    orchestrator = house.orchestrator()
    orchestrator.register_worker("it", handler, **{**ONCE, **options})

    async def proof() -> str:
        return "alive"

    orchestrator.register_worker("proof", proof, **ONCE)
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    await house.attempts(1, "it")
    await orchestrator.trigger_worker("proof")
    await house.attempts(1, "proof")
    return (await house.history("it"))[0]


def plain(value: Any) -> Any:
    """Return a JSON column as plain SQL gives it: text on SQLite, read on PostgreSQL by its driver, or not."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


async def test_a_success_keeps_result_output_and_duration(house: House):
    async def it(run: RunContext) -> dict[str, Any]:
        run.log("first")
        run.log("second")
        await asyncio.sleep(0.02)
        return {"rows": [1, 2, None], "ok": True, "text": "größer ✓"}

    row = await end_of(house, it)
    result = row["result"] if isinstance(row["result"], dict) else json.loads(row["result"])
    assert result == {"rows": [1, 2, None], "ok": True, "text": "größer ✓"}
    assert (row["outcome"], row["ends_run"], row["error"], row["output"]) == (
        "succeeded",
        "succeeded",
        None,
        "first\nsecond",
    )
    assert 15 <= row["duration_ms"] < 5000


async def test_a_failure_keeps_type_message_and_traceback(house: House):
    async def it() -> None:
        raise ValueError("no such table: prices")

    row = await end_of(house, it)
    assert (row["outcome"], row["ends_run"]) == ("failed", "exhausted")
    assert (row["error_type"], row["error"]) == ("ValueError", "no such table: prices")
    assert 'raise ValueError("no such table: prices")' in row["traceback"]
    (letter,) = await house.rows("SELECT * FROM {p}dead_letters")
    assert (letter["error"], letter["attempts"], letter["status"]) == ("no such table: prices", 1, "open")


# --- timeouts -----------------------------------------------------------------------------------------------------


async def test_a_timeout_cancels_async_code_and_its_error_says_so(house: House):
    cancelled = []

    async def it() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    row = await end_of(house, it, timeout_seconds=0.05)
    assert cancelled == [True]
    assert (row["outcome"], row["error_type"], row["error"]) == ("timed_out", "TimeoutError", "timed out after 0.05 s")
    assert 50 <= row["duration_ms"] < 1000
    assert "asyncio.sleep(60)" in row["traceback"]  # where it stood
    assert (await house.state("it"))["last_error"] == "timed out after 0.05 s"


async def test_what_a_handler_makes_of_its_cancellation_is_a_timeout_all_the_same(house: House):
    async def it() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "I pretend nothing happened"
        return "never"

    row = await end_of(house, it, timeout_seconds=0.05)
    assert (row["outcome"], row["error"]) == ("timed_out", "timed out after 0.05 s")
    assert plain(row["result"]) == "I pretend nothing happened"


async def stuck(house: House, handler: Any, release: Any) -> None:
    """A handler past its timeout that does not stop: `stopping`, slot and blocks held, and then `timed_out`."""
    orchestrator = house.orchestrator(max_concurrent=1)
    orchestrator.register_worker("it", handler, timeout_seconds=0.05, **ONCE)

    async def other() -> None: ...

    orchestrator.register_worker("other", other, blocks=["it"], **ONCE)
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    await orchestrator.trigger_worker("other")
    shown = await house.until_row("SELECT * FROM {p}runs WHERE state = 'stopping'")
    assert (shown["worker"], shown["slot"]) == ("it", 0)
    assert (await orchestrator.get_status())["running"] == ["it"]
    assert await house.history() == []
    release()
    await house.attempts(2)
    first, second = await house.history()
    assert (first["worker"], first["outcome"], first["error"]) == ("it", "timed_out", "timed out after 0.05 s")
    assert first["duration_ms"] >= 1000  # as long as the code ran, not as long as it was given
    assert (second["worker"], second["outcome"]) == ("other", "succeeded")
    assert second["started_at"] >= first["finished_at"]


async def test_async_code_that_swallows_its_cancellation_keeps_its_slot_until_it_ends(house: House):
    let_go = asyncio.Event()

    async def it() -> None:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                pass

    await stuck(house, it, let_go.set)


async def test_a_thread_past_its_timeout_keeps_its_slot_until_it_ends(house: House):
    let_go = threading.Event()

    def it(run: RunContext) -> None:
        let_go.wait(30)

    await stuck(house, it, let_go.set)


async def test_a_thread_is_told_of_its_timeout(house: House):
    def it(run: RunContext) -> None:
        while not run.should_stop:
            time.sleep(0.005)

    row = await end_of(house, it, timeout_seconds=0.05)
    assert (row["outcome"], row["error"]) == ("timed_out", "timed out after 0.05 s")
    assert row["duration_ms"] < 1000


# --- what a handler may raise -------------------------------------------------------------------------------------


class Bare(BaseException):
    pass


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("I cannot even say what is wrong")


RAISED: list[tuple[BaseException, str, str]] = [
    (SystemExit(3), "SystemExit", "3"),
    (KeyboardInterrupt(), "KeyboardInterrupt", "KeyboardInterrupt"),
    (Bare("bare"), "Bare", "bare"),
    (GeneratorExit(), "GeneratorExit", "GeneratorExit"),
    (asyncio.CancelledError(), "CancelledError", "CancelledError"),
    (TimeoutError(), "TimeoutError", "TimeoutError"),
    (ValueError(" \n"), "ValueError", "ValueError"),
    (Mute(), "Mute", "Mute"),
    (ExceptionGroup("two", [ValueError("a"), KeyError("b")]), "ExceptionGroup", "two (2 sub-exceptions)"),
]


async def all_ends(house: House, handlers: dict[str, Any], **options: Any) -> dict[str, dict[str, Any]]:
    """Run each handler once on one node, and a last one that shows that the node lives; return each history row."""
    orchestrator = house.orchestrator()
    for name, handler in handlers.items():
        orchestrator.register_worker(name, handler, **{**ONCE, **options})

    async def proof() -> str:
        return "alive"

    orchestrator.register_worker("proof", proof, **ONCE)
    await orchestrator.start()
    for name in handlers:
        await orchestrator.trigger_worker(name)
    await house.attempts(len(handlers))
    await orchestrator.trigger_worker("proof")
    await house.attempts(1, "proof")
    rows = {row["worker"]: row for row in await house.history()}
    assert rows.pop("proof")["outcome"] == "succeeded"
    return rows


async def test_whatever_a_handler_raises_is_a_failed_attempt_and_the_node_lives(house: House):
    def in_loop(error: BaseException) -> Any:
        async def raise_it() -> None:
            raise error

        return raise_it

    def in_thread(error: BaseException) -> Any:
        def raise_it() -> None:
            raise error

        return raise_it

    handlers = {f"loop-{n}": in_loop(error) for n, (error, _, _) in enumerate(RAISED)}
    handlers |= {f"thread-{n}": in_thread(error) for n, (error, _, _) in enumerate(RAISED)}
    rows = await all_ends(house, handlers)
    for n, (_, kind, said) in enumerate(RAISED):
        for row in (rows[f"loop-{n}"], rows[f"thread-{n}"]):
            assert (row["outcome"], row["error_type"], row["error"]) == ("failed", kind, said)


async def test_a_handler_that_cancels_itself_has_failed(house: House):
    async def it() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    row = await end_of(house, it)
    assert (row["outcome"], row["error_type"]) == ("failed", "CancelledError")


NASTY = {
    "nul": "before\0after",
    "surrogate": "half a pair: \ud83d",
    "huge": "x" * 10_000_000,
    "huge-wide": "€" * 3_000_000,
    "lines": "first\n" * 200_000,
}


async def test_an_error_that_no_database_takes_is_stored_cut_and_clean(house: House):
    def saying(text: str) -> Any:
        async def it(run: RunContext) -> None:
            run.log(text)
            raise RuntimeError(text)

        return it

    rows = await all_ends(house, {name: saying(text) for name, text in NASTY.items()})
    letters = {row["worker"]: row for row in await house.rows("SELECT * FROM {p}dead_letters")}
    for name, row in rows.items():
        assert (row["outcome"], row["error_type"]) == ("failed", "RuntimeError")
        for column in ("error", "traceback", "output"):
            assert row[column]
            assert "\0" not in row[column]
            assert len(row[column].encode()) <= 64 * 1024 + 100
        assert letters[name]["error"] == row["error"]


class Unprintable:
    pass


RESULTS = {
    "object": Unprintable(),
    "bytes": b"\x00",
    "nan": float("nan"),
    "lock": threading.Lock(),
    "keys": {(1, 2): 3},
    "nul": "a\0b",
    "nul-in-list": [{"a\0": 1}],
    "surrogate": "\ud83d",
    "huge": "x" * 100_000,
    "huge-number": 10**5000,
}


def nested() -> Any:
    value: list = []
    for _ in range(100_000):
        value = [value]
    return value


async def test_a_result_that_cannot_be_kept_is_left_out_and_the_run_succeeded(house: House):
    def returning(value: Any) -> Any:
        async def it() -> Any:
            return value

        return it

    handlers = {name: returning(value) for name, value in {**RESULTS, "nested": nested()}.items()}
    for row in (await all_ends(house, handlers)).values():
        assert (row["outcome"], row["ends_run"], row["result"]) == ("succeeded", "succeeded", None)
        assert row["reason"].startswith("its result is not kept")


async def test_a_def_that_returns_a_coroutine_has_failed_and_says_why(house: House):
    async def work() -> None: ...

    row = await end_of(house, lambda: work())
    assert (row["outcome"], row["error_type"]) == ("failed", "TypeError")
    assert "make it an async def" in row["error"]


# --- what a handler may ask for -----------------------------------------------------------------------------------


async def test_discard_ends_the_run_without_retry_and_leaves_the_streak(house: House):
    async def it() -> None:
        raise Discard("the customer is gone")

    row = await end_of(house, it, max_retries=5)
    assert (row["outcome"], row["ends_run"], row["reason"]) == ("failed", "discarded", "the customer is gone")
    assert (await house.state("it"))["consecutive_failures"] == 0
    (letter,) = await house.rows("SELECT status, error FROM {p}dead_letters")
    assert letter == {"status": "open", "error": "the customer is gone"}


async def test_snooze_runs_the_same_attempt_again_later(house: House):
    attempts = []

    async def it(run: RunContext) -> None:
        attempts.append(run.attempt)
        if len(attempts) < 3:
            raise Snooze(0.02)

    orchestrator = house.orchestrator()
    orchestrator.register_worker("it", it, **ONCE)
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    await house.attempts(3)
    assert attempts == [1, 1, 1]
    assert [row["outcome"] for row in await house.history()] == ["snoozed", "snoozed", "succeeded"]
    assert await house.rows("SELECT * FROM {p}dead_letters") == []


async def test_retry_after_sets_the_delay_and_uses_up_the_attempt(house: House):
    attempts = []

    async def it(run: RunContext) -> None:
        attempts.append(run.attempt)
        raise RetryAfter(0.02, "busy")

    orchestrator = house.orchestrator()
    orchestrator.register_worker("it", it, execution_mode="triggered", max_retries=2, retry_delay_seconds=3600)
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    await house.attempts(3)
    assert attempts == [1, 2, 3]
    assert [(row["outcome"], row["error"], row["ends_run"]) for row in await house.history()] == [
        ("failed", "busy", None),
        ("failed", "busy", None),
        ("failed", "busy", "exhausted"),
    ]


async def test_a_delay_that_is_no_number_of_seconds_does_not_hurt_the_node(house: House):
    def asking(seconds: Any) -> Any:
        async def it() -> None:
            asked = RetryAfter(1)
            asked.seconds = seconds
            raise asked

        return it

    delays = [float("nan"), float("inf"), -5.0, 1e300, "soon", None]
    rows = await all_ends(house, {f"w{n}": asking(delay) for n, delay in enumerate(delays)})
    assert {row["outcome"] for row in rows.values()} == {"failed"}


async def test_progress_is_shown_in_the_runs_row(house: House):
    done = asyncio.Event()

    async def it(run: RunContext) -> None:
        run.progress(0.25, "a quarter\0")
        await done.wait()

    orchestrator = house.orchestrator()
    orchestrator.register_worker("it", it, **ONCE)
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    row = await house.until_row("SELECT progress FROM {p}runs WHERE progress IS NOT NULL")
    shown = row["progress"] if isinstance(row["progress"], dict) else json.loads(row["progress"])
    assert (shown["fraction"], shown["message"][:9]) == (0.25, "a quarter")
    done.set()
    await house.attempts(1)


async def test_output_is_shown_in_the_runs_row_while_it_runs_and_gone_with_the_attempt(house: House):
    steps: asyncio.Queue[str | None] = asyncio.Queue()

    async def it(run: RunContext) -> None:
        while (line := await steps.get()) is not None:
            run.log(line)
        if run.attempt == 1:
            raise OSError("no luck")

    async def silent() -> None:
        await asyncio.Event().wait()

    orchestrator = house.orchestrator()
    orchestrator.register_worker("it", it, execution_mode="triggered", max_retries=1, retry_delay_seconds=0)
    orchestrator.register_worker("silent", silent, **ONCE)
    await orchestrator.start()
    await orchestrator.trigger_worker("silent")
    await orchestrator.trigger_worker("it")
    steps.put_nowait("one\0")
    query = "SELECT output, output_lines FROM {p}runs WHERE worker = 'it' AND"
    assert await house.until_row(f"{query} output_lines = 1") == {"output": "one\\0", "output_lines": 1}
    steps.put_nowait("two")
    shown = await house.until_row(f"{query} output_lines = 2")
    assert shown["output"] == "one\\0\ntwo"
    steps.put_nowait(None)
    await house.until_row(f"{query} attempt = 2 AND output IS NULL AND output_lines IS NULL")
    steps.put_nowait("again")
    assert (await house.until_row(f"{query} output_lines = 1"))["output"] == "again"
    steps.put_nowait(None)
    assert [ended.outcome.output for ended in await house.attempts(2)] == ["one\\0\ntwo", "again"]

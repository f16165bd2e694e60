"""Objects of handlers that raise when they are asked anything: each hurts its own attempt, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from jobrunner import Discard, RetryAfter, RunContext, Snooze, WorkerOrchestrator
from jobrunner.errors import InvalidWorker
from jobrunner.runtime.results import storable_result
from jobrunner.runtime.retry_rules import read_retry_rule
from tests.runtime.conftest import House
from tests.runtime.test_attempt import all_ends, end_of
from tests.support import tasks

BROKEN = [RuntimeError, SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit]


def raising(kind: type[BaseException]) -> Callable[..., Any]:
    def ask(*_: Any, **__: Any) -> Any:
        raise kind("asked")

    return ask


def broken(base: type, kind: type[BaseException], *names: str) -> type:
    """A class derived from `base` whose methods of these names raise."""
    return type("Broken", (base,), {name: raising(kind) for name in names})


class OddText(str):
    """Text that answers with objects, not with text."""

    def strip(self, *_: Any) -> Any:
        raise RuntimeError("asked")

    replace = encode = splitlines = __format__ = strip


class Saying:
    def __init__(self, said: Any) -> None:
        self.said = said

    def __str__(self) -> str:
        return self.said


def returning(value: Any) -> Callable[[], Any]:
    async def it() -> Any:
        return value

    return it


def throwing(error: Any) -> Callable[[], Any]:
    async def it() -> None:
        raise error()

    return it


async def test_a_result_that_raises_when_it_is_asked_is_a_failed_attempt(house: House):
    handlers = {f"items-{kind.__name__}": returning(broken(dict, kind, "items")()) for kind in BROKEN}
    handlers["pairs"] = returning(type("Odd", (dict,), {"items": lambda self: [1, 2]})())
    for name, row in (await all_ends(house, handlers, timeout_seconds=20)).items():
        assert (row["outcome"], row["result"]) == ("failed", None), name
    assert await house.rows("SELECT * FROM {p}runs") == []


async def test_a_result_is_asked_nothing_that_it_need_not_be(house: House):
    everything = ("__iter__", "__len__", "__bool__", "__eq__", "__str__", "__repr__", "__getitem__", "__hash__")
    values = {
        base.__name__: broken(base, SystemExit, *everything)(given)
        for base, given in ((list, [1]), (tuple, [1]), (str, "x"), (int, 5), (float, 0.5))
    }
    for name, row in (await all_ends(house, {name: returning(value) for name, value in values.items()})).items():
        kept = json.loads(row["result"]) if isinstance(row["result"], str) and name != "str" else row["result"]
        assert row["outcome"] == "succeeded", row["error"]
        assert kept == {"list": [1], "tuple": [1], "int": 5, "float": 0.5}.get(name, row["result"])


async def test_an_object_that_is_no_json_is_not_asked_who_it_is(house: House):
    class Nobody:
        __class__ = property(raising(SystemExit))  # type: ignore[assignment]
        __eq__ = __bool__ = __str__ = __repr__ = __getattr__ = raising(SystemExit)

    row = await end_of(house, returning(Nobody()))
    assert (row["outcome"], row["result"]) == ("succeeded", None)
    assert row["reason"] == "its result is not kept, since it is no JSON: it holds an object of type Nobody"


async def test_an_error_that_raises_when_it_is_asked_is_told_by_its_class(house: House):
    asked = ("__str__", "__repr__", "__eq__", "__bool__", "__hash__")
    handlers = {kind.__name__: throwing(broken(Exception, kind, *asked)) for kind in BROKEN}
    handlers |= {f"base-{kind.__name__}": throwing(broken(BaseException, kind, *asked)) for kind in BROKEN}
    parts = ("__class__", "__traceback__", "__cause__", "__context__", "__notes__", "__suppress_context__")
    odd = type("Broken", (Exception,), {name: property(raising(SystemExit)) for name in parts})
    handlers["parts"] = throwing(odd)
    rows = await all_ends(house, handlers)
    for row in rows.values():
        assert (row["outcome"], row["error_type"]) == ("failed", "Broken")
        assert row["error"] in {"Broken", ""} or row["worker"] == "parts"
        assert "raise error()" in row["traceback"]


@pytest.mark.parametrize("broken_by", [RuntimeError, SystemExit])
async def test_what_a_signal_carries_is_asked_nothing_unguarded(house: House, broken_by: type[BaseException]):
    def asking(signal: BaseException, **given: Any) -> Callable[[], Any]:
        async def it() -> None:
            for name, value in given.items():
                setattr(signal, name, value)
            raise signal

        return it

    mute = broken(object, broken_by, "__str__", "__float__", "__lt__")()
    handlers = {
        "discard": asking(Discard("x"), reason=mute),
        "number": asking(Discard("x"), reason=404),
        "retry": asking(RetryAfter(0), seconds=mute, reason=mute),
        "odd": throwing(lambda: ValueError(Saying(OddText("odd\0\ud800")))),
    }
    rows = await all_ends(house, handlers)
    assert {row["outcome"] for row in rows.values()} == {"failed"}
    assert (rows["number"]["reason"], rows["number"]["ends_run"]) == ("404", "discarded")
    assert rows["odd"]["error"] == "odd\\0?"


async def test_a_cyclic_and_a_deep_chain_of_errors_are_told(house: House):
    async def cyclic() -> None:
        one, two = ValueError("one"), ValueError("two")
        one.__cause__, two.__cause__ = two, one
        raise one

    async def deep() -> None:
        error: Exception = ValueError("the innermost")
        for _ in range(3000):
            error = ExceptionGroup("g", [error])
        raise error

    async def huge() -> None:
        raise ValueError("x" * 100_000_000)

    rows = await all_ends(house, {"cyclic": cyclic, "deep": deep, "huge": huge})
    assert {row["outcome"] for row in rows.values()} == {"failed"}
    assert all(row["traceback"] for row in rows.values())
    assert len(rows["huge"]["error"]) == 64 * 1024


async def test_log_and_progress_take_what_cannot_say_what_it_is(house: House):
    refused = []

    async def it(run: RunContext) -> str:
        run.log(broken(object, RuntimeError, "__str__")())
        run.log(Saying(OddText("odd")))
        odd = broken(float, RuntimeError, "__le__", "__ge__", "__float__", "__repr__", "__str__")(0.5)
        for fraction in (float("nan"), "0.5", odd, None, 1.5, object()):
            try:
                run.progress(fraction)  # type: ignore[arg-type]
            except ValueError as error:
                refused.append(str(error))
        run.progress(0.5, broken(object, RuntimeError, "__str__")())  # type: ignore[arg-type]
        return "done"

    row = await end_of(house, it)
    assert row["outcome"] == "succeeded"
    assert row["output"] == "<an object of type Broken that cannot say what it is>\nodd"
    assert len(refused) == 6
    assert all(text.startswith("progress is a number from 0 to 1, not ") for text in refused)


async def test_what_a_handler_does_to_its_payload_is_nobody_elses(house: House):
    async def it(run: RunContext) -> None:
        run.payload["client"] = object()
        del run.payload["keep"]
        raise ValueError("no")

    orchestrator = house.orchestrator()
    orchestrator.register_worker("it", it, execution_mode="triggered", max_retries=0)
    await orchestrator.start()
    await orchestrator.trigger_worker("it", {"keep": 1})
    await house.attempts(1)
    (row,) = await house.history()
    assert (row["outcome"], row["error"]) == ("failed", "no")
    assert (json.loads(row["payload"]) if isinstance(row["payload"], str) else row["payload"]) == {"keep": 1}


async def test_middleware_and_a_payloads_own_checks_may_raise_anything(house: House):
    orchestrator = house.orchestrator()

    @orchestrator.middleware
    async def layer(run: RunContext, call_next: Callable[[], Any]) -> Any:
        await call_next()
        if run.worker == "raises":
            raise broken(BaseException, SystemExit, "__str__")
        return broken(dict, SystemExit, "items")()

    async def it() -> None: ...

    for name in ("raises", "returns"):
        orchestrator.register_worker(name, it, execution_mode="triggered", max_retries=0)
    await orchestrator.start()
    for name in ("raises", "returns"):
        await orchestrator.trigger_worker(name)
    await house.attempts(2)
    assert {row["outcome"] for row in await house.history()} == {"failed"}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_retry_delay_may_raise_anything(kind: type[BaseException]):
    for answer in (raising(kind), lambda _a, _e: broken(float, kind, "__float__", "__le__", "__lt__", "__repr__")(1)):
        judged = read_retry_rule("it", None, answer).judge(ValueError(), 1)
        assert judged.get("delay_seconds") == 1.0 or "the usual delay holds" in judged["reason"]


def test_a_retry_delay_may_be_a_timedelta():
    rule = read_retry_rule("it", None, lambda _attempt, _error: timedelta(minutes=2))
    assert rule.judge(ValueError(), 1) == {"delay_seconds": 120.0}


# --- what JSON could say, and a database or its readers could not --------------------------------------------------


def nested(levels: int) -> Any:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"a\0": 1}, "a character that a database cannot store"),
        ({"\ud800": 1}, "half of a character"),
        (10**4299, "more than 4,000 digits"),
        (nested(5000), "nested deeper than 200 levels"),
        ([nested(10)] * 20_000, "more than 65,536 bytes"),
        ("x" * 300_000_000, "more than 65,536 bytes"),
        (float("inf"), "it holds inf"),
        ({"a": float("nan")}, "it holds nan"),
        ({(1,): 1}, "a key of type tuple"),
    ],
    ids=["nul key", "surrogate key", "digits", "deep", "wide", "huge", "inf", "nan", "tuple key"],
)
def test_a_result_that_could_not_be_stored_or_read_is_not_kept(value: Any, why: str):
    kept, reason = storable_result(value)
    assert kept is None
    assert why in (reason or "")


def test_a_result_is_kept_as_json_says_it():
    value = {"a": (1, 2.5, True, None), 5: "\\u0000", True: 1, 1.5: 2, None: nested(150)}
    assert storable_result(value) == (json.loads(json.dumps(value)), None)


# --- work that nobody began ----------------------------------------------------------------------------------------


def generator(run: RunContext) -> Any:
    yield


async def async_generator(run: RunContext) -> Any:
    yield


class Callable_:
    def __call__(self, run: RunContext) -> Any:
        yield

    def method(self, run: RunContext) -> Any:
        yield


def through(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize(
    "handler",
    [
        generator,
        async_generator,
        functools.partial(async_generator),
        functools.partial(functools.partial(generator)),
        functools.cache(generator),
        contextlib.contextmanager(generator),
        functools.partial(contextlib.asynccontextmanager(async_generator)),
        Callable_(),
        Callable_().method,
        functools.partial(Callable_().method),
    ],
    ids=[
        "plain",
        "async",
        "partial",
        "partial of a partial",
        "cache",
        "context manager",
        "partial of a context manager",
        "object",
        "method",
        "partial of a method",
    ],
)
@pytest.mark.parametrize("isolation", [None, "process"])
def test_a_generator_is_refused_at_its_registration(sqlite_url: str, handler: Any, isolation: Any):
    with pytest.raises(InvalidWorker, match=r"is a generator \(it has a yield\)"):
        WorkerOrchestrator(sqlite_url).register_worker("it", handler, interval_seconds=1, isolation=isolation)


def test_an_async_def_that_runs_through_a_generator_is_taken(sqlite_url: str):
    @functools.wraps(async_generator)
    async def handler(run: RunContext) -> None:
        async for _ in async_generator(run):
            pass

    WorkerOrchestrator(sqlite_url).register_worker("it", handler, interval_seconds=1)


def test_so_is_a_def(sqlite_url: str):
    @functools.wraps(generator)
    def handler(run: RunContext) -> None:
        for _ in generator(run):
            pass

    WorkerOrchestrator(sqlite_url).register_worker("it", handler, interval_seconds=1)


async def test_a_value_that_stands_for_work_nobody_began_is_a_failed_attempt(house: House):
    async def work() -> None:
        raise AssertionError("it was begun")

    async def broken_task() -> Any:
        task = asyncio.ensure_future(work())
        await asyncio.wait({task})
        return task

    async def task() -> Any:
        return asyncio.ensure_future(asyncio.Event().wait())

    values = {
        "generator": lambda: generator(None),  # type: ignore[arg-type]
        "async generator": lambda: async_generator(None),  # type: ignore[arg-type]
        "coroutine": lambda: work(),
        "map": lambda: map(print, [1]),
        "filter": lambda: filter(None, [1]),
        "zip": lambda: zip([1], [2], strict=True),
        "itertools": lambda: itertools.starmap(print, []),
    }
    handlers = {name.replace(" ", "-"): make for name, make in values.items()}
    more = {"task": task, "broken-task": broken_task, "wraps": through(generator)}
    rows = await all_ends(house, {**handlers, **more})
    for row in rows.values():
        assert (row["outcome"], row["error_type"]) == ("failed", "TypeError")
        assert row["error"].startswith("the handler returned a")
        assert ";" in row["error"]  # and what to do
    assert len(asyncio.all_tasks()) < 30  # the task was cancelled, not left


async def test_so_it_is_in_a_process(house: House):
    row = await end_of(house, tasks.lazy, isolation="process")
    assert (row["outcome"], row["error_type"]) == ("failed", "TypeError")
    assert "a generator that was never begun" in row["error"]


async def test_an_error_that_cannot_say_what_it_is_comes_from_a_process_too(house: House):
    row = await end_of(house, tasks.raise_mute, isolation="process")
    assert (row["outcome"], row["error_type"], row["error"]) == ("failed", "Mute", "Mute")


# --- signals out of a TaskGroup ------------------------------------------------------------------------------------


def grouped(*signals: BaseException) -> Callable[[], Any]:
    async def ask(signal: BaseException) -> None:
        raise signal

    async def it() -> None:
        async with asyncio.TaskGroup() as group:
            for signal in signals:
                group.create_task(ask(signal))

    return it


async def test_a_signal_out_of_a_task_group_means_what_it_says(house: House):
    handlers = {
        "discard": grouped(Discard("gone"), Snooze(5)),
        "retry": grouped(RetryAfter(3600, "busy")),
        "snooze": grouped(Snooze(timedelta(hours=1))),
        "mixed": grouped(Snooze(3600), ValueError("no")),
    }
    rows = await all_ends(house, handlers, max_retries=1, retry_delay_seconds=3600)
    assert (rows["discard"]["ends_run"], rows["discard"]["reason"]) == ("discarded", "gone")
    assert (rows["retry"]["outcome"], rows["retry"]["error"], rows["retry"]["ends_run"]) == ("failed", "busy", None)
    assert (rows["snooze"]["outcome"], rows["snooze"]["reason"]) == ("snoozed", "snoozed for 3600 s")
    assert (rows["mixed"]["outcome"], rows["mixed"]["error_type"]) == ("failed", "ExceptionGroup")


# --- callbacks of the node -----------------------------------------------------------------------------------------


async def test_a_claim_that_cannot_be_begun_ends_as_failed_and_holds_up_no_other(
    house: House, monkeypatch: pytest.MonkeyPatch
):
    from jobrunner.runtime import slots

    real = slots.RunContext

    def context(run: Any, deadline: Any) -> Any:
        if run.worker == "it":
            raise KeyError("a fault of the node's own")
        return real(run, deadline)

    monkeypatch.setattr(slots, "RunContext", context)
    row = await end_of(house, returning(1))
    assert (row["outcome"], row["error_type"]) == ("failed", "KeyError")
    assert house.ended("it")[0].ends_run == "exhausted"


async def test_an_end_that_cannot_be_passed_on_is_failed(house: House):
    async def it(run: RunContext) -> None:
        run.finished = "nonsense"  # type: ignore[assignment]

    row = await end_of(house, it)
    assert (row["outcome"], row["error_type"]) == ("failed", "AttributeError")


async def test_a_run_whose_output_was_replaced_ends_all_the_same(house: House):
    async def it(run: RunContext) -> None:
        run.output = None  # type: ignore[assignment]

    row = await end_of(house, it)
    assert (row["outcome"], row["error_type"]) == ("failed", "AttributeError")


async def test_a_subscriber_that_raises_stops_nothing(house: House, capsys: pytest.CaptureFixture[str]):
    orchestrator = house.orchestrator()
    orchestrator.events.subscribe(raising(RuntimeError))
    orchestrator.events.subscribe(house._note)
    orchestrator.register_worker("it", returning(1), execution_mode="triggered")
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    (ended, *_) = await house.attempts(1)
    assert ended.outcome.kind == "succeeded"
    assert capsys.readouterr().err.count("RuntimeError: asked") == 1

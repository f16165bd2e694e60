"""`jobrunner.testing.simulate` writes, row by row, the history that claims and ends through the tables write."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobrunner import Discard, RetryAfter, RunContext, Snooze, WorkerOrchestrator
from jobrunner.testing import ManualClock, simulate
from tests.support.oracle import live_in_tables

Define = Callable[[WorkerOrchestrator, ManualClock], None]
START = datetime(2026, 3, 28, 23, 30, tzinfo=UTC)  # an hour and a half before the clocks change in Berlin
TRIGGERED: dict[str, Any] = {"execution_mode": "triggered"}
CONTINUOUS: dict[str, Any] = {"execution_mode": "continuous"}


def both(define: Define, template: Path, *, days: float, slots: int = 100) -> list[dict[str, Any]]:
    """Live through the tables and in a simulation, compare the histories, and return them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(shutil.copyfile(template, Path(folder) / "jobrunner.db"))
        clock = ManualClock(START)
        orchestrator = WorkerOrchestrator(f"sqlite:///{path}", clock=clock)
        define(orchestrator, clock)
        expected = asyncio.run(live_in_tables(orchestrator, clock, days=days, slots=slots))
    clock = ManualClock(START)
    orchestrator = WorkerOrchestrator(f"sqlite:///{path}", clock=clock)
    define(orchestrator, clock)
    found = asyncio.run(simulate(orchestrator, days=days, clock=clock, slots=slots)).history
    for number, row in enumerate(expected):
        here = {**found[number], "node_id": row["node_id"]} if number < len(found) else None
        assert here == row, f"row {number} differs"
    assert len(found) == len(expected)
    assert not path.exists()
    return expected


def kinds(history: list[dict[str, Any]], worker: str) -> Counter[str]:
    return Counter(row["outcome"] for row in history if row["worker"] == worker)


def fails_on(*calls: int, error: type[Exception] = OSError) -> Callable[[], Any]:
    """A handler that fails on these calls, counted from 1."""
    count = 0

    async def handler() -> int:
        nonlocal count
        count += 1
        if count in calls:
            raise error(f"call {count}")
        return count

    return handler


async def nothing() -> None: ...


def test_schedules_of_all_kinds_and_their_dependencies(sqlite_template: Path):
    def define(o: WorkerOrchestrator, clock: ManualClock) -> None:
        o.register_worker("a", fails_on(2, 3, 9), interval_seconds=600, jitter_seconds=30)
        o.register_worker("b", nothing, interval_seconds=600, depends_on=["a"], priority="HIGH")
        o.register_worker("c", nothing, interval_seconds=300, depends_on=[{"depends_on": "a", "condition": "fresh"}])
        o.register_worker("d", nothing, interval_seconds=900, depends_on=[{"depends_on": "a", "max_age_seconds": 200}])
        o.register_worker("night", nothing, cron="30 2 * * *", timezone="Europe/Berlin")
        o.register_worker("wild", nothing, cron="*/20 1-4 * * *", timezone="Europe/Berlin", jitter_seconds=60)
        o.register_worker("loop", fails_on(3, 4, 5, 6), **CONTINUOUS, interval_seconds=400, max_retries=1)

    history = both(define, sqlite_template, days=0.25)
    assert kinds(history, "a") == {"failed": 3, "succeeded": 36}
    assert kinds(history, "night") == {"succeeded": 1}
    assert kinds(history, "c")["succeeded"] > 30
    assert kinds(history, "loop")["failed"] == 4


def test_limits_of_all_kinds(sqlite_template: Path):
    def define(o: WorkerOrchestrator, clock: ManualClock) -> None:
        async def feed(run: RunContext) -> None:
            for number in range(12):
                payload = {"customer": number % 3 if number % 4 else None, "n": number}
                for name in ("keyed", "fair", "ordered", "slowly", "each", "paid"):
                    await o.trigger_worker(name, payload, priority=number % 3)

        async def work(run: RunContext) -> int:
            if run.payload["n"] == 5 and run.attempt == 1:
                raise RetryAfter(40)
            return run.payload["n"]

        o.limit("stripe", max_running=2, rate="3/1m")
        o.register_worker("feed", feed, interval_seconds=1800)
        by_key: dict[str, Any] = {**TRIGGERED, "max_running": 9, "limit_key": "customer"}
        o.register_worker("keyed", work, **by_key, max_running_per_key=2)
        o.register_worker("fair", work, **by_key, fair=True)
        o.register_worker("ordered", work, **by_key, ordered=True)
        o.register_worker("slowly", work, **TRIGGERED, max_running=9, rate="5/1m")
        o.register_worker("each", work, **by_key, rate_per_key="1/1m")
        o.register_worker("paid", work, **TRIGGERED, max_running=9, limits=["stripe"])
        o.register_worker("billed", nothing, interval_seconds=20, limits=["stripe"], misfire="run_all")
        o.register_worker("evenly", nothing, interval_seconds=10, rate="2/1m", smooth=True)

    history = both(define, sqlite_template, days=0.05, slots=4)
    assert kinds(history, "evenly")["missed"] > 0
    assert all(kinds(history, name)["succeeded"] == 36 for name in ("keyed", "fair", "ordered", "slowly", "each"))


def test_blocks_and_priorities_with_few_slots(sqlite_template: Path):
    def define(o: WorkerOrchestrator, clock: ManualClock) -> None:
        async def slow() -> None:
            clock.advance(70)

        for number in range(6):
            o.register_worker(f"w{number}", nothing, interval_seconds=60, priority=number % 4)
        o.register_worker("x", slow, interval_seconds=300, blocks=["y", "w1"])
        o.register_worker("y", nothing, interval_seconds=50, blocks=["z"], misfire="run_all")
        o.register_worker("z", nothing, interval_seconds=45, misfire="skip", priority="LOW")

    history = both(define, sqlite_template, days=1 / 24, slots=2)
    assert kinds(history, "z")["missed"] > 0
    assert kinds(history, "y")["missed"] == 0


@pytest.mark.parametrize("cooldown", [None, 700])
def test_a_circuit_opens_is_probed_and_closes(sqlite_template: Path, cooldown: float | None):
    def define(o: WorkerOrchestrator, clock: ManualClock) -> None:
        rules: dict[str, Any] = {"max_retries": 1, "max_consecutive_failures": 3, "cooldown_seconds": cooldown}
        o.register_worker("sick", fails_on(*range(5, 14)), interval_seconds=120, **rules)
        o.register_worker("after", nothing, interval_seconds=240, depends_on=["sick"])
        o.register_worker("loop", fails_on(*range(2, 9)), **CONTINUOUS, interval_seconds=100, **rules)

    history = both(define, sqlite_template, days=0.3)
    sick = [row["outcome"] for row in history if row["worker"] == "sick"]
    assert sick.count("failed") == (6 if cooldown is None else 9)
    assert (sick[-1] == "succeeded") == (cooldown is not None)


def test_handlers_that_trigger_others_and_themselves(sqlite_template: Path):
    def define(o: WorkerOrchestrator, clock: ManualClock) -> None:
        async def split(run: RunContext) -> list[int]:
            first = await o.trigger_worker("mail", {"to": "ada"}, key="ada")
            again = await o.trigger_worker("mail", {"to": "bob"}, key="ada")
            late = await o.trigger_worker("mail", {"to": "cyd"}, delay=90, priority="CRITICAL")
            many = await o.trigger_many("count", [{"n": 1}, {"n": 2}, {"n": 3}])
            if run.fence % 2 == 1:
                raise Snooze(30)
            return [first, again, late, *many]

        async def mail(run: RunContext, to: str) -> str:
            if to == "cyd" and run.attempt < 3:
                raise RetryAfter(20)
            return to

        def count(n: int) -> int:
            if n == 2:
                raise Discard("two is enough")
            return n

        o.register_worker("split", split, interval_seconds=300)
        o.register_worker("mail", mail, **TRIGGERED, max_running=3, payload={"to": "nobody"})
        o.register_worker("count", count, **TRIGGERED, priority="LOW")

    history = both(define, sqlite_template, days=1 / 48)
    assert kinds(history, "count") == {"failed": 12, "succeeded": 24}
    assert kinds(history, "mail")["failed"] > 10
    assert {row["trigger"] for row in history if row["worker"] == "mail"} == {"manual"}


ENDS = ["ok"] * 6 + ["fail", "fail", "discard", "snooze", "later", "slow", "misfit", "trigger", "force"]
NAMES = "abcdef"


@st.composite
def definitions(draw: Any) -> list[tuple[str, dict[str, Any], list[str]]]:
    """Draw workers: each with its options and how its calls end, in turn."""
    names = NAMES[: draw(st.integers(1, len(NAMES)))]
    found = []
    for number, name in enumerate(names):
        options: dict[str, Any] = {
            "priority": draw(st.integers(0, 3)),
            "max_running": draw(st.sampled_from([1, 1, 2])),
            "max_retries": draw(st.sampled_from([0, 1, 2])),
            "retry_delay_seconds": draw(st.sampled_from([1, 20, 90])),
            "max_consecutive_failures": draw(st.sampled_from([1, 2, 5])),
            "cooldown_seconds": draw(st.sampled_from([None, 60, 200])),
            "misfire": draw(st.sampled_from(["run_once", "run_all", "skip"])),
        }
        kind = draw(st.sampled_from(["interval", "interval", "cron", "loop", "triggered"]))
        if kind == "interval":
            options |= {
                "interval_seconds": draw(st.sampled_from([45, 60, 120])),
                "jitter_seconds": draw(st.integers(0, 9)),
            }
        elif kind == "cron":
            options["cron"] = draw(st.sampled_from(["* * * * *", "*/3 * * * *"]))
        elif kind == "loop":
            options |= {**CONTINUOUS, "interval_seconds": draw(st.sampled_from([15, 100]))}
        else:
            options |= TRIGGERED
        earlier = names[:number]
        if earlier:
            options["depends_on"] = [
                {
                    "depends_on": other,
                    "condition": draw(st.sampled_from(["succeeded", "fresh"])),
                    "max_age_seconds": age,
                }
                for other in draw(st.lists(st.sampled_from(earlier), unique=True, max_size=1))
                for age in [draw(st.sampled_from([None, 100]))]
            ]
        others = [each for each in names if each != name]
        if others:
            options["blocks"] = draw(st.lists(st.sampled_from(others), unique=True, max_size=1))
        found.append((name, options, draw(st.lists(st.sampled_from(ENDS), min_size=1, max_size=8))))
    return found


def behaving(o: WorkerOrchestrator, clock: ManualClock, ends: list[str], target: str) -> Callable[..., Any]:
    calls = 0

    async def handler(run: RunContext) -> int:
        nonlocal calls
        calls += 1
        match ends[calls % len(ends)]:
            case "fail":
                raise OSError(calls)
            case "discard":
                raise Discard("no")
            case "snooze":
                raise Snooze(25)
            case "later":
                raise RetryAfter(7)
            case "slow":
                clock.advance(65)
            case "misfit":
                run.payload["seen"] = calls  # its own copy, and nobody else's
            case "trigger" if calls < 20:
                await o.trigger_worker(target, delay=calls % 3 * 10, key=f"k{calls % 2}", key_scope="live")
            case "force" if calls < 20:
                await o.trigger_worker(target, {"by": run.id}, force=True, priority=calls % 4)
        return calls

    return handler


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(definitions(), st.sampled_from([1, 2, 100]), st.integers(0, 5))
def test_random_workers_have_the_same_history(
    sqlite_template: Path, drawn: list[tuple[str, dict[str, Any], list[str]]], slots: int, shift: int
):
    def define(o: WorkerOrchestrator, clock: ManualClock) -> None:
        for number, (name, options, ends) in enumerate(drawn):
            target = drawn[(number + shift) % len(drawn)][0]
            o.register_worker(name, behaving(o, clock, ends, target), **options)

    both(define, sqlite_template, days=timedelta(minutes=15) / timedelta(days=1), slots=slots)

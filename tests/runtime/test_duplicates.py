"""Duplicates as programs trigger them: a debounce beside a node that claims, refusals, and the simulation."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jobrunner import WorkerOrchestrator
from jobrunner.errors import InvalidPayload, InvalidSetting
from jobrunner.testing import ManualClock, simulate
from tests.runtime.conftest import House

DELAY, AT_MOST = 0.9, 1.0


async def test_a_debounce_of_a_hundred_triggers_starts_a_few_times_and_by_its_bound(house: House):
    orchestrator = house.orchestrator()
    started: list[float] = []

    async def index(n: int) -> None:
        started.append(time.monotonic())

    orchestrator.register_worker("index", index, execution_mode="triggered", max_running=9)
    await orchestrator.start()
    first: dict[int, float] = {}
    began = time.monotonic()
    for number in range(100):
        asked = time.monotonic()
        run_id = await orchestrator.trigger_worker(
            "index", {"n": number}, key="all", on_duplicate="postpone", delay=DELAY, at_most=AT_MOST
        )
        first.setdefault(run_id, asked)
        await asyncio.sleep(0.02)
    took = time.monotonic() - began
    ends = await house.attempts(len(first))
    assert len(started) == len(first)
    assert 2 <= len(first) <= 1 + (took + AT_MOST) / DELAY
    for end, at in zip(sorted(ends, key=lambda each: each.run.id), sorted(started), strict=True):
        assert DELAY - 0.1 < at - first[end.run.id] < AT_MOST + 10  # the machine may be busy


async def test_the_newest_payload_runs(house: House):
    orchestrator = house.orchestrator()
    ran: list[int] = []

    async def index(n: int) -> None:
        ran.append(n)

    orchestrator.register_worker("index", index, execution_mode="triggered")
    ids = set()
    for number in range(5):
        ids.add(await orchestrator.trigger_worker("index", {"n": number}, key="all", on_duplicate="replace"))
    assert len(ids) == 1
    with pytest.raises(InvalidPayload):
        await orchestrator.trigger_worker("index", {"n": "x"}, key="all", on_duplicate="replace")
    await orchestrator.start()
    await house.attempts(1)
    assert ran == [4]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"on_duplicate": "replace"}, "needs a key"),
        ({"on_duplicate": "postpone", "key": "k"}, "needs a delay"),
        ({"on_duplicate": "drop", "key": "k"}, "is none of keep, replace, postpone"),
        ({"at_most": 5, "key": "k"}, "at_most goes with"),
    ],
)
async def test_what_does_not_go_together_is_refused(house: House, options: dict[str, Any], why: str):
    orchestrator = house.orchestrator()

    async def index() -> None: ...

    orchestrator.register_worker("index", index, execution_mode="triggered")
    with pytest.raises(InvalidSetting, match=why):
        await orchestrator.trigger_worker("index", **options)
    with pytest.raises(InvalidSetting, match=why):
        await orchestrator.trigger_told("index", **options)
    with pytest.raises(InvalidSetting, match=why):
        await asyncio.to_thread(orchestrator.trigger_sync, "index", **options)


async def test_a_simulation_replaces_and_postpones_as_the_database_does():
    clock = ManualClock(datetime(2026, 3, 2, 12, tzinfo=UTC))
    orchestrator = WorkerOrchestrator("sqlite:///simulated.db", clock=clock)
    ran: list[tuple[str, int, float]] = []

    async def poll() -> None:
        n = int((clock.now() - datetime(2026, 3, 2, 12, tzinfo=UTC)).total_seconds())
        await orchestrator.trigger_worker("replace", {"n": n}, key="k", delay=15, on_duplicate="replace")
        await orchestrator.trigger_worker("postpone", {"n": n}, key="k", delay=15, on_duplicate="postpone", at_most=35)

    def noting(name: str) -> Any:
        async def note(n: int) -> None:
            ran.append((name, n, (clock.now() - datetime(2026, 3, 2, 12, tzinfo=UTC)) / timedelta(seconds=1)))

        return note

    orchestrator.register_worker("poll", poll, interval_seconds=10)
    for name in ("replace", "postpone"):
        orchestrator.register_worker(name, noting(name), execution_mode="triggered")
    await simulate(orchestrator, days=45 / 86400, clock=clock)
    assert sorted(ran) == [("postpone", 0, 35.0), ("replace", 10, 15.0), ("replace", 30, 35.0)]

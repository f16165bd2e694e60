"""Everything at once: inline, threads and processes mixed, and what blocks holds nobody else up."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import Counter
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from jobrunner import Discard, RunContext, Snooze
from jobrunner.runtime.process import share_the_interpreter
from jobrunner.storage import nodes
from tests.runtime.conftest import House
from tests.support import tasks

ONCE: dict[str, Any] = {"execution_mode": "triggered", "max_retries": 0, "max_consecutive_failures": 10_000}
INLINE, THREADS, PROCESSES = 500, 50, 4


def wanted(n: int) -> str:
    """What run number `n` is to come to."""
    return ["succeeded", "succeeded", "succeeded", "failed", "discarded"][n % 5]


def act(n: int) -> int:
    if wanted(n) == "failed":
        raise ValueError(f"no luck {n}")
    if wanted(n) == "discarded":
        raise Discard(f"given up {n}")
    return n


@pytest.mark.slow
async def test_five_hundred_inline_fifty_threads_and_four_processes_at_once_all_end_right(house: House):
    running = most = 0

    async def inline(n: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await go.wait()
        running -= 1
        return act(n)

    def thread(n: int) -> int:
        assert let_go.wait(60)
        return act(n)

    go, let_go = asyncio.Event(), threading.Event()
    orchestrator = house.orchestrator(max_concurrent=INLINE + THREADS + PROCESSES)
    orchestrator.register_worker("inline", inline, max_running=INLINE, **ONCE)
    orchestrator.register_worker("thread", thread, max_running=THREADS, **ONCE)
    orchestrator.register_worker("process", tasks.add, max_running=PROCESSES, isolation="process", **ONCE)
    await orchestrator.start()
    await orchestrator.trigger_many("inline", [{"n": n} for n in range(INLINE)])
    await orchestrator.trigger_many("thread", [{"n": n} for n in range(THREADS)])
    await orchestrator.trigger_many("process", [{"a": n} for n in range(4 * PROCESSES)])
    async with asyncio.timeout(60):
        while running < INLINE:
            await asyncio.sleep(0.01)
    go.set()
    let_go.set()
    async with asyncio.timeout(60):
        while len(house.ended()) < INLINE + THREADS + 4 * PROCESSES:
            await asyncio.sleep(0.01)
    assert most == INLINE
    ended = Counter((end.run.worker, str(end.ends_run)) for end in house.ended())
    for name, count in (("inline", INLINE), ("thread", THREADS)):
        of_name = {"succeeded": count * 3 // 5, "exhausted": count // 5, "discarded": count // 5}
        assert {what: n for (worker, what), n in ended.items() if worker == name} == of_name
    for end in house.ended():
        if end.run.worker == "process":
            assert end.outcome.result == end.run.payload["a"] + 1
        elif end.ends_run == "succeeded":
            assert end.outcome.result == end.run.payload["n"]
        else:
            assert str(end.run.payload["n"]) in (end.outcome.error or "")
    assert await house.rows("SELECT id FROM {p}runs") == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sleeps", "computes"])
async def test_a_long_blocking_def_delays_neither_heartbeats_nor_other_starts(
    house: House, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, kind: str
):
    """The bound is 50 ms; here three times that, at the median, since the machine may be busy with other tests."""
    if kind == "computes":
        request.addfinalizer(partial(sys.setswitchinterval, sys.getswitchinterval()))
        share_the_interpreter()
    beats: list[float] = []
    true_beat = nodes.beat

    async def noted(*arguments: Any) -> Any:
        beats.append(time.monotonic())
        return await true_beat(*arguments)

    monkeypatch.setattr(nodes, "beat", noted)
    let_go, ready = threading.Event(), threading.Event()

    def blocks() -> None:
        ready.set()
        while not let_go.is_set():
            if kind == "sleeps":
                time.sleep(0.5)
            else:
                sum(range(2000))  # holds the interpreter as long as it may

    late: list[float] = []
    asked = 0.0

    async def quick() -> None:
        late.append(time.monotonic() - asked)

    orchestrator = house.orchestrator(max_concurrent=8, lease=1.2)
    orchestrator.register_worker("blocks", blocks, **ONCE)
    orchestrator.register_worker("quick", quick, **ONCE)
    await orchestrator.start()

    async def measure() -> list[float]:
        nonlocal asked
        late.clear()
        for _ in range(25):
            count = len(late) + 1
            asked = time.monotonic()
            await orchestrator.trigger_worker("quick")
            await house.until(lambda count=count: len(late) >= count)
            await asyncio.sleep(0.03)
        return sorted(late)

    alone = await measure()
    await orchestrator.trigger_worker("blocks")
    await asyncio.to_thread(ready.wait, 10)
    began = time.monotonic()
    beside = await measure()
    await asyncio.sleep(1.2)
    seen = [beat for beat in beats if beat >= began]
    let_go.set()
    await house.attempts(1, "blocks")
    assert beside[len(beside) // 2] - alone[len(alone) // 2] < 0.15, (alone, beside)
    gaps = sorted(after - before for before, after in pairwise(seen))
    assert gaps[len(gaps) // 2] < 1.2 / 6 + 0.15, gaps


async def test_a_snoozed_run_takes_no_slot(house: House):
    async def it(run: RunContext) -> None:
        raise Snooze(3600)

    async def other() -> None: ...

    orchestrator = house.orchestrator(max_concurrent=1)
    orchestrator.register_worker("it", it, **ONCE)
    orchestrator.register_worker("other", other, **ONCE)
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    await house.attempts(1, "it")
    await orchestrator.trigger_worker("other")
    await house.attempts(1, "other")

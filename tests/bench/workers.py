"""The workers of the measurements: what `jobrunner run tests.bench.workers` is started with.

`BENCH_WORKERS` names a set and its size, such as `scheduled:1000`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

from jobrunner import RunContext, WorkerOrchestrator

orchestrator = WorkerOrchestrator()
MANY = {"max_running": 1000, "timeout_seconds": 600.0, "retry_delay_seconds": 0.0}
"""Options of a worker whose runs only the node's own limit holds back."""

TEN_YEARS = 10 * 365 * 86400.0


async def noop() -> None:
    """Do nothing."""


async def by_customer(customer: int = 0) -> None:
    """Do nothing for a customer."""


async def stamp(sent: int) -> dict[str, int]:
    """Return how many nanoseconds ago the trigger was written, by the clock that all processes share."""
    return {"ns": time.time_ns() - sent}


async def lateness(run: RunContext) -> dict[str, float]:
    """Return how many seconds after its time the code began."""
    return {"seconds": time.time() - run.scheduled_for.timestamp()}


async def endless() -> None:
    """Hold the slot until the node stops."""
    await asyncio.sleep(3600)


def _triggered(name: str, code: Callable[..., Any], **more: Any) -> None:
    orchestrator.register_worker(name, code, execution_mode="triggered", **more)


def _scheduled(size: int, name: str = "scheduled", **more: Any) -> None:
    for i in range(size):
        orchestrator.register_worker(f"{name}-{i}", lateness, **more)


def _idle(size: int) -> None:
    for i in range(size):
        orchestrator.register_worker(f"yearly-{i}", noop, cron="0 0 1 1 *")


def _crowd() -> None:
    """Workers whose runs cannot start: one is to be disabled, one is full, one waits for its counterpart."""
    _triggered("disabled", noop)
    _triggered("saturated", endless, timeout_seconds=7200.0)
    _triggered("blocker", endless, timeout_seconds=7200.0)
    _triggered("blocked", noop, blocks=["blocker"])


SETS: dict[str, Callable[[int], None]] = {
    "plain": lambda _: _triggered("noop", by_customer, **MANY),
    "keyed": lambda _: _triggered("noop", by_customer, limit_key="customer", max_running_per_key=1, **MANY),
    "rated": lambda _: _triggered("noop", by_customer, rate="1000000/1m", **MANY),
    "shut-rate": lambda _: _triggered("shut", noop, rate="1/7d", **MANY),
    "noop": lambda _: _triggered("noop", noop, **MANY),
    "stamp": lambda _: _triggered("stamp", stamp, **MANY),
    "scheduled": lambda size: _scheduled(size, interval_seconds=1.0),  # all due at the same moment
    "spread": lambda size: _scheduled(size, interval_seconds=1.0, jitter_seconds=1.0),
    "idle": _idle,
    "sparse": lambda size: _scheduled(size, interval_seconds=size / 10, jitter_seconds=size / 10),  # ten a second
    "far": lambda size: _scheduled(size, "far", interval_seconds=TEN_YEARS, jitter_seconds=TEN_YEARS),
    "crowd": lambda _: _crowd(),
}

for _part in os.environ.get("BENCH_WORKERS", "noop").split(","):
    _name, _, _size = _part.partition(":")
    SETS[_name](int(_size or 1))

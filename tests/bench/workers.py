"""The workers of the measurements: what `jobrunner run tests.bench.workers` is started with.

`BENCH_WORKERS` names a set and its size, such as `scheduled:1000`.
"""

from __future__ import annotations

import os
import time

from jobrunner import RunContext, WorkerOrchestrator

orchestrator = WorkerOrchestrator()
MANY = {"max_running": 1000, "timeout_seconds": 600.0}
"""Options of a worker whose runs only the node's own limit holds back."""


async def noop() -> None:
    """Do nothing."""


async def stamp(sent: int) -> dict[str, int]:
    """Return how many nanoseconds ago the trigger was written, by the clock that all processes share."""
    return {"ns": time.time_ns() - sent}


async def lateness(run: RunContext) -> dict[str, float]:
    """Return how many seconds after its time the code began."""
    return {"seconds": time.time() - run.scheduled_for.timestamp()}


def _add(kind: str, size: int) -> None:
    if kind == "noop":
        orchestrator.register_worker("noop", noop, execution_mode="triggered", **MANY)
    elif kind == "stamp":
        orchestrator.register_worker("stamp", stamp, execution_mode="triggered", **MANY)
    elif kind == "scheduled":  # all due every second
        for i in range(size):
            orchestrator.register_worker(f"every-second-{i}", lateness, interval_seconds=1.0)
    elif kind == "idle":  # none due for a day
        for i in range(size):
            orchestrator.register_worker(f"daily-{i}", noop, cron="0 0 1 1 *")
    elif kind == "sparse":  # ten due a second, however many there are
        for i in range(size):
            interval = size / 10
            orchestrator.register_worker(f"sparse-{i}", lateness, interval_seconds=interval, jitter_seconds=interval)
    elif kind == "crowd":  # each with a backlog that cannot start
        orchestrator.register_worker("disabled", noop, execution_mode="triggered")
        orchestrator.register_worker("saturated", endless, execution_mode="triggered", timeout_seconds=3600.0)
        orchestrator.register_worker("blocker", endless, execution_mode="triggered", timeout_seconds=3600.0)
        orchestrator.register_worker("blocked", noop, execution_mode="triggered", blocks=["blocker"])
    else:
        raise ValueError(f"BENCH_WORKERS: there is no set {kind!r}")


async def endless(run: RunContext) -> None:
    """Hold the slot until the node stops."""
    import asyncio

    await asyncio.sleep(3600)


for _part in os.environ.get("BENCH_WORKERS", "noop").split(","):
    _kind, _, _size = _part.partition(":")
    _add(_kind, int(_size or 1))

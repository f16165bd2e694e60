"""Huey on SQLite at its defaults: `SqliteHuey` as it comes (write-ahead log, synchronous FULL), one worker thread."""

from __future__ import annotations

import threading
import time

from huey import SqliteHuey

from tests.bench.peers.common import Result


def prepare(url: str, options: Result) -> None:
    """Nothing: its tasks are functions of the process, so `drain` enqueues, before it starts its clock."""


def drain(url: str, options: Result) -> Result:
    jobs = options["jobs"]
    huey = SqliteHuey(filename=url)
    called = 0
    first = last = 0.0
    all_called = threading.Event()

    @huey.task()
    def noop() -> None:
        nonlocal called, first, last
        if called == 0:
            first = time.perf_counter()
        called += 1
        if called == jobs:
            last = time.perf_counter()
            all_called.set()

    began = time.perf_counter()
    for _ in range(jobs):
        noop()
    enqueued = time.perf_counter() - began
    consumer = huey.create_consumer(**options.get("consumer", {}))
    consumer.start()
    all_called.wait()
    consumer.stop(graceful=True)
    return {"rate": jobs / (last - first), "seconds": last - first, "jobs": jobs, "enqueue_seconds": enqueued}

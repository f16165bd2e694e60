"""jobrunner itself as users run it: nodes are processes of `python -m jobrunner run`, watched from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from tests.bench.stores import Connection, Store

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "jobrunner"]
ENQUEUE = """
import asyncio, json, sys, time
from tests.bench.workers import orchestrator
async def fill(name, count, chunk):
    began = time.perf_counter()
    for first in range(0, count, chunk):
        await orchestrator.trigger_many(name, [None] * min(chunk, count - first))
    return time.perf_counter() - began
print(json.dumps(asyncio.run(fill(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))))
"""
REGISTER = """
import asyncio
from tests.bench.workers import orchestrator
async def register():
    await orchestrator._start(is_migrating=True)
    await orchestrator.stop()
asyncio.run(register())
"""


@dataclass(frozen=True)
class Setup:
    """How nodes are started: the workers they have, and settings that are the same for every one."""

    workers: str = "noop"
    max_concurrent: int = 50
    synchronous: str = "FULL"
    more: dict[str, str] = field(default_factory=dict)

    def environment(self, url: str) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "BENCH_WORKERS": self.workers,
            "JOBRUNNER_DATABASE_URL": url,
            "JOBRUNNER_MAX_CONCURRENT": str(self.max_concurrent),
            "JOBRUNNER_SQLITE_SYNCHRONOUS": self.synchronous,
            "JOBRUNNER_LOG_LEVEL": "WARNING",
            **self.more,
        }


class Node:
    """A node's process. It is killed at the end of the `with` if it does not stop when told."""

    def __init__(self, url: str, setup: Setup) -> None:
        self.process = subprocess.Popen(
            [*PROGRAM, "run", "tests.bench.workers"],
            cwd=ROOT,
            env=setup.environment(url),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        self._seen = psutil.Process(self.process.pid)

    def cpu_seconds(self) -> float:
        times = self._seen.cpu_times()
        return float(times.user + times.system)

    def rss_mib(self) -> float:
        return float(self._seen.memory_info().rss) / 2**20

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.kill()

    def check(self) -> None:
        """Raise if the node has ended by itself: nothing more would happen."""
        if self.process.poll() is not None:
            raise RuntimeError(f"the node ended with exit code {self.process.returncode}")

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def run_python(code: str, url: str, setup: Setup, *arguments: object, seconds: float = 300) -> str:
    """Run a piece of code in a process of its own, with the workers of `setup`; return what it prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=setup.environment(url), capture_output=True, text=True, timeout=seconds, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout.strip()


def upgrade(url: str, setup: Setup) -> None:
    """Make the schema."""
    command = [*PROGRAM, "db", "upgrade"]
    subprocess.run(command, cwd=ROOT, env=setup.environment(url), check=True, capture_output=True, timeout=60)


def prepare(store: Store, setup: Setup, waiting: int = 0, worker: str = "noop") -> str:
    """Make a template: the schema, the workers, and so many runs that wait. Returns its URL."""
    url = store.create()
    run_python(REGISTER, url, setup)
    if waiting:
        enqueue(url, setup, waiting, worker)
    store.settle(url)
    return url


def enqueue(url: str, setup: Setup, count: int, worker: str = "noop", chunk: int = 50_000) -> float:
    """Trigger with `trigger_many`, from another process; return the seconds that it took."""
    return float(run_python(ENQUEUE, url, setup, worker, count, chunk))


def until(is_done: Callable[[], Any], nodes: list[Node], seconds: float, every: float = 0.005) -> float:
    """Wait until it is so; return that moment of the wall clock. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not is_done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not done after {seconds:g} s")
        for node in nodes:
            node.check()
        time.sleep(every)
    return time.time()


def first_start(connection: Connection, after_id: int = 0) -> float:
    """When the first claim was made, by the wall clock: `started_at` is read when the lock is held."""
    value = connection.value(f"SELECT min(started_at) FROM {connection.p}run_history WHERE id > {after_id}")
    moment = datetime.fromisoformat(value).replace(tzinfo=UTC) if connection.is_sqlite else value
    return float(moment.timestamp())


def drain(
    url: str, setup: Setup, jobs: int, nodes: int = 1, seconds: float = 300, worker: str = "noop"
) -> dict[str, float]:
    """Start nodes on a database with waiting runs; return how fast the first `jobs` of them were done.

    The time goes from the first claim to the moment when another process sees all ends committed.
    """
    with Connection(url) as connection:
        before = connection.value(f"SELECT coalesce(max(id), 0) FROM {connection.p}run_history")
        last = f"SELECT id FROM {connection.p}run_history ORDER BY id DESC LIMIT 1"
        started = [Node(url, setup) for _ in range(nodes)]
        try:
            until(lambda: (connection.value(last) or 0) >= before + jobs, started, seconds)
            count = f"SELECT count(*) FROM {connection.p}run_history WHERE id > {before}"
            ended = until(lambda: connection.value(count) >= jobs, started, seconds)
            cpu = sum(node.cpu_seconds() for node in started)
        finally:
            for node in started:
                node.stop()
        done = connection.value(count)
        elapsed = ended - first_start(connection, before)
        check_ends(connection, before, worker)
    return {"rate": jobs / elapsed, "seconds": elapsed, "jobs": jobs, "cpu_seconds": cpu, "ended": done}


def check_ends(connection: Connection, after_id: int, worker: str) -> None:
    """Raise unless every run left its row: fenced, succeeded, and counted by the worker's state."""
    p = connection.p
    wrong = connection.value(
        f"SELECT count(*) FROM {p}run_history WHERE id > {after_id} AND worker = '{worker}'"
        " AND (outcome <> 'succeeded' OR ends_run <> 'succeeded' OR fence IS NULL OR started_at IS NULL)"
    )
    twice = connection.value(
        f"SELECT count(*) - count(DISTINCT run_id) FROM {p}run_history"
        f" WHERE id > {after_id} AND worker = '{worker}' AND ends_run IS NOT NULL"
    )
    streak = connection.value(f"SELECT count(*) FROM {p}worker_state WHERE consecutive_failures <> 0")
    if wrong or twice or streak:
        raise RuntimeError(f"{wrong} ends are wrong, {twice} are double, {streak} workers have a streak")


def check_all_ended(connection: Connection, runs: int) -> None:
    """Raise unless so many runs ended, each once, whatever became of their attempts."""
    ended = f"SELECT count(*), count(DISTINCT run_id) FROM {connection.p}run_history WHERE ends_run IS NOT NULL"
    if connection.rows(ended) != [(runs, runs)]:
        raise RuntimeError(f"of {runs} runs {connection.rows(ended)} ended")

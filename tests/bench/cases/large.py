"""The large database of the cases that ask over HTTP, and the process that serves it.

It has 100,000 workers (100 of them failing, two disabled), ten million rows of history, 300,000 runs that wait and
5,000 open dead letters.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from tests.bench import product
from tests.bench.bench import Bench, say
from tests.bench.cases.history import _unhindered
from tests.bench.cases.open_transaction import Steady
from tests.bench.figures import percentile
from tests.bench.product import PROGRAM, ROOT, Setup
from tests.bench.stores import Connection

_WITH_LETTERS = 50
"""So many workers have open letters."""
_SERIES = "(WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n WHERE i < {last}) SELECT i FROM n)"
_LATER = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f', 'now', '+300 days') || '000'",
    "postgres": "now() + interval '300 days'",
}
_PAST = {
    "sqlite": "datetime({now} - 29 * 86400 + i * 2419200 / {count}, 'unixepoch') || '.000000'",
    "postgres": "now() - interval '29 days' + interval '28 days' * (i::float / {count})",
}


@dataclass(frozen=True)
class Large:
    """A large database that is served at `base`; `what` tells its size."""

    kind: str
    url: str
    setup: Setup
    base: str
    what: str
    server: psutil.Process

    def cpu_seconds(self) -> float:
        """Return what the serving process has taken of a core so far."""
        times = self.server.cpu_times()
        return float(times.user + times.system)


@contextmanager
def served(bench: Bench, kind: str, case: str, more: dict[str, str] | None = None) -> Iterator[Large]:
    """Make the database, serve it with the settings `more`, and drop it at the end."""
    workers, history, waiting, letters = (
        (5_000, 200_000, 20_000, 3_000) if bench.is_quick else (100_000, 10_000_000, 300_000, 5_000)
    )
    setup = bench.setup("noop", max_concurrent=50, more=more or {})
    store = bench.store(kind)
    url = product.prepare(store, setup)
    began = time.monotonic()
    try:
        with Connection(url) as connection:
            _fill(connection, kind, workers, history, waiting)
            _fill_letters(connection, kind, letters)
        store.settle(url)
        say(f"{case}, {kind}: {history:,} rows of history in {time.monotonic() - began:.0f} s")
        what = f"{workers:,} workers, {history:,} rows of history, {waiting:,} waiting, {kind}"
        with TemporaryDirectory() as folder, _serving(url, setup, Path(folder)) as (base, server):
            yield Large(kind, url, setup, base, what, server)
    finally:
        store.drop(url)


def late(steady: Steady) -> float:
    """Return how late runs were at the median, in milliseconds."""
    return percentile(steady.late, 50)


def times_later(beside: Steady, alone: Steady) -> float:
    """Return how many times as late; what is below a millisecond counts as one."""
    return late(beside) / max(late(alone), 1.0)


def _series(kind: str, first: int, last: int) -> str:
    """Return the numbers from `first` to `last` as a row set `s` with the column `i`."""
    if kind == "postgres":
        return f"generate_series({first}, {last}) AS s(i)"
    return _SERIES.format(first=first, last=last) + " AS s"


def _fill(connection: Connection, kind: str, workers: int, history: int, waiting: int) -> None:
    p = connection.p
    (copied,) = connection.rows(
        "SELECT string_agg(column_name, ', ') FROM information_schema.columns"
        " WHERE table_schema = 'jobrunner' AND table_name = 'workers' AND column_name <> 'name'"
        if kind == "postgres"
        else "SELECT group_concat(name, ', ') FROM pragma_table_info('workers') WHERE name <> 'name'"
    )
    columns = copied[0]
    named = _series(kind, 1, workers)
    made = columns  # each second worker has a schedule
    for column, value in (("execution_mode", "'scheduled'"), ("interval_seconds", "86400")):
        made = made.replace(column, f"CASE WHEN s.i % 2 = 0 THEN {value} ELSE {column} END")
    connection.rows(
        f"INSERT INTO {p}workers (name, {columns}) SELECT 'far-' || s.i, {made} FROM {p}workers, {named}"
        " WHERE name = 'noop'"
    )
    connection.rows(
        f"INSERT INTO {p}worker_state (worker, next_run_at, reach_seconds)"
        f" SELECT 'far-' || s.i, CASE WHEN s.i % 2 = 0 THEN {_LATER[kind]} END, 86400 FROM {named}"
    )
    connection.rows(
        f"UPDATE {p}worker_state SET is_enabled = false, disabled_by = 'operator' WHERE worker IN ('far-7', 'far-77')"
    )
    yesterday = f"(SELECT {_PAST[kind].format(now=int(time.time()), count=1)} FROM {_series(kind, 1, 1)})"
    connection.rows(
        f"UPDATE {p}worker_state SET consecutive_failures = 3, total_failures = 3, last_run_outcome = 'failed',"
        f" last_error = 'it broke', last_run_at = {yesterday}, last_ended_at = {yesterday}"
        " WHERE worker LIKE 'far-1__'"
    )
    connection.rows(f"INSERT INTO {p}runs (worker) SELECT 'far-7' FROM {_series(kind, 1, waiting)}")
    with _unhindered(connection):
        for first in range(1, history + 1, 1_000_000):
            last = min(first + 999_999, history)
            at = _PAST[kind].format(now=int(time.time()), count=history)
            source = f"(SELECT i, {at} AS at FROM {_series(kind, first, last)}) AS past"
            connection.rows(
                f"INSERT INTO {p}run_history (run_id, fence, worker, trigger, attempt, outcome, ends_run,"
                " scheduled_for, due_at, started_at, finished_at, duration_ms, payload, error, node_id)"
                f" SELECT i - {history} - 1, i, 'far-' || (1 + i % {workers}), 'manual', 1,"
                " CASE WHEN i % 997 = 0 THEN 'failed' ELSE 'succeeded' END,"
                " CASE WHEN i % 997 = 0 THEN 'exhausted' ELSE 'succeeded' END,"
                " at, at, at, at, 5, '{\"customer\": 7}', CASE WHEN i % 997 = 0 THEN 'it broke' END, 'bench'"
                f" FROM {source}"
            )


def _fill_letters(connection: Connection, kind: str, letters: int) -> None:
    """Write open letters of the newest runs in the history: of 50 workers, each with a few errors."""
    p = connection.p
    at = _PAST[kind].format(now=int(time.time()), count=letters)
    connection.rows(
        f"INSERT INTO {p}dead_letters (run_id, worker, trigger, priority, scheduled_for, payload, attempts,"
        " error_type, error, traceback, errors, died_at)"
        f" SELECT -i, 'far-' || (1 + i % {_WITH_LETTERS}), 'manual', 0, at, '{{\"customer\": 7}}', 1,"
        " 'ConnectionError', 'host-' || (i % 20) || ' refused the connection ' || i, 'Traceback', '[]', at"
        f" FROM (SELECT i, {at} AS at FROM {_series(kind, 1, letters)}) AS past"
    )


@contextmanager
def _serving(url: str, setup: Setup, folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Serve the database over HTTP from a process of its own; yield where, and the process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "serve.log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [*PROGRAM, "serve", "--http", f"127.0.0.1:{port}"],
            cwd=ROOT,
            env={**setup.environment(url), "JOBRUNNER_HTTP_TOKEN": os.urandom(16).hex()},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        base = f"http://127.0.0.1:{port}"
        try:
            give_up = time.monotonic() + 30
            while not _answers_at(f"{base}/livez"):
                if server.poll() is not None or time.monotonic() > give_up:
                    raise RuntimeError(f"`jobrunner serve` does not answer: {log.read_text()[-2000:]}")
                time.sleep(0.1)
            yield base, psutil.Process(server.pid)
        finally:
            server.terminate()
            server.wait(30)


def _answers_at(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False

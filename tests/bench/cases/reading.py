"""What people and programs ask of a large database, over HTTP, and what that takes from the runs.

The database has 100,000 workers, ten million rows of history and 300,000 runs that wait. Each path is asked in turn;
its time is that of the whole answer on loopback. Then a node works at 200 runs a second: alone, and beside a scrape of
`/metrics` each second and 20 clients of the API that ask twice a second each.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench import product
from tests.bench.bench import Bench, say
from tests.bench.cases.history import _unhindered
from tests.bench.cases.open_transaction import Pace, Steady, paced
from tests.bench.figures import Row, is_at_most, percentile
from tests.bench.product import PROGRAM, ROOT, Setup
from tests.bench.stores import Connection

ANSWER_SECONDS = 0.2
TIMES = 20
PATHS = (
    "/metrics",
    "/api/workers?limit=50",
    "/api/workers?limit=50&q=health:failing",
    "/api/workers/far-5",
    "/api/workers/far-5/explain",
    "/api/runs?limit=50",
    "/api/history?limit=50",
    "/api/history?limit=50&q=worker:far-5",
    "/api/history?limit=50&q=outcome:failed",
    "/api/history?limit=50&q=payload.customer:42",
    "/api/history?limit=50&q=worker:far-1*+since:2h",
    "/api/dead-letters?limit=50",
    "/api/upcoming?limit=50",
    "/api/nodes",
    "/api/audit?limit=50",
)
CLIENT = """
import random, sys, time, urllib.request
base, seconds, paths = sys.argv[1], float(sys.argv[2]), sys.argv[3:]
end = time.monotonic() + seconds
while time.monotonic() < end:
    with urllib.request.urlopen(base + random.choice(paths), timeout=30) as answer:
        answer.read()
    time.sleep(0.5)
"""
_SERIES = "(WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n WHERE i < {last}) SELECT i FROM n)"
_LATER = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f', 'now', '+300 days') || '000'",
    "postgres": "now() + interval '300 days'",
}
_PAST = {
    "sqlite": "datetime({now} - 29 * 86400 + i * 2419200 / {count}, 'unixepoch') || '.000000'",
    "postgres": "now() - interval '29 days' + interval '28 days' * (i::float / {count})",
}


def run(bench: Bench) -> list[Row]:
    return rows(bench, bench.database)


def rows(bench: Bench, kind: str) -> list[Row]:
    workers, history, waiting = (5_000, 200_000, 20_000) if bench.is_quick else (100_000, 10_000_000, 300_000)
    setup = bench.setup("noop", max_concurrent=50)
    store = bench.store(kind)
    url = product.prepare(store, setup)
    began = time.monotonic()
    try:
        with Connection(url) as connection:
            _fill(connection, kind, workers, history, waiting)
        store.settle(url)
        say(f"reading, {kind}: {history:,} rows of history in {time.monotonic() - began:.0f} s")
        what = f"{workers:,} workers, {history:,} rows of history, {waiting:,} waiting, {kind}"
        with TemporaryDirectory() as folder, _serving(url, setup, Path(folder)) as base:
            answers = _answers(kind, base, what)
            return [answers, _beside(bench, kind, url, setup, base, what)]
    finally:
        store.drop(url)


def _fill(connection: Connection, kind: str, workers: int, history: int, waiting: int) -> None:
    p = connection.p

    def series(first: int, last: int) -> str:
        return f"generate_series({first}, {last})" if kind == "postgres" else _SERIES.format(first=first, last=last)

    (copied,) = connection.rows(
        "SELECT string_agg(column_name, ', ') FROM information_schema.columns"
        " WHERE table_schema = 'jobrunner' AND table_name = 'workers' AND column_name <> 'name'"
        if kind == "postgres"
        else "SELECT group_concat(name, ', ') FROM pragma_table_info('workers') WHERE name <> 'name'"
    )
    columns = copied[0]
    named = f"{series(1, workers)} AS s(i)" if kind == "postgres" else f"{series(1, workers)} AS s"
    connection.rows(
        f"INSERT INTO {p}workers (name, {columns}) SELECT 'far-' || s.i, {columns} FROM {p}workers, {named}"
        " WHERE name = 'noop'"
    )
    connection.rows(
        f"INSERT INTO {p}worker_state (worker, next_run_at, reach_seconds)"
        f" SELECT 'far-' || s.i, CASE WHEN s.i % 2 = 0 THEN {_LATER[kind]} END, 86400 FROM {named}"
    )
    connection.rows(
        f"UPDATE {p}worker_state SET is_enabled = false, disabled_by = 'operator' WHERE worker IN ('far-7', 'far-77')"
    )
    connection.rows(f"INSERT INTO {p}runs (worker) SELECT 'far-7' FROM {series(1, waiting)} AS x")
    with _unhindered(connection):
        for first in range(1, history + 1, 1_000_000):
            last = min(first + 999_999, history)
            at = _PAST[kind].format(now=int(time.time()), count=history)
            source = (
                f"(SELECT i, {at} AS at FROM {series(first, last)} AS {'s(i)' if kind == 'postgres' else 's'}) AS past"
            )
            connection.rows(
                f"INSERT INTO {p}run_history (run_id, fence, worker, trigger, attempt, outcome, ends_run,"
                " scheduled_for, due_at, started_at, finished_at, duration_ms, payload, error, node_id)"
                f" SELECT i - {history} - 1, i, 'far-' || (i % {workers}), 'manual', 1,"
                " CASE WHEN i % 997 = 0 THEN 'failed' ELSE 'succeeded' END,"
                " CASE WHEN i % 997 = 0 THEN 'exhausted' ELSE 'succeeded' END,"
                " at, at, at, at, 5, '{\"customer\": 7}', CASE WHEN i % 997 = 0 THEN 'it broke' END, 'bench'"
                f" FROM {source}"
            )


@contextmanager
def _serving(url: str, setup: Setup, folder: Path) -> Iterator[str]:
    """Serve the database over HTTP from a process of its own; yield where."""
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
            yield base
        finally:
            server.terminate()
            server.wait(30)


def _answers_at(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _asked(url: str) -> float:
    began = time.perf_counter()
    with urllib.request.urlopen(url, timeout=30) as answer:
        answer.read()
    return time.perf_counter() - began


def _answers(kind: str, base: str, what: str) -> Row:
    took = {}
    for path in PATHS:
        _asked(base + path)  # what is read once from the disk is no question's share
        samples = []
        for _ in range(TIMES):
            if path == "/metrics":
                time.sleep(0.3)
            samples.append(_asked(base + path))
        took[path] = percentile(samples, 95)
        say(f"reading, {kind}: {path} p95 {took[path] * 1000:.0f} ms")
    worst = max(took, key=lambda path: took[path])
    return Row(
        f"{len(PATHS)} questions over HTTP: {what}",
        f"p95 ≤ {ANSWER_SECONDS * 1000:.0f} ms",
        f"the slowest, {worst}: p95 {took[worst] * 1000:.0f} ms",
        is_ok=is_at_most(took[worst], ANSWER_SECONDS),
        raw=took,
    )


def _beside(bench: Bench, kind: str, url: str, setup: Setup, base: str, what: str) -> Row:
    """Work at 200 runs a second, alone and beside all who ask."""
    pace = Pace(rate=200, seconds=5.0 if bench.is_quick else 15.0)
    alone = paced(url, setup, pace)
    seconds = str(pace.seconds + 4)
    asking = [
        subprocess.Popen([sys.executable, "-c", CLIENT, base, seconds, *PATHS[1:]], stdout=subprocess.DEVNULL)
        for _ in range(20)
    ]
    asking.append(subprocess.Popen([sys.executable, "-c", _SCRAPE, base, seconds], stdout=subprocess.DEVNULL))
    try:
        beside = paced(url, setup, pace)
    finally:
        for each in asking:
            each.kill()
            each.wait()
    say(f"reading, {kind}: {alone} alone, {beside} beside 20 clients")
    times = _late(beside) / max(_late(alone), 1.0)
    return Row(
        f"200 runs/s beside a scrape a second and 20 clients that ask twice a second: {what}",
        "as late as without",
        str(beside),
        f"alone: {alone}",
        times,
        is_at_most(times, 2.0),
        why="the clients, the server and the node share the machine's cores",
        raw=json.loads(json.dumps({"alone": vars(alone), "beside": vars(beside)})),
    )


_SCRAPE = """
import sys, time, urllib.request
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    with urllib.request.urlopen(sys.argv[1] + "/metrics", timeout=30) as answer:
        answer.read()
    time.sleep(1)
"""


def _late(steady: Steady) -> float:
    return percentile(steady.late, 50)

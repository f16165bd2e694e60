"""Steady work while a transaction is held open elsewhere, so that PostgreSQL's vacuum can clean nothing up."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from dataclasses import dataclass, field

import psycopg

from tests.bench.bench import Bench, say
from tests.bench.cases.latency import wait_ready
from tests.bench.figures import Row, is_at_least, is_at_most, percentile
from tests.bench.product import ROOT, Node, Setup
from tests.bench.stores import Connection, plain_url

FEEDER = """
import sys, time
from tests.bench.stores import Connection
url, rate, seconds = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
connection = Connection(url)
print("ready", flush=True)
sys.stdin.readline()
began, sent = time.monotonic(), 0
numbers = "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) SELECT i FROM n)"
if not connection.is_sqlite:
    numbers = "generate_series(1, {})"
while (passed := time.monotonic() - began) < seconds:
    due = int(passed * rate) - sent
    if due > 0:
        connection.rows(f"INSERT INTO {connection.p}runs (worker) SELECT 'noop' FROM {numbers.format(due)} AS x")
        sent += due
    time.sleep(0.02)
"""


@dataclass(frozen=True)
class Pace:
    rate: float
    seconds: float


@dataclass(frozen=True)
class Steady:
    """What came of steady work: runs a second, milliseconds from due to start, CPU of the node, per window."""

    rate: float
    late: list[float]
    cpu: float
    windows: list[tuple[float, float, float]] = field(default_factory=list)

    def __str__(self) -> str:
        p50, p99 = (percentile(self.late, each) for each in (50, 99))
        return f"{self.rate:,.0f}/s, late p50 {p50:.0f}, p99 {p99:.0f} ms, {self.cpu:.0%} CPU"


def paced(url: str, setup: Setup, pace: Pace, windows: int = 1) -> Steady:
    """Feed a node so many runs a second by plain SQL from another process; look at each window of the time."""
    with Connection(url) as connection, Node(url, setup) as node:
        wait_ready(connection, [node])
        time.sleep(1.0)
        history = f"{connection.p}run_history"
        feeder = subprocess.Popen(
            [sys.executable, "-c", FEEDER, url, str(pace.rate), str(pace.seconds)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert feeder.stdin is not None
            assert feeder.stdout is not None
            feeder.stdout.readline()
            marks = [(time.time(), _last(connection), node.cpu_seconds())]
            feeder.stdin.write("go\n")
            feeder.stdin.flush()
            for i in range(windows):
                time.sleep(max(0.0, marks[0][0] + (i + 1) * pace.seconds / windows - time.time()))
                marks.append((time.time(), _last(connection), node.cpu_seconds()))
            node.check()
        finally:
            feeder.kill()
            feeder.communicate()
        found = []
        for (t0, id0, cpu0), (t1, id1, cpu1) in itertools.pairwise(marks):
            late = _late(connection, f"FROM {history} WHERE id > {id0} AND id <= {id1} AND worker = 'noop'")
            found.append(((id1 - id0) / (t1 - t0), late, (cpu1 - cpu0) / (t1 - t0)))
    (t0, id0, cpu0), (t1, id1, cpu1) = marks[0], marks[-1]
    return Steady(
        (id1 - id0) / (t1 - t0),
        [value for _, late, _ in found for value in late],
        (cpu1 - cpu0) / (t1 - t0),
        [(rate, percentile(late, 50), cpu) for rate, late, cpu in found],
    )


def _last(connection: Connection) -> int:
    return connection.value(f"SELECT id FROM {connection.p}run_history ORDER BY id DESC LIMIT 1") or 0


def _late(connection: Connection, rest: str) -> list[float]:
    if connection.is_sqlite:
        difference = "(julianday(started_at) - julianday(due_at)) * 86400000.0"
    else:
        difference = "extract(epoch FROM started_at - due_at)::float * 1000"
    return [row[0] for row in connection.rows(f"SELECT {difference} {rest}")]


def rows(bench: Bench) -> list[Row]:
    """The rate, the lateness and the CPU of the last tenth of the time against those of the first."""
    seconds = bench.seconds or (12.0 if bench.is_quick else 75.0)
    setup = bench.setup("noop", max_concurrent=200)
    store = bench.store("postgres")
    url = store.create(bench.template("postgres", setup, 0))
    try:
        with psycopg.connect(plain_url(url)) as other:
            other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            other.execute("CREATE TABLE held (i int)")  # a transaction id, and a snapshot
            other.execute("SELECT count(*) FROM jobrunner.runs")
            steady = paced(url, setup, Pace(1000, seconds), windows=10)
            with Connection(url) as connection:
                dead = connection.value("SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'runs'")
    finally:
        store.drop(url)
    (_, late0, cpu0), (rate1, late1, cpu1) = steady.windows[1], steady.windows[-1]
    say(f"open transaction: {steady}; windows {[tuple(round(x, 2) for x in window) for window in steady.windows]}")
    is_ok = is_at_least(rate1, 950) and is_at_most(late1, 3 * late0) and is_at_most(cpu1, 3 * cpu0)
    return [
        Row(
            f"a transaction held open for {seconds:g} s at 1,000 runs/s, postgres",
            "rate kept, claim time ≤ 3 times",
            f"{rate1:,.0f}/s at the end; late p50 {late0:.0f} → {late1:.0f} ms, CPU {cpu0:.0%} → {cpu1:.0%}"
            f" with {dead:,} dead rows",
            ratio=cpu1 / cpu0 if cpu0 else None,
            is_ok=is_ok,
            why="the ratio is of CPU" + ("" if seconds >= 300 else "; the issue says 300 s: --seconds 300"),
            raw={"windows": steady.windows, "dead_rows": dead},
        )
    ]


def run(bench: Bench) -> list[Row]:
    return rows(bench)

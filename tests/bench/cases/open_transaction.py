"""Steady work while a transaction is held open elsewhere, so that PostgreSQL's vacuum can clean nothing up.

What hurts is what that leaves behind: the dead rows of all the runs that ended meanwhile. So `RUNS` of them, as many as
five minutes at 1,000 a second make, are worked off as fast as the node can while the transaction is open, and what
comes then, the transaction still open, is compared with what came before it. `--seconds 300` waits instead. (For
45,000 runs the two were compared: the dead rows and the index entries that a scan walks are the same.)
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import psycopg

from tests.bench.bench import Bench, say
from tests.bench.cases.latency import wait_ready
from tests.bench.figures import Row, is_at_least, is_at_most, percentile
from tests.bench.product import ROOT, Node, Setup, until
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

RUNS, MOST_SECONDS = 300_000, 60.0
BACKLOG = """
INSERT INTO jobrunner.runs (worker, priority, due_at, scheduled_for)
SELECT 'noop', (SELECT priority FROM jobrunner.workers WHERE name = 'noop'), at, at
FROM (SELECT now() - interval '1 ms' * ({runs} - i) AS at FROM generate_series(1, {runs}) AS i) AS n
"""


@dataclass(frozen=True)
class Pace:
    rate: float
    seconds: float


@dataclass(frozen=True)
class Steady:
    """What came of steady work: runs a second, milliseconds from due to start, CPU of the node."""

    rate: float
    late: list[float]
    cpu: float

    def __str__(self) -> str:
        p50, p99 = (percentile(self.late, each) for each in (50, 99))
        return f"{self.rate:,.0f}/s, late p50 {p50:.0f}, p99 {p99:.0f} ms, {self.cpu:.0%} CPU"


def paced(url: str, setup: Setup, pace: Pace) -> Steady:
    """Feed a node so many runs a second by plain SQL from another process."""
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
            began, first, cpu = time.time(), _last(connection), node.cpu_seconds()
            feeder.stdin.write("go\n")
            feeder.stdin.flush()
            time.sleep(pace.seconds)
            elapsed, last, cpu = time.time() - began, _last(connection), node.cpu_seconds() - cpu
            node.check()
        finally:
            feeder.kill()
            feeder.communicate()
        late = _late(connection, f"FROM {history} WHERE id > {first} AND id <= {last} AND worker = 'noop'")
    return Steady((last - first) / elapsed, late, cpu / elapsed)


def _last(connection: Connection) -> int:
    return connection.value(f"SELECT id FROM {connection.p}run_history ORDER BY id DESC LIMIT 1") or 0


def _late(connection: Connection, rest: str) -> list[float]:
    if connection.is_sqlite:
        difference = "(julianday(started_at) - julianday(due_at)) * 86400000.0"
    else:
        difference = "extract(epoch FROM started_at - due_at)::float * 1000"
    return [row[0] for row in connection.rows(f"SELECT {difference} {rest}")]


@dataclass(frozen=True)
class Claims:
    """What a span of steady work at 1,000 runs a second was like.

    `late` is the milliseconds from due to claimed, at the median; `cpu` the node's share of a core; `sql` that of the
    server, as the share of the time in which it had a statement to execute.
    """

    rate: float
    late: float
    cpu: float
    sql: float

    def __str__(self) -> str:
        return f"{self.rate:,.0f}/s, due to claim {self.late:.1f} ms, CPU {self.cpu:.0%}, SQL {self.sql:.0%}"

    def times(self, before: Claims) -> float:
        """How many times as long as before, by whichever of the three grew most."""
        pairs = ((self.late, before.late), (self.cpu, before.cpu), (self.sql, before.sql))
        return max(now / then if then else math.nan for now, then in pairs)


def rows(bench: Bench) -> list[Row]:
    """The claims after 300,000 runs under an open transaction beside those without one; or `--seconds` of them."""
    setup = bench.setup("noop", max_concurrent=200)
    store = bench.store("postgres")
    url = store.create(bench.template("postgres", setup, 0))
    runs = 20_000 if bench.is_quick else RUNS
    try:
        store.settle(url)
        before = _claims(url, setup, 6.0 if bench.is_quick else 15.0)
        with _held_open(url):
            if bench.seconds:
                how, done = f"{bench.seconds:g} s at 1,000/s", runs
                paced(url, setup, Pace(1000, bench.seconds))
            else:
                how = f"{runs:,} runs (as many as {runs // 1000} s at 1,000/s make), as fast as they go, then 1,000/s"
                done = _worked_off(url, setup, runs)
                if done < runs:
                    how += f"; {done:,} were done in {MOST_SECONDS:g} s, the others deleted"
            after = _claims(url, setup, 6.0 if bench.is_quick else 15.0)
            with Connection(url) as connection:
                dead = connection.value("SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'runs'")
    finally:
        store.drop(url)
    say(f"open transaction: {before} before, {after} with {dead:,} dead rows")
    times = after.times(before)
    is_kept = is_at_least(after.rate, 0.95 * 1000) and is_at_most(times, 3.0)
    return [
        Row(
            f"1,000 runs/s under a transaction held open elsewhere: {how}, postgres",
            "rate kept, claim time ≤ 3 times",
            f"{after}; {dead:,} dead rows",
            f"before: {before}",
            times,
            is_kept if done >= runs or not is_kept else None,
            why="the ratio is of what grew most: lateness, CPU, or SQL's time",
            raw={"before": vars(before), "after": vars(after), "dead_rows": dead, "done": done},
        )
    ]


def _worked_off(url: str, setup: Setup, runs: int) -> int:
    """Work off so many waiting runs for a minute at most, and delete the rest; return how many were done."""
    with Connection(url) as connection:
        connection.rows(BACKLOG.format(runs=runs))
        first = _last(connection)
        with Node(url, replace(setup, max_concurrent=500)) as node:
            began = time.monotonic()
            with suppress(TimeoutError):
                until(lambda: _last(connection) - first >= runs, [node], MOST_SECONDS, every=0.05)
            elapsed = time.monotonic() - began
        done = _last(connection) - first
        connection.rows("DELETE FROM jobrunner.runs")
    say(f"open transaction: {done:,} runs in {elapsed:.0f} s")
    return done


@contextmanager
def _held_open(url: str) -> Iterator[None]:
    """A transaction with an id and a snapshot: no row that dies after it may be removed."""
    with psycopg.connect(plain_url(url)) as other:
        other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        other.execute("CREATE TABLE held (i int)")
        other.execute("SELECT count(*) FROM jobrunner.runs")
        yield
        other.rollback()


def _claims(url: str, setup: Setup, seconds: float) -> Claims:
    asked = "SELECT active_time FROM pg_stat_database WHERE datname = current_database()"
    with Connection(url) as connection:
        busy = connection.value(asked)
        steady = paced(url, setup, Pace(1000, seconds))
        busy = connection.value(asked) - busy
    return Claims(steady.rate, percentile(steady.late, 50), steady.cpu, busy / 1000 / seconds)


def run(bench: Bench) -> list[Row]:
    return rows(bench)

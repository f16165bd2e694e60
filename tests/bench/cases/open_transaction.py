"""Steady work while a transaction is held open elsewhere, so that PostgreSQL's vacuum can clean nothing up.

What hurts is what that leaves behind: the dead rows of all the runs that ended meanwhile. So `RUNS` of them, as many as
five minutes at 1,000 a second make, are worked off as fast as the nodes can while the transaction is open, and what
comes then, the transaction still open, is compared with what came before it. `--seconds 600` waits instead: 1,000 a
second for so long, and the last of it is compared, too. On one node, on two, and beside 300,000 runs that wait for a
worker that is disabled. When the transaction has ended, the work goes on, and the tables are to be small again.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
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

RUNS, MOST_SECONDS, WAITING = 300_000, 60.0, 300_000
SMALL_AGAIN_SECONDS, LONGEST_SECONDS = 60.0, 90.0
SMALL = {"claims": 4.0, "worker_state": 4.0}
"""MiB that a table and its indexes may have then; of `runs`, what is dead is to be gone, and its space to be free."""
MOST_DEAD = 60_000
"""Dead rows of `runs`: what is left from one visit of the autovacuum to the next, a minute at 1,000 a second."""
BACKLOG = """
INSERT INTO jobrunner.runs (worker, priority, due_at, scheduled_for)
SELECT '{worker}', (SELECT priority FROM jobrunner.workers WHERE name = '{worker}'), at, at
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


def paced(url: str, setup: Setup, pace: Pace, nodes: int = 1) -> Steady:
    """Feed a node, or several, so many runs a second by plain SQL from another process."""
    with Connection(url) as connection, ExitStack() as stack:
        started = [stack.enter_context(Node(url, setup)) for _ in range(nodes)]
        wait_ready(connection, started)
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
            began, first, cpu = time.time(), _last(connection), sum(node.cpu_seconds() for node in started)
            feeder.stdin.write("go\n")
            feeder.stdin.flush()
            time.sleep(pace.seconds)
            elapsed, last = time.time() - began, _last(connection)
            cpu = sum(node.cpu_seconds() for node in started) - cpu
            for node in started:
                node.check()
        finally:
            feeder.kill()
            feeder.communicate()
        late = _late(connection, f"FROM {history} WHERE id > {first} AND id <= {last} AND worker = 'noop' ORDER BY id")
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


@dataclass(frozen=True)
class Case:
    """On how many nodes, and beside how many runs that wait for a worker that is disabled."""

    nodes: int = 1
    waiting: int = 0

    def __str__(self) -> str:
        waiting = f", {self.waiting:,} waiting" if self.waiting else ""
        return f"{self.nodes} node{'s' * (self.nodes > 1)}{waiting}"


@dataclass
class Held:
    """What a case gave: claims before, after so many dead rows, and the sizes when the transaction was over."""

    before: Claims
    after: Claims
    dead: int
    done: int
    long: Steady | None = None
    sizes: Sizes | None = None

    @property
    def rise(self) -> float:
        """The lateness of the last tenth of a long time as a multiple of the first's."""
        if self.long is None:
            return math.nan
        tenth = len(self.long.late) // 10
        return percentile(self.long.late[-tenth:], 50) / percentile(self.long.late[:tenth], 50)


def rows(bench: Bench) -> list[Row]:
    """The claims under an open transaction beside those without one: the short form of all cases."""
    cases = [Case()] if bench.is_quick else [Case(), Case(nodes=2), Case(waiting=WAITING)]
    return [_row(bench, case, _held(bench, case)) for case in cases]


def _held(bench: Bench, case: Case) -> Held:
    setup = bench.setup("noop,crowd" if case.waiting else "noop", max_concurrent=200)
    store = bench.store("postgres")
    runs = 20_000 if bench.is_quick else RUNS
    seconds = 6.0 if bench.is_quick else 15.0
    url = store.create(bench.template("postgres", setup, 0))
    try:
        if case.waiting:
            _fill(url, case.waiting)
        store.settle(url)
        before = _claims(url, setup, seconds, case.nodes)
        with _held_open(url):
            long = paced(url, setup, Pace(1000, bench.seconds), case.nodes) if bench.seconds else None
            done = runs if bench.seconds else _worked_off(url, setup, runs, case.nodes)
            after = _claims(url, setup, seconds, case.nodes)
            with Connection(url) as connection:
                dead = connection.value("SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'runs'")
        held = Held(before, after, dead, done, long)
        if not bench.is_quick:
            held.sizes = _small_again(url, setup, case)
    finally:
        store.drop(url)
    say(f"open transaction, {case}: {before} before, {after} with {dead:,} dead rows; {held.sizes}")
    return held


def _row(bench: Bench, case: Case, held: Held) -> Row:
    if held.long is not None:
        how = f"{bench.seconds:g} s at 1,000/s"
        figure = f"{held.long}, its last tenth {held.rise:.2f} times as late as the first; then {held.after}"
    else:
        how = f"{held.done:,} runs as fast as they go, then 1,000/s"
        figure = str(held.after)
    times = held.after.times(held.before)
    is_kept = is_at_least(held.after.rate, 950) and is_at_most(times, 2.0)
    if held.long is not None:
        is_kept = is_kept and is_at_least(held.long.rate, 950) and is_at_most(held.rise, 2.0)
    if held.sizes is not None:
        figure += f"; {held.sizes}"
        is_kept = is_kept and held.sizes.is_small and held.sizes.seconds <= SMALL_AGAIN_SECONDS
    return Row(
        f"1,000 runs/s under a transaction held open elsewhere, {case}: {how}, postgres",
        "rate kept, claim time ≤ 2 times, not rising; small again in a minute",
        f"with {held.dead:,} dead rows {figure}",
        f"before: {held.before}",
        times,
        is_kept,
        why="the ratio is of what grew most: lateness, CPU, or SQL's time",
        raw={
            "before": vars(held.before),
            "after": vars(held.after),
            "dead_rows": held.dead,
            "done": held.done,
            "sizes": held.sizes and vars(held.sizes),
            "rise": held.rise,
        },
    )


def _fill(url: str, waiting: int) -> None:
    """Let so many runs wait for the worker that is disabled."""
    with Connection(url) as connection:
        connection.rows(
            "UPDATE jobrunner.worker_state SET is_enabled = false, disabled_by = 'operator' WHERE worker = 'disabled'"
        )
        connection.rows(BACKLOG.format(worker="disabled", runs=waiting))


def _worked_off(url: str, setup: Setup, runs: int, nodes: int) -> int:
    """Work off so many waiting runs for a minute at most, and delete the rest; return how many were done."""
    with Connection(url) as connection:
        connection.rows(BACKLOG.format(worker="noop", runs=runs))
        first = _last(connection)
        with ExitStack() as stack:
            started = [stack.enter_context(Node(url, replace(setup, max_concurrent=500))) for _ in range(nodes)]
            began = time.monotonic()
            with suppress(TimeoutError):
                until(lambda: _last(connection) - first >= runs, started, MOST_SECONDS, every=0.05)
            elapsed = time.monotonic() - began
        done = _last(connection) - first
        connection.rows("DELETE FROM jobrunner.runs WHERE worker = 'noop'")
    say(f"open transaction: {done:,} runs in {elapsed:.0f} s")
    return done


@dataclass(frozen=True)
class Sizes:
    """MiB by table, the dead rows of `runs`, and how many seconds after the transaction that was."""

    mib: dict[str, float]
    dead: int
    seconds: float

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} {mib:.1f}" for name, mib in self.mib.items())
        return f"{self.seconds:.0f} s later {self.dead:,} dead rows, MiB: {sizes}"

    @property
    def is_small(self) -> bool:
        return self.dead <= MOST_DEAD and all(self.mib[name] <= most for name, most in SMALL.items())


def _small_again(url: str, setup: Setup, case: Case) -> Sizes:
    """Go on at 1,000 runs a second until the tables are small, for a minute and a half at most."""
    began = time.monotonic()
    while True:
        paced(url, setup, Pace(1000, 8.0), case.nodes)
        with Connection(url) as connection:
            mib = {
                name: connection.value(f"SELECT pg_total_relation_size('jobrunner.{name}')") / 2**20
                for name in (*SMALL, "runs")
            }
            dead = connection.value("SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'runs'")
        sizes = Sizes(mib, dead, time.monotonic() - began)
        if sizes.is_small or sizes.seconds > LONGEST_SECONDS:
            return sizes


@contextmanager
def _held_open(url: str) -> Iterator[None]:
    """A transaction with an id and a snapshot: no row that dies after it may be removed."""
    with psycopg.connect(plain_url(url)) as other:
        other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        other.execute("CREATE TABLE held (i int)")
        other.execute("SELECT count(*) FROM jobrunner.runs")
        yield
        other.rollback()


def _claims(url: str, setup: Setup, seconds: float, nodes: int) -> Claims:
    asked = "SELECT active_time FROM pg_stat_database WHERE datname = current_database()"
    with Connection(url) as connection:
        busy = connection.value(asked)
        steady = paced(url, setup, Pace(1000, seconds), nodes)
        busy = connection.value(asked) - busy
    return Claims(steady.rate, percentile(steady.late, 50), steady.cpu, busy / 1000 / seconds)


def run(bench: Bench) -> list[Row]:
    return rows(bench)

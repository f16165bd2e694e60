"""Whether much that is there slows the little that is to be done: many workers, backlogs that cannot start."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

from tests.bench import contest, product
from tests.bench.bench import Bench, figure, say
from tests.bench.cases import history, latency, open_transaction
from tests.bench.cases.latency import wait_ready
from tests.bench.cases.schedule import as_time, moment
from tests.bench.figures import Row, is_at_least, is_at_most, percentile, ratio
from tests.bench.product import Node, Setup, drain, until
from tests.bench.stores import Connection

SOONER = {"JOBRUNNER_DRAIN_TIMEOUT": "0"}
"""Runs that never end are not waited for."""
DUE = 100
"""Workers that fall due every ten seconds, ten a second; the others are years away."""


@dataclass(frozen=True)
class Sparse:
    """A node on whose workers ten runs fall due a second: of the same hundred, however many there are besides."""

    first_start: float
    start: float
    cpu: float
    mib: float
    late: list[float]

    def __str__(self) -> str:
        p50, p99 = (1000 * percentile(self.late, each) for each in (50, 99))
        return (
            f"{self.cpu:.1%} CPU, late p50 {p50:.0f}, p99 {p99:.0f} ms, start {self.start:.1f} s"
            f" (the first {self.first_start:.1f} s), {self.mib:.0f} MiB"
        )


def sparse(bench: Bench, kind: str, workers: int, seconds: float) -> Sparse:
    """Start a node twice (the first writes the definitions), then look at what ten runs a second cost.

    It is looked at when each worker that falls due has done so before: a first firing costs more than the next.
    Between the starts those are set a tenth of a second apart; a long start has them all begin at one moment.
    """
    setup = bench.setup(f"sparse:{DUE}" + (f",far:{workers - DUE}" if workers > DUE else ""), max_concurrent=50)
    store = bench.store(kind)
    url = store.create()
    try:
        product.upgrade(url, setup)
        starts: list[float] = []
        cpu, mib, begins = 0.0, 0.0, datetime.now(UTC)
        for _ in range(2):
            with Connection(url) as connection:
                began = time.time()
                with Node(url, setup) as node:
                    before = _count(connection)
                    wait_ready(connection, [node], seconds=240)
                    until(partial(_has_more, connection, before), [node], seconds=30, every=0.02)
                    starts.append(time.time() - began)
                    if len(starts) == 2:
                        until(partial(_have_all_run, connection), [node], seconds=60, every=0.5)
                        time.sleep(1.0)
                        cpu, begins = node.cpu_seconds(), datetime.now(UTC)
                        time.sleep(seconds)
                        cpu, mib = node.cpu_seconds() - cpu, node.rss_mib()
                    node.check()
                if len(starts) == 1:
                    _set_apart(connection)
        with Connection(url) as connection:
            late = _late(connection, begins)
    finally:
        store.drop(url)
    return Sparse(starts[0], starts[1], cpu / seconds, mib, late)


def _count(connection: Connection) -> int:
    return int(connection.value(f"SELECT count(*) FROM {connection.p}run_history"))


def _has_more(connection: Connection, before: int) -> bool:
    """Say whether a run has ended: the node has started, and ticks."""
    return _count(connection) > before


def _set_apart(connection: Connection) -> None:
    """As if each had run once, and again were due: all run when the node starts, then each in its turn."""
    period = timedelta(seconds=DUE / 10)
    began = datetime.now(UTC) - period
    for i in range(DUE):
        due = began + period * i / DUE
        times = (moment(connection, each) for each in (due - period, due))
        change = f"UPDATE {connection.p}worker_state SET last_due_at = ?, next_run_at = ? WHERE worker = ?"
        connection.rows(change, *times, f"scheduled-{i}")


def _have_all_run(connection: Connection) -> bool:
    ran = connection.value(f"SELECT count(DISTINCT worker) FROM {connection.p}run_history WHERE outcome = 'succeeded'")
    return bool(ran >= DUE)


def _late(connection: Connection, begins: datetime) -> list[float]:
    rows = connection.rows(
        f"SELECT due_at, started_at FROM {connection.p}run_history"
        " WHERE \"trigger\" = 'schedule' AND outcome = 'succeeded' AND started_at >= ?",
        moment(connection, begins),
    )
    return [(as_time(started) - as_time(due)).total_seconds() for due, started in rows]


def many_workers(bench: Bench, kind: str) -> list[Row]:
    """100,000 workers; 10,000 when in a hurry."""
    many, seconds = (10_000, 5.0) if bench.is_quick else (100_000, 15.0)
    few, lots = (sparse(bench, kind, workers, bench.seconds or seconds) for workers in (DUE, many))
    say(f"scale, {kind}: {DUE} workers: {few}")
    say(f"scale, {kind}: {many:,} workers: {lots}")
    times = lots.cpu / few.cpu if few.cpu else float("nan")
    is_ok = is_at_most(times, 2.0) and is_at_most(lots.start, 5.0) and is_at_most(lots.mib, 250.0) and bool(lots.late)
    return [
        Row(
            f"{many:,} scheduled workers, 10 due a second, {kind}",
            f"CPU ≤ 2 times that with {DUE}, start ≤ 5 s, ≤ 250 MiB",
            str(lots),
            f"with {DUE} workers: {few}",
            times,
            is_ok,
            why=f"the same {DUE} fall due in both, each for at least the second time",
            raw={"few": vars(few), "many": vars(lots)},
        )
    ]


# --- a backlog that cannot start ----------------------------------------------------------------------------------

FILL = """
INSERT INTO {p}runs (worker, priority, due_at, scheduled_for)
SELECT '{worker}', (SELECT priority FROM {p}workers WHERE name = '{worker}'), {past}, {past} FROM {numbers}
"""


def fill_runs(connection: Connection, worker: str, count: int) -> None:
    """Insert runs that have been due for an hour, by plain SQL."""
    if connection.is_sqlite:
        numbers = f"(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) SELECT i FROM n)"
        past = "strftime('%Y-%m-%d %H:%M:%S', 'now', '-1 hour') || '.000000'"
    else:
        numbers, past = f"generate_series(1, {count})", "now() - interval '1 hour'"
    connection.rows(FILL.format(p=connection.p, worker=worker, past=past, numbers=numbers))


def crowd_template(bench: Bench, kind: str, backlog: int, waiting: int) -> str:
    """Three workers with such a backlog, and no-op runs that wait behind it."""
    setup = bench.setup("crowd,noop,stamp", more=SOONER)
    store = bench.store(kind)
    url = product.prepare(store, setup)
    command = [*product.PROGRAM, "admin", "disable", "disabled"]
    subprocess.run(command, cwd=product.ROOT, env=setup.environment(url), check=True, capture_output=True, timeout=60)
    with Connection(url) as connection:
        for worker, count in (("blocker", 1), ("saturated", 1 + backlog), ("blocked", backlog), ("disabled", backlog)):
            if count:
                fill_runs(connection, worker, count)
    product.enqueue(url, setup, waiting)
    store.settle(url)
    return url


def crowd(bench: Bench, kind: str) -> list[Row]:
    """Drain rate and latency of other workers, without the backlog and with it, in turns."""
    backlog, waiting, count = (20_000, 10_000, 40) if bench.is_quick else (300_000, 10_000, 100)
    setup = bench.setup("crowd,noop,stamp", more=SOONER)
    templates = {n: crowd_template(bench, kind, n, waiting) for n in (0, backlog)}

    def rate(n: int) -> float:
        return float(
            bench.on_copy(kind, templates[n], lambda url: drain(url, setup, waiting, worker="noop", seconds=120))[
                "rate"
            ]
        )

    turns = {name: partial(rate, n) for name, n in (("without", 0), ("with", backlog))}
    rates = {name: figure(name, "/s", values) for name, values in contest.take_turns(turns, bench.repeats).items()}
    late = {n: _latency(bench, kind, templates[n], setup, count) for n in (0, backlog)}
    for template in templates.values():
        bench.store(kind).drop(template)
    share = ratio(rates["with"], rates["without"])
    before, after = (percentile(late[n], 50) for n in (0, backlog))
    say(f"crowd, {kind}: {rates['without']} without, {rates['with']} with; latency {before:.1f} and {after:.1f} ms")
    is_ok = share is not None and is_at_least(share, 0.9) and is_at_most(after, max(before * 1.1, before + 0.3))
    return [
        Row(
            f"a disabled, a saturated and a blocked worker, each with {backlog:,} runs, {kind}",
            "others' drain and latency within 10 %",
            f"{rates['with']}, latency p50 {after:.1f} ms",
            f"without: {rates['without']}, latency p50 {before:.1f} ms",
            share,
            is_ok,
            raw={"with": rates["with"].samples, "without": rates["without"].samples, "late": late},
        )
    ]


def _latency(bench: Bench, kind: str, template: str, setup: Setup, count: int) -> list[float]:
    def measure(url: str) -> list[float]:
        with Connection(url) as connection:
            connection.rows(f"DELETE FROM {connection.p}runs WHERE worker = 'noop'")
        return latency.on_database(url, setup, count)

    return list(bench.on_copy(kind, template, measure))


def run(bench: Bench) -> list[Row]:
    rows = [*many_workers(bench, bench.database), *crowd(bench, bench.database), *history.rows(bench, bench.database)]
    if bench.database == "postgres":
        rows += open_transaction.rows(bench)
    return rows

"""A history of ten million rows: drains, what people ask, and pruning beside running work.

The history is filled by plain SQL, once, with rows of the last 29 days; everything is measured on that one database,
in turns with one whose history is empty.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from tests.bench import contest, product
from tests.bench.bench import Bench, figure, say
from tests.bench.cases.open_transaction import Pace, paced
from tests.bench.figures import Row, is_at_least, ratio
from tests.bench.product import Setup, drain
from tests.bench.stores import Connection

ANSWER_SECONDS = 0.2
COLUMNS = (
    'run_id, fence, worker, "trigger", attempt, outcome, ends_run, scheduled_for, due_at, started_at, finished_at,'
    " duration_ms, node_id"
)
POSTGRES_FILL = """
INSERT INTO jobrunner.run_history ({columns})
SELECT i - {count} - 1, i, 'past-' || i % 100, 'manual', 1, 'succeeded', 'succeeded', at, at, at, at, 5, 'bench'
FROM (SELECT i, now() - interval '29 days' + interval '28 days' * (i::float / {count}) AS at
      FROM generate_series({first}, {last}) AS i) AS past
"""
SQLITE_FILL = """
INSERT INTO run_history ({columns})
WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n WHERE i < {last}),
past(i, at) AS (SELECT i, datetime({now} - 29 * 86400 + i * 2419200 / {count}, 'unixepoch') || '.000000' FROM n)
SELECT i - {count} - 1, i, 'past-' || i % 100, 'manual', 1, 'succeeded', 'succeeded', at, at, at, at, 5, 'bench'
FROM past
"""
ANSWERS = """
import contextlib, io, json, time
from typer.testing import CliRunner
from jobrunner.cli.main import app

def ask(words):
    began = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):
        result = CliRunner().invoke(app, [*words, "--json", "--limit", "50"])
    assert result.exit_code == 0, result.output
    return time.perf_counter() - began

asked = [["status"], ["history"], ["history", "noop"], ["history", "--outcome", "failed"]]
print(json.dumps({" ".join(words): [ask(words) for _ in range(6)][1:] for words in asked}))
"""


INDEXES = {
    "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'run_history' AND sql <> ''",
    "postgres": "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'run_history' AND indexname LIKE 'ix%'",
}


def fill(connection: Connection, count: int, chunk: int = 1_000_000) -> None:
    """Write the history of so many runs that succeeded; ids of runs are negative, so that no real one meets them."""
    with _unhindered(connection):
        for first in range(1, count + 1, chunk):
            last = min(first + chunk - 1, count)
            sql = SQLITE_FILL if connection.is_sqlite else POSTGRES_FILL
            connection.rows(sql.format(columns=COLUMNS, first=first, last=last, count=count, now=int(time.time())))


@contextmanager
def _unhindered(connection: Connection) -> Iterator[None]:
    """Indexes are made when the rows are there, which takes a half of the time on PostgreSQL, a third on SQLite."""
    unique = "CONSTRAINT uq_run_history_run_id_fence"
    if connection.is_sqlite:
        connection.rows("PRAGMA synchronous = OFF")
        connection.rows("PRAGMA cache_size = -400000")
        connection.rows("PRAGMA ignore_check_constraints = ON")
    else:
        connection.rows("SET maintenance_work_mem = '512MB'")
        connection.rows(f"ALTER TABLE jobrunner.run_history DROP {unique}")
    indexes = connection.rows(INDEXES["sqlite" if connection.is_sqlite else "postgres"])
    for name, _ in indexes:
        connection.rows(f"DROP INDEX {connection.p}{name}")
    yield
    for _, definition in indexes:
        connection.rows(definition)
    if not connection.is_sqlite:
        connection.rows(f"ALTER TABLE jobrunner.run_history ADD {unique} UNIQUE (run_id, fence)")


def run(bench: Bench) -> list[Row]:
    return rows(bench, bench.database)


def rows(bench: Bench, kind: str) -> list[Row]:
    size, waiting = (200_000, 5_000) if bench.is_quick else (10_000_000, 10_000)
    setup = bench.setup("noop")
    store = bench.store(kind)
    empty, full = product.prepare(store, setup), product.prepare(store, setup)
    began = time.monotonic()
    try:
        with Connection(full) as connection:
            fill(connection, size)
        store.settle(full)
        say(f"history, {kind}: {size:,} rows in {time.monotonic() - began:.0f} s")
        found = [_drains(bench, kind, empty, full, setup, size, waiting), _answers(kind, empty, full, setup, size)]
        return [*found, _pruning(bench, kind, full, setup, size, waiting)]
    finally:
        store.drop(empty)
        store.drop(full)


def _rate(bench: Bench, kind: str, url: str, setup: Setup, waiting: int) -> float:
    product.enqueue(url, setup, waiting)
    if kind == "postgres":
        with Connection(url) as connection:
            connection.rows("VACUUM ANALYZE jobrunner.runs")
            connection.rows("CHECKPOINT")
    return drain(url, setup, waiting, seconds=120)["rate"]


def _drains(bench: Bench, kind: str, empty: str, full: str, setup: Setup, size: int, waiting: int) -> Row:
    turns = {
        "empty": lambda: _rate(bench, kind, empty, setup, waiting),
        "full": lambda: _rate(bench, kind, full, setup, waiting),
    }
    rates = {name: figure(name, "/s", values) for name, values in contest.take_turns(turns, bench.repeats).items()}
    share = ratio(rates["full"], rates["empty"])
    say(f"history, {kind}: {rates['empty']} on an empty one, {rates['full']} on a full one")
    return Row(
        f"drain with a history of {size:,} rows, {kind}",
        "within 10 % of an empty one",
        str(rates["full"]),
        f"empty: {rates['empty']}",
        share,
        share is not None and is_at_least(share, 0.9),
        raw={name: each.samples for name, each in rates.items()},
    )


def _answers(kind: str, empty: str, full: str, setup: Setup, size: int) -> Row:
    """The commands themselves, in a process that has started: connecting, asking, writing the answer."""
    times = {
        name: json.loads(product.run_python(ANSWERS, url, setup)) for name, url in (("empty", empty), ("full", full))
    }
    whole = figure("whole", "s", [_status(full, setup) for _ in range(3)])
    told, is_ok = [], True
    for words, samples in times["full"].items():
        answer, on_empty = median(samples), median(times["empty"][words])
        is_ok = is_ok and answer <= ANSWER_SECONDS
        told.append(f"{words} {answer * 1000:.0f} ms (empty: {on_empty * 1000:.0f})")
    say(f"history, {kind}: {'; '.join(told)}; `jobrunner status` as a process {whole}")
    return Row(
        f"status and history with {size:,} rows, {kind}",
        f"answer in ≤ {ANSWER_SECONDS * 1000:.0f} ms",
        "; ".join(told),
        is_ok=is_ok,
        why=f"Python's start comes on top: {whole} in all for status",
        raw={**times, "process": whole.samples},
    )


def _status(url: str, setup: Setup) -> float:
    began = time.perf_counter()
    command = [*product.PROGRAM, "status", "--json"]
    subprocess.run(command, cwd=product.ROOT, env=setup.environment(url), check=True, capture_output=True, timeout=120)
    return time.perf_counter() - began


def _pruning(bench: Bench, kind: str, url: str, setup: Setup, size: int, waiting: int) -> Row:
    """Work at 500 runs a second, without and with `jobrunner db prune` at work on half of the history."""
    pace = Pace(rate=500, seconds=6.0 if bench.is_quick else 10.0)
    before = paced(url, setup, pace)
    environment = {**setup.environment(url), "JOBRUNNER_HISTORY_DAYS": "15"}
    pruning = subprocess.Popen(
        [*product.PROGRAM, "db", "prune"],
        cwd=product.ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        during = paced(url, setup, pace)
        has_ended = pruning.poll() is not None
    finally:
        pruning.kill()
        pruning.wait()
    share = during.rate / before.rate
    say(f"prune, {kind}: {before} without, {during} with")
    return Row(
        f"pruning {size:,} rows of history beside 500 runs/s, {kind}",
        "does not slow running work by more than 10 %",
        str(during),
        f"without: {before}",
        share,
        is_at_least(share, 0.9),
        why="it had pruned all before the end" if has_ended else "",
        raw={"before": vars(before), "during": vars(during)},
    )

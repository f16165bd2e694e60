"""What the database itself can do: the same changes as a run's, bare, in batches, without anybody's code between.

Of 500 runs: one transaction that marks them claimed, one that inserts their history and deletes them. On PostgreSQL
through asyncpg with arrays, on SQLite through sqlite3.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from statistics import median

import asyncpg

from tests.bench.bench import Bench, figure, say
from tests.bench.figures import Row, number
from tests.bench.stores import Store, plain_url

TABLES = (
    "CREATE TABLE raw_runs (id bigint PRIMARY KEY, worker text, state text, payload text, fence bigint)",
    "CREATE TABLE raw_history (id {id}, run_id bigint, worker text, outcome text, started_at text, finished_at text)",
)
BATCH = 500
BARE = "bare insert + update + delete"


def measure(store: Store, runs: int, synchronous: str = "FULL") -> float:
    """Runs per second; `synchronous` is for SQLite."""
    url = store.create()
    try:
        if store.kind == "sqlite":
            return _sqlite(plain_url(url), runs, synchronous)
        return asyncio.run(_postgres(plain_url(url), runs))
    finally:
        store.drop(url)


async def _postgres(url: str, runs: int) -> float:
    connection = await asyncpg.connect(url)
    try:
        for table in TABLES:
            await connection.execute(table.format(id="bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY"))
        await connection.execute(
            "INSERT INTO raw_runs SELECT i, 'noop', 'pending', '{}', NULL FROM generate_series(1, $1::int) AS i", runs
        )
        claim = await connection.prepare("UPDATE raw_runs SET state = 'running', fence = 1 WHERE id = ANY($1)")
        insert = await connection.prepare(
            "INSERT INTO raw_history (run_id, worker, outcome, started_at, finished_at)"
            " SELECT i, 'noop', 'succeeded', '2026-01-01', '2026-01-01' FROM unnest($1::bigint[]) AS i"
        )
        delete = await connection.prepare("DELETE FROM raw_runs WHERE id = ANY($1)")
        began = time.perf_counter()
        for first in range(1, runs + 1, BATCH):
            ids = list(range(first, min(first + BATCH, runs + 1)))
            await claim.fetch(ids)
            async with connection.transaction():
                await insert.fetch(ids)
                await delete.fetch(ids)
        return runs / (time.perf_counter() - began)
    finally:
        await connection.close()


def _sqlite(path: str, runs: int, synchronous: str) -> float:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        for table in TABLES:
            connection.execute(table.format(id="integer PRIMARY KEY AUTOINCREMENT"))
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO raw_runs VALUES (?, 'noop', 'pending', '{}', NULL)", ((i,) for i in range(1, runs + 1))
        )
        connection.execute("COMMIT")
        began = time.perf_counter()
        for first in range(1, runs + 1, BATCH):
            ids = [(i,) for i in range(first, min(first + BATCH, runs + 1))]
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("UPDATE raw_runs SET state = 'running', fence = 1 WHERE id = ?", ids)
            connection.execute("COMMIT")
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(
                "INSERT INTO raw_history (run_id, worker, outcome, started_at, finished_at)"
                " VALUES (?, 'noop', 'succeeded', '2026-01-01', '2026-01-01')",
                ids,
            )
            connection.executemany("DELETE FROM raw_runs WHERE id = ?", ids)
            connection.execute("COMMIT")
        return runs / (time.perf_counter() - began)


def run(bench: Bench) -> list[Row]:
    return rows(bench, bench.database)


def rows(bench: Bench, kind: str) -> list[Row]:
    found = []
    for name in ("sqlite, FULL", "sqlite, NORMAL") if kind == "sqlite" else ("postgres",):
        samples = [measure(bench.store(kind), 50_000, name.split(", ")[-1]) for _ in range(bench.repeats)]
        rate = figure("raw", "runs/s", samples)
        say(f"raw, {name}: {rate}")
        found.append(
            Row(f"{BARE} in batches of {BATCH}, {name}", "", str(rate), raw={"raw": rate.samples, "database": name})
        )
    return found


def beside_drains(rows: Sequence[Row]) -> list[Row]:
    """Say of each drain what share of the bare rate it is, and beside the bare rate which drain came closest to it."""
    bare = {row.raw["database"]: median(row.raw["raw"]) for row in rows if "database" in row.raw}
    drains = {
        row.case: median(row.raw["ours"]) for row in rows if row.case.startswith("drain ") and row.raw.get("ours")
    }

    def beside(row: Row) -> Row:
        base = next((name for name in bare if name in row.case), None)
        if base is None:
            return row
        if row.case in drains:
            share = f"{drains[row.case] / bare[base]:.0%} of the bare rate"
            return replace(row, why=f"{row.why}; {share}" if row.why else share)
        best = max((case for case in drains if base in case), key=lambda case: drains[case], default=None)
        if best is None or not row.case.startswith(BARE):
            return row
        rate = drains[best]
        return replace(row, peer=f"our best: {number(rate)} /s ({best})", ratio=rate / bare[base])

    return [beside(row) for row in rows]

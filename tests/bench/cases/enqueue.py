"""How fast runs can be triggered: many at once, and by eight processes at once to a worker that is at work."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter

from tests.bench import product
from tests.bench.bench import Bench, figure, say
from tests.bench.cases.latency import wait_ready
from tests.bench.figures import Row, is_at_least
from tests.bench.product import ROOT, Node
from tests.bench.stores import Connection, PostgresStore

ROWS_PER_SECOND = 50_000
PROCESSES = 8
ONE_BY_ONE = """
import asyncio, json, sys, time
from tests.bench.workers import orchestrator

from jobrunner.errors import DatabaseUnavailable

async def main(seconds):
    count, refused, longest = 0, [], 0.0
    async with orchestrator._database() as db:
        ends = time.monotonic() + seconds
        while (began := time.monotonic()) < ends:
            try:
                async with db.write() as conn:
                    await orchestrator.trigger_worker("noop", connection=conn)
                count += 1
            except DatabaseUnavailable as error:
                refused.append(str(error))
            longest = max(longest, time.monotonic() - began)
    print(json.dumps({"count": count, "refused": refused, "longest": longest}))

asyncio.run(main(float(sys.argv[1])))
"""
LOCKS = """
SELECT wait_event || ': ' || left(query, 40) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock' AND pid <> pg_backend_pid()
"""


def run(bench: Bench) -> list[Row]:
    return rows(bench, bench.database)


def rows(bench: Bench, kind: str) -> list[Row]:
    return [many(bench, kind), crowded(bench, kind)]


def many(bench: Bench, kind: str) -> Row:
    """One `trigger_many`, in one transaction."""
    setup, count = bench.setup("noop"), 20_000 if bench.is_quick else 100_000
    template = bench.template(kind, setup, 0)

    def rate(url: str) -> float:
        return count / product.enqueue(url, setup, count, chunk=count)

    found = figure("trigger_many", "rows/s", [bench.on_copy(kind, template, rate) for _ in range(bench.repeats)])
    say(f"enqueue, {kind}: {found}")
    return Row(
        f"trigger_many of {count:,}, {kind}",
        f"≥ {ROWS_PER_SECOND:,} rows/s",
        str(found),
        is_ok=is_at_least(found.value, ROWS_PER_SECOND),
        raw={"rows_per_second": found.samples},
    )


def crowded(bench: Bench, kind: str) -> Row:
    """Eight processes trigger one by one, each in its own transaction, while a node works the runs off."""
    seconds = 4.0 if bench.is_quick else 10.0
    setup, store = bench.setup("noop", max_concurrent=50), bench.store(kind)
    url = store.create(bench.template(kind, setup, 0))
    looks, seen = 0, Counter[str]()
    try:
        with Connection(url) as connection, Node(url, setup) as node:
            wait_ready(connection, [node])
            said = len(store.server.log) if isinstance(store, PostgresStore) else 0
            senders = [
                subprocess.Popen(
                    [sys.executable, "-c", ONE_BY_ONE, str(seconds)],
                    cwd=ROOT,
                    env=setup.environment(url),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                for _ in range(PROCESSES)
            ]
            try:
                while any(sender.poll() is None for sender in senders):
                    if kind == "postgres":
                        looks += 1
                        seen.update(str(text) for (text,) in connection.rows(LOCKS)[:1])
                    time.sleep(0.01)
                    node.check()
                told = [sender.communicate() for sender in senders]
            finally:
                for sender in senders:
                    sender.kill()
                    sender.wait()
            broken = [error for sender, (_, error) in zip(senders, told, strict=True) if sender.returncode]
            waited = store.server.log[said:].count("still waiting for") if isinstance(store, PostgresStore) else 0
            count = connection.value(f"SELECT count(*) FROM {connection.p}run_history") + connection.value(
                f"SELECT count(*) FROM {connection.p}runs"
            )
    finally:
        store.drop(url)
    if broken:
        raise RuntimeError(broken[0][-500:])
    said_by_each = [json.loads(out.strip().splitlines()[-1]) for out, _ in told]
    refused = [error for each in said_by_each for error in each["refused"]]
    longest = max(each["longest"] for each in said_by_each)
    rate, waits = count / seconds, seen.total()
    text = f"{rate:,.0f} triggers/s, the longest {longest:.2f} s, {len(refused)} refused"
    if kind == "postgres":
        text += f"; {waits} of {looks} looks saw a lock wait, {waited} longer than 100 ms"
        text += "".join(f"; most often {event}" for event, _ in seen.most_common(1))
    else:
        text += " (SQLite has one writer: they take turns)"
    say(f"enqueue, {kind}, {PROCESSES} processes: {text}")
    return Row(
        f"{PROCESSES} processes enqueueing to one worker at work, {kind}",
        "no lock waits",
        text,
        is_ok=not (waits or waited or refused) if kind == "postgres" or refused else None,
        raw={
            "looks": looks,
            "lock_waits": dict(seen),
            "longer_than_100_ms": waited,
            "triggers": count,
            "refused": refused,
            "longest": longest,
        },
    )

"""PgQueuer through asyncpg, as its own documentation starts it: one `PgQueuer.run` with a batch size.

Without `max_concurrent_tasks`, which is its fastest way: a batch is fetched while the one before runs.
"""

from __future__ import annotations

import asyncio
import time

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

from tests.bench.peers.common import Counter, Result


async def prepare(url: str, options: Result) -> Result:
    connection = await asyncpg.connect(url)
    queries = Queries(AsyncpgDriver(connection))
    await queries.install()
    jobs = options.get("jobs", 0)
    began = time.perf_counter()
    for first in range(0, jobs, 10_000):
        count = min(10_000, jobs - first)
        await queries.enqueue(["noop"] * count, [None] * count, [0] * count)
    seconds = time.perf_counter() - began
    await connection.close()
    return {"seconds": seconds, "jobs": jobs}


async def drain(url: str, options: Result) -> Result:
    """From its own log: the first job picked, to the moment when the last one's end is seen committed."""
    watcher = await asyncpg.connect(url)
    pgq = PgQueuer(AsyncpgDriver(await asyncpg.connect(url)))
    counter = Counter(options["jobs"])

    @pgq.entrypoint("noop")
    async def noop(job: Job) -> None:
        counter.hit()

    running = asyncio.create_task(pgq.run(batch_size=options["concurrency"]))
    await counter.done.wait()
    while await watcher.fetchval("SELECT count(*) FROM pgqueuer_log WHERE status = 'successful'") < counter.jobs:
        await asyncio.sleep(0.001)
    ended = time.time()
    picked = await watcher.fetchval("SELECT min(created) FROM pgqueuer_log WHERE status = 'picked'")
    pgq.shutdown.set()
    await running
    return counter.result(picked.timestamp(), ended)


async def serve(url: str, options: Result) -> Result:
    pgq = PgQueuer(AsyncpgDriver(await asyncpg.connect(url)))
    late: list[int] = []

    @pgq.entrypoint("stamp")
    async def stamp(job: Job) -> None:
        late.append(time.time_ns() - int(job.payload or b"0"))
        if len(late) == options["count"]:
            pgq.shutdown.set()

    print("ready", flush=True)
    await pgq.run(batch_size=options.get("concurrency", 10))
    return {"ns": late}


async def send(url: str, options: Result) -> None:
    connection = await asyncpg.connect(url)
    queries = Queries(AsyncpgDriver(connection))
    for gap in options["gaps"]:
        await asyncio.sleep(gap)
        await queries.enqueue("stamp", str(time.time_ns()).encode())
    await connection.close()

"""PgQueuer through asyncpg, as its own documentation starts it: one `PgQueuer.run` with a batch size.

Without `max_concurrent_tasks`, which is its fastest way: a batch is fetched while the one before runs.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries
from pgqueuer.types import QueueExecutionMode


async def prepare(url: str, options: dict[str, Any]) -> dict[str, Any]:
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


async def drain(url: str, options: dict[str, Any]) -> dict[str, Any]:
    """From its own log: the first job picked, to the moment when the last one's end is seen committed."""
    jobs = options["jobs"]
    connection = await asyncpg.connect(url)
    watcher = await asyncpg.connect(url)
    pgq = PgQueuer(AsyncpgDriver(connection))
    called = 0
    all_called = asyncio.Event()

    @pgq.entrypoint("noop")
    async def noop(job: Job) -> None:
        nonlocal called
        called += 1
        if called == jobs:
            all_called.set()

    running = asyncio.create_task(pgq.run(batch_size=options["concurrency"], mode=QueueExecutionMode.continuous))
    await all_called.wait()
    while await watcher.fetchval("SELECT count(*) FROM pgqueuer_log WHERE status = 'successful'") < jobs:
        await asyncio.sleep(0.001)
    ended = time.time()
    picked = await watcher.fetchval("SELECT min(created) FROM pgqueuer_log WHERE status = 'picked'")
    pgq.shutdown.set()
    await running
    elapsed = ended - picked.timestamp()
    return {"rate": jobs / elapsed, "seconds": elapsed, "jobs": jobs}


async def serve(url: str, options: dict[str, Any]) -> dict[str, Any]:
    """Run `count` jobs that another process enqueues; return how late each began, in nanoseconds."""
    connection = await asyncpg.connect(url)
    pgq = PgQueuer(AsyncpgDriver(connection))
    late: list[int] = []

    @pgq.entrypoint("stamp")
    async def stamp(job: Job) -> None:
        late.append(time.time_ns() - int(job.payload or b"0"))
        if len(late) == options["count"]:
            pgq.shutdown.set()

    print("ready", flush=True)
    await pgq.run(batch_size=options.get("concurrency", 10))
    await connection.close()
    return {"ns": late}


async def send(url: str, options: dict[str, Any]) -> dict[str, Any]:
    connection = await asyncpg.connect(url)
    queries = Queries(AsyncpgDriver(connection))
    for gap in options["gaps"]:
        await asyncio.sleep(gap)
        await queries.enqueue("stamp", str(time.time_ns()).encode())
    await connection.close()
    return {}


async def main() -> None:
    phase, url, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    phases = {"prepare": prepare, "drain": drain, "serve": serve, "send": send}
    print(json.dumps(await phases[phase](url, options)))


if __name__ == "__main__":
    if json.loads(sys.argv[3]).get("uvloop"):
        import uvloop

        uvloop.run(main())
    else:
        asyncio.run(main())

"""Oban for Python: one queue with a limit of `concurrency`, on its own connection pool with its defaults."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from oban import Oban, job
from oban.schema import install

from tests.bench.peers.common import Counter, Result

counter = Counter(0)
late: list[int] = []


@job(queue="default")
async def noop() -> None:
    counter.hit()


@job(queue="default")
async def stamp(sent: int) -> None:
    late.append(time.time_ns() - sent)
    counter.hit()


async def _pool(url: str) -> Any:
    return await Oban.create_pool(dsn=url)


async def prepare(url: str, options: Result) -> Result:
    pool = await _pool(url)
    await install(pool)
    oban = Oban(pool=pool)
    jobs = options.get("jobs", 0)
    began = time.perf_counter()
    for first in range(0, jobs, 1_000):
        await oban.enqueue_many(noop.new() for _ in range(min(1_000, jobs - first)))
    seconds = time.perf_counter() - began
    await pool.close()
    return {"seconds": seconds, "jobs": jobs}


async def drain(url: str, options: Result) -> Result:
    """From the first call to the moment when the last job is seen completed."""
    counter.jobs = options["jobs"]
    pool = await _pool(url)
    async with Oban(pool=pool, queues={"default": options["concurrency"]}):
        await counter.done.wait()
        async with pool.connection() as connection:
            while True:
                cursor = await connection.execute("SELECT count(*) FROM oban_jobs WHERE state <> 'completed'")
                if (await cursor.fetchone())[0] == 0:
                    break
                await asyncio.sleep(0.001)
        ended = time.time()
    await pool.close()
    return counter.result(counter.first, ended)


async def serve(url: str, options: Result) -> Result:
    counter.jobs = options["count"]
    pool = await _pool(url)
    async with Oban(pool=pool, queues={"default": options.get("concurrency", 10)}):
        print("ready", flush=True)
        await counter.done.wait()
    await pool.close()
    return {"ns": late}


async def send(url: str, options: Result) -> None:
    pool = await _pool(url)
    oban = Oban(pool=pool)
    await oban.start()
    for gap in options["gaps"]:
        await asyncio.sleep(gap)
        await oban.enqueue(stamp.new(time.time_ns()))
    await oban.stop()
    await pool.close()

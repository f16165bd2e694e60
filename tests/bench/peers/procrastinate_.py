"""Procrastinate through its psycopg connector: one worker with `concurrency`, which listens."""

from __future__ import annotations

import asyncio
import time

import procrastinate

from tests.bench.peers.common import Counter, Result


async def prepare(url: str, options: Result) -> Result:
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url))
    noop = app.task(name="noop")(_nothing)
    jobs = options.get("jobs", 0)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        began = time.perf_counter()
        for first in range(0, jobs, 1_000):
            await noop.batch_defer_async(*({} for _ in range(min(1_000, jobs - first))))
        return {"seconds": time.perf_counter() - began, "jobs": jobs}


async def _nothing() -> None: ...


async def drain(url: str, options: Result) -> Result:
    """From the first call to the return of its worker, which with `wait=False` ends when all is done."""
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url))
    counter = Counter(options["jobs"])

    @app.task(name="noop")
    async def noop() -> None:
        counter.hit()

    async with app.open_async():
        await app.run_worker_async(concurrency=options["concurrency"], wait=False, install_signal_handlers=False)
    if counter.calls != counter.jobs:
        raise RuntimeError(f"ran {counter.calls} of {counter.jobs}")
    return counter.result(counter.first, time.time())


async def schedule(url: str, options: Result) -> Result:
    """Its cron has a field for seconds: every task fires each second; one worker, `concurrency` at once."""
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url))
    late: list[float] = []
    ends = time.time() + options["seconds"]

    async def fire(timestamp: int) -> None:
        late.append(time.time() - timestamp)

    for i in range(options["workers"]):
        app.periodic(cron="* * * * * *")(app.task(name=f"every-second-{i}", queueing_lock=None)(fire))
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        worker = asyncio.create_task(
            app.run_worker_async(concurrency=options["concurrency"], install_signal_handlers=False)
        )
        await asyncio.sleep(ends - time.time())
        ran = list(late)
        worker.cancel()
        await asyncio.wait([worker], timeout=10)
    return {"ran": len(ran), "late": ran}

"""APScheduler 4 (a pre-release) with its SQLAlchemy data store on SQLite, and tasks on the event loop."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

from apscheduler import AsyncScheduler
from apscheduler.datastores.sqlalchemy import SQLAlchemyDataStore
from apscheduler.triggers.interval import IntervalTrigger
from sqlalchemy import create_engine, text
from sqlalchemy.pool import QueuePool

from tests.bench.peers.common import Counter, Result

counter = Counter(0)
fired: dict[int, list[float]] = {}


async def noop() -> None:
    counter.hit()


async def tick(i: int) -> None:
    fired.setdefault(i, []).append(time.time())


def _engine(url: str):
    return create_engine(f"sqlite:///{url}", poolclass=QueuePool, connect_args={"timeout": 30})


async def prepare(url: str, options: Result) -> None:
    async with AsyncScheduler(SQLAlchemyDataStore(_engine(url))) as scheduler:
        await scheduler.configure_task(noop, func=noop, max_running_jobs=1000)
        for _ in range(options.get("jobs", 0)):
            await scheduler.add_job(noop)


async def drain(url: str, options: Result) -> Result:
    """From the first call to the moment when the store holds no job."""
    counter.jobs = options["jobs"]
    engine = _engine(url)
    scheduler = AsyncScheduler(SQLAlchemyDataStore(engine), max_concurrent_jobs=options["concurrency"])
    async with scheduler:
        await scheduler.configure_task(noop, func=noop, max_running_jobs=1000)
        await scheduler.start_in_background()
        await counter.done.wait()
        with engine.connect() as connection:
            while connection.execute(text("SELECT count(*) FROM jobs")).scalar():
                await asyncio.sleep(0.001)
        ended = time.time()
    return counter.result(counter.first, ended)


async def schedule(url: str, options: Result) -> Result:
    """It does not tell a job its time: lateness is measured from the second in which the job was due, in order."""
    scheduler = AsyncScheduler(SQLAlchemyDataStore(_engine(url)), max_concurrent_jobs=options["concurrency"])
    async with scheduler:
        start = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=15)
        for i in range(options["workers"]):
            trigger = IntervalTrigger(seconds=1, start_time=start)
            await scheduler.add_schedule(tick, trigger, id=f"every-second-{i}", args=[i])
        await scheduler.start_in_background()
        await asyncio.sleep(max(0.0, start.timestamp() + options["seconds"] - time.time()))
        late = [at - (start.timestamp() + n) for times in list(fired.values()) for n, at in enumerate(list(times))]
        return {"ran": len(late), "late": late}

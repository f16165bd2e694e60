"""`db verify` beside nodes at work: whatever moment it looks at, it finds nothing that is not there."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from jobrunner.errors import DatabaseUnavailable, JobrunnerError
from jobrunner.storage.database.database import Database
from jobrunner.storage.reading.findings import Scope, Violation
from jobrunner.storage.reading.verify import verify
from jobrunner.storage.runs import cancelling, dead_letters
from jobrunner.storage.runs.enqueue import Request, enqueue
from jobrunner.storage.tables import define as t
from jobrunner.storage.workers import operations
from tests.cluster.conftest import Start
from tests.support.cluster import Cluster

ACTOR = "ann@desk"
NAMES = ("moody", "other", "after", "tick", "loop", "late")
LOOKS_AT_LEAST = 5


async def operate(db: Database, chance: random.Random) -> None:
    """Do one thing that an operator or a program may do."""
    name, now = chance.choice(NAMES), datetime.now(UTC)
    match chance.randrange(10):
        case 0:
            await operations.disable(db, name, now, ACTOR, "Sunday")
        case 1 | 2:
            await operations.enable(db, name, now, ACTOR)
        case 3:
            await operations.pause(db, name, now, ACTOR, now + timedelta(seconds=0.3), "moving house")
        case 4:
            await operations.set_values(db, name, {"max_retries": chance.randrange(4)}, now, ACTOR)
        case 5:
            await operations.set_values(db, name, {"max_running": chance.randrange(1, 5)}, now, ACTOR)
        case 6:
            await dead_letters.replay(db, dead_letters.Chosen(worker=name), now, ACTOR)
        case 7:
            async with db.peek() as conn:
                ids = (await conn.execute(sa.select(t.runs.c.id).limit(50))).scalars().all()
            if ids:
                await cancelling.cancel(db, chance.choice(ids), now, ACTOR)
        case _:
            async with db.write() as conn:
                for _ in range(20):
                    wanted = chance.choice(("moody", "other", "after", "late"))
                    await enqueue(conn, db.dialect, Request(wanted, payload={"seconds": 0.5}, is_forced=False), now)


async def repeat(what: Callable[[], Awaitable[object]], over: asyncio.Event) -> None:
    while not over.is_set():
        with suppress(JobrunnerError):  # a run that has just ended, a database that is busy
            await what()
        await asyncio.sleep(0.01)


async def look(url: str, over: asyncio.Event) -> list[Violation]:
    """Verify again and again until it is over; return all that was ever found, and fail if there was little time."""
    db, found, looks = Database.open(url), [], 0
    while not over.is_set() or looks < LOOKS_AT_LEAST:
        with suppress(DatabaseUnavailable):
            found += [v async for v in verify(db, Scope(datetime.now(UTC), 30, 90), rest=asyncio.sleep)]
            looks += 1
    await db.close()
    return found


async def replace_nodes(c: Cluster, over: asyncio.Event) -> None:
    """Kill a node, or stop one with a second signal so that code may be left behind, and start another."""
    is_killed = True
    while not over.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), 2.0)
        node = next(node for node in c.nodes if node.process.poll() is None)
        await asyncio.to_thread(node.kill if is_killed else node.terminate)
        is_killed = not is_killed
        await asyncio.to_thread(c.start, wait=False)


def has_seen_all(c: Cluster) -> bool:
    outcomes = {row["outcome"] for row in c.history()}
    return outcomes >= {"succeeded", "failed", "snoozed", "cancelled"} and bool(
        c.value("SELECT count(*) FROM {p}dead_letters WHERE status = 'replayed'")
    )


async def enough(c: Cluster, seconds: float, over: asyncio.Event) -> None:
    """Go on for so long at least, and until everything has happened that verify could take amiss."""
    give_up = time.monotonic() + seconds + 90
    await asyncio.sleep(seconds)
    while not await asyncio.to_thread(has_seen_all, c) and time.monotonic() < give_up:
        await asyncio.sleep(0.5)
    over.set()


def test_nothing_is_found_beside_nodes_at_work(make: Start, database_url: str, seconds: float):
    c = make(database_url, scenario="mixed", lease=2.0, tick_interval=0.5)
    c.start(2)

    async def work() -> list[Violation]:
        chance, over, db = random.Random(20), asyncio.Event(), Database.open(database_url)
        busy = [
            asyncio.create_task(enough(c, seconds, over)),
            asyncio.create_task(repeat(lambda: operate(db, chance), over)),
            asyncio.create_task(replace_nodes(c, over)),
        ]
        found = await look(database_url, over)
        await asyncio.gather(*busy)
        await db.close()
        return found

    assert asyncio.run(work()) == []
    assert has_seen_all(c)

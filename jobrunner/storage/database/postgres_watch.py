"""Watching a statement that may take hours: is the server still at work on it?

A deadline cannot tell a long statement from a connection that forwards nothing. So, as long as a long use lasts, the
server is asked now and then over another connection whether the first one's process is still there, and has not been
waiting for us for a minute (after which it would end a transaction by itself). If it is gone or waits, what it sent
or what we sent is lost; if there is no other connection to be had either, the server is unreachable. Then the watched
connection is cut off, and whoever waits for its answer gets an error.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg

from jobrunner.storage.database import postgres_driver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import sqlalchemy as sa

IDLE_SECONDS = 60
_IS_AT_WORK = """
SELECT state NOT LIKE 'idle%' OR state_change > clock_timestamp() - make_interval(secs => $2)
FROM pg_stat_activity WHERE pid = $1
"""


@asynccontextmanager
async def watched(connection: Any, url: sa.URL, *, pooler: str | None, every: float) -> AsyncIterator[None]:
    """Watch an asyncpg connection as long as the block lasts, looking every so many seconds."""
    tasks: list[asyncio.Task[None]] = []

    def begin() -> None:  # not before: most long uses are short
        tasks.append(asyncio.ensure_future(_watch(connection, url, pooler, every)))

    timer = asyncio.get_running_loop().call_later(every, begin)
    try:
        yield
    finally:
        timer.cancel()
        for task in tasks:
            task.cancel()


async def _watch(connection: Any, url: sa.URL, pooler: str | None, every: float) -> None:
    while not connection.is_closed() and await _is_at_work(connection, url, pooler):
        await _pause(every)
    connection.terminate()


async def _is_at_work(connection: Any, url: sa.URL, pooler: str | None) -> bool:
    """Ask the server; behind a proxy, whose connections are not the server's, only whether it answers."""
    other = None
    try:
        other = await postgres_driver.connect(url, pooler=pooler)
        pid = connection.get_server_pid()
        return bool(pooler or await other.fetchval(_IS_AT_WORK, pid, IDLE_SECONDS))
    except asyncpg.PostgresError:  # it answers, if only that it has no connection left
        return True
    except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError):
        return False
    finally:
        if other is not None:
            other.terminate()


async def _pause(seconds: float) -> None:
    await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=seconds)

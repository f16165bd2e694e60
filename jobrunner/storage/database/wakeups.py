"""How a node learns at once that somebody enqueued or changed something.

Polling is the truth: a node that never hears a wake-up still ticks. A wake-up only says "look now"; it carries nothing,
may come for nothing (a node hears of its own commits, too), and several may arrive as one.

SQLite has no messages between processes, but counts commits: `PRAGMA data_version` changes when another connection
committed. A thread with a connection of its own asks for it (3.5 µs a question) when `wal_events` says that somebody
wrote to the file, elsewhere every 10 ms.

PostgreSQL has NOTIFY, but each takes a lock on the whole server at commit, so that one per enqueue would queue all
enqueuers. Hence a throttle in the database (migration 0001): a deferred trigger on `runs` looks, at COMMIT and once
per transaction, at a sequence that holds the time of the last NOTIFY, and sends one only if more than 5 ms have
passed. What is committed within those 5 ms is *not* announced: a woken node must scan again 10 ms later.

    enqueue A        commit, NOTIFY ──► node scans: A ............ scans again: B
    enqueue B             commit, throttled          (10 ms later)

`notify` does the same inside our own transactions, for changes that are not an INSERT INTO runs. The listener has its
own connection, opens it again after a loss (0.1 s, doubling up to 5 s, with jitter), and wakes the node after each
opening, since it may have missed something. A connection that has nothing to say looks like one that has been
forgotten on the way, so the listener asks for an answer once a minute. LISTEN does not survive a transaction-pooling
proxy: there the node polls.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, Protocol

import asyncpg
import sqlalchemy as sa

from jobrunner.storage.database import postgres_driver, sqlite_driver
from jobrunner.storage.database.dialect import SqliteDialect
from jobrunner.storage.database.wal_events import WalEvents

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.database.database import Database

RESCAN_AFTER_SECONDS = 0.012
"""How long after a wake-up a node looks again: more than twice the throttle of migration 0001, which is 5 ms."""
LISTENERS_PATIENCE_SECONDS = 10.0
"""How long an answer to the listener may take."""
ASK_AGAIN_SECONDS = 60.0
"""How often the listener asks for one."""
_FIRST_RETRY_SECONDS, _LONGEST_RETRY_SECONDS = 0.1, 5.0


class Wakeups(Protocol):
    """Tells a node that something may have changed."""

    may_be_early: bool
    """May word come before the change can be seen, or not come for a change right after another? Then look again."""

    async def start(self, callback: Callable[[], None]) -> None:
        """Call `callback` in this event loop at every wake-up, until `stop`. A missing server is no error."""

    async def stop(self) -> None:
        """Stop calling; returns once nothing of it is left."""


def open_wakeups(db: Database) -> Wakeups:
    """The way to be woken that fits the database."""
    if isinstance(db.dialect, SqliteDialect):
        return SqliteWakeups(db.dialect.path)
    return NoWakeups() if db.pooler else PostgresWakeups(db.url, db.schema)


async def notify(db: Database, conn: AsyncConnection) -> None:
    """Wake the other nodes when the transaction of `conn` commits (at most every 5 ms; on SQLite any commit does)."""
    if not db.is_sqlite:
        await conn.execute(sa.text(f"SELECT {db.schema_prefix}wake_nodes()"))


class NoWakeups:
    """For transaction-pooling proxies: nothing wakes, the node polls."""

    may_be_early = False

    async def start(self, callback: Callable[[], None]) -> None:
        """Nothing to start."""

    async def stop(self) -> None:
        """Nothing to stop."""


class SqliteWakeups:
    """Asks SQLite for its count of commits, in a thread; what is counted can be seen."""

    may_be_early = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_stopping = False
        self._thread: threading.Thread | None = None
        self._events: WalEvents | None = None

    async def start(self, callback: Callable[[], None]) -> None:
        """Start the thread."""
        loop = asyncio.get_running_loop()
        self._is_stopping = False
        self._events = WalEvents()
        self._thread = threading.Thread(
            target=self._watch, args=(self._events, loop, callback), name="jobrunner-wakeups", daemon=True
        )
        self._thread.start()

    async def stop(self) -> None:
        """End the thread."""
        self._is_stopping = True
        if self._thread is not None and self._events is not None:
            self._events.interrupt()
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    def _watch(self, events: WalEvents, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        """Watch until told to stop; a file that is missing or cannot be read is opened again."""
        with closing(events):
            while not self._is_stopping:
                try:
                    with closing(sqlite_driver.connect_plain(self._path, read_only=True)) as connection:
                        self._watch_connection(connection, events, loop, callback)
                except sqlite3.Error:
                    time.sleep(_FIRST_RETRY_SECONDS)

    def _watch_connection(
        self,
        connection: sqlite3.Connection,
        events: WalEvents,
        loop: asyncio.AbstractEventLoop,
        callback: Callable[[], None],
    ) -> None:
        seen: int | None = None
        while not self._is_stopping:
            version: int = connection.execute("PRAGMA data_version").fetchone()[0]
            if version != seen:  # the first answer wakes, too: something may have changed while nobody watched
                if seen is None:
                    events.watch(self._path)  # now there is a WAL
                else:
                    events.found_change()
                seen = version
                if not _call(loop, callback):
                    self._is_stopping = True
            else:
                events.wait()  # not after a change: between the first answer and the watch may have been another


def _call(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> bool:
    """Call back in the loop's thread; False when the loop is closed, so that nobody is left to wake."""
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:
        return False
    return True


class PostgresWakeups:
    """Listens on a connection of its own."""

    may_be_early = True

    def __init__(self, url: sa.URL, schema: str) -> None:
        self._url = url
        self._channel = f"jobrunner_wakeup_{schema}"
        self._task: asyncio.Task[None] | None = None

    async def start(self, callback: Callable[[], None]) -> None:
        """Start listening, in the background."""
        self._task = asyncio.create_task(self._listen(callback), name="jobrunner-wakeups")

    async def stop(self) -> None:
        """Close the connection."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _listen(self, callback: Callable[[], None]) -> None:
        """Listen until cancelled, on one connection after the other."""
        retry_seconds = _FIRST_RETRY_SECONDS
        while True:
            with suppress(Exception):  # polling is the truth, and whoever polls says what is wrong
                connection = await postgres_driver.connect(self._url, patience=LISTENERS_PATIENCE_SECONDS)
                retry_seconds = _FIRST_RETRY_SECONDS
                await self._listen_on(connection, callback)
            await _wait(asyncio.Event(), retry_seconds * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
            retry_seconds = min(retry_seconds * 2, _LONGEST_RETRY_SECONDS)

    async def _listen_on(self, connection: Any, callback: Callable[[], None]) -> None:
        """Listen until this connection is lost."""
        lost = asyncio.Event()
        try:
            connection.add_termination_listener(lambda _: lost.set())
            await connection.add_listener(self._channel, lambda *_: callback())
            callback()
            while not lost.is_set():
                await _wait(lost, ASK_AGAIN_SECONDS)
                await connection.execute("SELECT 1")
        finally:
            await _close(connection)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)


async def _close(connection: Any) -> None:
    """Say goodbye, but do not wait for an answer for longer than a second."""
    try:
        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            await connection.close(timeout=1)
    finally:
        connection.terminate()

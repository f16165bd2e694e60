"""SQLite behind asyncio: aiosqlite's thread, visited once per statement instead of four times.

aiosqlite crosses to its thread for cursor, execute, fetchall and close each; here one visit does all of it and always
reads the rows to the end, so that no statement is left open at COMMIT. Measured through SQLAlchemy on a small virtual
machine: 0.13 ms a statement instead of 0.26 ms.

Who wants to write while another process does asks again every millisecond. SQLite's own way of waiting sleeps longer
each time, up to 0.1 s, so that of several busy processes those that have waited longest ask the least: of eight that
write all the time, one waited for 3 s.
"""

from __future__ import annotations

import asyncio
import math
import sqlite3
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiosqlite

from jobrunner.storage.database import forks
from jobrunner.storage.database.dialect import BUSY_TIMEOUT_SECONDS
from jobrunner.storage.tables.types import Garbled

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path
    from types import TracebackType

WAL_SIZE_LIMIT_BYTES = 64 * 1024 * 1024
_STEPS_BETWEEN_LOOKS = 10_000
"""Of SQLite's machine: well under a millisecond of them."""
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.001, 0.01
"""The longest after half a second: then it is no queue that is in the way."""


def connect_plain(
    path: Path,
    *,
    synchronous: str = "FULL",
    read_only: bool = False,
    foreign_keys: bool = True,
    busy_timeout: float | None = None,
) -> sqlite3.Connection:
    """Open an existing file, with our pragmas, in the calling thread; transactions are begun by hand.

    Args:
        path: The database file. It is not created: a missing one is an error.
        synchronous: `FULL` or `NORMAL`.
        read_only: Refuse statements that write.
        foreign_keys: Enforce them; only migrations do not.
        busy_timeout: How many seconds SQLite itself waits for others; by default `BUSY_TIMEOUT_SECONDS`.

    Raises:
        sqlite3.Error: The file is missing, is no database, or is locked for longer than the busy timeout.
    """
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw",
        uri=True,
        timeout=BUSY_TIMEOUT_SECONDS,
        isolation_level=None,
        check_same_thread=False,  # aiosqlite interrupts from the loop's thread; statements stay in one
    )
    connection.text_factory = _read_text
    try:
        _use_wal(connection)
        connection.execute(f"PRAGMA synchronous={synchronous}")
        connection.execute(f"PRAGMA foreign_keys={'ON' if foreign_keys else 'OFF'}")
        connection.execute(f"PRAGMA journal_size_limit={WAL_SIZE_LIMIT_BYTES}")
        if read_only:
            connection.execute("PRAGMA query_only=ON")
        if busy_timeout is not None:
            connection.execute(f"PRAGMA busy_timeout={busy_timeout * 1000:.0f}")  # not before: opening waits, too
    except BaseException:
        connection.close()
        raise
    return connection


def _read_text(raw: bytes) -> str:
    """Read a text value as SQLite has it, which need not be UTF-8: any program may have put it there."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return Garbled(raw.decode("utf-8", "replace"))


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to WAL, once per file; SQLite does not wait for others in this one statement, so we do."""
    if connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
        return
    give_up = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as exc:
            if not _is_busy(exc) or time.monotonic() > give_up:
                raise
            time.sleep(0.01)
        else:
            return


def _is_busy(error: sqlite3.OperationalError) -> bool:
    return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


class Connection(aiosqlite.Connection):
    """aiosqlite's connection with our cursor; COMMIT and ROLLBACK cost nothing when there is no transaction."""

    stopping: asyncio.Future[Any] | None = None
    _is_given_up = False
    _most_seconds = _ends_at = math.inf

    def bound(self, seconds: float) -> None:
        """End each statement that takes longer than that."""
        self._most_seconds = seconds
        self._conn.set_progress_handler(lambda: time.monotonic() > self._ends_at, _STEPS_BETWEEN_LOOKS)

    @property
    def is_open(self) -> bool:
        """Has it not been closed?"""
        return self._running and self._connection is not None

    def stop(self) -> asyncio.Future[Any] | None:
        """End the connection's thread."""
        self.stopping = super().stop()
        return self.stopping

    def cursor(self) -> Cursor:  # type: ignore[override]  # SQLAlchemy asks no more of it than ours gives
        """A cursor that visits the thread once per statement."""
        return Cursor(self)

    async def commit(self) -> None:
        """Commit the transaction, if there is one."""
        if self._conn.in_transaction:
            await super().commit()

    async def rollback(self) -> None:
        """Roll the transaction back, if there is one."""
        if self._conn.in_transaction:
            await super().rollback()

    async def visit(self, work: Callable[..., None], *arguments: Any) -> None:
        """Do `work` in the connection's thread; a caller who is cancelled ends the statement, too."""
        self._is_given_up = False
        self._ends_at = time.monotonic() + self._most_seconds
        try:
            await self._execute(self._do, work, *arguments)  # type: ignore[no-untyped-call]
        except asyncio.CancelledError:
            self._is_given_up = True
            if self._connection is not None:
                self._connection.interrupt()
            raise

    def _do(self, work: Callable[..., None], *arguments: Any) -> None:
        """Do it again while others write; outside a transaction nothing is done then. See the module."""
        began = time.monotonic()
        while True:
            try:
                return work(*arguments)
            except sqlite3.OperationalError as exc:
                waited = time.monotonic() - began
                is_hopeless = self._is_given_up or waited > BUSY_TIMEOUT_SECONDS
                if is_hopeless or not _is_busy(exc) or self._conn.in_transaction:
                    raise
            time.sleep(min(_PAUSE_SECONDS + waited / 50, _LONGEST_PAUSE_SECONDS))


class Cursor:
    """Runs one statement and keeps all its rows."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rows: list[Any] = []
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid: int | None = None
        self.arraysize = 1

    def __await__(self) -> Generator[Any, None, Cursor]:  # SQLAlchemy 2.0 awaits it, 2.1 enters it
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Cursor:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Cursor:
        """Run a statement and read its rows to the end."""
        await self._connection.visit(self._run, "execute", sql, parameters)
        return self

    async def executemany(self, sql: str, parameters: Sequence[Sequence[Any]]) -> Cursor:
        """Run a statement for each set of parameters."""
        await self._connection.visit(self._run, "executemany", sql, parameters)
        return self

    def _run(self, how: str, sql: str, parameters: Sequence[Any]) -> None:
        cursor = self._connection._conn.cursor()  # in that connection's own thread
        try:
            getattr(cursor, how)(sql, parameters)
            self._rows = cursor.fetchall()
            self.description, self.rowcount, self.lastrowid = cursor.description, cursor.rowcount, cursor.lastrowid
        finally:
            cursor.close()

    async def fetchone(self) -> Any:
        """The next row, or None."""
        return self._rows.pop(0) if self._rows else None

    async def fetchmany(self, size: int | None = None) -> list[Any]:
        """Up to `size` rows."""
        count = size or self.arraysize
        rows, self._rows = self._rows[:count], self._rows[count:]
        return rows

    async def fetchall(self) -> list[Any]:
        """All rows that are left."""
        rows, self._rows = self._rows, []
        return rows

    async def close(self) -> None:
        """Forget the rows."""
        self._rows = []


async def connect(path: Path, *, synchronous: str, read_only: bool = False, **pragmas: bool) -> Connection:
    """Open `path` as `connect_plain` does, in a thread of its own that never keeps the interpreter from ending."""

    def opened() -> sqlite3.Connection:
        busy_timeout = None if read_only else 0.0  # `Connection` waits by itself
        return connect_plain(path, synchronous=synchronous, read_only=read_only, busy_timeout=busy_timeout, **pragmas)

    connection = Connection(opened, iter_chunk_size=64)
    forks.keep_unclosed(connection, lambda opened: opened._connection)
    connection._thread.daemon = True  # as SQLAlchemy does with those it opens itself
    try:
        await connection
    except BaseException:
        if connection.stopping is not None:
            await asyncio.wait([connection.stopping])  # or its thread would report to a loop that is closed by then
        raise
    return connection

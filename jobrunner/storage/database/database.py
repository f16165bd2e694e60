"""One database as the rest of jobrunner uses it: `write`, `read`, `peek`, `poke`.

Every way out of a `with` block ends the transaction: normally it commits, after an error or a cancellation it rolls
back. The end of a transaction is not cut short: a task cancelled during COMMIT learns of it when the COMMIT is done, or
2 s later. A task cancelled inside a statement gives up that connection; the next use opens another.

No wait is without an end. On PostgreSQL each statement has `patience` seconds, and COMMIT and ROLLBACK, too; without an
answer until then the connection is given up, and what it was doing may or may not have been done: DatabaseUnavailable.
Uses that are `is_long` (migrating, checking, pruning, a handler's own transaction) may take hours for a statement, and
are watched instead (`postgres_watch`).

On SQLite the writers of one process queue for its one write connection, in order, so that only processes compete for
the file's lock. Readers never wait for writers, nor writers for readers (WAL).

Errors of the connection arrive as `DatabaseError`, those that may go away by themselves as `DatabaseUnavailable`;
errors of the statement (constraints, bad SQL) arrive as SQLAlchemy raises them. Whoever catches one inside the block
must have set a savepoint (`conn.begin_nested()`): else PostgreSQL would turn the commit into a rollback without a word,
so that on both databases such a commit is refused aloud. A database serves one event loop.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa

from jobrunner.errors import DatabaseError, InvalidSetting, JobrunnerError
from jobrunner.storage.database.asked import Asked
from jobrunner.storage.database.engine import FAILED, Options, open_engines, parse_url, shown
from jobrunner.storage.database.postgres_driver import (
    LONGEST_SECONDS,
    PATIENCE_SECONDS,
    POOLER_TRANSACTION,
    set_deadline,
)
from jobrunner.storage.database.postgres_watch import watched
from jobrunner.storage.tables.define import SCHEMA_TOKEN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from contextlib import AbstractAsyncContextManager

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from jobrunner.config import Settings
    from jobrunner.storage.database.dialect import Dialect
    from jobrunner.storage.database.sqlite_driver import Connection as SqliteConnection

T = TypeVar("T")
CLOSE_GRACE_SECONDS = 2.0
"""How long closing, and the end of a transaction whose task was cancelled, may take; then connections are cut off."""
_SCHEMA_NAME = re.compile(r"(?!pg_)[a-z_][a-z0-9_]{0,39}")  # 40: the wake-up channel's name holds it, too


class Database:
    """A database, opened lazily; see the module for what its three context managers promise."""

    def __init__(self, options: Options) -> None:
        self.url = options.url
        self.schema = options.schema
        self.pooler = options.pooler
        self.patience = options.patience
        self._options = options
        self._engines = engines = open_engines(options)
        self.dialect: Dialect = engines.dialect
        self.asked = Asked(self.schema_prefix, engines.writer, engines.reader) if options.most_seconds else None
        self._write_turn: AbstractAsyncContextManager[Any] = asyncio.Lock() if self.is_sqlite else nullcontext()
        self._writer: SqliteConnection | None = None
        self._strays: set[asyncio.Task[None]] = set()

    @classmethod
    def open(
        cls,
        url: str,
        *,
        schema: str = SCHEMA_TOKEN,
        sqlite_synchronous: str = "FULL",
        pooler: str | None = None,
        pool_size: int = 5,
        patience: float = PATIENCE_SECONDS,
    ) -> Database:
        """Prepare to use a database; nothing is opened or created before the first use.

        Args:
            url: See `parse_url`.
            schema: PostgreSQL's schema for our tables; ignored on SQLite.
            sqlite_synchronous: `FULL`, or `NORMAL` (faster; a power cut may lose the last commits).
            pooler: `transaction` behind a transaction-pooling proxy such as PgBouncer, else None.
            pool_size: PostgreSQL connections kept; as many more are opened at peaks.
            patience: Seconds that a statement may take on PostgreSQL; the server is told four fifths of it.

        Raises:
            InvalidDatabaseUrl: The URL cannot be used.
            InvalidSetting: Another argument cannot be used.
        """
        if not _SCHEMA_NAME.fullmatch(schema):
            raise InvalidSetting(f"schema {schema!r}: use 1 to 40 of a-z, 0-9 and _, not beginning with a digit or pg_")
        if sqlite_synchronous.upper() not in {"FULL", "NORMAL"}:
            raise InvalidSetting(f"SQLite's synchronous {sqlite_synchronous!r}: use FULL or NORMAL")
        if pooler not in {None, "", POOLER_TRANSACTION}:
            raise InvalidSetting(f"pooler {pooler!r}: use {POOLER_TRANSACTION!r}, or leave it out")
        return cls(
            Options(
                url=parse_url(url),
                schema=schema,
                sqlite_synchronous=sqlite_synchronous.upper(),
                pooler=pooler or None,
                pool_size=pool_size,
                patience=patience,
            )
        )

    def reopened(self) -> Database:
        """The same database again, with connections of its own, for another thread and its event loop."""
        return Database(self._options)

    def bounded(self) -> Database:
        """The same database again, for what people ask: a statement that takes over 2 s raises `ReadTooLong`."""
        return Database(self._options.bounded())

    @classmethod
    def of(cls, settings: Settings, *, pool_size: int | None = None, patience: float = PATIENCE_SECONDS) -> Database:
        """Prepare to use the database of the settings, as `open` does; `patience` in seconds."""
        return cls.open(
            settings.database_url,
            schema=settings.schema,
            sqlite_synchronous=settings.sqlite_synchronous,
            pooler=settings.pooler,
            pool_size=settings.pool_size if pool_size is None else pool_size,
            patience=patience,
        )

    @property
    def shown_url(self) -> str:
        """The URL as people may see it: the password is hidden."""
        return shown(self.url)

    @property
    def is_sqlite(self) -> bool:
        """Is this the embedded database, one host only?"""
        return self.dialect.name == "sqlite"

    @property
    def schema_prefix(self) -> str:
        """What to write before a table's name in hand-written SQL."""
        return self.dialect.schema_prefix(self.schema)

    @property
    def statement_options(self) -> dict[str, Any]:
        """Execution options for running our statements on a connection that is not ours (a caller's transaction)."""
        return {"schema_translate_map": {SCHEMA_TOKEN: None if self.is_sqlite else self.schema}}

    @asynccontextmanager
    async def write(self, *, is_long: bool = False) -> AsyncIterator[AsyncConnection]:
        """One writing transaction: commits at the end of the block, rolls back after an error or a cancellation."""
        async with self._write_turn, self._transaction(self._engines.writer, is_long=is_long) as conn:
            yield conn

    @asynccontextmanager
    async def read(self, *, is_long: bool = False, is_of_state: bool = True) -> AsyncIterator[AsyncConnection]:
        """One reading transaction: all its statements see the same snapshot, and none may write.

        `is_of_state`: it may read `claims` or `worker_state`, and the tables must be there.
        """
        async with self._transaction(self._engines.reader, is_long=is_long) as conn:
            if is_of_state:
                await self.dialect.keep_state(conn, self.schema_prefix)
            yield conn

    @asynccontextmanager
    async def migrate(self) -> AsyncIterator[AsyncConnection]:
        """As `write`, for changing the schema: no other process migrates, SQLite does not enforce foreign keys."""
        async with self._write_turn, self._transaction(self._engines.migrator, is_long=True) as conn:
            await self.dialect.lock_for_migration(conn)
            yield conn

    @asynccontextmanager
    async def peek(self) -> AsyncIterator[AsyncConnection]:
        """The cheapest reads: each statement for itself, no transaction around them."""
        conn = await self._connect(self._engines.peeker)
        try:
            yield conn
        finally:
            if self.is_sqlite:
                await conn.close()  # without a transaction there is nothing to wait for, so nothing to cancel
            else:
                await self._to_the_end(conn.close(), conn)

    @asynccontextmanager
    async def poke(self) -> AsyncIterator[AsyncConnection]:
        """The cheapest write: on PostgreSQL one statement without a transaction around it, elsewhere as `write`."""
        async with self.write() if self.is_sqlite or self.pooler else self.peek() as conn:
            yield conn

    async def fetch(self, conn: AsyncConnection, sql: str, *values: Any) -> list[Any]:
        """Read rows by hand-written SQL ($1, $2, …) from the driver itself, for statements that give very many.

        The values and rows are the driver's own. Something must have been read through `conn` before: it is that which
        begins the transaction.
        """
        driver = (await conn.get_raw_connection()).driver_connection
        try:
            if not self.is_sqlite:
                return list(await driver.fetch(sql, *values))  # type: ignore[union-attr]
            cursor = await driver.cursor().execute(sql.replace("$", "?"), values)  # type: ignore[union-attr]
            return await cursor.fetchall()  # type: ignore[no-any-return]
        except Exception as exc:
            self.check_file(is_now=True)
            failure = self.dialect.failure(exc, self.shown_url)
            if failure is None:
                raise
            raise failure from exc

    async def visit_writer(self, work: Callable[[Any], None]) -> None:
        """Do `work` with SQLite's plain write connection, in that connection's thread; it begins and ends itself.

        Raises:
            DatabaseError: as any use of the database.
        """
        async with self._write_turn:
            self.check_file()
            try:
                if self._writer is None or not self._writer.is_open:
                    self._writer = await self._open_writer()
                await self._writer.visit(work, self._writer._conn)
            except Exception as exc:
                self.check_file(is_now=True)  # where it is gone, that is what to say of any error
                failure = self.dialect.failure(exc, self.shown_url)
                if failure is None:
                    raise
                raise failure from exc

    async def _open_writer(self) -> SqliteConnection:
        """Return the one connection of SQLite's write pool; it is free, for this is the turn to write."""
        conn = await self._connect(self._engines.writer)
        try:
            return (await conn.get_raw_connection()).driver_connection  # type: ignore[return-value]  # ours
        finally:
            await conn.close()

    async def close(self) -> None:
        """Close all connections; call it when nothing uses the database any more.

        Those of PostgreSQL whose server says nothing are cut off after two seconds.
        """
        closing = asyncio.ensure_future(self._close())
        try:
            await asyncio.wait([closing], timeout=None if self.is_sqlite else CLOSE_GRACE_SECONDS)
        finally:
            if not closing.done():
                self._cut_off()
        await closing

    async def _close(self) -> None:
        if self._strays:
            await asyncio.wait(self._strays)
        for engine in self._engines.pools:
            await engine.dispose()

    def _cut_off(self) -> None:
        for stray in self._strays:
            stray.cancel()
        for connection in list(self._engines.opened):
            connection.terminate()

    @asynccontextmanager
    async def _transaction(self, engine: AsyncEngine, *, is_long: bool = False) -> AsyncIterator[AsyncConnection]:
        conn = await self._connect(engine)
        try:
            await conn.begin()
            conn.sync_connection.info.pop(FAILED, None)  # type: ignore[union-attr]  # it has one: it is open
            if is_long and not self.is_sqlite:
                async with self._without_hurry(conn):
                    yield conn
            else:
                yield conn
        except BaseException:
            await self._to_the_end(_abandon(conn), conn)
            raise
        await self._to_the_end(_commit(conn), conn)

    @asynccontextmanager
    async def _without_hurry(self, conn: AsyncConnection) -> AsyncIterator[None]:
        """Let the statements of the block take long, but not those that end the transaction."""
        driver = (await conn.get_raw_connection()).driver_connection
        if not self.pooler:  # behind one, the server was told of no time limit
            await conn.exec_driver_sql("SET LOCAL statement_timeout = 0")
        set_deadline(driver, LONGEST_SECONDS)
        try:
            async with watched(driver, self.url, pooler=self.pooler, every=self.patience):
                yield
        finally:
            set_deadline(driver, self.patience)

    async def _to_the_end(self, work: Coroutine[Any, Any, T], conn: AsyncConnection) -> T:
        """Await `work` to its end even if we are cancelled meanwhile, and only then be cancelled.

        Once we are, the connection is cut off if it takes too long.
        """
        task = asyncio.ensure_future(work)
        cancellation: asyncio.CancelledError | None = None
        while not task.done():
            is_hurried = cancellation is not None and not self.is_sqlite
            try:
                await asyncio.wait([task], timeout=CLOSE_GRACE_SECONDS if is_hurried else None)
                if not task.done():
                    _cut_off(conn)
            except asyncio.CancelledError as exc:
                cancellation = exc
        if cancellation is None or task.cancelled():
            return task.result()
        task.exception()  # looked at, so that asyncio does not complain that nobody did
        raise cancellation

    def check_file(self, *, is_now: bool = False) -> None:
        """Return if SQLite's file is the one that was opened first, as far as a look within the last second tells.

        Every use of the database begins with this; with `is_now` it is looked at in any case. PostgreSQL has no file.

        Raises:
            DatabaseGone: it was removed, replaced or emptied.
        """
        file = self._engines.file
        if file is not None and is_now:
            file.check()
        elif file is not None:
            file.check_if_due()

    async def _connect(self, engine: AsyncEngine) -> AsyncConnection:
        self.check_file()
        try:
            return await self._connection_of(engine)
        except Exception as exc:
            if isinstance(exc, JobrunnerError):
                raise
            self.check_file(is_now=True)
            failure = self.dialect.failure(exc, self.shown_url)
            if failure is None:
                raise
            raise failure from exc

    async def _connection_of(self, engine: AsyncEngine) -> AsyncConnection:
        """Take a connection from the pool; if we are cancelled while it opens, it goes there once it is open."""
        if engine.sync_engine.pool.checkedin():  # type: ignore[attr-defined]  # a queue pool
            return await engine.connect()
        opening = asyncio.ensure_future(engine.connect().start())
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            stray = asyncio.ensure_future(_give_back(opening))
            self._strays.add(stray)
            stray.add_done_callback(self._strays.discard)
            raise


async def _commit(conn: AsyncConnection) -> None:
    try:
        _refuse_swallowed_error(conn)
        await conn.commit()
    except BaseException:
        await _abandon(conn)  # after a COMMIT that failed, SQLite is still inside the transaction
        raise
    await conn.close()


def _refuse_swallowed_error(conn: AsyncConnection) -> None:
    if not conn.invalidated and conn.sync_connection.info.pop(FAILED, False):  # type: ignore[union-attr]
        raise RuntimeError("nothing was written: a statement failed and its error was caught without a savepoint")


async def _abandon(conn: AsyncConnection) -> None:
    """Roll back and give the connection back; throw away one that cannot, or was in the middle of a COMMIT."""
    try:
        if conn.in_transaction():
            await conn.rollback()
        else:
            await conn.invalidate()
    except (DatabaseError, sa.exc.SQLAlchemyError, OSError):  # the error that led here is the one to tell
        await conn.invalidate()
    finally:
        await conn.close()


async def _give_back(opening: asyncio.Future[AsyncConnection]) -> None:
    try:
        await asyncio.wait([opening])
    except asyncio.CancelledError:  # the database is closed, and this takes too long
        opening.cancel()
        raise
    if not opening.cancelled() and opening.exception() is None:
        await opening.result().close()


def _cut_off(conn: AsyncConnection) -> None:
    """End PostgreSQL's connection without waiting for anything: whoever waits for its answer gets an error."""
    if not conn.closed and not conn.invalidated:
        conn.sync_connection.connection.driver_connection.terminate()  # type: ignore[union-attr]  # it is open

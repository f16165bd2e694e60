"""From a database URL to SQLAlchemy engines that behave the same on both databases.

Three engines share a database: the *writer* (SQLite: one connection, BEGIN IMMEDIATE; PostgreSQL: READ COMMITTED), the
*reader* (one snapshot per transaction, read-only) and the *peeker* (single statements without a transaction). On
SQLite the driver is in autocommit mode and every BEGIN is ours: Python's own deferred one is what leads to "database
is locked". On PostgreSQL all three draw from one pool.
"""

from __future__ import annotations

import json
import weakref
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from jobrunner.errors import InvalidDatabaseUrl
from jobrunner.storage.database import postgres_driver, postgres_url, sqlite_driver
from jobrunner.storage.database.dialect import CONNECT_TIMEOUT_SECONDS, Dialect, PostgresDialect, SqliteDialect
from jobrunner.storage.database.sqlite_file import WatchedFile
from jobrunner.storage.tables.define import SCHEMA_TOKEN
from jobrunner.storage.tables.types import read_json

if TYPE_CHECKING:
    from collections.abc import Callable

_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}
_EXAMPLES = "write sqlite:///jobrunner.db or postgresql://user@host/database"
_ENCODE = "a password with @ : / # ? in it is percent-encoded, @ as %40"
_BEGIN = "jobrunner_begin"  # an execution option: the statement a transaction begins with, "" for none
_SQLITE_READERS = 5
MOST_READ_SECONDS = 2.0
_SEVERAL = "several.hosts"
FAILED = "jobrunner_failed"
"""Set in a connection's `info` when a statement failed outside any savepoint: its transaction must not commit."""


def parse_url(raw: str) -> sa.URL:
    """Read a database URL and choose the async driver.

    Raises:
        InvalidDatabaseUrl: No URL, an unknown database or driver, or SQLite in memory. No password is ever shown.
    """
    _refuse_ambiguous(raw)
    try:
        url = sa.make_url(postgres_url.hosts_as_parameter(raw.strip()))
    except (sa.exc.ArgumentError, ValueError):
        raise InvalidDatabaseUrl(f"the database URL cannot be read; {_EXAMPLES}; {_ENCODE}") from None
    driver = _DRIVERS.get(url.drivername)
    if driver is None:
        raise InvalidDatabaseUrl(f"the database {url.drivername!r} is not supported; {_EXAMPLES}")
    url = url.set(drivername=driver)
    return _checked_sqlite(url) if driver.startswith("sqlite") else _checked_postgres(url)


def _refuse_ambiguous(raw: str) -> None:
    """Refuse more than one @: nobody knows where the password ends, and a part of it would be shown as a host."""
    if not raw.strip().startswith("sqlite") and raw.count("@") > 1:
        raise InvalidDatabaseUrl(f"the database URL has more than one @; {_ENCODE}")


def _checked_sqlite(url: sa.URL) -> sa.URL:
    if url.host or url.username or url.port:
        raise InvalidDatabaseUrl("an SQLite URL has three slashes before the file: write sqlite:///jobrunner.db")
    if not url.database or ":memory:" in url.database or url.database.startswith("file:"):
        raise InvalidDatabaseUrl("SQLite needs a file, not memory or a file: URI: write sqlite:///jobrunner.db")
    if url.query:
        raise InvalidDatabaseUrl(f"an SQLite URL takes no parameters ({', '.join(sorted(url.query))})")
    return url


def _checked_postgres(url: sa.URL) -> sa.URL:
    url = postgres_url.checked(url)
    if not url.database and "dbname" not in url.query and "service" not in url.query:
        raise InvalidDatabaseUrl(f"{shown(url)} names no database; write postgresql://user@host/database")
    return url


def anchored(raw: str) -> str:
    """Return the URL with a relative SQLite file's path made absolute: the folder that is current may change later.

    One that cannot be used is returned as it is: whoever opens it says why.
    """
    try:
        path = parse_url(raw).database
        url = sa.make_url(raw.strip())
    except InvalidDatabaseUrl:
        return raw
    if url.get_backend_name() != "sqlite" or path is None or Path(path).is_absolute():
        return raw
    return url.set(database=str(Path(path).absolute())).render_as_string(hide_password=False)


def shown(url: sa.URL) -> str:
    """The URL as people may see it: without driver, password hidden."""
    query = {key: "***" if _is_secret(key) else value for key, value in url.query.items()}
    hosts = [] if url.host else postgres_url.hosts_of(url)
    if hosts:
        query.pop("host")
        url = url.set(host=_SEVERAL)
    plain = url.set(drivername=url.get_backend_name(), query=query).render_as_string(hide_password=True)
    return plain.replace("%2A%2A%2A", "***").replace(_SEVERAL, ",".join(hosts))


def _is_secret(parameter: str) -> bool:
    return "password" in parameter or "secret" in parameter


@dataclass(frozen=True, slots=True)
class Options:
    """How to open a database; `Database.open` says what each means."""

    url: sa.URL
    schema: str
    sqlite_synchronous: str
    pooler: str | None
    pool_size: int
    patience: float = postgres_driver.PATIENCE_SECONDS
    most_seconds: float | None = None

    def bounded(self) -> Options:
        """For reading what people ask: two connections, and no statement takes longer than `MOST_READ_SECONDS`."""
        patience = MOST_READ_SECONDS / postgres_driver.SERVERS_SHARE
        return replace(self, pool_size=2, patience=patience, most_seconds=MOST_READ_SECONDS)


@dataclass(frozen=True, slots=True)
class Engines:
    """The ways to use one database; `pools` are what must be disposed of, `opened` PostgreSQL's connections."""

    dialect: Dialect
    writer: AsyncEngine
    reader: AsyncEngine
    peeker: AsyncEngine
    migrator: AsyncEngine
    pools: tuple[AsyncEngine, ...]
    opened: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)
    file: WatchedFile | None = None  # SQLite's


def open_engines(options: Options) -> Engines:
    """Make the engines for a URL from `parse_url`; no I/O happens yet."""
    return _open_sqlite(options) if options.url.get_backend_name() == "sqlite" else _open_postgres(options)


def _open_sqlite(options: Options) -> Engines:
    path = Path(options.url.database or "").absolute()
    dialect = SqliteDialect(path, options.most_seconds)
    file = WatchedFile(path)

    def opened(begin: str, pool_size: int, **pragmas: bool) -> AsyncEngine:
        async def connect(*_: Any, **__: Any) -> Any:
            file.check()  # what opens now may be another file
            connection = await sqlite_driver.connect(path, synchronous=options.sqlite_synchronous, **pragmas)
            file.opened()
            if options.most_seconds is not None:
                connection.bound(options.most_seconds)
            return connection

        return _engine(
            options.url,
            dialect,
            file,
            connect_args={"async_creator_fn": connect},
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=CONNECT_TIMEOUT_SECONDS,
            pool_reset_on_return=None,  # every transaction is ended by database.py; saves a visit to the thread
            execution_options={"schema_translate_map": {SCHEMA_TOKEN: None}, _BEGIN: begin},
        )

    writer = opened("BEGIN IMMEDIATE", 1)
    reader = opened("BEGIN", _SQLITE_READERS, read_only=True)
    peeker = reader.execution_options(**{_BEGIN: ""})
    migrator = opened("BEGIN IMMEDIATE", 1, foreign_keys=False)
    return Engines(dialect, writer, reader, peeker, migrator, (writer, reader, migrator), file=file)


def _open_postgres(options: Options) -> Engines:
    dialect = PostgresDialect(has_pooler=options.pooler is not None, most_seconds=options.most_seconds)
    opened: weakref.WeakSet[Any] = weakref.WeakSet()

    async def connect(*_: Any, **__: Any) -> Any:
        try:
            connection = await postgres_driver.connect(options.url, pooler=options.pooler, patience=options.patience)
        except Exception as exc:
            failure = dialect.failure(exc, shown(options.url))
            if failure is None:
                raise
            raise failure from exc
        opened.add(connection)
        return connection

    connect_args: dict[str, Any] = {"async_creator_fn": connect}
    if options.pooler:
        # Unnamed prepared statements live no longer than their transaction needs them, on whatever server it ran.
        connect_args |= {"prepared_statement_cache_size": 0, "prepared_statement_name_func": str}
    engine = _engine(
        options.url.set(query={}),
        dialect,
        connect_args=connect_args,
        pool_size=options.pool_size,
        max_overflow=0 if options.most_seconds is not None else options.pool_size,  # what people ask gets no more
        pool_timeout=CONNECT_TIMEOUT_SECONDS,
        pool_use_lifo=True,
        isolation_level="READ COMMITTED",
        execution_options={"schema_translate_map": {SCHEMA_TOKEN: options.schema}},
    )
    sa.event.listen(engine.sync_engine, "checkout", _refuse_closed)
    reader = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    # A proxy may give each statement another server: there even a single one needs a transaction.
    peeker = engine if options.pooler else engine.execution_options(isolation_level="AUTOCOMMIT")
    return Engines(dialect, engine, reader, peeker, engine, (engine,), opened)


def _engine(url: sa.URL, dialect: Dialect, file: WatchedFile | None = None, **options: Any) -> AsyncEngine:
    engine = create_async_engine(url, json_serializer=_to_json, json_deserializer=read_json, **options)
    sa.event.listen(engine.sync_engine, "handle_error", partial(_translate, dialect, shown(url), file))
    if file is not None:
        for moment in ("close", "invalidate"):
            sa.event.listen(engine.sync_engine, moment, file.closing)
    if dialect.name == "sqlite":
        sa.event.listen(engine.sync_engine, "begin", _begin)
    return engine


_to_json: Callable[[Any], str] = partial(json.dumps, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def _begin(connection: sa.Connection) -> None:
    statement = connection.get_execution_options()[_BEGIN]
    if statement:
        connection.exec_driver_sql(statement)


def _refuse_closed(dbapi_connection: Any, _record: Any, _proxy: Any) -> None:
    """A connection that the server has closed while it was idle is replaced before use; asking costs nothing."""
    if dbapi_connection.driver_connection.is_closed():
        raise sa.exc.DisconnectionError


def _translate(dialect: Dialect, where: str, file: WatchedFile | None, context: sa.engine.ExceptionContext) -> None:
    """Raise our error where the database is at fault; leave SQLAlchemy's where the statement is."""
    if file is not None:
        file.check()  # where it is gone, that is what to say of any error
    original = context.original_exception
    connection = context.connection
    if connection is not None and not connection.invalidated and not connection.in_nested_transaction():
        connection.info[FAILED] = True
    if (
        isinstance(original, TimeoutError)
        and connection is not None
        and not (connection.invalidated or connection.closed)
    ):
        # Its server says nothing: no goodbye, for which the pool would wait. The statement it has ended by itself.
        connection.connection.driver_connection.terminate()  # type: ignore[union-attr]  # it is open
    if dialect.is_disconnect(original):
        context.is_disconnect = True
    failure = dialect.failure(original, where)
    if failure is not None:
        raise failure from original

"""The simulation's way to SQLite: jobrunner's statements, through SQLAlchemy, without what only real time needs.

What is left out is the event loop's part: no greenlets, no threads, no pool. What is as in `database.engine` is what
the promises rest on: BEGIN IMMEDIATE for each write and a rollback after each error, reads without a transaction on a
connection that cannot write, the same pragmas but for syncing. One engine serves all the lives of a process, so that
each statement is compiled once.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite.base import SQLiteIdentifierPreparer

from jobrunner.storage.database.dialect import SqliteDialect
from jobrunner.storage.database.engine import _to_json
from jobrunner.storage.database.sqlite_driver import connect_plain
from jobrunner.storage.tables.define import SCHEMA_TOKEN

_WITHOUT_SCHEMA: dict[str, str] = {}


class _Preparer(SQLiteIdentifierPreparer):
    """Leaves the schema out of each compiled text once, instead of at each execution: a third of all time."""

    def _render_schema_translates(self, statement: str, schema_translate_map: Any) -> str:
        if statement not in _WITHOUT_SCHEMA:
            _WITHOUT_SCHEMA[statement] = super()._render_schema_translates(statement, schema_translate_map)
        return _WITHOUT_SCHEMA[statement]


_to_open: list[sqlite3.Connection] = []


@cache
def _engine() -> sa.Engine:
    engine = sa.create_engine(
        "sqlite://",
        creator=_to_open.pop,
        poolclass=sa.pool.NullPool,
        json_serializer=_to_json,
        execution_options={"schema_translate_map": {SCHEMA_TOKEN: None}},
    )
    engine.dialect.identifier_preparer = _Preparer(engine.dialect)
    return engine


class Connection:
    """As much of an `AsyncConnection` as the storage functions use; `driver` is the connection below it."""

    def __init__(self, driver: sqlite3.Connection) -> None:
        self.driver = driver
        _to_open.append(driver)
        self._sync = _engine().connect()

    async def execute(self, statement: Any, parameters: Any = None) -> Any:
        """Execute one statement."""
        return self._sync.execute(statement, parameters)

    def close(self) -> None:
        """Close it."""
        self._sync.close()


class SimulatedDatabase:
    """`write` and `peek` as of `storage.database.Database`, on the file at `path`."""

    is_sqlite = True
    schema_prefix = ""

    def __init__(self, path: Path, on_commit: Callable[[sqlite3.Connection], None]) -> None:
        self.dialect = SqliteDialect(path)
        self._writer = Connection(connect_plain(path, synchronous="OFF"))
        self._peeker = Connection(connect_plain(path, synchronous="OFF", read_only=True))
        self._on_commit = on_commit

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Any]:
        """One writing transaction."""
        driver = self._writer.driver
        driver.execute("BEGIN IMMEDIATE")
        try:
            yield self._writer
        except BaseException:
            driver.rollback()
            raise
        driver.execute("COMMIT")
        self._on_commit(driver)

    def visit_writer(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Do `work`, which is a transaction of its own, with the writing connection."""
        driver = self._writer.driver
        work(driver)
        self._on_commit(driver)

    @asynccontextmanager
    async def peek(self) -> AsyncIterator[Any]:
        """Read without a transaction."""
        yield self._peeker

    def rows(self, sql: str) -> list[Any]:
        """Return what plain SQL finds."""
        return self._peeker.driver.execute(sql).fetchall()

    def value(self, sql: str) -> Any:
        """Return the one value that plain SQL finds."""
        return self.rows(sql)[0][0]

    def close(self) -> None:
        """Close both connections."""
        self._writer.close()
        self._peeker.close()

"""What a piece of the product's work touches in the database, measured while it is done.

On PostgreSQL from the server's own counters: rows read from each table, index entries read, and which indexes were
used, also inside functions and triggers. On SQLite from its machine: the steps it took, and the plan of each statement
as it was sent. Both are the same on a fast machine and a slow one.
"""

from __future__ import annotations

import re
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from sqlalchemy.engine import make_url

STEPS = 100
"""So many steps of SQLite's machine are counted at a time."""
_PLAIN = re.compile(r"\s*(SELECT|WITH|INSERT|UPDATE|DELETE)\b", re.IGNORECASE)


@dataclass
class Touched:
    """`work` is rows and index entries on PostgreSQL, steps on SQLite; `whole` the tables read from end to end."""

    work: int = 0
    indexes: set[str] = field(default_factory=set)
    whole: set[str] = field(default_factory=set)
    details: list[str] = field(default_factory=list)


class Meter(ABC):
    """Measures what is done in a block that opens and closes its own connections."""

    @abstractmethod
    def measured(self) -> Any:
        """Return a context manager that gives a `Touched`, filled at its end."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the database."""


class PostgresMeter(Meter):
    """Reads the counters once all of jobrunner's connections are gone: a session reports its own at its end."""

    def __init__(self, url: str) -> None:
        plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        self._connection = psycopg.connect(plain, autocommit=True)

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def measured(self) -> Iterator[Touched]:
        touched = Touched()
        before = self._counters()
        yield touched
        for key, counts in self._counters().items():
            scans, rows = (now - then for now, then in zip(counts, before.get(key, (0, 0)), strict=True))
            if scans == rows == 0:
                continue
            kind, table, index = key
            touched.work += rows
            touched.details.append(f"{index or table}: {scans} scans, {rows} rows")
            if kind == "index":
                touched.indexes.add(index)
            elif rows:
                touched.whole.add(table)

    def _counters(self) -> dict[tuple[str, str, str], tuple[int, int]]:
        self._wait_for_the_others()
        rows = self._connection.execute(
            "SELECT 'table', relname, '', seq_scan, seq_tup_read FROM pg_stat_user_tables"
            " UNION ALL SELECT 'index', relname, indexrelname, idx_scan, idx_tup_read FROM pg_stat_user_indexes"
        )
        return {(kind, table, index): (scans or 0, read or 0) for kind, table, index, scans, read in rows}

    def _wait_for_the_others(self) -> None:
        others = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND backend_type = 'client backend'"
        )
        deadline = time.monotonic() + 30
        while self._connection.execute(others).fetchone() != (0,):
            assert time.monotonic() < deadline, "a connection was left open"
            time.sleep(0.01)


class SqliteMeter(Meter):
    """Watches every connection that is opened in the block."""

    def __init__(self, path: str) -> None:
        self._path = path

    def close(self) -> None:
        pass

    @contextmanager
    def measured(self) -> Iterator[Touched]:
        touched = Touched()
        sent: dict[str, Any] = {}
        connect = sqlite3.connect

        def count() -> None:
            touched.work += STEPS

        class Cursor(sqlite3.Cursor):
            def execute(self, sql: str, parameters: Any = ()) -> Any:
                sent.setdefault(sql, parameters)
                return super().execute(sql, parameters)

            def executemany(self, sql: str, parameters: Any) -> Any:
                given = list(parameters)
                sent.setdefault(sql, given[0])
                return super().executemany(sql, given)

        class Connection(sqlite3.Connection):
            def cursor(self, factory: Any = Cursor) -> Any:
                return super().cursor(factory)

        def watched(*arguments: Any, **options: Any) -> sqlite3.Connection:
            connection = connect(*arguments, **options, factory=Connection)
            connection.set_progress_handler(count, STEPS)
            return connection

        sqlite3.connect = watched
        try:
            yield touched
        finally:
            sqlite3.connect = connect
        self._explain(sent, touched)

    def _explain(self, sent: dict[str, Any], touched: Touched) -> None:
        connection = sqlite3.connect(self._path)
        try:
            for sql, parameters in sent.items():
                if not _PLAIN.match(sql):
                    continue
                steps = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)]
                for step in steps:
                    touched.indexes.update(re.findall(r"USING (?:COVERING )?INDEX (\w+)", step))
                    touched.whole.update(re.findall(r"^SCAN (?:main\.)?(\w+)(?!.* USING )\b", step))
                touched.details.append("\n  ".join([sql, *steps]))
        finally:
            connection.close()

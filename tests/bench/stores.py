"""Databases for measurements: each measurement gets a fresh one, copied from a template that was prepared once.

PostgreSQL is one server of our own for everybody, with the settings below; SQLite is a file in a temporary folder.
`connect` is plain SQL with nobody's code between.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy.engine import make_url

from tests.support.postgres import LocalPostgres

POSTGRES_SETTINGS = {
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",  # no checkpoint in the middle of a measurement that another one did not have
    "checkpoint_timeout": "15min",
    "timezone": "UTC",
    "log_lock_waits": "on",
    "deadlock_timeout": "100ms",  # what waits longer for a lock is in the log
}


class Connection:
    """Plain SQL, committed at once. `p` stands before jobrunner's tables."""

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        self.p = "" if self.is_sqlite else "jobrunner."
        self._raw: Any
        if self.is_sqlite:
            self._raw = sqlite3.connect(str(parsed.database), timeout=30, isolation_level=None)
            self._raw.execute("PRAGMA busy_timeout = 30000")
        else:
            self._raw = psycopg.connect(plain_url(url), autocommit=True)

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run one statement with `?` for values; return its rows, or none."""
        if self.is_sqlite or not values:
            cursor = self._raw.execute(sql, *([values] if values else []))
        else:
            cursor = self._raw.execute(sql.replace("%", "%%").replace("?", "%s"), values)
        return cursor.fetchall() if cursor.description else []

    def value(self, sql: str, *values: Any) -> Any:
        rows = self.rows(sql, *values)
        return rows[0][0] if rows else None

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()


def plain_url(url: str) -> str:
    """A URL that libpq, and so every peer, can read."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return str(parsed.database)
    return parsed.set(drivername="postgresql").render_as_string(hide_password=False)


class Store(ABC):
    """Where databases come from."""

    kind: str

    @abstractmethod
    def create(self, template: str | None = None) -> str:
        """Make a database and return its URL; a copy of `template`, to which nobody may be connected."""

    @abstractmethod
    def drop(self, url: str) -> None: ...

    @abstractmethod
    def settle(self, url: str) -> None:
        """Let the next measurement not pay for the writes before it: statistics, checkpoint."""

    @abstractmethod
    def close(self) -> None: ...


class SqliteStore(Store):
    kind = "sqlite"

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="jobrunner-bench-"))
        self._numbers = itertools.count(1)

    def create(self, template: str | None = None) -> str:
        path = self._folder / f"{next(self._numbers)}.db"
        if template is not None:
            shutil.copyfile(plain_url(template), path)
        return f"sqlite:///{path}"

    def drop(self, url: str) -> None:
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(plain_url(url) + suffix).unlink(missing_ok=True)

    def settle(self, url: str) -> None:
        with Connection(url) as connection:
            connection.rows("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.rows("ANALYZE")
            connection.rows("PRAGMA wal_checkpoint(TRUNCATE)")
        with Path(plain_url(url)).open("rb") as file:
            os.fsync(file.fileno())

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


class PostgresStore(Store):
    kind = "postgres"

    def __init__(self) -> None:
        self.server = LocalPostgres()
        try:
            for name, value in POSTGRES_SETTINGS.items():
                self.server.execute(f"ALTER SYSTEM SET {name} = '{value}'")
            self.server.restart()
        except BaseException:
            self.server.close()
            raise

    def create(self, template: str | None = None) -> str:
        return self.server.create_database(make_url(template).database if template else None)

    def drop(self, url: str) -> None:
        self.server.drop_database(url)

    def settle(self, url: str) -> None:
        with Connection(url) as connection:
            connection.rows("VACUUM ANALYZE")
            connection.rows("CHECKPOINT")

    def close(self) -> None:
        self.server.close()


def open_store(kind: str) -> Store:
    return SqliteStore() if kind == "sqlite" else PostgresStore()

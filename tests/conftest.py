"""Databases for every test: real SQLite files, a real PostgreSQL server, fresh for each test.

A test that takes `database_url` runs twice, on each database, on a schema made by our own migrations. Templates are
migrated once per session (per xdist worker) and copied. Nothing is skipped: without PostgreSQL, its tests fail.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest
from hypothesis import settings
from sqlalchemy.engine import make_url

from tests.support.postgres import LocalPostgres, PostgresServer

EXTERNAL_POSTGRES: Final = "JOBRUNNER_TEST_POSTGRES_URL"
DATABASES: Final = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]

settings.register_profile("jobrunner", deadline=None, print_blob=True)  # time is no property of the code here
settings.load_profile("jobrunner")


def pytest_configure() -> None:
    """Forget the developer's own settings: no test may reach a database that somebody uses."""
    for name in list(os.environ):
        if name.startswith("JOBRUNNER_") and not name.startswith("JOBRUNNER_TEST_"):
            del os.environ[name]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "postgres" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.postgres)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The session's PostgreSQL server. Do not stop it: take `restartable_postgres`."""
    if url := os.environ.get(EXTERNAL_POSTGRES):
        server = PostgresServer(url)
        server.execute("SELECT 1")
        yield server
        return
    local = LocalPostgres()
    yield local
    local.close()


@pytest.fixture(scope="session")
def _restartable_server(postgres: PostgresServer) -> Iterator[LocalPostgres]:
    if isinstance(postgres, LocalPostgres):
        yield postgres
        return
    local = LocalPostgres()
    yield local
    local.close()


@pytest.fixture
def restartable_postgres(_restartable_server: LocalPostgres) -> Iterator[LocalPostgres]:
    """A server that a test may stop, restart and kill; it runs again after the test."""
    _restartable_server.ensure_running()
    yield _restartable_server
    _restartable_server.ensure_running()


@pytest.fixture
def restartable_postgres_url(restartable_postgres: LocalPostgres) -> Iterator[str]:
    """A migrated database of the test's own on that server."""
    from jobrunner.storage.schema.migrate import upgrade_database

    url = restartable_postgres.create_database()
    upgrade_database(url)
    yield url
    restartable_postgres.ensure_running()
    restartable_postgres.drop_database(url)


@pytest.fixture(scope="session")
def postgres_template(postgres: PostgresServer) -> Iterator[str]:
    """Name of a migrated, empty database for CREATE DATABASE … TEMPLATE."""
    from jobrunner.storage.schema.migrate import upgrade_database

    url = postgres.create_database()
    upgrade_database(url)
    yield str(make_url(url).database)
    postgres.drop_database(url)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty SQLite file to copy."""
    from jobrunner.storage.schema.migrate import upgrade_database

    path = tmp_path_factory.mktemp("template") / "template.db"
    upgrade_database(sqlite_url_of(path))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # a copy of the file alone must hold everything
    return path


@pytest.fixture
def sqlite_url(tmp_path: Path, sqlite_template: Path) -> str:
    """A migrated SQLite database of the test's own: `jobrunner.db` in its `tmp_path`."""
    return sqlite_url_of(Path(shutil.copyfile(sqlite_template, tmp_path / "jobrunner.db")))


@pytest.fixture
def postgres_url(postgres: PostgresServer, postgres_template: str) -> Iterator[str]:
    """A migrated PostgreSQL database of the test's own."""
    url = postgres.create_database(postgres_template)
    yield url
    postgres.ensure_running()
    postgres.drop_database(url)


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest) -> str:
    """A migrated database of the test's own, on each of the two."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def empty_sqlite_url(tmp_path: Path) -> str:
    """A SQLite database that does not exist yet: `empty.db` in the test's `tmp_path`."""
    return sqlite_url_of(tmp_path / "empty.db")


@pytest.fixture
def empty_postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """A PostgreSQL database with no schema in it."""
    url = postgres.create_database()
    yield url
    postgres.ensure_running()
    postgres.drop_database(url)


@pytest.fixture(params=DATABASES)
def empty_database_url(request: pytest.FixtureRequest) -> str:
    """A database without our schema, on each of the two."""
    url: str = request.getfixturevalue(f"empty_{request.param}_url")
    return url


def sqlite_url_of(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


def pytest_sessionstart() -> None:
    """Let what the tests start hear Ctrl-C: a shell's background job ignores it, and its children inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)

"""The command line as its users see it: arguments in; an exit code and two texts out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from jobrunner.cli.main import main
from jobrunner.model.worker import WorkerConfig, WorkerExecutionMode
from jobrunner.policy.definitions import check_definition
from jobrunner.storage import nodes
from jobrunner.storage.database.database import Database
from jobrunner.storage.tables import define as t
from jobrunner.storage.workers import definitions as workers

NOW = datetime.now(UTC)  # the commands read the real clock
NODE = nodes.NodeIdentity("node-one", "host", 4711, "boot", NOW, "0.1.0", 5, lease_seconds=1e9)  # it does not beat


def hourly() -> str:
    """A cron that fires each hour and next in half an hour, so that no test stands on the edge of an hour."""
    return f"{(datetime.now(UTC).minute + 30) % 60} * * * *"


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


class Cli:
    """Runs commands in this process against one database, and looks into it."""

    def __init__(self, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.url = url
        self._capsys = capsys

    def __call__(self, *args: str) -> Result:
        self._capsys.readouterr()
        code = main([*args, "--database-url", self.url])
        captured = self._capsys.readouterr()
        return Result(code, captured.out, captured.err)

    def bare(self, *args: str) -> Result:
        """Run a command without naming the database."""
        self._capsys.readouterr()
        code = main(args)
        captured = self._capsys.readouterr()
        return Result(code, captured.out, captured.err)

    def ok(self, *args: str) -> Result:
        result = self(*args)
        assert result.code == 0, result.err
        assert "Traceback" not in result.err
        return result

    def refused(self, code: int, *args: str) -> str:
        """Run what must fail with `code`; return its one line."""
        result = self(*args)
        assert result.code == code, (result.code, result.out, result.err)
        (line,) = result.err.splitlines()
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    def use(self, work: Callable[[Database, Any], Awaitable[Any]]) -> Any:
        """Do `work` with the database and a writing connection."""

        async def do() -> Any:
            db = Database.open(self.url)
            try:
                async with db.write() as conn:
                    return await work(db, conn)
            finally:
                await db.close()

        return asyncio.run(do())

    def rows(self, table: str, **where: Any) -> list[dict[str, Any]]:
        columns = t.metadata.tables[f"jobrunner.{table}"].c
        statement = sa.select(*columns).order_by(*columns.values()[:1])
        for name, value in where.items():
            statement = statement.where(columns[name] == value)

        async def read(db, conn):
            return [dict(row) for row in (await conn.execute(statement)).mappings()]

        return self.use(read)

    def row(self, table: str, **where: Any) -> dict[str, Any]:
        (found,) = self.rows(table, **where)
        return found

    def audits(self) -> list[dict[str, Any]]:
        """The decisions, without the template's own upgrade."""
        return [row for row in self.rows("audit_log") if row["action"] != "upgrade"]

    def insert(self, table: str, *rows: dict[str, Any]) -> None:
        async def write(db, conn):
            as_ours = {"is_ours": True} if table == "runs" else {}
            for row in rows:
                await conn.execute(sa.insert(t.metadata.tables[f"jobrunner.{table}"]), {**as_ours, **row})

        self.use(write)

    def register(self, *configs: WorkerConfig) -> None:
        async def write(db, conn):
            checked = [check_definition(config) for config in configs]
            await workers.register(conn, db.dialect, checked, None, datetime.now(UTC))

        self.use(write)

    def join(self, *handlers: str, node: nodes.NodeIdentity = NODE) -> None:
        async def write(db, conn):
            await nodes.join(conn, db.dialect, node, handlers, NOW)

        self.use(write)


def triggered(name: str, **options: Any) -> WorkerConfig:
    return WorkerConfig(name, handler="tests:code", execution_mode=WorkerExecutionMode.TRIGGERED, **options)


def scheduled(name: str, **options: Any) -> WorkerConfig:
    return WorkerConfig(name, handler="tests:code", **options)


@pytest.fixture
def cli(database_url: str, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line on each database, with a scheduled worker `fetch` and a triggered one `mail`."""
    found = Cli(database_url, capsys)
    found.register(scheduled("fetch", interval_seconds=60), triggered("mail", max_running=3))
    return found


@pytest.fixture
def sqlite_cli(sqlite_url: str, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The same on SQLite only, for what does not reach the database."""
    found = Cli(sqlite_url, capsys)
    found.register(scheduled("fetch", interval_seconds=60), triggered("mail", max_running=3))
    return found

"""Rows as no program of ours writes them: random values of every kind, in every table that a client can write to.

A statement takes a row that would do and spoils a few of its columns. What the database refuses was refused at the
door. Only `victims` are hurt: what is written about other workers is nobody's rows but theirs.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import asyncpg
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from jobrunner.storage.tables import define as t

VICTIMS = tuple(f"victim-{n}" for n in range(12))
_DEEP = tuple(f"'{{\"n\":{'[' * depth}{']' * depth}}}'" for depth in (50, 480, 520, 700))
_TIMES = (
    "'2020-02-29 12:00:00.000000'",
    "'2020-02-30 00:00:00.000000'",
    "'2024-01-01 29:00:00.000000'",
    "'1970-01-01 00:00:00.000000'",
    "'1969-12-31 23:59:59.000000'",
    "'9999-12-31 23:59:59.999999'",
    "'0001-01-01 00:00:00.000000'",
    "'2090-01-01 00:00:00.000000'",
    "'2024-01-01T00:00:00Z'",
)
_DOCUMENTS = (
    "'{}'",
    "'[]'",
    "'5'",
    "'null'",
    '\'{"n":"\\ud800"}\'',
    "'{\"n\":1e400}'",
    "'{\"n\":-1e-400}'",
    f"'{{\"n\":{'9' * 5000}}}'",
    '\'{"n":"\\u0000"}\'',
    '\'{"depends_on":[5],"blocks":7}\'',
    '\'{"timeout_seconds":"x","max_retries":-1}\'',
    '\'{"fraction":"x"}\'',
    "'{'",
    *_DEEP,
)
_TEXTS = (
    "''",
    "'x'",
    "'é日本😀'",
    f"'{'k' * 300}'",
    "'garbage'",
    "'* * * * *'",
    "'0 0 30 2 *'",
    "'Mars/Nowhere'",
    "'../../../etc/passwd'",
    "'Europe/Berlin'",
)
_NUMBERS = ("-1", "0", "1", "2", "7", "1.5", "1000000000", "2147483647", "2147483648", "9223372036854775807", "1e308")
_SQLITE_ONLY = (
    "x'00ff'",
    "CAST(x'ff41' AS TEXT)",
    "CAST(x'7B2261223A22FF227D' AS TEXT)",
    "'a' || char(0) || 'b'",
    "'2024-01-01 00:00:00.000000' || char(0)",
    "9e999",
    "-9223372036854775808",
)
_POSTGRES_ONLY = (
    "'infinity'",
    "'-infinity'",
    "'NaN'",
    "'294276-12-31 00:00:00+00'",
    "'4713-01-01 00:00:00 BC'",
    f"'{{\"n\":{'[' * 5000}{']' * 5000}}}'",
    f"'{{\"n\":1e{'9' * 5}}}'",
)


class Client(Protocol):
    """A connection of somebody who has never heard of jobrunner."""

    async def run(self, sql: str) -> None:
        """Run a statement; the database may refuse it."""


class SqliteClient:
    """A bare shell: no pragmas."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=30, check_same_thread=False)

    async def run(self, sql: str) -> None:
        await asyncio.to_thread(self._connection.execute, sql)  # it may wait for the file's lock

    async def close(self) -> None:
        self._connection.close()


class PostgresClient:
    """The owner of the tables: nothing but constraints and triggers stops it."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def run(self, sql: str) -> None:
        await self._connection.execute(sql)

    async def close(self) -> None:
        await self._connection.close()


async def open_client(url: str) -> SqliteClient | PostgresClient:
    """Open a client on a test's database."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return SqliteClient(str(parsed.database))
    dsn = parsed.set(drivername="postgresql").render_as_string(hide_password=False)
    return PostgresClient(await asyncpg.connect(dsn, server_settings={"search_path": "jobrunner"}))


@dataclass
class Hostility:
    """Makes statements; `seed` makes them the same again. `refused` and `accepted` count what became of them."""

    is_sqlite: bool
    seed: int
    refused: int = 0
    accepted: int = 0
    errors: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        own = _SQLITE_ONLY if self.is_sqlite else _POSTGRES_ONLY
        self._anything = ("NULL", *_TIMES, *_DOCUMENTS, *_TEXTS, *_NUMBERS, *own)

    async def write(self, client: Client) -> None:
        """Write one row, or try to."""
        refusals = (sqlite3.Error, asyncpg.PostgresError, asyncpg.InterfaceError)
        with self._counted(refusals):
            await client.run(self._statement())

    @contextmanager
    def _counted(self, refusals: tuple[type[Exception], ...]) -> Iterator[None]:
        try:
            yield
        except refusals as error:
            self.refused += 1
            kind = type(error).__name__
            self.errors[kind] = self.errors.get(kind, 0) + 1
        else:
            self.accepted += 1

    def _statement(self) -> str:
        pick = self._random.random()
        if pick < 0.45:
            return self._insert(t.runs, {"worker": self._victim()}, optional=True)
        if pick < 0.55:
            return self._update(t.runs, f"worker = {self._victim()}")
        if pick < 0.7:
            return self._update(t.worker_state, f"worker = {self._victim()}")
        if pick < 0.8:
            return self._update(t.workers, f"name = {self._victim()}", never=("name",))
        return self._other_table()

    def _other_table(self) -> str:
        table = self._random.choice(
            [t.nodes, t.dead_letters, t.run_history, t.audit_log, t.worker_dependencies, t.worker_blocks]
        )
        now = "'2026-01-01 00:00:00.000000'"
        number = str(self._random.randrange(10**6, 10**9))
        base = {
            "nodes": {
                "id": f"'fake-{number}'",
                "hostname": "'h'",
                "pid": "1",
                "boot_id": "'b'",
                "process_started_at": now,
                "started_at": now,
                "heartbeat_at": now,
                "max_concurrent": "1",
                "version": "'0'",
            },
            "dead_letters": {
                "run_id": number,
                "worker": self._victim(),
                "trigger": "'manual'",
                "priority": "1",
                "scheduled_for": now,
                "payload": "'{}'",
                "attempts": "1",
                "errors": "'[]'",
                "died_at": now,
            },
            "run_history": {
                "run_id": number,
                "fence": number,
                "worker": self._victim(),
                "trigger": "'manual'",
                "outcome": "'failed'",
                "finished_at": now,
            },
            "audit_log": {"actor": "'a'", "action": "'enable'", "worker": self._victim()},
            "worker_dependencies": {"worker": self._victim(), "depends_on": self._victim()},
            "worker_blocks": {"worker": self._victim(), "blocks": self._victim()},
        }[table.name]
        return self._insert(table, base)

    def _insert(self, table: sa.Table, base: dict[str, str], *, optional: bool = False) -> str:
        row = dict(base)
        columns = [c.name for c in table.c if optional or c.name in base or c.nullable]
        for name in self._random.sample(columns, k=min(len(columns), self._random.choice([0, 1, 1, 1, 2, 3]))):
            if name not in {"worker", "id"} or self._random.random() < 0.1:
                row[name] = self._value(table.c[name])
        names = ", ".join(f'"{name}"' for name in row)
        return f"INSERT INTO {table.name} ({names}) VALUES ({', '.join(row.values())})"

    def _update(self, table: sa.Table, where: str, never: tuple[str, ...] = ()) -> str:
        columns = [c.name for c in table.c if c.name not in {"worker", *never}]
        chosen = self._random.sample(columns, k=self._random.choice([1, 1, 2]))
        changes = ", ".join(f'"{name}" = {self._value(table.c[name])}' for name in chosen)
        return f"UPDATE {table.name} SET {changes} WHERE {where}"

    def _victim(self) -> str:
        return f"'{self._random.choice(VICTIMS)}'"

    def _value(self, column: sa.Column[Any]) -> str:
        """Choose a value, more often than not of a kind that the column might take."""
        if self._random.random() < 0.35:
            return self._random.choice(self._anything)
        kind = str(column.type).upper()
        if column.name.endswith(("_at", "_for", "_until")):
            return self._random.choice(_TIMES)
        if column.name in {"payload", "definition", "overrides", "errors", "detail", "progress", "result"}:
            return self._random.choice(_DOCUMENTS)
        if any(word in kind for word in ("INT", "DOUBLE", "FLOAT", "REAL")):
            return self._random.choice(_NUMBERS)
        if "BOOL" in kind:
            return self._random.choice(["true", "false"])
        return self._random.choice([*_TEXTS, *_words_of(column)])


def _words_of(column: sa.Column[Any]) -> list[str]:
    """The words that a CHECK lets the column hold."""
    found = []
    for constraint in column.table.constraints:
        if isinstance(constraint, sa.CheckConstraint):
            text = str(constraint.sqltext)
            with suppress(ValueError):
                name, words = text.split(" IN (", 1)
                if name == column.name:
                    found = [word.strip() for word in words.rstrip(")").split(",")]
    return found

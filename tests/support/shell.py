"""A bare SQL shell: what somebody without jobrunner sees. No pragmas on SQLite, `psql` on PostgreSQL."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

from sqlalchemy.engine import make_url

from tests.support.postgres import PostgresServer


class ShellError(Exception):
    """The database refused; its words are the message."""


class Shell:
    """Runs SQL in which `{p}` stands for what our tables' names need before them."""

    def __init__(self, url: str, server: PostgresServer | None = None) -> None:
        self._url = make_url(url)
        self._server = server
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        self.prefix = "" if self.is_sqlite else "jobrunner."

    def run(self, sql: str) -> list[list[str]]:
        """Run statements and return the last one's rows, all values as text, NULL and false as SQL shells show them."""
        sql = sql.replace("{p}", self.prefix)
        if self.is_sqlite:
            return self._sqlite(sql)
        assert self._server is not None
        try:
            printed = self._server.execute(sql, self._url.database)
        except RuntimeError as exc:
            raise ShellError(str(exc)) from exc
        return [line.split("|") for line in printed.splitlines()]

    def one(self, sql: str) -> str:
        """The only value of the only row."""
        ((value,),) = self.run(sql)
        return value

    def _sqlite(self, sql: str) -> list[list[str]]:
        rows: list[Any] = []
        with closing(sqlite3.connect(str(self._url.database), isolation_level=None, timeout=5)) as connection:
            try:
                for statement in _statements(sql):
                    rows = connection.execute(statement).fetchall()
            except sqlite3.Error as exc:
                raise ShellError(str(exc)) from exc
        return [["" if value is None else str(value) for value in row] for row in rows]


def _statements(sql: str) -> list[str]:
    found, pending = [], ""
    for part in sql.split(";"):
        pending += part + ";"
        if sqlite3.complete_statement(pending):
            found.append(pending)
            pending = ""
    return [statement for statement in found if statement.strip(" \n;")]

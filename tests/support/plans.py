"""Which statements a piece of code sends, and how the database would carry them out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from jobrunner.storage.database.database import Database


@dataclass(frozen=True)
class Sent:
    """A statement as the driver got it."""

    sql: str
    parameters: Any


@contextmanager
def recorded(db: Database) -> Iterator[list[Sent]]:
    """Record the statements sent in the block that read or change rows."""
    sent: list[Sent] = []

    def record(conn: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
        if statement.split(None, 1)[0].upper() in {"SELECT", "WITH", "INSERT", "UPDATE", "DELETE"}:
            sent.append(Sent(statement, parameters[0] if executemany else parameters))

    engines = [pool.sync_engine for pool in db._engines.pools]
    for engine in engines:
        sa.event.listen(engine, "before_cursor_execute", record)
    try:
        yield sent
    finally:
        for engine in engines:
            sa.event.remove(engine, "before_cursor_execute", record)


async def plan(db: Database, sent: Sent, *, is_run: bool = False) -> str:
    """Return the database's plan for a statement, a step a line; with `is_run`, PostgreSQL's with real row counts."""
    options = "ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF, BUFFERS OFF" if is_run else "COSTS OFF"
    async with db.peek() as conn:
        prefix = "EXPLAIN QUERY PLAN " if db.is_sqlite else f"EXPLAIN ({options}) "
        rows = (await conn.exec_driver_sql(prefix + sent.sql, tuple(sent.parameters))).all()
    return "\n".join(str(row[-1]) for row in rows)

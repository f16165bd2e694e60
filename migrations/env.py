"""Alembic's environment: how a revision is run.

The program hands in its connection (jobrunner/storage/schema/migrate.py): one transaction, the migration lock held, on
SQLite with foreign keys off. Only the developers' `alembic` command comes without one; it uses JOBRUNNER_DATABASE_URL.

Rules for revisions:

- They import nothing from jobrunner: a revision is frozen, the program moves on. The schema to work in is
  `op.get_context().version_table_schema` (None on SQLite).
- A revision that changes a table *first drops our views and triggers and creates them last*, from SQL frozen in that
  revision: SQLite's batch mode rebuilds tables, fails where a view reads them, and silently loses their triggers.
- Names are final: `op.f("ck_runs_state")`. CHECK constraints are compared by name: a changed one gets a new name.
- On SQLite a table is changed with `op.batch_alter_table`; the same text serves PostgreSQL.
- A released revision is never edited. Data changes get revisions of their own.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from alembic import context

from jobrunner.storage.database.database import Database
from jobrunner.storage.schema import migrate as schema

if TYPE_CHECKING:
    from sqlalchemy import Connection


def _run(connection: Connection, schema_name: str | None) -> None:
    context.configure(connection=connection, **schema.migration_options(connection, schema_name))
    with context.begin_transaction():
        context.run_migrations()


async def _run_for_developers() -> None:
    database = Database.open(
        os.environ.get("JOBRUNNER_DATABASE_URL", "sqlite:///jobrunner.db"),
        schema=os.environ.get("JOBRUNNER_SCHEMA", "jobrunner"),
    )
    try:
        async with database.migrate() as conn:
            await conn.run_sync(_run, None if database.is_sqlite else database.schema)
    finally:
        await database.close()


if "connection" in context.config.attributes:
    _run(context.config.attributes["connection"], context.config.attributes["schema"])
else:
    asyncio.run(_run_for_developers())

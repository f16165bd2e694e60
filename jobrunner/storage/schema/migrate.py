"""Upgrading the schema of a database, taking it back, and comparing it with tables.py. This module needs Alembic.

A migration is one transaction. It first takes a lock that all processes share (an advisory lock on PostgreSQL, BEGIN
IMMEDIATE on SQLite), and only then looks where the schema stands: of several processes that upgrade at once, one
does it and the others find it done. On SQLite foreign keys are off meanwhile, since rebuilding a table would delete
what points to it, and are all checked before the commit. A process killed half way leaves the schema as it was.

Alembic keeps its context in a module of its own, so that one process runs one migration at a time; each runs in a
thread with its own loop and connection, and neither blocks the caller's loop nor touches its logging.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from alembic import autogenerate, command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext

from jobrunner.errors import DatabaseError, InvalidSetting, Refused, SchemaAhead, SchemaMissing
from jobrunner.policy.words import counted
from jobrunner.storage.database.database import Database
from jobrunner.storage.database.dialect import SqliteDialect, first_line
from jobrunner.storage.schema import revisions
from jobrunner.storage.schema.parts import read_hidden, read_missing
from jobrunner.storage.schema.revisions import VERSION_TABLE, SchemaState, SchemaStatus
from jobrunner.storage.tables.define import audit_log, dead_letters, metadata, nodes, run_history, runs, workers

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_SYSTEM_ACTOR = "jobrunner"
_DATABASES_OWN = frozenset(
    {"waits_from", "ix_worker_state_waits_from", "arrived", "ix_runs_arrived", "uq_runs_worker_slot"}
)
"""Generated, each database in its own words, and so none of what `tables.define` lists; `parts` has the indexes."""
_one_migration = threading.Lock()


async def upgrade(
    db: Database, revision: str = "head", *, actor: str = _SYSTEM_ACTOR
) -> tuple[SchemaStatus, SchemaStatus]:
    """Bring the schema up to `revision`; a missing SQLite file is created, and the change is audited.

    Returns:
        The status before and after; both are the same when another process was faster or nothing was to do.

    Raises:
        SchemaAhead: A newer jobrunner upgraded this database; nothing was changed.
        InvalidSetting: There is no such revision.
        DatabaseUnavailable: A lock could not be had in time, or the connection was lost; nothing was changed.
        DatabaseError: The database refuses.
    """
    return await asyncio.to_thread(_migrate_in_own_loop, db, "upgrade", revision, actor)


async def downgrade(db: Database, revision: str, *, actor: str = _SYSTEM_ACTOR) -> tuple[SchemaStatus, SchemaStatus]:
    """Take the schema back to `revision` (`base` drops all our tables, and what is in them).

    Returns:
        The status before and after.

    Raises:
        SchemaMissing: There is nothing to take back.
        Refused: Nodes are live.
        SchemaAhead, DatabaseUnavailable, DatabaseError, InvalidSetting: As `upgrade`.
    """
    return await asyncio.to_thread(_migrate_in_own_loop, db, "downgrade", revision, actor)


async def holds_data(db: Database) -> bool:
    """Say whether any worker, run, history row or letter is there."""
    for table in (workers, runs, run_history, dead_letters):
        with suppress(sa.exc.DBAPIError):  # there is no such table
            async with db.peek() as conn:
                if (await conn.execute(sa.select(sa.true()).select_from(table).limit(1))).first() is not None:
                    return True
    return False


async def check(db: Database) -> list[str]:
    """Compare the database with what a new one has; a line for each difference, none when they are equal."""
    async with db.read(is_long=True, is_of_state=False) as conn:
        missing = await read_missing(db, conn)
        hidden = await read_hidden(db, conn)
        differences = await conn.run_sync(_differences, None if db.is_sqlite else db.schema)
    return hidden + [f"missing {part}" for part in missing if not part.startswith("table ")] + differences


def upgrade_database(url: str, *, schema: str = "jobrunner") -> None:
    """`upgrade` for code without an event loop (and, in a thread, for code within one)."""
    db = Database.open(url, schema=schema)
    with ThreadPoolExecutor(1) as thread:
        thread.submit(_migrate_in_own_loop, db, "upgrade", "head", _SYSTEM_ACTOR).result()


def migration_options(connection: sa.Connection, schema: str | None) -> dict[str, Any]:
    """What Alembic must know, the same for migrating and for comparing.

    Args:
        connection: Where the schema is.
        schema: PostgreSQL's schema, None on SQLite.
    """
    ours = _metadata_for(connection.dialect.name, schema)
    names = {table.name for table in ours.tables.values()}

    def include_name(name: str | None, kind: str, _parents: Any) -> bool:
        if kind == "schema":
            return name == schema
        if kind in {"column", "index"} and name in _DATABASES_OWN:
            return False
        return kind != "table" or name in names

    return {
        "target_metadata": ours,
        "version_table": VERSION_TABLE,
        "version_table_schema": schema,
        "include_schemas": schema is not None,
        "include_name": include_name,
        "compare_type": True,
        "compare_server_default": _is_other_default if connection.dialect.name == "sqlite" else True,
        "render_as_batch": connection.dialect.name == "sqlite",
        "transactional_ddl": True,
        "autogenerate_plugins": ["alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"],
    }


@lru_cache
def _metadata_for(dialect: str, schema: str | None) -> sa.MetaData:
    """Our tables under the schema's real name, with what this database has of them.

    Alembic knows neither of the engine's schema translation, nor of CHECKs that are one database's only, nor that
    SQLite has no IDENTITY.
    """
    copy = sa.MetaData(naming_convention=metadata.naming_convention)
    referred = schema or sa.schema.SchemaConst.BLANK_SCHEMA
    for table in metadata.tables.values():
        ours = table.to_metadata(copy, schema=schema, referred_schema_fn=lambda *_: referred)  # type: ignore[arg-type]
        ours.constraints = {c for c in ours.constraints if not isinstance(c, sa.CheckConstraint)}
        for check in table.constraints:
            if isinstance(check, sa.CheckConstraint) and (check._ddl_if is None or check._ddl_if.dialect == dialect):
                ours.append_constraint(sa.CheckConstraint(check.sqltext, name=check.name))
        for column in ours.columns:
            if column.identity and dialect == "sqlite":
                column.identity = column.server_default = None
    return copy


def _is_other_default(
    _context: Any, _inspected: Any, _column: Any, inspected: str | None, _default: Any, rendered: str | None
) -> bool | None:
    """On SQLite an empty text is the same default, whatever Alembic makes of its quotes; None leaves it to Alembic."""
    return False if {inspected, rendered} <= {"('')", ""} else None


def _config(**attributes: Any) -> Config:
    config = Config(attributes=attributes)
    config.set_main_option("script_location", str(revisions.migrations_dir()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


_Direction = Literal["upgrade", "downgrade"]


def _migrate_in_own_loop(
    db: Database, direction: _Direction, revision: str, actor: str
) -> tuple[SchemaStatus, SchemaStatus]:
    with _one_migration:
        return asyncio.run(_migrate(db.reopened(), direction, revision, actor))


async def _migrate(db: Database, direction: _Direction, revision: str, actor: str) -> tuple[SchemaStatus, SchemaStatus]:
    _refuse_unknown(revision)
    try:
        if direction == "upgrade" and isinstance(db.dialect, SqliteDialect):
            db.dialect.create_file()
        async with db.migrate() as conn:
            before = await revisions.read_status(db, conn)
            if before.state is SchemaState.AHEAD:
                raise SchemaAhead(str(before.current))
            if direction == "downgrade" and before.state is SchemaState.MISSING:
                raise SchemaMissing
            if direction == "downgrade":
                await _refuse_live_nodes(db, conn)
            if direction == "upgrade" and before.state is SchemaState.CURRENT:
                return before, before
            try:
                await conn.run_sync(_run_alembic, direction, revision, None if db.is_sqlite else db.schema)
            except sa.exc.DBAPIError as error:
                raise DatabaseError(f"the {direction} is undone: {first_line(error.orig or error)}") from error
            after = await revisions.read_status(db, conn)
            await _finish(db, conn, before, after, actor)
            return before, after
    finally:
        await db.close()


async def _refuse_live_nodes(db: Database, conn: AsyncConnection) -> None:
    """Refuse to take the tables from under nodes; a damaged schema has perhaps none that says who is live."""
    schema = None if db.is_sqlite else db.schema
    if not await conn.run_sync(lambda sync: sa.inspect(sync).has_table("nodes", schema=schema)):
        return
    n = nodes.c
    statement = sa.select(n.hostname, n.pid).where(n.state.in_(("active", "draining"))).order_by(n.id)
    live = (await conn.execute(statement)).all()
    if live:
        one = f"a node ({live[0].hostname}, pid {live[0].pid}) is live; stop it"
        said = one if len(live) == 1 else f"{len(live)} nodes are live (`jobrunner admin nodes`); stop them"
        raise Refused(f"{said}, then downgrade; one that was killed is live until another has started and seen it")


def _refuse_unknown(revision: str) -> None:
    known = sorted(revisions.known()[1])
    if revision not in {"head", "base", *known}:
        raise InvalidSetting(f"there is no schema revision {revision!r}; there are base, {', '.join(known)} and head")


def _run_alembic(connection: sa.Connection, direction: _Direction, revision: str, schema: str | None) -> None:
    _refuse_foreign_tables(connection, schema)
    if schema is not None and not sa.inspect(connection).has_schema(
        schema
    ):  # CREATE … IF NOT EXISTS would ask for the right to create it
        connection.execute(sa.schema.CreateSchema(schema))
    getattr(command, direction)(_config(connection=connection, schema=schema), revision)


def _refuse_foreign_tables(connection: sa.Connection, schema: str | None) -> None:
    """Say so before CREATE TABLE fails: a file has one namespace, and a version table may have lost its row."""
    if revisions.current_revision(connection, schema) is not None:
        return
    there = set(sa.inspect(connection).get_table_names(schema=schema))
    taken = ", ".join(sorted(there & {table.name for table in metadata.tables.values()}))
    if taken and VERSION_TABLE in there:
        raise DatabaseError(
            f"there are tables of jobrunner ({taken}), but {VERSION_TABLE} has lost its row: insert the version_num"
            f" again ({', '.join(sorted(revisions.known()[1]))}), or restore a backup"
        )
    if taken:
        what, own = ("file", "a file") if schema is None else (f"schema {schema}", "a schema")
        raise DatabaseError(f"the {what} already has tables named {taken}; give jobrunner {own} of its own")


async def _finish(db: Database, conn: AsyncConnection, before: SchemaStatus, after: SchemaStatus, actor: str) -> None:
    """Check what SQLite did not check meanwhile, and write down what was done."""
    if db.is_sqlite:
        orphans = (await conn.exec_driver_sql("PRAGMA foreign_key_check")).all()
        if orphans:
            raise DatabaseError(
                f"the migration is undone: {counted(len(orphans), 'row')} would point to what is not there"
            )
    if after.current is not None and after != before:
        detail = {"from": before.current, "to": after.current}
        await conn.execute(sa.insert(audit_log).values(actor=actor, action="upgrade", detail=detail))


def _differences(connection: sa.Connection, schema: str | None) -> list[str]:
    options = migration_options(connection, schema)
    context = MigrationContext.configure(connection, opts=options)
    found = autogenerate.compare_metadata(context, options["target_metadata"])
    flat = [item for difference in found for item in (difference if isinstance(difference, list) else [difference])]
    return [_described(difference) for difference in flat]


def _described(difference: tuple[Any, ...]) -> str:
    """`add_index runs ix_runs_due`: what Alembic would do to make the database equal to tables.py."""
    words = []
    for part in difference:
        owner = getattr(part, "table", None)
        words += [str(getattr(thing, "name", thing)) for thing in (owner, part) if thing is not None]
    return " ".join(words)

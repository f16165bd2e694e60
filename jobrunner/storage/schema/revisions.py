"""Which revision the schema of a database has, which ones this code knows, and refusing one that does not fit.

Four states: *missing* (no tables of ours), *behind* (a revision this code knows, not the newest), *current*, *ahead*
(a revision this code does not know: a newer jobrunner was here, and this one must keep away).

All of it without Alembic, which a node whose schema is current never loads: 8 MiB (`migrate` upgrades). The revisions
are read from the texts of their files, where each says which one it is and which one it follows.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.errors import DatabaseError, SchemaAhead, SchemaBehind, SchemaMissing
from jobrunner.storage.tables.define import SCHEMA_TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.database.database import Database

VERSION_TABLE = "jobrunner_schema_version"
versions = sa.Table(VERSION_TABLE, sa.MetaData(schema=SCHEMA_TOKEN), sa.Column("version_num", sa.Text))  # Alembic's


class SchemaState(StrEnum):
    """How the schema in a database stands to this code."""

    MISSING = "missing"
    BEHIND = "behind"
    CURRENT = "current"
    AHEAD = "ahead"


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    """A database's schema: its revision (None when missing) and the newest one this code knows."""

    state: SchemaState
    current: str | None
    head: str


def migrations_dir() -> Path:
    """The folder of the revisions: inside the package in a wheel, beside it in a checkout.

    Raises:
        DatabaseError: It is in neither place; the installation is broken.
    """
    package = Path(__file__).parents[2]
    for folder in (package / "migrations", package.parent / "migrations"):
        if (folder / "env.py").is_file():
            return folder
    raise DatabaseError(f"no migrations folder in {package}; install jobrunner again")


async def status(db: Database) -> SchemaStatus:
    """Find out where the schema stands; nothing is written, a missing SQLite file is not created.

    Raises:
        DatabaseError: The database cannot be reached or read.
    """
    try:
        async with db.peek() as conn:
            return await read_status(db, conn)
    except SchemaMissing:  # there is no file yet
        return SchemaStatus(SchemaState.MISSING, None, known()[0])


def _file(db: Database) -> str:
    """Return the name of SQLite's file, with its folder: the current one may be another than was meant."""
    return str(Path(db.url.database or "").absolute())


async def require_current(db: Database) -> None:
    """Return if the schema is the one this code needs.

    Raises:
        SchemaMissing, SchemaBehind, SchemaAhead: It is not.
    """
    found = await status(db)
    if found.state is SchemaState.MISSING:
        raise SchemaMissing(_file(db) if db.is_sqlite else None)
    if found.state is SchemaState.BEHIND:
        raise SchemaBehind(str(found.current), found.head)
    if found.state is SchemaState.AHEAD:
        raise SchemaAhead(str(found.current))


@lru_cache
def known() -> tuple[str, frozenset[str]]:
    """Return the newest revision this code knows, and all of them."""
    found = [dict(_assigned(path)) for path in (migrations_dir() / "versions").glob("*.py")]
    everything = frozenset(str(names["revision"]) for names in found)
    (head,) = everything - {names["down_revision"] for names in found}
    return head, everything


def _assigned(path: Path) -> Iterator[tuple[str, Any]]:
    """The names that a revision's file gives constants to, `a, b = 1, 2` among them."""
    for statement in ast.parse(path.read_bytes()).body:
        if isinstance(statement, ast.Assign):
            (target,) = statement.targets
            pairs = (
                zip(target.elts, statement.value.elts, strict=False)
                if isinstance(target, ast.Tuple) and isinstance(statement.value, ast.Tuple)
                else [(target, statement.value)]
            )
            for name, value in pairs:
                if isinstance(name, ast.Name) and isinstance(value, ast.Constant):
                    yield name.id, value.value


def is_ahead(revision: str | None) -> bool:
    """Say whether a revision that a database has is none this code knows."""
    return revision is not None and revision not in known()[1]


async def read_status(db: Database, conn: AsyncConnection) -> SchemaStatus:
    """`status`, on a connection."""
    schema = None if db.is_sqlite else db.schema
    current = await conn.run_sync(current_revision, schema)
    head, revisions = known()
    if current is None:
        return SchemaStatus(SchemaState.MISSING, None, head)
    if current not in revisions:
        return SchemaStatus(SchemaState.AHEAD, current, head)
    return SchemaStatus(SchemaState.CURRENT if current == head else SchemaState.BEHIND, current, head)


def current_revision(connection: sa.Connection, schema: str | None) -> str | None:
    """Return the revision that the database has; None if it has no tables of ours.

    Raises:
        DatabaseError: row-level security hides it.
    """
    # Not through Alembic, which writes two log lines each time somebody asks.
    if not sa.inspect(connection).has_table(VERSION_TABLE, schema=schema):
        return None
    versions = sa.table(VERSION_TABLE, sa.column("version_num", sa.Text), schema=schema)
    found = connection.execute(sa.select(versions.c.version_num)).scalars().first()
    if found is None and schema is not None:
        _refuse_hidden(connection, schema)
    return found


def _refuse_hidden(connection: sa.Connection, schema: str) -> None:
    """Say so where row-level security hides the version: the schema would look as if it were not there."""
    is_hidden = sa.text("SELECT row_security_active(CAST(:name AS text))")
    if connection.execute(is_hidden, {"name": f'"{schema}".{VERSION_TABLE}'}).scalar():
        user = connection.execute(sa.text("SELECT current_user")).scalar()
        raise DatabaseError(
            f"row-level security shows {user} no row of {schema}.{VERSION_TABLE}: add a policy for that user to all of"
            " jobrunner's tables, or disable it on them"
        )

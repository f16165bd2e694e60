"""The parts of our schema, and which of them a database lacks; columns and indexes are for Alembic to compare.

`revisions` says what a database claims to be; this looks whether it is all there. A view, a trigger or a function that
somebody dropped makes statements fail that have nothing wrong with them: whoever meets such an error asks here whether
the schema explains it. Without Alembic, as `revisions`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from jobrunner.errors import DatabaseError, JobrunnerError, SchemaAhead, SchemaBehind, SchemaDamaged, SchemaMissing
from jobrunner.storage.schema import revisions
from jobrunner.storage.tables.define import metadata

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.errors import SchemaError
    from jobrunner.storage.database.database import Database

VIEWS = ("worker_status", "run_failures", "run_stats")
_SQLITE = {
    "view": (*VIEWS, "claims"),
    "index": ("uq_runs_worker_slot",),
    "trigger": (
        "runs_refuse_client",
        "runs_refuse_unknown_worker",
        "worker_dependencies_refuse_unknown",
        "worker_blocks_refuse_unknown",
        "runs_fill_priority",
        "runs_fill_limit_key",
        "runs_join_batch",
        "run_after_refuse_started",
        "run_after_wait",
        "runs_keep_priority",
        "run_history_refuse_update",
        "workers_raise_revision",
        "worker_state_raises_revision",
        "worker_dependencies_raise_revision_insert",
        "worker_dependencies_raise_revision_update",
        "worker_dependencies_raise_revision_delete",
        "worker_blocks_raise_revision_insert",
        "worker_blocks_raise_revision_update",
        "worker_blocks_raise_revision_delete",
        "worker_limits_raise_revision_insert",
        "worker_limits_raise_revision_update",
        "worker_limits_raise_revision_delete",
        "workers_refuse_delete",
    ),
}
_POSTGRES = {
    "table": ("claims",),
    "index": ("ix_runs_arrived",),
    "view": VIEWS,
    "trigger": (
        "runs_refuse_client",
        "runs_fill",
        "runs_join_batch",
        "run_after_wait",
        "runs_keep_priority",
        "runs_arrive_again",
        "runs_hold_slot",
        "runs_follow_slots",
        "runs_free_slots",
        "run_history_refuse_update",
        "workers_raise_revision",
        "worker_state_raises_revision",
        "worker_dependencies_raise_revision",
        "worker_blocks_raise_revision",
        "worker_limits_raise_revision",
        "runs_wake_nodes",
    ),
    "function": (
        "refuse_client",
        "fill_run",
        "join_batch",
        "wait_for_run",
        "keep_run_priority",
        "arrive_again",
        "hold_slot",
        "follow_slots",
        "free_slots",
        "refuse_history_update",
        "raise_revision",
        "worker_dependencies_changed",
        "worker_blocks_changed",
        "worker_limits_changed",
        "wake_nodes_at_commit",
        "wake_nodes",
    ),
    "sequence": ("wakeup_clock",),
}
_SQLITE_HAS = "SELECT type, name FROM sqlite_master"
_POSTGRES_HAS = """
SELECT CASE c.relkind WHEN 'v' THEN 'view' WHEN 'S' THEN 'sequence' WHEN 'i' THEN 'index' ELSE 'table' END, c.relname
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = :schema AND c.relkind IN ('r', 'p', 'v', 'S', 'i')
UNION ALL
SELECT 'function', p.proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = :schema
UNION ALL
SELECT 'trigger', g.tgname
FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = :schema AND NOT g.tgisinternal
"""

_POSTGRES_HIDES = """
SELECT c.relname, current_user
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = :schema AND c.relkind IN ('r', 'p') AND c.relrowsecurity AND row_security_active(c.oid)
    AND NOT EXISTS (
        SELECT FROM pg_policy p
        WHERE p.polrelid = c.oid AND p.polpermissive AND p.polcmd IN ('*', 'r')
            AND EXISTS (SELECT FROM unnest(p.polroles) AS r (id) WHERE r.id = 0 OR pg_has_role(r.id, 'MEMBER'))
    )
ORDER BY c.relname
"""


async def read_hidden(db: Database, conn: AsyncConnection) -> list[str]:
    """Return a line for each of our tables that row-level security shows empty to the user of the database URL.

    Nothing fails there: the table is simply empty to that user, the version of the schema among them.
    """
    if db.is_sqlite:
        return []
    rows = await conn.execute(sa.text(_POSTGRES_HIDES), {"schema": db.schema})
    return [
        f"row-level security shows {user} no row of {table}: add a policy for that user, or"
        f" ALTER TABLE {db.schema_prefix}{table} DISABLE ROW LEVEL SECURITY"
        for table, user in rows
    ]


async def read_missing(db: Database, conn: AsyncConnection) -> list[str]:
    """Return what a schema of the newest revision has and this database lacks, such as `view worker_status`."""
    if db.is_sqlite:
        rows = await conn.execute(sa.text(_SQLITE_HAS))
    else:
        rows = await conn.execute(sa.text(_POSTGRES_HAS), {"schema": db.schema})
    there = {(kind, name) for kind, name in rows}
    return [
        f"{kind} {name}"
        for kind, name in _expected(_SQLITE if db.is_sqlite else _POSTGRES)
        if (kind, name) not in there
    ]


def _expected(more: dict[str, tuple[str, ...]]) -> Iterator[tuple[str, str]]:
    for table in metadata.sorted_tables:
        yield "table", table.name
    for kind, names in more.items():
        for name in names:
            yield kind, name


async def read_trouble(db: Database) -> SchemaError | None:
    """Return what is wrong with the schema for this code: missing, behind, ahead or damaged; None if nothing is.

    Raises:
        DatabaseError: the database cannot be reached or read.
    """
    found = await revisions.status(db)
    if found.state is revisions.SchemaState.MISSING:
        return SchemaMissing()
    if found.state is revisions.SchemaState.BEHIND:
        return SchemaBehind(str(found.current), found.head)
    if found.state is revisions.SchemaState.AHEAD:
        return SchemaAhead(str(found.current))
    async with db.peek() as conn:
        missing = await read_missing(db, conn)
    return SchemaDamaged(missing) if missing else None


async def trouble_behind(db: Database, error: BaseException) -> SchemaError | None:
    """Return what is wrong with the schema if that may explain an error which nobody expected."""
    if isinstance(error, JobrunnerError):
        return None
    try:
        return await read_trouble(db)
    except DatabaseError:
        return None

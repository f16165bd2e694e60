"""`claims`: the active runs, and the one way to find them among all that wait.

A small table on PostgreSQL, which triggers keep equal to `runs`, and a view of `runs` on SQLite; the migration says
why. Nothing of ours writes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from jobrunner.storage.tables.define import runs
from jobrunner.storage.tables.metadata import SCHEMA_TOKEN

if TYPE_CHECKING:
    from sqlalchemy.sql.compiler import SQLCompiler

claims = sa.Table(
    "claims",
    sa.MetaData(schema=SCHEMA_TOKEN),  # of its own: it is no table everywhere
    sa.Column("worker", sa.Text, nullable=False),
    sa.Column("slot", sa.Integer, nullable=False),
    sa.Column("run_id", sa.BigInteger, nullable=False),
)


class _IsActive(FunctionElement[Any]):
    """Of no type: SQLite is asked whether what is of type Boolean is equal to 1, and then it uses no index."""

    name = "is_active"
    inherit_cache = True


def is_active(worker: sa.ColumnElement[str] | None = None) -> sa.ColumnElement[bool]:
    """Return the condition that a row of `runs` is active; of `worker`, if that is given, which is a column outside.

    On PostgreSQL the ids are read first, so that the plan is a look at each by the primary key, whatever the
    statistics say of a table that is never the same.
    """
    ids = sa.select(claims.c.run_id)
    if worker is not None:
        ids = ids.where(claims.c.worker == worker).correlate(worker.table)
    return _IsActive(runs.c.id, ids.scalar_subquery())


def among(ids: sa.ScalarSelect[Any]) -> sa.ColumnElement[bool]:
    """Return the condition that a run is one of `ids`, which are read first, as `is_active` does."""
    return _IsActive(runs.c.id, ids)


@compiles(_IsActive)
def _in(element: _IsActive, compiler: SQLCompiler, **options: Any) -> str:
    run_id, ids = (compiler.process(part, **options) for part in element.clauses)
    return f"{run_id} IN {ids}"


@compiles(_IsActive, "postgresql")
def _any(element: _IsActive, compiler: SQLCompiler, **options: Any) -> str:
    run_id, ids = (compiler.process(part, **options) for part in element.clauses)
    return f"{run_id} = ANY (ARRAY{ids})"

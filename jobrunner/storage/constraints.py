"""The constraints of the tables, each in a word."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_PAYLOAD_BYTES = 1024 * 1024
_TIME_SHAPE = (
    "[0-9][0-9][0-9][0-9]-[0-1][0-9]-[0-3][0-9] [0-2][0-9]:[0-5][0-9]:[0-6][0-9].[0-9][0-9][0-9][0-9][0-9][0-9]"
)


def one_of(column: str, values: Iterable[str]) -> sa.CheckConstraint:
    """The column holds one of `values`."""
    names = ", ".join(repr(str(value)) for value in values)
    return sa.CheckConstraint(f"{column} IN ({names})", name=column)


def on(dialect: str, condition: str, name: str) -> sa.CheckConstraint:
    """A CHECK that only one of the two databases can say."""
    return sa.CheckConstraint(condition, name=name).ddl_if(dialect=dialect)


def time_shapes(*columns: str) -> list[sa.CheckConstraint]:
    """On SQLite, the columns hold times as `types.to_text` writes them, so that they sort."""
    return [on("sqlite", f"{c} IS NULL OR {c} GLOB '{_TIME_SHAPE}'", f"{c}_shape") for c in columns]


def json_object(column: str) -> list[sa.CheckConstraint]:
    """The column holds a JSON object of at most 1 MiB (SQLite counts characters of its text, as bytes)."""
    return [
        on("sqlite", f"json_valid({column}) AND json_type({column}) = 'object'", f"{column}_object"),
        on("sqlite", f"length(CAST({column} AS BLOB)) <= {MAX_PAYLOAD_BYTES}", f"{column}_size"),
        on("postgresql", f"jsonb_typeof({column}) = 'object'", f"{column}_object"),
        on("postgresql", f"octet_length({column}::text) <= {MAX_PAYLOAD_BYTES + 65536}", f"{column}_size"),
    ]


def partial_index(name: str, *columns: sa.ColumnElement[object] | str, where: str, unique: bool = False) -> sa.Index:
    """An index of the rows for which `where` holds, alike on both databases."""
    condition = sa.text(where)
    return sa.Index(name, *columns, unique=unique, sqlite_where=condition, postgresql_where=condition)

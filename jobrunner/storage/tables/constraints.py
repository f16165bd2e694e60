"""The constraints of the tables, each in a word."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from jobrunner.model.limits import LONGEST_SECONDS, MAX_COUNT

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_PAYLOAD_BYTES = 1024 * 1024
LONGEST_KEY = 200
LONGEST_TRACE_CONTEXT = 1000
_TIME_SHAPE = (
    "{c} GLOB '[1-9][0-9][0-9][0-9]-[0-1][0-9]-[0-3][0-9] [0-2][0-9]:[0-5][0-9]:[0-5][0-9]"
    ".[0-9][0-9][0-9][0-9][0-9][0-9]' AND {c} >= '1970'"
)
# A shape lets the 30th of February and the hour 29 pass: SQLite's own reading of the text must give it back. Without a
# modifier it reads them as they are; of the fraction it makes a rounded second. It costs 0.4 us.
_REAL_TIME = f"{_TIME_SHAPE} AND datetime(substr({{c}}, 1, 19), '+0 days') IS substr({{c}}, 1, 19)"
_FIRST_TIME = "'1970-01-01 00:00:00+00'::timestamptz"
# What asyncpg takes for "infinity" is the last time that Python has.
_LAST_TIME = "'9999-12-31 23:59:59.999999+00'::timestamptz"


def one_of(column: str, values: Iterable[str]) -> sa.CheckConstraint:
    """The column holds one of `values`."""
    names = ", ".join(repr(str(value)) for value in values)
    return sa.CheckConstraint(f"{column} IN ({names})", name=column)


def on(dialect: str, condition: str, name: str) -> sa.CheckConstraint:
    """A CHECK that only one of the two databases can say."""
    return sa.CheckConstraint(condition, name=name).ddl_if(dialect=dialect)


def real_times(*columns: str, is_copied: bool = False) -> list[sa.CheckConstraint]:
    """The columns hold real times from 1970 to 9999; on SQLite as `types.to_text` writes them, so that they sort.

    On PostgreSQL it is one constraint for the whole table, since each is parsed anew for every statement. With
    `is_copied` the values were checked where they come from, and on SQLite their shape is enough.
    """
    rule = _TIME_SHAPE if is_copied else _REAL_TIME
    several = len(columns) > 1
    first, last = (f"least({', '.join(columns)})", f"greatest({', '.join(columns)})") if several else (columns[0],) * 2
    return [
        *(on("sqlite", f"{c} IS NULL OR {rule.format(c=c)}", f"{c}_time") for c in columns),
        on("postgresql", f"{first} >= {_FIRST_TIME} AND {last} < {_LAST_TIME}", "times"),
    ]


def seconds(*columns: str, above: bool = False) -> list[sa.CheckConstraint]:
    """The columns hold numbers of seconds from 0 (`above`: more than 0) to a century; NaN is none of them."""
    least = "> 0" if above else ">= 0"
    return [sa.CheckConstraint(f"{c} {least} AND {c} <= {LONGEST_SECONDS:.0f}", name=c) for c in columns]


def counts(least: int, *columns: str, most: int = MAX_COUNT) -> list[sa.CheckConstraint]:
    """The columns hold whole numbers from `least` to `most`."""
    return [sa.CheckConstraint(f"{c} BETWEEN {least} AND {most}", name=c) for c in columns]


def json_kind(column: str, kind: str = "object") -> list[sa.CheckConstraint]:
    """The column holds a JSON object, or what else `kind` names."""
    return [
        on("sqlite", f"json_valid({column}) AND json_type({column}) = '{kind}'", f"{column}_{kind}"),
        on("postgresql", f"jsonb_typeof({column}) = '{kind}'", f"{column}_{kind}"),
    ]


def json_object(column: str) -> list[sa.CheckConstraint]:
    """The column holds a JSON object of at most 1 MiB (SQLite counts characters of its text, as bytes)."""
    return [
        *json_kind(column),
        on("sqlite", f"length(CAST({column} AS BLOB)) <= {MAX_PAYLOAD_BYTES}", f"{column}_size"),
        on("postgresql", f"octet_length({column}::text) <= {MAX_PAYLOAD_BYTES + 65536}", f"{column}_size"),
    ]


def partial_index(name: str, *columns: sa.ColumnElement[object] | str, where: str, unique: bool = False) -> sa.Index:
    """An index of the rows for which `where` holds, alike on both databases."""
    condition = sa.text(where)
    return sa.Index(name, *columns, unique=unique, sqlite_where=condition, postgresql_where=condition)

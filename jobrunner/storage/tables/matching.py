"""Conditions that a filter asks for and each database says in its own words: a pattern of names, a field of JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.sql.compiler import SQLCompiler

_ESCAPED = str.maketrans({"\\": "\\\\", "%": "\\%", "_": "\\_"})


class _IsLike(FunctionElement[Any]):
    name = "is_like"
    inherit_cache = True


class _Contains(FunctionElement[Any]):
    name = "contains"
    inherit_cache = True


def is_one_of(column: sa.ColumnElement[str], patterns: Sequence[str]) -> sa.ColumnElement[bool]:
    """Return the condition that a name is one of these, or fits one of these with `*`."""
    names = [pattern for pattern in patterns if "*" not in pattern]
    parts: list[sa.ColumnElement[bool]] = [column.in_(names)] if len(names) > 1 else [column == name for name in names]
    parts += [_IsLike(column, sa.literal(pattern)) for pattern in patterns if "*" in pattern]
    return sa.or_(*parts)


def contains(column: sa.ColumnElement[str], text: str) -> sa.ColumnElement[bool]:
    """Return the condition that a text holds another, whatever the case of its letters."""
    return sa.type_coerce(_Contains(column, sa.literal(f"%{text.translate(_ESCAPED)}%")), sa.Boolean)


@compiles(_Contains)
def _like_folded(element: _Contains, compiler: SQLCompiler, **options: Any) -> str:
    """Both are lowered by the database: Python lowers all letters, SQLite only those of ASCII."""
    text, pattern = (compiler.process(part, **options) for part in element.clauses)
    return f"lower({text}) LIKE lower({pattern}) ESCAPE '\\'"


@compiles(_IsLike)
def _glob(element: _IsLike, compiler: SQLCompiler, **options: Any) -> str:
    """SQLite's LIKE knows no case; a pattern of ours holds nothing that GLOB reads otherwise."""
    column, pattern = (compiler.process(part, **options) for part in element.clauses)
    return f"{column} GLOB {pattern}"


@compiles(_IsLike, "postgresql")
def _like(element: _IsLike, compiler: SQLCompiler, **options: Any) -> str:
    column, pattern = (compiler.process(part, **options) for part in element.clauses)
    return f"{column} LIKE replace(replace({pattern}, '_', '\\_'), '*', '%%')"


class _FieldText(FunctionElement[Any]):
    name = "field_text"
    inherit_cache = True


def field_text(column: sa.ColumnElement[Any], path: Sequence[str]) -> sa.ColumnElement[str]:
    """Return what a field of a JSON document is, as text: that of a string, else as JSON; NULL where there is none."""
    steps = "$" + "".join(f'."{step}"' for step in path)  # a step holds no quote: see `policy.filters`
    return sa.type_coerce(
        _FieldText(column, sa.literal(steps), sa.literal(list(path), postgresql.ARRAY(sa.Text))), sa.Text
    )


@compiles(_FieldText)
def _json_extract(element: _FieldText, compiler: SQLCompiler, **options: Any) -> str:
    """SQLite makes numbers of true and false."""
    column, steps, _ = element.clauses
    document, path = compiler.process(column, **options), compiler.process(steps, **options)
    return (
        f"CASE json_type({document}, {path}) WHEN 'true' THEN 'true' WHEN 'false' THEN 'false' "
        f"ELSE CAST(json_extract({document}, {path}) AS TEXT) END"
    )


@compiles(_FieldText, "postgresql")
def _path_text(element: _FieldText, compiler: SQLCompiler, **options: Any) -> str:
    column, _, path = element.clauses
    return f"({compiler.process(column, **options)} #>> {compiler.process(path, **options)})"

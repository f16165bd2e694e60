"""Many rows in one bind parameter: a JSON array that each database unfolds into a row set.

One statement text serves any number of rows, so it is prepared once, and a batch costs one round trip. The two
halves here belong to the seam of `dialect.py`, which mixes them in.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.constraints import LONGEST_KEY
from jobrunner.storage.tables.rows import to_json
from jobrunner.storage.tables.types import Json, UtcDateTime

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy.sql.compiler import SQLCompiler


class _Named(Protocol):
    name: str


_Dialect = TypeVar("_Dialect", bound=_Named)
_Built = TypeVar("_Built")


def built_once(build: Callable[[_Dialect], _Built]) -> Callable[[_Dialect], _Built]:
    """Build a module's statements once for each kind of database, however many databases are open."""
    known: dict[str, _Built] = {}

    @functools.wraps(build)
    def once(dialect: _Dialect) -> _Built:
        if dialect.name not in known:
            known[dialect.name] = build(dialect)
        return known[dialect.name]

    return once


def same(column: sa.ColumnElement[Any], value: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    """Say `column = value` as a range, for queries that take the first rows in the order of an index.

    With `=`, a planner may drop the column from the ORDER BY, choose an index on the columns that are left, and look
    there through the rows of everybody else. With a range, only the index that begins with `column` has that order.
    """
    return sa.and_(column >= value, column <= value)


class _Level(FunctionElement[Any]):
    """Of no type, as `claims.is_active`."""

    name = "level"
    inherit_cache = True


def level(column: sa.ColumnElement[Any], value: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    """Say `column = value` for each of several columns with which an index begins, in a query as for `same`.

    SQLite seeks by one range only, so that for it these are equalities.
    """
    return _Level(column, value)


@compiles(_Level)
def _equal(element: _Level, compiler: SQLCompiler, **options: Any) -> str:
    column, value = (compiler.process(part, **options) for part in element.clauses)
    return f"{column} = {value}"


@compiles(_Level, "postgresql")
def _range(element: _Level, compiler: SQLCompiler, **options: Any) -> str:
    column, value = (compiler.process(part, **options) for part in element.clauses)
    return f"({column} >= {value} AND {column} <= {value})"


def _is_due(runs: sa.FromClause, wanted: bool) -> sa.ColumnElement[bool]:
    now = sa.bindparam("now", type_=UtcDateTime())
    return runs.c.due_at <= now if wanted else runs.c.due_at > now


def _extracted(row: sa.ColumnElement[Any], name: str, kind: sa.types.TypeEngine[Any]) -> sa.ColumnElement[Any]:
    value = sa.func.json_extract(row, f"$.{name}")
    if isinstance(kind, UtcDateTime):
        value = sa.func.substr(value, 1, 26)  # without the offset, which PostgreSQL needs and SQLite does not keep
    return sa.type_coerce(value, kind)


def _levels(priorities: Sequence[int]) -> sa.FromClause:
    """The priorities as a row set; not VALUES, which SQLAlchemy compiles anew at each execution."""
    return sa.union_all(*(sa.select(sa.literal_column(str(p)).label("p")) for p in priorities)).subquery("levels")


class SqliteRows:
    """`json_each`, and a correlated IN with a LIMIT where PostgreSQL has LATERAL."""

    def epoch(self, moment: sa.ColumnElement[Any]) -> sa.ColumnElement[float]:
        """Return a time as a number of seconds, to a millisecond."""
        return sa.func.julianday(moment, type_=sa.Double()) * 86400.0

    def rows(self, parameter: str, **columns: sa.types.TypeEngine[Any]) -> sa.FromClause:
        """Return the row set that the JSON array bound as `parameter` holds, one object a row."""
        each = sa.func.json_each(sa.bindparam(parameter, type_=sa.Text())).table_valued(
            "value", name=f"{parameter}_each"
        )
        fields = [_extracted(each.c.value, name, kind).label(name) for name, kind in columns.items()]
        return sa.select(*fields).subquery(parameter)

    def new_rows(self, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> tuple[sa.Insert, Any]:
        """Return the INSERT of many rows, and its parameters; there is at least one row."""
        return sa.insert(table), list(rows)

    def elements(self, parameter: str) -> sa.FromClause:
        """Return the row set of the JSON array bound as `parameter`: `value` (NULL where it is null), and place `n`."""
        array = sa.bindparam(parameter, type_=sa.Text())
        each = sa.func.json_each(array).table_valued(sa.column("key", sa.Integer()), sa.column("value", Json))
        each = each.alias(f"{parameter}_each")
        return sa.select(each.c.key.label("n"), each.c.value).subquery(parameter)

    def limit_key(self, payload: sa.ColumnElement[Any], field: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
        """Return what `payload` has at the dotted `field`, as text; NULL where that is nothing, a list or an object."""
        dotted: sa.ColumnElement[str] = sa.func.replace(field, ".", '"."', type_=sa.Text())
        place = sa.literal_column("'$.\"'", sa.Text()) + dotted + sa.literal_column("'\"'", sa.Text())
        text = sa.cast(payload, sa.Text())
        value = sa.func.substr(sa.cast(sa.func.json_extract(text, place), sa.Text()), 1, LONGEST_KEY)
        kinds = {"object": sa.null(), "array": sa.null(), "true": sa.literal("true"), "false": sa.literal("false")}
        return sa.case(
            (field.is_(None), None),
            else_=sa.case(kinds, value=sa.func.json_type(text, place), else_=sa.func.nullif(value, "")),
        )

    def first_runs(
        self,
        names: sa.FromClause,
        kind: str,
        columns: Sequence[sa.Column[Any]],
        conditions: Sequence[sa.ColumnElement[bool]],
        order: sa.Column[Any],
        most: int,
    ) -> sa.Select[Any]:
        """Select, as `kind`, the first `most` runs by `order` of each of `names` that meet `conditions`."""
        found = t.runs.alias("found")
        first = (
            sa.select(t.runs.c.id)
            .where(*conditions, t.runs.c.worker == names.c.name)
            .order_by(order)
            .limit(most)
            .correlate(names)
        )
        return sa.select(
            sa.literal_column(f"'{kind}'").label("kind"), *(found.c[column.name] for column in columns)
        ).select_from(names.join(found, found.c.id.in_(first)))

    def newest_ends(
        self,
        parameter: str,
        columns: Sequence[sa.Column[Any]],
        most: int,
        conditions: Sequence[sa.ColumnElement[bool]] = (),
    ) -> sa.Select[Any]:
        """Select the newest `most` rows of history of each named worker that meet `conditions`."""
        names = self.rows(parameter, name=sa.Text())
        h = t.run_history
        found = h.alias("found")
        newest = (
            sa.select(h.c.id)
            .where(h.c.worker == names.c.name, *conditions)
            .order_by(h.c.id.desc())
            .limit(most)
            .correlate(names)
        )
        return sa.select(*(found.c[column.name] for column in columns)).select_from(
            names.join(found, found.c.id.in_(newest))
        )

    def first_waiting(
        self,
        parameter: str,
        limit: Any,
        priorities: Sequence[int],
        columns: Sequence[sa.Column[Any]],
        *,
        is_due: bool | None = True,
    ) -> sa.Select[Any]:
        """Select the first `limit` waiting runs of each named worker and priority, as kind 'w'."""
        names = self.rows(parameter, name=sa.Text())
        levels = _levels(priorities)
        inner = t.runs.alias("inner_runs")
        first = (
            sa.select(inner.c.id)
            .where(sa.literal_column("inner_runs.state = 'pending'"), inner.c.worker == names.c.name)
            .where(inner.c.priority == levels.c.p, *([] if is_due is None else [_is_due(inner, is_due)]))
            .order_by(inner.c.due_at, inner.c.id)
            .limit(limit)
            .correlate(names, levels)
        )
        return sa.select(sa.literal_column("'w'").label("kind"), *columns).select_from(
            names.join(levels, sa.true()).join(t.runs, t.runs.c.id.in_(first))
        )


class PostgresRows:
    """`jsonb_to_recordset` and LATERAL."""

    def epoch(self, moment: sa.ColumnElement[Any]) -> sa.ColumnElement[float]:
        """Return a time as a number of seconds."""
        return sa.cast(sa.extract("epoch", moment), sa.Double())

    def rows(self, parameter: str, **columns: sa.types.TypeEngine[Any]) -> sa.FromClause:
        """Return the row set that the JSON array bound as `parameter` holds, one object a row."""
        value = sa.cast(sa.bindparam(parameter, type_=sa.Text()), JSONB)
        fields = [sa.column(name, kind) for name, kind in columns.items()]
        return sa.func.jsonb_to_recordset(value).table_valued(*fields).render_derived(name=parameter, with_types=True)

    def new_rows(self, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> tuple[sa.Insert, Any]:
        """Return the INSERT of many rows in one statement, and its parameters; there is at least one row.

        The server parses a table's CHECKs anew for each statement: 100,000 workers, one at a time, took it 12 s.
        """
        names = list(rows[0])
        given = self.rows("many", **{name: table.c[name].type for name in names})
        return sa.insert(table).from_select(names, sa.select(*(given.c[name] for name in names))), {
            "many": to_json(rows)
        }

    def elements(self, parameter: str) -> sa.FromClause:
        """Return the row set of the JSON array bound as `parameter`: `value` (NULL where it is null), and place `n`."""
        array = sa.cast(sa.bindparam(parameter, type_=sa.Text()), JSONB)
        each = sa.func.jsonb_array_elements(array).table_valued(sa.column("value", JSONB), with_ordinality="n")
        each = each.render_derived(name=f"{parameter}_each")
        null = sa.literal_column("'null'::jsonb", JSONB)
        return sa.select(each.c.n, sa.func.nullif(each.c.value, null).label("value")).subquery(parameter)

    def limit_key(self, payload: sa.ColumnElement[Any], field: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
        """Return what `payload` has at the dotted `field`, as text; NULL where that is nothing, a list or an object."""
        place = sa.func.string_to_array(field, ".")
        value = sa.func.left(sa.cast(payload, JSONB).op("#>>")(place), LONGEST_KEY)
        kind = sa.func.jsonb_typeof(sa.cast(payload, JSONB).op("#>")(place))
        return sa.case((field.is_(None), None), (kind.in_(("object", "array")), None), else_=sa.func.nullif(value, ""))

    def first_runs(
        self,
        names: sa.FromClause,
        kind: str,
        columns: Sequence[sa.Column[Any]],
        conditions: Sequence[sa.ColumnElement[bool]],
        order: sa.Column[Any],
        most: int,
    ) -> sa.Select[Any]:
        """Select, as `kind`, the first `most` runs by `order` of each of `names` that meet `conditions`.

        A LATERAL with a LIMIT also where all are wanted: it keeps the planner from joining the whole table at once,
        which it likes to do before the first ANALYZE (with 300,000 runs waiting, 40 ms instead of 3).
        """
        first = (
            sa.select(*columns)
            .where(*conditions, same(t.runs.c.worker, names.c.name))
            .order_by(t.runs.c.worker, order)
            .limit(most)
            .lateral()
        )
        return sa.select(sa.literal_column(f"'{kind}'").label("kind"), *first.c).select_from(
            names.join(first, sa.true())
        )

    def newest_ends(
        self,
        parameter: str,
        columns: Sequence[sa.Column[Any]],
        most: int,
        conditions: Sequence[sa.ColumnElement[bool]] = (),
    ) -> sa.Select[Any]:
        """Select the newest `most` rows of history of each named worker that meet `conditions`."""
        names = self.rows(parameter, name=sa.Text())
        h = t.run_history
        newest = (
            sa.select(*columns)
            .where(same(h.c.worker, names.c.name), *conditions)
            .order_by(h.c.worker.desc(), h.c.id.desc())
            .limit(most)
            .lateral()
        )
        return sa.select(*newest.c).select_from(names.join(newest, sa.true()))

    def first_waiting(
        self,
        parameter: str,
        limit: Any,
        priorities: Sequence[int],
        columns: Sequence[sa.Column[Any]],
        *,
        is_due: bool | None = True,
    ) -> sa.Select[Any]:
        """Select the first `limit` waiting runs of each named worker and priority, as kind 'w'."""
        names = self.rows(parameter, name=sa.Text())
        levels = _levels(priorities)
        inner = t.runs.alias("inner_runs")
        first = (
            sa.select(*(inner.c[column.name] for column in columns))
            .where(sa.literal_column("inner_runs.state = 'pending'"), inner.c.worker == names.c.name)
            .where(same(inner.c.priority, levels.c.p), *([_is_due(inner, False)] if is_due is False else []))
            .order_by(inner.c.priority, inner.c.due_at, inner.c.id)
            .limit(limit)
            .lateral(f"{parameter}_first")
        )
        return (
            sa.select(sa.literal_column("'w'").label("kind"), *first.c)
            .select_from(names.join(levels, sa.true()).join(first, sa.true()))
            .where(*([_is_due(first, True)] if is_due else []))
        )

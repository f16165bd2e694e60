"""Column types that read the same on both databases: UTC times, JSON documents, and what a STRICT SQLite table takes.

Reading never raises. What stands in a row may have been put there by any program, and one value that cannot be read
must not keep a statement's other rows from being read: a document becomes an `Unreadable`, a time `UNREADABLE_TIME`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.ext.compiler import compiles

from jobrunner.model.unreadable import UNREADABLE_TIME
from jobrunner.policy.documents import read_document, unreadable

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Dialect
    from sqlalchemy.sql.compiler import GenericTypeCompiler, SQLCompiler
    from sqlalchemy.types import TypeEngine


class Garbled(str):
    """A text of SQLite that was no UTF-8; what could not be read is replaced in it."""

    __slots__ = ()


def read_json(text: str) -> Any:
    """Read a JSON document as a column holds it; an `Unreadable` where that cannot be done."""
    if type(text) is Garbled:
        return unreadable(text, "it is no UTF-8")
    return read_document(text)


def to_text(moment: datetime) -> str:
    """Write an aware time as SQLite stores it: `YYYY-MM-DD HH:MM:SS.ffffff`, UTC, sortable."""
    return (moment if moment.tzinfo is UTC else moment.astimezone(UTC)).isoformat(" ", "microseconds")[:26]


def to_json(moment: datetime) -> str:
    """Write an aware time as it stands inside a JSON document: as `--json` shows those of columns."""
    return f"{to_text(moment).replace(' ', 'T')}Z"


def from_text(text: str) -> datetime:
    """Read what `to_text` wrote, as an aware UTC time; `UNREADABLE_TIME` for anything else."""
    try:
        return datetime.fromisoformat(f"{text[:26]}+00:00")  # SQLite's checks end at a NUL, the text need not
    except (TypeError, ValueError):
        return UNREADABLE_TIME


def _aware(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError(f"{moment} has no time zone; times are stored as UTC, so say which zone it is in")
    return moment


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """An aware UTC time: `timestamptz` on PostgreSQL, fixed-width text on SQLite. Naive times are refused."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column type of the database at hand."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(TIMESTAMP(timezone=True))
        return dialect.type_descriptor(sa.Text())

    def bind_processor(self, dialect: Dialect) -> Callable[[datetime | None], Any] | None:
        """Turn an aware time into what the driver takes."""
        if dialect.name == "postgresql":
            return lambda value: None if value is None else _aware(value)
        return lambda value: None if value is None else to_text(_aware(value))

    def literal_processor(self, dialect: Dialect) -> Callable[[Any], str]:
        """Write a time into a statement that somebody is to paste."""
        return lambda value: f"'{to_text(_aware(value))}{'+00' if dialect.name == 'postgresql' else ''}'"

    def result_processor(
        self,
        dialect: Dialect,
        coltype: object,  # noqa: ARG002 - SQLAlchemy's signature
    ) -> Callable[[Any], datetime | None] | None:
        """Turn what the driver gives into an aware UTC time."""
        if dialect.name == "postgresql":
            return None
        return lambda value: None if value is None else from_text(value)


class _JsonText(sa.JSON):
    """JSON that SQLite keeps as TEXT: a column it calls JSON would turn numbers into 64-bit ones, losing digits."""


@compiles(_JsonText, "sqlite")
def _json_on_sqlite(_element: _JsonText, _compiler: GenericTypeCompiler, **_: Any) -> str:
    return "TEXT"


class Flag(sa.Boolean):
    """True or false; a STRICT table of SQLite knows no BOOLEAN."""


class Real(sa.Double):  # type: ignore[type-arg]  # what it gives is a float, whatever the release calls that
    """A floating-point number of 64 bits; a STRICT table of SQLite knows no DOUBLE."""


@compiles(Flag, "sqlite")
def _flag_on_sqlite(_element: Flag, _compiler: GenericTypeCompiler, **_: Any) -> str:
    return "INTEGER"


@compiles(Real, "sqlite")
def _real_on_sqlite(_element: Real, _compiler: GenericTypeCompiler, **_: Any) -> str:
    return "REAL"


Json = _JsonText(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
Big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Id = Big


class Now(sa.sql.functions.FunctionElement[datetime]):
    """The database's own clock, for column defaults: the start of the transaction there, the statement here.

    SQLite's clock has three digits of a second; the text is filled up to six, so that all times sort as text.
    """

    type = UtcDateTime()
    inherit_cache = True
    name = "now"


@compiles(Now)
def _now_elsewhere(_element: Now, _compiler: SQLCompiler, **_: Any) -> str:
    return "now()"


@compiles(Now, "sqlite")
def _now_on_sqlite(_element: Now, _compiler: SQLCompiler, **_: Any) -> str:
    return "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')"


class FirstRevision(sa.sql.functions.FunctionElement[int]):
    """Microseconds since 1970 by the database's clock, for a column default: a number that no row had before.

    A worker that was removed and is there again must not meet with what some node knows of the one before.
    """

    type = sa.BigInteger()
    inherit_cache = True
    name = "first_revision"


@compiles(FirstRevision)
def _first_revision_elsewhere(_element: FirstRevision, _compiler: SQLCompiler, **_: Any) -> str:
    return "(extract(epoch FROM now()) * 1000000)::bigint"


@compiles(FirstRevision, "sqlite")
def _first_revision_on_sqlite(_element: FirstRevision, _compiler: SQLCompiler, **_: Any) -> str:
    return "(CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER))"


class JsonLength(sa.sql.functions.FunctionElement[int]):
    """How many elements a JSON column's array has; 0 for what is none."""

    type = sa.Integer()
    inherit_cache = True
    name = "json_length"


@compiles(JsonLength)
def _length_elsewhere(element: JsonLength, compiler: SQLCompiler, **how: Any) -> str:
    array = compiler.process(element.clauses, **how)
    return f"CASE WHEN jsonb_typeof({array}) = 'array' THEN jsonb_array_length({array}) ELSE 0 END"


@compiles(JsonLength, "sqlite")
def _length_on_sqlite(element: JsonLength, compiler: SQLCompiler, **how: Any) -> str:
    array = compiler.process(element.clauses, **how)
    return f"CASE WHEN json_valid({array}) THEN json_array_length({array}) ELSE 0 END"

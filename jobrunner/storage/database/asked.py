"""The statements that a database was asked: how many, and, for whoever wants to see them, as text to paste.

A page of the console shows what it ran, so that one can go on from there in a shell of the database.
"""

from __future__ import annotations

import contextlib
import re
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.sql import visitors

from jobrunner.storage.tables.define import SCHEMA_TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy.ext.asyncio import AsyncEngine

_recorded: ContextVar[list[str] | None] = ContextVar("jobrunner_recorded", default=None)
_UNASKED = re.compile(r"BEGIN|SET |LOCK |SELECT version|SELECT 1\b|.*alembic_version", re.DOTALL)
_MAIN = re.compile(r"\bmain\.(?=\w)")


class Asked:
    """Counts the statements that engines are asked; `schema` is what stands before their tables' names."""

    def __init__(self, schema: str, *engines: AsyncEngine) -> None:
        self.count = 0
        self._schema = schema
        pools: set[int] = set()
        for engine in engines:  # one made of another by options shares its pool, and hears of that one's events, too
            if id(engine.sync_engine.pool) not in pools:
                pools.add(id(engine.sync_engine.pool))
                sa.event.listen(engine.sync_engine, "before_cursor_execute", self._note)

    def _note(
        self, conn: sa.Connection, _cursor: Any, statement: str, _parameters: Any, context: Any, is_many: bool
    ) -> None:
        if statement.startswith("BEGIN"):
            return
        self.count += 1
        recorded = _recorded.get()
        if recorded is not None and not is_many and not _UNASKED.match(statement):
            recorded.append(self._written(conn, statement, context))

    def _written(self, conn: sa.Connection, statement: str, context: Any) -> str:
        """Return a statement with its values written into it; where that cannot be done, as it was sent."""
        compiled = getattr(context, "compiled", None)
        if compiled is not None and compiled.statement is not None and context.compiled_parameters:
            options = {"literal_binds": True, "render_postcompile": True}
            with contextlib.suppress(Exception):  # a value that has no literal
                given = _with_values(compiled, context.compiled_parameters[0])
                statement = str(given.compile(dialect=conn.dialect, compile_kwargs=options))
        text = statement.replace(f"{SCHEMA_TOKEN}.", self._schema)
        return _MAIN.sub("", text) if not self._schema else text


def _with_values(compiled: Any, values: Mapping[str, Any]) -> Any:
    """Return a statement with the values of this very execution.

    A statement's text is kept for others of the same shape, and with it the values of the first, which are not shown.
    """

    def replaced(element: Any, **_: Any) -> Any:
        name = compiled.bind_names.get(element)
        if name is None:
            return None
        if element.expanding and name not in values:  # each element has a name of its own by now
            value: Any = [values[f"{name}_{place}"] for place in range(1, _count(name, values) + 1)]
        else:
            value = values[name]
        return sa.bindparam(None, value, type_=element.type, expanding=element.expanding, unique=True)

    return visitors.replacement_traverse(compiled.statement, {}, replaced)


def _count(name: str, values: Mapping[str, Any]) -> int:
    """Return how many elements of a list there are among the values."""
    number = 0
    while f"{name}_{number + 1}" in values:
        number += 1
    return number


@contextlib.contextmanager
def recording() -> Iterator[list[str]]:
    """Give the list in which the statements are written that are asked inside the block."""
    statements: list[str] = []
    token = _recorded.set(statements)
    try:
        yield statements
    finally:
        _recorded.reset(token)

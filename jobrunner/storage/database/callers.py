"""Our statements on a connection that is not ours: taking part in a caller's SQLAlchemy transaction."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, cast

from jobrunner.errors import UsageError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.database.database import Database


class CallersConnection:
    """A caller's connection or session, async or sync, seen as the `AsyncConnection` that storage expects."""

    def __init__(self, connection: Any, options: dict[str, Any]) -> None:
        self._connection = connection
        self._options = options

    async def execute(self, statement: Any, parameters: Any = None) -> Any:
        """Execute with our schema, and await the answer where the caller's connection is async."""
        answer = self._connection.execute(statement, parameters, execution_options=self._options)
        return await answer if inspect.isawaitable(answer) else answer


def is_async(connection: Any) -> bool:
    """Say whether a SQLAlchemy connection or session is one of `sqlalchemy.ext.asyncio`."""
    return any(hasattr(connection, name) for name in ("sync_connection", "sync_session"))


def callers_connection(db: Database, connection: Any) -> AsyncConnection:
    """Wrap `connection` for the storage functions.

    Raises:
        UsageError: it is no SQLAlchemy connection, or one of another kind of database than ours.
    """
    bind = getattr(connection, "bind", None) or connection
    dialect = getattr(bind, "dialect", None)
    if dialect is None or not hasattr(connection, "execute"):
        raise UsageError(f"connection must be a SQLAlchemy connection or session, not {type(connection).__name__}")
    if dialect.name != db.dialect.name:
        raise UsageError(f"connection is to {dialect.name}, but jobrunner's database is {db.dialect.name}")
    return cast("AsyncConnection", CallersConnection(connection, db.statement_options))

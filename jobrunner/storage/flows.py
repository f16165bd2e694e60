"""The short way that fits the database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from jobrunner.storage.postgres_flow import PostgresFlow
from jobrunner.storage.sqlite_flow import SqliteFlow

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from jobrunner.storage.database import Database
    from jobrunner.storage.finishes import Ended
    from jobrunner.storage.flow import Plain, Turned


class Flow(Protocol):
    """A database's short way."""

    async def turn(
        self, node_id: str, now: datetime, free_slots: int, plain: Plain | None, ended: Sequence[Ended]
    ) -> Turned:
        """Write the sure ends, then claim plain runs, at most `free_slots` and one for each end written; or fire.

        Raises:
            DatabaseError: nothing is known to have been written.
        """

    async def close(self) -> None:
        """Give up the connection, if it has one of its own."""


def open_flow(db: Database) -> Flow | None:
    """Return the database's short way; None behind a transaction-pooling proxy: its statements need a session."""
    if db.is_sqlite:
        return SqliteFlow(db)
    return None if db.pooler else PostgresFlow(db)

"""The fast path that fits the database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from jobrunner.storage.turns.postgres import PostgresFastPath
from jobrunner.storage.turns.sqlite import SqliteFastPath

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from jobrunner.policy.fast_path import Eligible
    from jobrunner.storage.database.database import Database
    from jobrunner.storage.runs.finishes import Ended
    from jobrunner.storage.turns.turn import Turned


class FastPath(Protocol):
    """A database's fast path."""

    async def turn(
        self, node_id: str, now: datetime, free_slots: int, eligible: Eligible | None, ended: Sequence[Ended]
    ) -> Turned:
        """Write the simple ends, then claim eligible runs, at most `free_slots` and one for each end written; or fire.

        Raises:
            DatabaseError: nothing is known to have been written.
            FastPathRefused: the database does not let this user make what a turn needs; nothing was written.
        """

    async def close(self) -> None:
        """Give up the connection, if it has one of its own."""


def open_fast_path(db: Database, *, asks_time: bool = False) -> FastPath | None:
    """Return the database's fast path; None behind a transaction-pooling proxy: its statements need a session.

    `asks_time`: PostgreSQL's own time is that of rates.
    """
    if db.is_sqlite:
        return SqliteFastPath(db)
    return None if db.pooler else PostgresFastPath(db, asks_time=asks_time)

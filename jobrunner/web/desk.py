"""What all routes share: the database as it is read here, and the orchestrator through which it is changed.

Reads have a database of their own, with two connections and 2 s for a statement, so that no number of people who look
keeps a node from its work. The probe has another, since slow questions would keep both from it. Each event loop that
asks has its own, which ends with it: nothing needs to be closed.
"""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import PurePath
from typing import TYPE_CHECKING

from jobrunner.errors import WorkerNotFound
from jobrunner.runtime.kept import KeptDatabases
from jobrunner.runtime.orchestrator import WorkerOrchestrator
from jobrunner.runtime.vitals import vitals_of
from jobrunner.storage.database.database import Database
from jobrunner.storage.reading.minutes import Minutes
from jobrunner.storage.schema import revisions
from jobrunner.storage.schema.parts import trouble_behind
from jobrunner.storage.workers.near import with_near_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    from jobrunner.config import Settings
    from jobrunner.runtime.vitals import Vitals
    from jobrunner.storage.database.asked import Asked
    from jobrunner.storage.runs.transaction import AsyncConnection

_MOST_COUNTED = 32
"""Databases whose statements are counted: each loop opens one, and another where that was lost."""
_FAILING_SECONDS = 2.0
"""So long after the database could not be reached nobody tries again, who would only wait for the same answer."""


def orchestrator_of(orchestrator_or_url: WorkerOrchestrator | str) -> WorkerOrchestrator:
    """Return the orchestrator, or one without workers for the database of that URL. Raises `InvalidDatabaseUrl`."""
    if isinstance(orchestrator_or_url, WorkerOrchestrator):
        return orchestrator_or_url
    made = WorkerOrchestrator(orchestrator_or_url)
    Database.of(made.settings)  # opens nothing, but refuses what is no URL now instead of at the first request
    return made


class Desk:
    """See the module. `expects_node`: one is to run in this process."""

    def __init__(self, orchestrator: WorkerOrchestrator, *, expects_node: bool = False) -> None:
        self.orchestrator = orchestrator
        self.expects_node = expects_node
        self.minutes = Minutes()
        self._asked: deque[Asked] = deque()
        self._asked_before = 0
        self._readers, self._prober = self._databases(), self._databases()

    def _databases(self) -> KeptDatabases:
        look = revisions.require_current
        return KeptDatabases(self._open, look, look, failing_seconds=_FAILING_SECONDS)

    def _open(self) -> Database:
        db = Database.of(self.settings).bounded()
        if db.asked is not None:
            self._asked.append(db.asked)
            if len(self._asked) > _MOST_COUNTED:
                self._asked_before += self._asked.popleft().count
        return db

    @property
    def statements(self) -> int:
        """How many statements all who look have asked so far; it never falls."""
        return self._asked_before + sum(asked.count for asked in self._asked)

    @property
    def settings(self) -> Settings:
        """The settings."""
        return self.orchestrator.settings

    @cached_property
    def name(self) -> str:
        """What the database is called, without where it is: to tell two consoles apart."""
        return PurePath(Database.of(self.settings).url.database or "").name or "jobrunner"

    def now(self) -> datetime:
        """Return the time, UTC."""
        return self.orchestrator.clock.now()

    def vitals(self) -> Vitals | None:
        """Return how this process's node is; None while there is none."""
        return vitals_of(self.orchestrator)

    @asynccontextmanager
    async def database(self) -> AsyncIterator[Database]:
        """The database for reading, its schema looked at moments ago.

        Raises:
            DatabaseError: it cannot be used.
            SchemaError: its schema is not this version's.
        """
        async with self._use(self._readers) as db:
            yield db

    @asynccontextmanager
    async def _use(self, databases: KeptDatabases) -> AsyncIterator[Database]:
        db = await databases.get()
        try:
            yield db
        except WorkerNotFound as unknown:
            raise await with_near_name(db, unknown) from None
        except Exception as error:
            trouble = await trouble_behind(db, error)
            if trouble is None:
                raise
            raise trouble from error

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """One snapshot for reading. Raises as `database`."""
        async with self.database() as db, db.read() as conn:
            yield conn

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Database]:
        """The database for changes that the orchestrator has no method for. Raises as `database`."""
        await self.require_schema()
        async with self.orchestrator._database() as db:
            yield db

    async def require_schema(self) -> None:
        """Return if the database can be used, its schema looked at anew. Raises as `database`."""
        async with self.database() as db:
            await revisions.require_current(db)

    async def require_ready(self) -> None:
        """Return as `require_schema` does, on a connection that nobody else has. Raises as `database`."""
        async with self._use(self._prober) as db:
            await revisions.require_current(db)

"""A database that goes away: trying again with growing, jittered pauses, and telling of it once.

A database that comes and goes, its connections killed again and again, is one trouble to whoever reads the log. So an
outage that begins within a minute of the last one told of is told of only when it lasts.
"""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, TypeVar

from jobrunner.errors import DatabaseError, DatabaseGone, is_outage
from jobrunner.policy.backoff import retry_delay
from jobrunner.storage.database.dialect import first_line
from jobrunner.telemetry import events as e

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from jobrunner.runtime.clock import Clock

T = TypeVar("T")
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 2.0
QUIET_SECONDS = 60.0  # after an outage was told of, a short one within this time is not
LONG_SECONDS = 5.0


class Outage:
    """Shared by everything in a node that uses the database, from any thread, so that one outage is one log line.

    A database that is gone for good (`DatabaseGone`) is no outage: that is for `on_gone` to tell and to act on.
    """

    def __init__(self, clock: Clock, events: e.Events, on_gone: Callable[[DatabaseGone], None] | None = None) -> None:
        self.clock = clock
        self._events = events
        self._on_gone = on_gone
        self._lock = threading.Lock()
        self._since: float | None = None
        self._is_told = False
        self._told_at: float | None = None
        self._has_beaten = False
        self._dropped: set[str] = set()

    @property
    def is_on(self) -> bool:
        """Say whether the last use of the database failed."""
        return self._since is not None

    @property
    def has_beaten(self) -> bool:
        """Say whether the node has beaten since the last outage: what is said of live nodes may be wrong till then."""
        return self._has_beaten

    def failed(self, error: Exception) -> None:
        """Note that the database could not be used."""
        if isinstance(error, DatabaseGone) and self._on_gone is not None:
            self._on_gone(error)
            return
        self._has_beaten = False
        with self._lock:
            now = self.clock.monotonic()
            if self._since is None:
                self._since = now
            is_new = self._told_at is None or now - self._told_at >= QUIET_SECONDS
            if self._is_told or not (is_new or now - self._since >= LONG_SECONDS):
                return
            self._is_told, self._told_at = True, now
        self._events.emit(e.DatabaseLost(str(error)))

    def dropped(self, what: str, error: Exception) -> None:
        """Note that something which is only shown could not be written; what else than an outage is told once."""
        if is_outage(error):
            self.failed(error)
        elif what not in self._dropped:
            self._dropped.add(what)
            self._events.emit(e.Warned(f"{what}; this is said once: {first_line(error)}"))

    def beat(self) -> None:
        """Note that the node has beaten."""
        self.worked()
        self._has_beaten = True

    def worked(self) -> None:
        """Note that it could."""
        if self._since is None:
            return
        with self._lock:
            since, is_told = self._since, self._is_told
            self._since, self._is_told = None, False
        if since is not None and is_told:
            self._events.emit(e.DatabaseBack(self.clock.monotonic() - since))

    async def pause(self, failures: int) -> None:
        """Wait before the next try: longer after each failure, moved at random so that nodes do not return at once."""
        jitter = random.uniform(-0.1, 0.1)  # noqa: S311 - spreads load, guards nothing
        await self.clock.sleep(retry_delay(failures, FIRST_PAUSE_SECONDS, 2.0, LONGEST_PAUSE_SECONDS, jitter))

    async def until_it_works(self, use: Callable[[], Awaitable[T]]) -> T:
        """Do `use` again and again until the database can be used; only then return what it gave.

        Raises:
            DatabaseGone: it never will be.
        """
        failures = 0
        while True:
            try:
                result = await use()
            except DatabaseGone as error:
                self.failed(error)
                raise
            except DatabaseError as error:
                failures += 1
                self.failed(error)
                await self.pause(failures)
            else:
                self.worked()
                return result

"""A database for a process that triggers but runs no node: opened at the first use, and kept.

Connections belong to the event loop that opened them, so there is one database for each loop, and it must not outlive
its loop. The last act of `asyncio.run` is to close the loop's asynchronous generators; therefore each database is held
by one, which closes it in its `finally`. A loop that ends otherwise leaves the connections to the interpreter's end.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from jobrunner.errors import DatabaseGone, DatabaseUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from jobrunner.storage.database.database import Database

CHECK_AGAIN_SECONDS = 5.0
"""How old the last look at the schema's version may be: a newer one is refused also by who stays connected."""


class KeptDatabases:
    """One database for each event loop that asks for it."""

    def __init__(
        self,
        open_database: Callable[[], Database],
        prepare: Callable[[Database], Awaitable[None]],
        check: Callable[[Database], Awaitable[None]],
        *,
        failing_seconds: float = 0.0,
    ) -> None:
        """Open nothing yet; for `failing_seconds` after it could not be reached that is said without another try."""
        self._open = open_database
        self._prepare = prepare
        self._check = check
        self._failing_seconds = failing_seconds
        self._kept: dict[asyncio.AbstractEventLoop, _Kept] = {}

    async def get(self) -> Database:
        """Return the running loop's database, its schema looked at moments ago.

        Raises:
            JobrunnerError: it cannot be opened, or its schema is not this code's.
        """
        loop = asyncio.get_running_loop()
        while True:
            kept = self._kept.setdefault(loop, _Kept())
            async with kept.turn:
                if kept.failure is not None and time.monotonic() - kept.failed_at < self._failing_seconds:
                    raise kept.failure.with_traceback(None)  # whoever waited for that try need not wait for another
                if self._kept.get(loop) is not kept:  # it was given up while we waited
                    continue
                try:
                    ready = await self._ready(loop, kept)
                except DatabaseUnavailable as failure:
                    kept.failure, kept.failed_at = failure, time.monotonic()
                    if self._failing_seconds:
                        self._kept.setdefault(loop, kept)  # so that whoever asks next knows
                    raise
                kept.failure = None
                return ready

    async def _ready(self, loop: asyncio.AbstractEventLoop, kept: _Kept) -> Database:
        if kept.db is not None and kept.holder is not None and _is_gone(kept.db):
            await kept.holder.aclose()
            kept.db = None
            self._kept[loop] = kept
        if kept.db is None:
            holder = self._hold(loop)
            kept.db = await anext(holder)
            kept.holder = holder
        elif time.monotonic() - kept.checked_at > CHECK_AGAIN_SECONDS:
            await self._check(kept.db)
        else:
            return kept.db
        kept.checked_at = time.monotonic()
        return kept.db

    async def close(self) -> None:
        """Close the running loop's database, if there is one."""
        kept = self._kept.get(asyncio.get_running_loop())
        if kept is not None and kept.holder is not None:
            await kept.holder.aclose()

    def forget(self) -> None:
        """Have every loop close its database soon: the next use opens another."""
        for loop, kept in list(self._kept.items()):
            if kept.holder is not None and loop.is_running():
                asyncio.run_coroutine_threadsafe(_close(kept.holder), loop)

    async def _hold(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[Database]:
        db = self._open()
        try:
            await self._prepare(db)
            yield db
        finally:
            self._kept.pop(loop, None)
            await db.close()


async def _close(holder: AsyncGenerator[Database]) -> None:
    await holder.aclose()


def _is_gone(db: Database) -> bool:
    """Say whether SQLite's file is no longer the one that was opened: then the one of that name now is the database."""
    try:
        db.check_file(is_now=True)  # else the use that follows may be the one to find out
    except DatabaseGone:
        return True
    return False


class _Kept:
    """What is kept for one loop; `turn` lets one task at a time open or look."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.db: Database | None = None
        self.holder: AsyncGenerator[Database] | None = None
        self.checked_at = 0.0
        self.failure: DatabaseUnavailable | None = None
        self.failed_at = 0.0

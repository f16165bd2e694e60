"""Ending a run in the transaction of its handler's own writes: both are committed, or neither.

The claim is looked at when the transaction begins, so that work for a run that was taken away is not even started, and
again, under the locks that finishing takes, when it ends: a run that is no longer this node's rolls everything back.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import sqlalchemy as sa

from jobrunner.errors import ClaimLost, Refused
from jobrunner.storage.database import wakeups
from jobrunner.storage.runs.finishes import finish_within, probe_after
from jobrunner.storage.tables import define as t

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sqlalchemy.ext.asyncio import AsyncConnection as AsyncConnection  # noqa: PLC0414 - for the floors above

    from jobrunner.model.run import Run
    from jobrunner.storage.database.database import Database
    from jobrunner.storage.runs.finishes import Ended, Finished


@asynccontextmanager
async def finishing(
    db: Database, run: Run, end: Callable[[], Ended], on_committed: Callable[[Finished], None]
) -> AsyncIterator[AsyncConnection]:
    """One writing transaction that ends `run` with what `end()` returns when the block is left without an error.

    Raises:
        ClaimLost: the run is no longer this node's; nothing is written.
        Refused: the block ended the transaction itself.
    """
    r = t.runs
    is_ours = sa.select(r.c.id).where(r.c.id == run.id, r.c.fence == run.fence)
    async with db.write(is_long=True) as conn:
        if (await conn.execute(is_ours)).first() is None:
            raise ClaimLost(run.id)
        own = conn.sync_connection.get_transaction()  # type: ignore[union-attr]  # it has one: it is open
        yield conn
        now = conn.sync_connection.get_transaction()  # type: ignore[union-attr]
        if now is not own or now is None or not now.is_active:
            raise Refused("the block of run.transaction() must not commit or roll back itself; the run did not end")
        ended = [end()]
        finished = await finish_within(conn, db.dialect, ended)
        if not finished.written:
            raise ClaimLost(run.id)
        if finished.has_released:
            await wakeups.notify(db, conn)
    on_committed(finished)
    await probe_after(db, finished, ended)

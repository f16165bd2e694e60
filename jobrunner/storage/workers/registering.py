"""Registering the definitions of a program that runs no node: all of them, or those that are missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobrunner.storage.database import wakeups
from jobrunner.storage.workers.definitions import Registered, register
from jobrunner.storage.workers.relations import existing_names

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.model.named_limit import LimitConfig
    from jobrunner.model.worker import WorkerConfig
    from jobrunner.storage.database.database import Database


async def register_all(
    db: Database,
    configs: Sequence[WorkerConfig],
    version: int | None,
    now: datetime,
    limits: Sequence[LimitConfig] = (),
) -> Registered:
    """Register all `configs` and named `limits` in a transaction of their own. Raises as `workers.register`."""
    async with db.write(is_long=True) as conn:
        registered = await register(conn, db.dialect, configs, version, now, limits)
        await wakeups.notify(db, conn)
        return registered


async def register_missing(
    db: Database,
    conn: AsyncConnection,
    configs: Sequence[WorkerConfig],
    version: int | None,
    now: datetime,
    limits: Sequence[LimitConfig] = (),
) -> Registered:
    """Register those of `configs` and of named `limits` that the database does not know, in the transaction of `conn`.

    What is known stays as it is: its definition may be of a newer version of the code. Raises as `workers.register`.
    """
    await db.dialect.lock_for_migration(conn)  # who registers at the same time comes first, or waits
    known = await existing_names(conn, db.dialect, [config.name for config in configs])
    missing = [config for config in configs if config.name not in known]
    registered = await register(conn, db.dialect, missing, version, now, limits, keeps_limits=True)
    await wakeups.notify(db, conn)
    return registered

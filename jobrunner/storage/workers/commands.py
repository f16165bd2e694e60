"""Command workers: those that an operator adds at the command line, whose code is a command of the system."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobrunner.errors import Refused
from jobrunner.policy.definitions import check_definition, to_document
from jobrunner.storage.database import wakeups
from jobrunner.storage.records.audit import audit_row, write_audits
from jobrunner.storage.workers import definitions as workers
from jobrunner.storage.workers.relations import existing_names

if TYPE_CHECKING:
    from datetime import datetime

    from jobrunner.model.worker import WorkerConfig
    from jobrunner.storage.database.database import Database


async def add(db: Database, config: WorkerConfig, now: datetime, actor: str) -> WorkerConfig:
    """Store a new worker as its operator defines it, and write down who did.

    Returns:
        The definition with the defaults of its mode filled in.

    Raises:
        InvalidWorker: the definition does not hold together, or names a worker that does not exist.
        DependencyCycle: workers would wait for each other in a circle.
        Refused: there is a worker of that name already.
    """
    config = check_definition(config)
    async with db.write() as conn:
        await db.dialect.lock_for_migration(conn)  # as registering does: nobody else adds this name meanwhile
        if await existing_names(conn, db.dialect, [config.name]):
            raise Refused(
                f"there is a worker {config.name!r} already; `jobrunner admin set` changes it, "
                "`jobrunner admin remove` removes it"
            )
        await workers.register(conn, db.dialect, [config], None, now)
        await write_audits(conn, [audit_row("add", config.name, to_document(config), now, actor)])
        await wakeups.notify(db, conn)
    return config

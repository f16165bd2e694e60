"""A payload against what a node has said of its worker's handler: for those who trigger without having the code."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.policy.payload_schema import check_fits
from jobrunner.storage.tables import define as t

if TYPE_CHECKING:
    from jobrunner.storage.database.database import Database

_LARGE_BYTES = 64 * 1024


async def refuse_misfit(db: Database, worker: str, payload: dict[str, Any] | None) -> None:
    """Pass a payload that the worker's handler may take; None: the worker's own. An unknown worker passes, too.

    To be called before the transaction that uses the payload: a megabyte takes seconds to check, in which nobody else
    could write on SQLite. In that time the event loop goes on.

    Raises:
        InvalidPayload: the handler would refuse it; the message names each field that is wrong, and why.
    """
    w = t.workers
    async with db.peek() as conn:
        found = (await conn.execute(sa.select(w.c.payload, w.c.payload_schema).where(w.c.name == worker))).first()
    if found is None or not found.payload_schema:
        return
    given = found.payload if payload is None else payload
    if len(json.dumps(given, default=str)) <= _LARGE_BYTES:
        check_fits(worker, given, found.payload_schema)
    else:
        await asyncio.to_thread(check_fits, worker, given, found.payload_schema)

"""A payload against what a node has said of its worker's handler: for those who trigger without having the code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.policy.payload_schema import check_fits
from jobrunner.storage.tables import define as t

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection


async def refuse_misfit(conn: AsyncConnection, worker: str, payload: dict[str, Any] | None) -> None:
    """Pass a payload that the worker's handler may take; None: the worker's own. An unknown worker passes, too.

    Raises:
        InvalidPayload: the handler would refuse it; the message names each field that is wrong, and why.
    """
    w = t.workers
    found = await conn.execute(sa.select(w.c.payload, w.c.payload_schema).where(w.c.name == worker))
    for own, schema in found:
        check_fits(worker, own if payload is None else payload, schema)

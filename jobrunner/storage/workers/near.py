"""A worker that there is not: which one was probably meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from jobrunner.errors import DatabaseError, WorkerNotFound
from jobrunner.policy.near import near_name
from jobrunner.storage.tables import define as t

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.database.database import Database

_NEIGHBOURS = 1000
"""So many names are compared on either side of the one that was given; there may be 100,000 workers."""


async def with_near_name(db: Database, unknown: WorkerNotFound, others: Iterable[str] = ()) -> WorkerNotFound:
    """Return the error with the name of the worker that was probably meant; the same one where no name is near.

    It is one that the database knows, or one of `others`.
    """
    if unknown.is_advised:
        return unknown
    try:
        async with db.peek() as conn:
            return await naming_a_near_one(conn, unknown, others)
    except DatabaseError:  # the worker is not there, and that is what matters
        return unknown


async def naming_a_near_one(
    conn: AsyncConnection, unknown: WorkerNotFound, others: Iterable[str] = ()
) -> WorkerNotFound:
    """Do the same in a transaction of the caller's."""
    name = t.workers.c.name
    before = sa.select(name).where(name < unknown.worker).order_by(name.desc()).limit(_NEIGHBOURS)
    after = sa.select(name).where(name > unknown.worker).order_by(name).limit(_NEIGHBOURS)
    known = [*(await conn.execute(before)).scalars(), *(await conn.execute(after)).scalars(), *others]
    near = near_name(unknown.worker, known)
    return unknown if near is None else WorkerNotFound(unknown.worker, f"did you mean {near!r}?")

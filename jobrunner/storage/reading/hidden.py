"""Which fields of their payloads workers hide from all but administrators."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from jobrunner.storage.tables import define as t

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy.ext.asyncio import AsyncConnection


async def read_hidden(conn: AsyncConnection, names: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return the hidden fields of each of `names` that the database knows."""
    w = t.workers
    rows = await conn.execute(sa.select(w.c.name, w.c.hidden_fields).where(w.c.name.in_(sorted(names))))
    return {name: tuple(map(str, fields)) for name, fields in rows}


async def read_all_hidden(conn: AsyncConnection) -> set[str]:
    """Return every field that any worker hides."""
    fields = t.workers.c.hidden_fields
    some = sa.select(fields).where(sa.cast(fields, sa.Text) != "[]").distinct()
    return {str(field) for row in (await conn.execute(some)).scalars() for field in row}

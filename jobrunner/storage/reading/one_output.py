"""What one attempt of a run has said, whole, and nothing else of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from jobrunner.errors import RunNotFound
from jobrunner.storage.tables import define as t

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection


async def read_output(conn: AsyncConnection, run_id: int, attempt: int | None = None) -> str:
    """Return the output of an attempt, of a live one what there is so far; None: of the last that there is.

    Raises:
        RunNotFound: there is no such run, or its history was pruned, or it has no such attempt.
    """
    r, h = t.runs, t.run_history
    live = sa.select(r.c.attempt, r.c.output).where(r.c.id == run_id, r.c.slot.is_not(None))
    ended = sa.select(h.c.output).where(h.c.run_id == run_id).order_by(h.c.id.desc()).limit(1)
    if attempt is not None:
        ended = ended.where(h.c.attempt == attempt)
    running = (await conn.execute(live)).first()  # before the history: a run is in one of the two at any time
    if running is not None and attempt in {None, running.attempt}:
        return running.output or ""
    found = (await conn.execute(ended)).first()
    if found is None:
        raise RunNotFound(run_id, is_live=False)
    return found.output or ""

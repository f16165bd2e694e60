"""Reading one page of a list, after the last row of the page before: for clients that ask for it over HTTP.

Whoever asks for the next page names the place where the last one ended, which is all that is kept of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.errors import WorkerNotFound
from jobrunner.storage.reading.pages import read_waiting_after
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.claims import is_active

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection


async def names_after(conn: AsyncConnection, after: str | None, limit: int) -> list[str]:
    """Return the names of at most `limit` workers in their order, those after `after`."""
    w = t.workers
    statement = sa.select(w.c.name).order_by(w.c.name).limit(limit)
    if after is not None:
        statement = statement.where(w.c.name > after)
    return list((await conn.execute(statement)).scalars())


async def live_runs_after(
    conn: AsyncConnection, worker: str | None, limit: int, after: tuple[str, datetime, int] | None
) -> list[dict[str, Any]]:
    """Return at most `limit` live runs: the active ones by start, then those that wait by due time.

    `after` is the place of the last row of the page before: `active` with its start, or `waiting` with its due time,
    and its id. What starts or ends meanwhile may be seen twice, or not.

    Raises:
        WorkerNotFound: there is no worker of that name.
    """
    await _require(conn, worker)
    rows: list[dict[str, Any]] = []
    is_past_active = after is not None and after[0] == "waiting"
    if not is_past_active:
        place = None if after is None else after[1:]
        rows = await _active(conn, worker, limit, place)
    if len(rows) < limit:
        last = None if after is None or not is_past_active else {"due_at": after[1], "id": after[2]}
        rows += await read_waiting_after(conn, worker, last, limit - len(rows))
    return rows


async def _require(conn: AsyncConnection, worker: str | None) -> None:
    known = sa.select(t.workers.c.name).where(t.workers.c.name == worker)
    if worker is not None and (await conn.execute(known)).first() is None:
        raise WorkerNotFound(worker)


async def _active(
    conn: AsyncConnection, worker: str | None, limit: int, after: Sequence[Any] | None
) -> list[dict[str, Any]]:
    """Read active runs; there are no more than the nodes have slots."""
    r = t.runs
    active = sa.select(r.c.started_at, r.c.id).where(is_active())
    if worker is not None:
        active = active.where(r.c.worker == worker)
    places = sorted((row.started_at, row.id) for row in await conn.execute(active))
    ids = [run_id for started, run_id in places if after is None or (started, run_id) > tuple(after)][:limit]
    found = {row["id"]: dict(row) for row in (await conn.execute(sa.select(r).where(r.c.id.in_(ids)))).mappings()}
    return [found[run_id] for run_id in ids if run_id in found and found[run_id]["slot"] is not None]

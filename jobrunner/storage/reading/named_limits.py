"""Named limits as they stand: what holds, in its two layers, which workers name them, and what runs under them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.claims import claims
from jobrunner.storage.tables.limit_tables import limits
from jobrunner.storage.workers.named_limits import require_limit

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

MOST_NAMED = 20
"""So many holders, and so many workers, of one limit are named; the rest are counted."""
_SHOWN = ("name", "max_running", "rate", "definition", "overrides", "created_at", "updated_at")
_COLUMNS = tuple(limits.c[name] for name in _SHOWN)


async def list_limits(conn: AsyncConnection, most: int, after: str | None = None) -> list[dict[str, Any]]:
    """Return limits by name, at most so many, those after the name `after`; with how many workers name each.

    `running` is the number of active runs of those workers.
    """
    behind = sa.true() if after is None else limits.c.name > after
    return await _read(conn, sa.select(*_COLUMNS).where(behind).order_by(limits.c.name).limit(most))


async def read_limit(conn: AsyncConnection, name: str) -> dict[str, Any]:
    """Return a limit with who runs in it now, the lowest ids first, and which workers name it; the first of each.

    `running` and `workers` count all of them, `holders` and `worker_names` name at most `MOST_NAMED`.

    Raises:
        LimitNotFound: there is no such limit.
    """
    await require_limit(conn, name)
    (row,) = await _read(conn, sa.select(*_COLUMNS).where(limits.c.name == name))
    n = t.worker_limits
    is_named = sa.exists().where(n.c.worker == claims.c.worker, n.c.limit_name == name)
    held = sa.select(claims.c.run_id, claims.c.worker).where(is_named).order_by(claims.c.run_id).limit(MOST_NAMED)
    holders = (await conn.execute(held)).mappings()
    its_workers = sa.select(n.c.worker).where(n.c.limit_name == name).order_by(n.c.worker).limit(MOST_NAMED)
    names = (await conn.execute(its_workers)).scalars()
    return {**row, "holders": [dict(each) for each in holders], "worker_names": list(names)}


async def read_fill(conn: AsyncConnection, most: int) -> list[tuple[str, int, int | None]]:
    """Return of the first limits by name the number of active runs, and how many there may be."""
    rows = (
        await conn.execute(sa.select(limits.c.name, limits.c.max_running).order_by(limits.c.name).limit(most))
    ).all()
    running = await _running(conn) if rows else {}
    return [(row.name, running.get(row.name, 0), row.max_running) for row in rows]


async def _running(conn: AsyncConnection) -> dict[str, int]:
    """Return the number of active runs under each limit that has any: from those that are active, who are few."""
    n = t.worker_limits
    active = sa.select(claims.c.worker, sa.func.count().label("n")).group_by(claims.c.worker).subquery()
    counts = sa.select(n.c.limit_name, sa.func.sum(active.c.n).label("n"))
    counts = counts.join_from(active, n, n.c.worker == active.c.worker).group_by(n.c.limit_name)
    return {row.limit_name: int(row.n) for row in await conn.execute(counts)}


async def _read(conn: AsyncConnection, statement: sa.Select[Any]) -> list[dict[str, Any]]:
    rows = [dict(row) for row in (await conn.execute(statement)).mappings()]
    names = [row["name"] for row in rows]
    workers, running = await _workers(conn, names), await _running(conn) if rows else {}
    return [{**row, "workers": workers.get(row["name"], 0), "running": running.get(row["name"], 0)} for row in rows]


async def _workers(conn: AsyncConnection, names: list[str]) -> dict[str, int]:
    n = t.worker_limits
    counts = sa.select(n.c.limit_name, sa.func.count().label("n")).where(n.c.limit_name.in_(names))
    rows = await conn.execute(counts.group_by(n.c.limit_name)) if names else ()
    return {row.limit_name: row.n for row in rows}

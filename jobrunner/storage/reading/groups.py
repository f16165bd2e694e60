"""Batches and flows, for who asks: which batches there are and how far they are, and what a step waits for."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.errors import BatchNotFound
from jobrunner.policy.batches import ON_FAILURE, ON_FINISH, ON_SUCCESS, state_of, why_open
from jobrunner.storage.tables import define as t

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy.ext.asyncio import AsyncConnection

MOST_COUNTED = 10_000
_CALLED = (ON_SUCCESS, ON_FAILURE, ON_FINISH)


async def live_parents(conn: AsyncConnection, run_ids: Collection[int]) -> dict[int, list[tuple[int, str]]]:
    """Return the live runs that each of these waits for, by id, with the names of their steps (or workers)."""
    e, r = t.run_after, t.runs
    found: defaultdict[int, list[tuple[int, str]]] = defaultdict(list)
    if not run_ids:
        return {}
    statement = (
        sa.select(e.c.run_id, r.c.id, sa.func.coalesce(r.c.step, r.c.worker).label("name"))
        .join(r, r.c.id == e.c.after_run_id)
        .where(e.c.run_id.in_(sorted(run_ids)))
        .order_by(e.c.run_id, r.c.id)
    )
    for run_id, parent, name in await conn.execute(statement):
        found[run_id].append((parent, name))
    return dict(found)


async def list_batches(conn: AsyncConnection, limit: int, before: int | None = None) -> list[dict[str, Any]]:
    """Return the newest batches first, at most `limit`, of those before the id `before`, as `read_batch` does each."""
    b = t.batches
    statement = _batches().order_by(b.c.id.desc()).limit(limit)
    if before is not None:
        statement = statement.where(b.c.id < before)
    return [_shown(row) for row in (await conn.execute(statement)).mappings()]


async def read_batch(conn: AsyncConnection, batch_id: int) -> dict[str, Any]:
    """Return one batch.

    Returns:
        its row, its `state` (`open`, `sealed`, `finished` or `failed`), how many members are `live` and have `ended`,
        each counted up to `MOST_COUNTED` (one more: there are more), and `why` it has not finished.

    Raises:
        BatchNotFound: there is none of that id.
    """
    row = (await conn.execute(_batches().where(t.batches.c.id == batch_id))).mappings().first()
    if row is None:
        raise BatchNotFound(batch_id)
    return _shown(row)


def _batches() -> sa.Select[Any]:
    b, r, h, w = t.batches, t.runs, t.run_history, t.workers
    unknown = [
        sa.case((sa.or_(b.c[call].is_(None), sa.exists().where(w.c.name == b.c[call])), None), else_=b.c[call])
        for call in _CALLED
    ]
    return sa.select(
        b,
        _count(sa.select(r.c.id).where(r.c.batch_id == b.c.id)).label("live"),
        _count(sa.select(h.c.id).where(h.c.batch_id == b.c.id, h.c.ends_run.is_not(None))).label("ended"),
        sa.func.coalesce(*unknown).label("unknown"),
    )


def _count(members: sa.Select[Any]) -> sa.ScalarSelect[Any]:
    some = members.correlate(t.batches).limit(MOST_COUNTED + 1).subquery()
    return sa.select(sa.func.count()).select_from(some).scalar_subquery()


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    shown = {name: value for name, value in row.items() if name != "unknown"}
    return {**shown, "state": state_of(row), "why": why_open(row)}

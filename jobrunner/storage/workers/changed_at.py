"""Changing what holds for workers: holding their state rows, and when the change counts as made."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.policy.clocks import shifted
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.claims import is_active
from jobrunner.storage.tables.rows import names_json

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.database.dialect import Dialect


async def after_starts(
    conn: AsyncConnection, names: sa.Select[Any], now: datetime, parameters: Mapping[str, Any]
) -> datetime:
    """Return `now`, or later: after all that was started under the definitions that are about to change.

    The caller holds the state rows. While it waited for them others may have claimed, by the old definition and later
    than `now`; `db verify` judges a start by the new one if it is not before the change.
    """
    s, r = t.worker_state, t.runs
    ended = sa.select(sa.func.max(s.c.last_run_at), sa.func.max(s.c.last_ended_at)).where(s.c.worker.in_(names))
    started = sa.select(sa.func.max(r.c.started_at)).where(r.c.worker.in_(names), is_active())
    moments = [*(await conn.execute(ended, parameters)).one(), (await conn.execute(started, parameters)).scalar()]
    latest = max((moment for moment in moments if moment is not None), default=None)
    return now if latest is None or latest < now else shifted(latest, timedelta(microseconds=1))


async def hold_states(conn: AsyncConnection, dialect: Dialect, names: Collection[str]) -> None:
    """Hold the `worker_state` rows of workers until the transaction ends, taken in the order of names, as claims do."""
    s = t.worker_state
    given = dialect.rows("names", name=sa.Text())
    hold = sa.select(s.c.worker).where(s.c.worker.in_(sa.select(given.c.name))).order_by(s.c.worker)
    await conn.execute(hold.with_for_update(key_share=True, of=s), {"names": names_json(names)})

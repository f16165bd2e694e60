"""Changing the waiting run that has a trigger's key: its payload, or its time.

Exact beside claims: the row is locked while it waits and has never started, and a claim that waits for the lock returns
the row as it is then. Where the claim came first nothing is changed, and the caller looks for the key again.

On PostgreSQL a caller's transaction holds the row until it ends, and a node that would start the run waits so long. A
later time needs no new look: a node that knows the old one looks then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.errors import DatabaseError, Refused
from jobrunner.policy.duplicates import REPLACE, postponed
from jobrunner.storage.database.dialect import links
from jobrunner.storage.database.rowsets import built_once
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.types import Json, UtcDateTime

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.database.dialect import Dialect

_NO_RIGHT = "42501"
"""PostgreSQL's SQLSTATE; SQLite knows no rights."""
_UNTOUCHED = "runs.state = 'pending' AND runs.first_started_at IS NULL"


@dataclass(frozen=True, slots=True)
class Change:
    """What a trigger wants of the run that has its key: `policy.duplicates` says what each kind does with the rest."""

    kind: str
    payload: dict[str, Any] | None
    limit_key: str | None
    asked: datetime
    at_most: timedelta | None


async def change_waiting(
    conn: AsyncConnection, dialect: Dialect, run_id: int, change: Change, now: datetime
) -> bool | None:
    """Change a run that has never started; say whether that changed anything. None: it has started, or is gone.

    Raises:
        Refused: the user of the database may add runs and change none.
    """
    try:
        return await _change(conn, dialect, run_id, change, now)
    except (DatabaseError, sa.exc.DBAPIError) as error:  # the latter on a connection of the caller's
        if all(getattr(link, "sqlstate", None) != _NO_RIGHT for link in links(error)):
            raise
        raise Refused(
            f"run {run_id} has that key, and this database user may add runs but change none:"
            f" on_duplicate {change.kind!r} needs what `jobrunner db grants --role NAME --for operate` prints"
        ) from error


async def _change(conn: AsyncConnection, dialect: Dialect, run_id: int, change: Change, now: datetime) -> bool | None:
    r = t.runs
    began = sa.func.coalesce(r.c.waits_since, r.c.created_at, type_=UtcDateTime()).label("began")
    hold = sa.select(r.c.due_at, began).where(r.c.id == run_id, sa.literal_column(_UNTOUCHED))
    row = (await conn.execute(hold.with_for_update(key_share=True, of=r))).first()
    if row is None:
        return None
    if change.kind == REPLACE:
        said = {"run_id": run_id, "payload": change.payload, "limit_key": change.limit_key}
        await conn.execute(_replace_statement(dialect), said)
        return True
    due_at = postponed(row.due_at, change.asked, row.began, change.at_most, now)
    if due_at is None:
        return False
    await conn.execute(sa.update(r).where(r.c.id == run_id).values(due_at=due_at, scheduled_for=due_at))
    return True


@built_once
def _replace_statement(dialect: Dialect) -> Any:
    r, w = t.runs, t.workers
    payload = sa.func.coalesce(sa.bindparam("payload", type_=Json), w.c.payload, type_=Json)
    key = sa.func.coalesce(sa.bindparam("limit_key", type_=sa.Text()), dialect.limit_key(payload, w.c.limit_key))
    return (
        sa.update(r)
        .where(r.c.id == sa.bindparam("run_id", type_=sa.BigInteger()), w.c.name == r.c.worker)
        .values(payload=payload, limit_key=key)
    )

"""Reading what is told to whom, for people: the alert rules, the incidents, how many messages wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.storage.database.rowsets import same
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.alert_tables import IS_OPEN, IS_SENT, IS_WAITING

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_SHOWN = ("name", "kinds", "workers", "channel", "repeat_seconds", "backlog_runs", "created_by", "created_at")
_WAITING: sa.ColumnElement[bool] = sa.literal_column(IS_WAITING)


async def list_rules(conn: AsyncConnection) -> list[dict[str, Any]]:
    """Return the rules with how many of their messages wait, and what the last of those failed of."""
    r, d = t.alert_rules, t.alert_deliveries
    mine = d.c.rule == r.c.name
    waiting = sa.select(sa.func.count()).where(mine, _WAITING).scalar_subquery()
    failed = sa.select(d.c.last_error).where(mine, _WAITING).order_by(d.c.id).limit(1).scalar_subquery()
    # They are sent in order, so that the newest of those that were sent is the last.
    is_sent: sa.ColumnElement[bool] = sa.literal_column(IS_SENT)
    newest = sa.select(d.c.sent_at).where(same(d.c.rule, r.c.name), is_sent).order_by(d.c.rule.desc(), d.c.id.desc())
    sent = newest.limit(1).scalar_subquery()
    statement = sa.select(
        *(r.c[name] for name in _SHOWN),
        waiting.label("waiting"),
        failed.label("last_error"),
        sent.label("last_sent_at"),
    ).order_by(r.c.name)
    return [dict(row) for row in (await conn.execute(statement)).mappings()]


async def list_incidents(
    conn: AsyncConnection,
    limit: int,
    *,
    worker: str | None = None,
    is_all: bool = False,
    before_id: int | None = None,
) -> list[dict[str, Any]]:
    """Return incidents, the newest first: the open ones, or with `is_all` every one that is left."""
    a = t.alerts
    shown = (a.c.id, a.c.kind, a.c.worker, a.c.subject, a.c.opened_at, a.c.last_at, a.c.closed_at, a.c.count)
    statement = sa.select(*shown, a.c.summary, a.c.recovered, a.c.detail).order_by(a.c.id.desc()).limit(limit)
    if worker is not None:
        statement = statement.where(a.c.worker == worker)
    if not is_all:
        statement = statement.where(sa.literal_column(IS_OPEN))
    if before_id is not None:
        statement = statement.where(a.c.id < before_id)
    return [dict(row) for row in (await conn.execute(statement)).mappings()]


async def count_waiting(conn: AsyncConnection, most: int) -> int:
    """Return how many messages wait for their receivers, counted up to `most`."""
    some = sa.select(sa.literal_column("1")).select_from(t.alert_deliveries).where(_WAITING).limit(most).subquery()
    return int((await conn.execute(sa.select(sa.func.count()).select_from(some))).scalar_one())

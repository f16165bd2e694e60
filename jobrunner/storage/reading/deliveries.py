"""Whom incidents were told, and which messages wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.storage.database.rowsets import same
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.alert_tables import IS_WAITING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    Row = dict[str, Any]

MOST_OF_EACH = 50
"""So many of the newest messages of each incident are read."""
_SHOWN = ("id", "alert_id", "rule", "message", "created_at", "attempts", "next_at", "sent_at", "given_up_at")
_WAITING: sa.ColumnElement[bool] = sa.literal_column(IS_WAITING)


async def read_told(conn: AsyncConnection, incidents: Collection[int]) -> dict[int, list[Row]]:
    """Return the newest messages of each incident, the newest first, without what was sent."""
    d = t.alert_deliveries
    columns = [*(d.c[name] for name in _SHOWN), d.c.last_error]
    found: dict[int, list[Row]] = {}
    for incident in incidents:  # each along its index: of all at once, one with many would hide the others
        newest = sa.select(*columns).where(same(d.c.alert_id, sa.literal(incident)))
        ordered = newest.order_by(d.c.alert_id.desc(), d.c.id.desc()).limit(MOST_OF_EACH)
        rows = [dict(row) for row in (await conn.execute(ordered)).mappings()]
        if rows:
            found[incident] = rows
    return found


async def list_waiting(conn: AsyncConnection, most: int) -> Sequence[Row]:
    """Return the messages that wait for their receivers, by rule and age, at most `most`."""
    d = t.alert_deliveries
    columns = [*(d.c[name] for name in _SHOWN), d.c.last_error]
    waiting = sa.select(*columns).where(_WAITING).order_by(d.c.rule, d.c.id).limit(most)
    return [dict(row) for row in (await conn.execute(waiting)).mappings()]


def told_to(rows: Sequence[Row]) -> list[tuple[str, str, datetime, int, str | None]]:
    """Return of an incident's messages how each rule stands: its name, a word, since when, how many, what failed.

    The word is `told`, `waits` or `given up`, that of the newest message. Pure.
    """
    by_rule: dict[str, list[Row]] = {}
    for row in rows:
        by_rule.setdefault(row["rule"], []).append(row)
    return [(rule, *_stands(each[0]), len(each), each[0]["last_error"]) for rule, each in sorted(by_rule.items())]


def _stands(row: Row) -> tuple[str, datetime]:
    if row["sent_at"] is not None:
        return "told", row["sent_at"]
    return ("waits", row["created_at"]) if row["given_up_at"] is None else ("given up", row["given_up_at"])

"""Adding and removing alert rules. A change is one transaction with its audit row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from jobrunner.errors import AlertRuleNotFound, Refused
from jobrunner.storage.records.alerts import rule_of
from jobrunner.storage.records.audit import audit_row, write_audits
from jobrunner.storage.records.history import storable
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.alert_tables import IS_WAITING

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.model.alerts import AlertRule
    from jobrunner.storage.database.database import Database

_WAITING: sa.ColumnElement[bool] = sa.literal_column(IS_WAITING)


async def add(db: Database, rule: AlertRule, now: datetime, actor: str) -> None:
    """Add a rule.

    Raises:
        Refused: there is one of that name.
    """
    row = {
        "name": rule.name,
        "kinds": sorted(rule.kinds),
        "workers": rule.workers,
        "channel": dict(rule.channel),
        "repeat_seconds": rule.repeat_seconds,
        "backlog_runs": rule.backlog_runs,
    }
    async with db.write() as conn:
        insert = db.dialect.insert(t.alert_rules).on_conflict_do_nothing().returning(t.alert_rules.c.name)
        added = await conn.execute(insert, {**row, "created_by": storable(actor), "created_at": now})
        if added.first() is None:
            raise Refused(
                f"there is an alert rule {rule.name!r} already; `jobrunner alerts remove {rule.name}` removes it"
            )
        await write_audits(conn, [audit_row("alert_add", None, row, now, actor)])


async def remove(db: Database, name: str, now: datetime, actor: str) -> int:
    """Remove a rule and its messages that wait; return how many those were. What was sent is kept.

    Raises:
        AlertRuleNotFound: there is no such rule.
    """
    r, d = t.alert_rules, t.alert_deliveries
    async with db.write() as conn:
        gone = await conn.execute(sa.delete(r).where(r.c.name == name).returning(r.c.name))
        if gone.first() is None:
            raise AlertRuleNotFound(name)
        dropped = await conn.execute(sa.delete(d).where(d.c.rule == name, _WAITING).returning(d.c.id))
        count = len(dropped.all())
        await write_audits(conn, [audit_row("alert_remove", None, {"name": name, "dropped": count}, now, actor)])
        return count


async def read_rule(conn: AsyncConnection, name: str) -> AlertRule:
    """Return one rule. Raises `AlertRuleNotFound`."""
    r = t.alert_rules
    row = (await conn.execute(sa.select(r).where(r.c.name == name))).mappings().first()
    if row is None:
        raise AlertRuleNotFound(name)
    return rule_of(dict(row))

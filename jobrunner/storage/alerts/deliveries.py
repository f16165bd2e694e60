"""The outbox of alerts: taking a rule's messages in order, and noting what became of them.

The protocol. One node at a time sends the messages of a rule, in the order of their ids. It *takes* the rule by writing
its own id into `alert_rules.sender`, which it may where nobody is written there, or a node that is not alive: no clock
decides it, but whoever decides which nodes live. It sends the first message that waits, notes it as sent and goes on
with the next; after the last, and after one that was not taken, it leaves the rule to whoever comes first.

A crash. Before the message was sent: whoever takes the rule next sends it. After, but before that was noted: it is sent
again, with the same body and the same `idempotency_key`, by which the receiver knows it. The body is made at the first
try and kept, so that nothing in it changes between tries.

A message that is not taken waits, longer after each try, and those behind it wait with it: what is told first comes
first. After three days it is given up, and said so in its row.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.policy.alerts import GIVEN_UP_AFTER_SECONDS, pause_after
from jobrunner.storage.database.dialect import first_line
from jobrunner.storage.records.history import storable
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.alert_tables import IS_WAITING

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.database.database import Database

_WAITING: sa.ColumnElement[bool] = sa.literal_column(IS_WAITING)
_FAR_SECONDS = 2 * 300.0  # nobody waits longer for a try: what is due later was written under a clock that was wrong


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that waits. `body` is None until its first try."""

    id: int
    alert_id: int
    rule: str
    message: str
    idempotency_key: str
    count: int
    body: dict[str, Any] | None
    created_at: datetime
    attempts: int
    next_at: datetime

    def is_due(self, now: datetime) -> bool:
        """Say whether it may be tried."""
        return self.next_at <= now or self.next_at > now + timedelta(seconds=_FAR_SECONDS)


_COLUMNS = tuple(t.alert_deliveries.c[name] for name in Delivery.__slots__)


async def due_rules(conn: AsyncConnection, node_id: str, now: datetime) -> list[tuple[str, dict[str, Any]]]:
    """Return the rules, each with its channel, whose first waiting message is due and which this node may take."""
    r, d = t.alert_rules, t.alert_deliveries
    other = d.alias("other")
    waits = other.c.rule == r.c.name, other.c.sent_at.is_(None), other.c.given_up_at.is_(None)
    first = sa.select(other.c.id).where(*waits).order_by(other.c.id).limit(1).correlate(r).scalar_subquery()
    statement = (
        sa.select(r.c.name, r.c.channel, *_COLUMNS)
        .select_from(r.join(d, d.c.id == first))
        .where(_is_free(node_id))
        .order_by(d.c.id)
    )
    return [
        (name, channel if isinstance(channel, dict) else {})
        for name, channel, *row in await conn.execute(statement)
        if Delivery(*row).is_due(now)
    ]


def _is_free(node_id: str) -> sa.ColumnElement[bool]:
    r, n = t.alert_rules, t.nodes
    live: sa.ColumnElement[bool] = sa.literal_column("nodes.state IN ('active', 'draining')")
    held = sa.exists().where(n.c.id == r.c.sender, live)
    return sa.or_(r.c.sender.is_(None), r.c.sender == node_id, sa.not_(held))


async def take(db: Database, rule: str, node_id: str) -> bool:
    """Take a rule's messages; say whether this node may send them now."""
    r = t.alert_rules
    async with db.write() as conn:
        taken = sa.update(r).where(r.c.name == rule, _is_free(node_id)).values(sender=node_id).returning(r.c.name)
        return (await conn.execute(taken)).first() is not None


async def release(db: Database, rule: str, node_id: str) -> None:
    """Leave a rule's messages to others."""
    r = t.alert_rules
    async with db.write() as conn:
        await conn.execute(sa.update(r).where(r.c.name == rule, r.c.sender == node_id).values(sender=None))


async def next_of(db: Database, rule: str, now: datetime) -> Delivery | None:
    """Return a rule's first waiting message, if it is due."""
    d = t.alert_deliveries
    async with db.peek() as conn:
        statement = sa.select(*_COLUMNS).where(d.c.rule == rule, _WAITING).order_by(d.c.id).limit(1)
        row = (await conn.execute(statement)).first()
    found = None if row is None else Delivery(*row)
    return found if found is not None and found.is_due(now) else None


async def keep_body(db: Database, delivery_id: int, body: dict[str, Any]) -> None:
    """Keep what is sent, so that every try sends the same."""
    d = t.alert_deliveries
    async with db.write() as conn:
        await conn.execute(sa.update(d).where(d.c.id == delivery_id, d.c.body.is_(None)).values(body=body))


async def note_sent(db: Database, delivery: Delivery, now: datetime) -> None:
    """Note that a message was taken by its receiver."""
    d = t.alert_deliveries
    values = {"sent_at": now, "attempts": delivery.attempts + 1, "last_error": None}
    async with db.write() as conn:
        await conn.execute(sa.update(d).where(d.c.id == delivery.id, _WAITING).values(**values))


async def note_failed(db: Database, delivery: Delivery, error: Exception, now: datetime, jitter: float) -> None:
    """Note that a message was not taken, and when it is tried again, or that it is given up."""
    d = t.alert_deliveries
    attempts = delivery.attempts + 1
    is_over = now - delivery.created_at > timedelta(seconds=GIVEN_UP_AFTER_SECONDS)
    values = {
        "attempts": attempts,
        "next_at": now + timedelta(seconds=pause_after(attempts, jitter)),
        "given_up_at": now if is_over else None,
        "last_error": storable(first_line(error)),
    }
    async with db.write() as conn:
        await conn.execute(sa.update(d).where(d.c.id == delivery.id, _WAITING).values(**values))

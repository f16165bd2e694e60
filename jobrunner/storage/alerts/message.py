"""What a message of an alert says: made of the incident, the gates, and the run it is about.

Nothing of a payload is in it, so that nothing of `hidden_fields` can be; errors and output are what the code says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.errors import DatabaseError
from jobrunner.model.alerts import AlertKind, MessageKind
from jobrunner.policy.alerts import link_to, tail
from jobrunner.policy.words import first_line
from jobrunner.storage.database.rowsets import same
from jobrunner.storage.reading.explain import explain
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.types import to_json

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.alerts.deliveries import Delivery
    from jobrunner.storage.database.database import Database

_ROWS_LOOKED_AT = 50
_OF_STARTS = frozenset({AlertKind.TRIPPED, AlertKind.STALLED, AlertKind.NO_NODE, AlertKind.BACKLOG})
"""What is about runs that do not start."""
_EMPTY: dict[str, Any] = {
    "version": 1,
    "message": None,
    "rule": None,
    "kind": None,
    "worker": None,
    "summary": None,
    "explain": None,
    "last_error": None,
    "output": [],
    "link": None,
    "alert_id": None,
    "opened_at": None,
    "closed_at": None,
    "count": 0,
}


async def make(db: Database, delivery: Delivery, base_url: str | None, now: datetime) -> dict[str, Any]:
    """Return the body of a message, as JSON has it; `base_url` is where the console is, None if there is none."""
    a = t.alerts
    async with db.peek() as conn:
        row = (await conn.execute(sa.select(a).where(a.c.id == delivery.alert_id))).one()
        error, output = await _last_words(conn, row.worker, row.detail)
    is_over = delivery.message == MessageKind.CLOSE
    return _EMPTY | {
        "message": delivery.message,
        "rule": delivery.rule,
        "kind": row.kind,
        "worker": row.worker,
        "summary": row.recovered if is_over else row.summary,
        "explain": await _why(db, row.worker, now) if row.kind in _OF_STARTS and not is_over else None,
        "last_error": None if is_over else error,
        "output": [] if is_over else tail(output),
        "link": link_to(base_url, row.worker),
        "alert_id": row.id,
        "opened_at": to_json(row.opened_at),
        "closed_at": None if row.closed_at is None else to_json(row.closed_at),
        "count": row._mapping[a.c.count],
    }


def trial(rule: str, base_url: str | None, now: datetime) -> dict[str, Any]:
    """Return a message that says it is a test."""
    return _EMPTY | {
        "message": str(MessageKind.TEST),
        "rule": rule,
        "summary": f"a test of the alert rule {rule}: nothing is wrong",
        "link": link_to(base_url, None),
        "opened_at": to_json(now),
    }


async def _why(db: Database, worker: str | None, now: datetime) -> str | None:
    """Say which gate keeps the worker from starting, as `jobrunner explain` does."""
    if worker is None:
        return None
    try:
        found = await explain(db, worker, now)
    except DatabaseError:
        raise
    except Exception:  # noqa: BLE001 - it is gone, or its rows cannot be read: people are told all the same
        return None
    why = found["why"]
    return None if why is None else str(why)


async def _last_words(conn: AsyncConnection, worker: str | None, detail: Any) -> tuple[str | None, str | None]:
    """Return the error and the output of the run in question, or else of the worker's last attempt that failed."""
    h = t.run_history
    if worker is None:
        return None, None
    columns = (h.c.outcome, h.c.error_type, h.c.error, h.c.output)
    run_id = detail.get("run_id") if isinstance(detail, dict) else None
    if isinstance(run_id, int):
        statement = sa.select(*columns).where(h.c.run_id == run_id).order_by(h.c.id.desc())
    else:
        mine = sa.select(*columns).where(same(h.c.worker, sa.literal(worker)))
        statement = mine.order_by(h.c.worker.desc(), h.c.id.desc())
    for row in await conn.execute(statement.limit(_ROWS_LOOKED_AT)):
        if row.error is not None:
            error = first_line(row.error)
            return (f"{row.error_type}: {error}" if row.error_type else error), row.output
    return None, None

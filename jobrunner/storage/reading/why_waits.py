"""Why live runs wait although their time has come: beside each in a list, for the command line and the console."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobrunner.model.run import HELD_UNTIL
from jobrunner.policy.flows import why_held
from jobrunner.storage.reading.explain import why_due_waits
from jobrunner.storage.reading.groups import live_parents

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.database.dialect import Dialect


async def with_why(
    conn: AsyncConnection, dialect: Dialect, now: datetime, rows: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Add to live runs `why` they wait although their time has come: what the gates of their worker say.

    Of a step that is held: what it waits for.
    """
    held = await live_parents(conn, [row["id"] for row in rows if row["due_at"] >= HELD_UNTIL])
    due = {row["id"]: row["worker"] for row in rows if is_held_up(row, now)}
    why = await why_due_waits(conn, dialect, now, sorted(set(due.values()))) if due else {}
    return [
        {**row, "why": why_held(held[row["id"]]) if row["id"] in held else why.get(due.get(row["id"], ""))}
        for row in rows
    ]


def is_held_up(row: Mapping[str, Any], now: datetime) -> bool:
    """Say whether a run's time has come while it waits; what is forced passes most gates."""
    return bool(row["state"] == "pending" and row["due_at"] <= now and not row["is_forced"])

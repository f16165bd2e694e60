"""Reading one run for a program, wherever it is: in `runs` while it is live, then in the history."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.errors import RunNotFound
from jobrunner.model.reports import HistoryRow, RunInfo
from jobrunner.storage.reading.status import read_live
from jobrunner.storage.records.history import read_history
from jobrunner.storage.tables import define as t

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.ext.asyncio import AsyncConnection

_HISTORY_FIELDS = tuple(field.name for field in fields(HistoryRow))
_SAID_BY_BOTH = ("worker", "trigger", "attempt", "payload", "is_forced", "scheduled_for", "due_at", "started_at")
_SAID_BY_LIVE = ("progress", "cancel_requested_at")
_SAID_BY_ENDED = ("result", "error_type", "error", "reason", "output")


def history_row(row: Mapping[str, Any]) -> HistoryRow:
    """Return a row of `run_history` as a value."""
    return HistoryRow(**{name: row[name] for name in _HISTORY_FIELDS})


async def read_run(conn: AsyncConnection, run_id: int) -> RunInfo:
    """Return a run, live or ended.

    Raises:
        RunNotFound: there is no such run, or its history was pruned.
    """
    live = await read_live(conn, run_id)  # before the history: a run is in one of the two at any time
    attempts = await read_history(conn, run_id=run_id, limit=1)
    last: Mapping[str, Any] = attempts[0] if attempts else {}
    if live is None and last.get("ends_run") is None:
        raise RunNotFound(run_id, is_live=False)
    said: dict[str, Any] = {name: last.get(name) for name in _SAID_BY_ENDED}
    if live is not None:
        said |= {name: live[name] for name in (*_SAID_BY_BOTH, *_SAID_BY_LIVE)}
        if live["state"] != "pending":
            said["output"] = live["output"]
        return RunInfo(id=run_id, state=str(live["state"]), **said)
    d = t.dead_letters
    letter = (await conn.execute(sa.select(d.c.id).where(d.c.run_id == run_id))).scalar()
    said |= {name: last[name] for name in _SAID_BY_BOTH}
    return RunInfo(id=run_id, state=last["ends_run"], finished_at=last["finished_at"], letter_id=letter, **said)

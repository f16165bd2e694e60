"""How each worker stands, as `jobrunner status` shows it: its row, its next time, and why nothing of it starts.

Cheap however many workers there are: what waits is read of those that have something waiting, and the gates judge only
workers that are overdue, the first `_MOST_JUDGED` of them; the others are told where to ask.
"""

from __future__ import annotations

import heapq
from datetime import timedelta
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from jobrunner.model.facts import WorkerFacts
from jobrunner.model.worker import WorkerConfig
from jobrunner.policy.gates import PROBE_PASSES, why_retried, why_switched_off
from jobrunner.policy.verdicts import show_overdue
from jobrunner.storage.reading.explain import why_due_waits
from jobrunner.storage.reading.status import read_status, state_in
from jobrunner.storage.reading.waiting import Waiting, read_waiting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.database.dialect import Dialect

_OVERDUE = timedelta(seconds=6)  # longer than a node waits between two ticks
_STALLED = timedelta(seconds=60)  # while it runs, what waits is told of only when that is long, as in the view
_MOST_JUDGED = 100


async def read_standing(
    conn: AsyncConnection, dialect: Dialect, now: datetime, name: str | None = None, names: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Return a row for every worker, for those of `names`, or for the one of `name`.

    It is that of `worker_status`, with `next_at` and `why`. `next_at` is the earliest of its schedule's next time and
    the due times of what waits. `why` says why nothing starts, or how the last run failed; None if there is nothing to
    say.

    Raises:
        WorkerNotFound: there is no worker of that name.
    """
    rows = await read_status(conn, name, names)
    waiting = await read_waiting(conn, dialect, now, [row["name"] for row in rows if row["pending_runs"]])
    overdue = []
    for row in rows:
        found = waiting.get(row["name"])
        row["next_at"] = _next_at(row, found)
        row["why"], may_start = _why(row, found, now)
        patience = _STALLED if row["is_running"] else _OVERDUE
        if may_start and row["next_at"] is not None and now - row["next_at"] > patience:
            row["why"] = show_overdue(row["name"], row["next_at"], row["timezone"])
            overdue.append(row)
    judged = {row["name"]: row for row in heapq.nsmallest(_MOST_JUDGED, overdue, key=itemgetter("next_at"))}
    if judged:
        for each, why in (await why_due_waits(conn, dialect, now, list(judged))).items():
            judged[each]["why"] = why
    return rows


def _next_at(row: Mapping[str, Any], found: Waiting | None) -> datetime | None:
    next_run_at: datetime | None = row["next_run_at"]
    if found is None or next_run_at is None:
        return next_run_at if found is None else found.next_at
    return found.next_at if found.holds_schedule else min(next_run_at, found.next_at)


def _why(row: Mapping[str, Any], found: Waiting | None, now: datetime) -> tuple[str | None, bool]:
    """Say why nothing of a worker starts as far as its row shows, in the gates' own words; else how it failed last.

    The second value says whether its switches let something start.
    """
    state = state_in(row)
    if state is None:
        return "it has no state; `jobrunner db verify` tells more", False
    config = WorkerConfig(row["name"], timezone=row["timezone"])
    later = None if found is None else found.later
    worker = WorkerFacts(config, state, later=later)
    why = why_switched_off(worker, now)
    if why is not None:
        return why, False
    if not state.is_enabled:
        return PROBE_PASSES, True
    failed = state.last_error if state.last_run_outcome not in (None, "succeeded") else None
    return why_retried(worker, now) or failed, True

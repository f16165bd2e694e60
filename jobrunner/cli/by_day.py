"""`jobrunner history WORKER --by-day`: how many attempts of a worker ended on each day, and how long they took."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobrunner.cli import context
from jobrunner.cli.layout import columns
from jobrunner.cli.output import note, show_json, show_rows
from jobrunner.policy.showing import NOTHING, show_duration
from jobrunner.policy.words import show_time
from jobrunner.storage.reading.days import read_days

if TYPE_CHECKING:
    from jobrunner.storage.database.database import Database
    from jobrunner.storage.reading.days import Day

_DAYS, _MOST_DAYS = 14, 366


async def show_days(db: Database, worker: str, limit: int | None, *, as_json: bool) -> None:
    """Print a line for each of the last days, today the last."""
    async with db.read() as conn:
        found = await read_days(conn, worker, context.now(), min(limit or _DAYS, _MOST_DAYS))
    if as_json:
        show_json([_row(day) for day in found.days])
        return
    rows = [] if found.is_empty else [_shown(day) for day in found.days]
    empty = f"nothing of {worker} ended in the last {len(found.days)} days"
    shown = columns("date", "ended", "succeeded", "failed", "others", "p50", "p95", date="day (UTC)")
    show_rows(rows, shown, as_json=False, empty=empty)
    if found.whole_since is not None:
        note(f"of the newest {found.looked_at:,} attempts, since {show_time(found.whole_since)}")


def _row(day: Day) -> dict[str, Any]:
    return {
        "date": day.date.isoformat(),
        "ended": day.ended,
        "succeeded": day.succeeded,
        "failed": day.failed,
        "others": day.others,
        "p50_ms": day.p50_ms,
        "p95_ms": day.p95_ms,
    }


def _shown(day: Day) -> dict[str, Any]:
    if not day.ended:
        return {**dict.fromkeys(_row(day), NOTHING), "date": day.date.isoformat(), "p50": NOTHING, "p95": NOTHING}
    return {**_row(day), "p50": show_duration(day.p50_ms), "p95": show_duration(day.p95_ms)}

"""`jobrunner history --slower`: the workers whose runs take longer than they did."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from jobrunner.cli import context
from jobrunner.cli.layout import Column, columns
from jobrunner.cli.output import note, show_rows
from jobrunner.policy.showing import show_duration
from jobrunner.policy.words import show_time
from jobrunner.storage.reading.slower import read_slower

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime

    from jobrunner.policy.slower import Slower
    from jobrunner.storage.database.database import Database

_SCREENFUL = 50
_USUALLY = timedelta(days=7)


async def show_slower(
    db: Database, patterns: Collection[str], since: datetime | None, limit: int | None, *, as_json: bool
) -> None:
    """Print who became slower since a time, or in the last week; who did most is at the top."""
    since = since or context.now() - _USUALLY
    async with db.read() as conn:
        found = await read_slower(conn, db.dialect, since, patterns)
    most = limit or (len(found.slower) if as_json else _SCREENFUL)
    shown = [
        *columns("worker"),
        Column("ratio", "takes", lambda row: f"{row['ratio']:.1f} times as long"),
        _length("p50_before_ms", "p50 before", 8),
        _length("p50_now_ms", "p50 now", 8),
        _length("p95_before_ms", "p95 before", 5),
        _length("p95_now_ms", "p95 now", 5),
    ]
    empty = f"no worker became slower since {show_time(since)}"
    show_rows([_row(each) for each in found.slower[:most]], shown, as_json=as_json, empty=empty)
    if not found.knows_before:
        note(f"there is no history from before {show_time(since)} to compare with; --since names another time")
    if as_json:
        return
    if found.asked is not None:
        note(f"looked at the first {found.asked:,} workers in the order of names; worker:NAME* looks at others")
    if len(found.slower) > most:
        note(f"the first {most}; --limit shows more")
    if found.slower:
        note(f"`jobrunner history {found.slower[0].worker} --by-day` shows it day by day")


def _length(key: str, title: str, importance: int) -> Column:
    def show(row: Mapping[str, Any]) -> str:
        return show_duration(row[key])

    return Column(key, title, show, importance)


def _row(found: Slower) -> dict[str, Any]:
    return {
        "worker": found.worker,
        "ratio": round(found.ratio, 3),
        "p50_before_ms": found.p50_before,
        "p50_now_ms": found.p50_now,
        "p95_before_ms": found.p95_before,
        "p95_now_ms": found.p95_now,
    }

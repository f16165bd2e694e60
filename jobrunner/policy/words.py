"""Numbers and times in sentences."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

_FAR_DAYS = 180  # from here on a date is said with its year


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return `1 run`, `2 runs`; `many` where an s is not enough."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def show_time(moment: datetime) -> str:
    """Return `2026-03-02 12:01:00 UTC`: a time to the second, always with its zone."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def show_moment(moment: datetime) -> str:
    """Return a time as `show_time` does; one of a zone of its own as the clocks there show it, with the zone."""
    return f"{moment:%Y-%m-%d %H:%M:%S %Z}" if isinstance(moment.tzinfo, ZoneInfo) else show_time(moment)


def short_time(moment: datetime, now: datetime) -> str:
    """Return a time that takes little room: `15:04:05` if it is today, else `11-26 15:04`, or `2025-11-26 15:04`.

    It is UTC and does not say so; only a time of a zone of its own says which: `16:04:05 CET`.
    """
    is_local = isinstance(moment.tzinfo, ZoneInfo)
    there = moment if is_local else moment.astimezone(UTC)
    days = (there.date() - now.astimezone(there.tzinfo).date()).days
    shown = f"{there:%H:%M:%S}" if days == 0 else f"{there:%m-%d %H:%M}"
    if abs(days) >= _FAR_DAYS:
        shown = f"{there:%Y-%m-%d %H:%M}"
    return f"{shown} {there:%Z}" if is_local else shown

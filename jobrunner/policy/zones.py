"""Time zones: finding one by name, and the instants at which its clock is changed.

Instants are aware datetimes in UTC; a wall time is a datetime without zone, as the zone's clock shows it.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from jobrunner.errors import InvalidSchedule

_SECOND = timedelta(seconds=1)
_DAY = timedelta(days=1)
# posix/ and right/ are copies on some systems; the second counts leap seconds and would be off by half a minute
_NAME = re.compile(r"(?!posix/|right/)[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*")


@lru_cache(maxsize=256)
def zone_of(timezone: str) -> ZoneInfo:
    """Return the zone of an IANA name.

    Raises:
        InvalidSchedule: there is no such zone on this machine, or the text is no zone name.
    """
    try:
        if _NAME.fullmatch(timezone):
            return ZoneInfo(timezone)
    except (KeyError, ValueError, OSError):  # unknown; not a zone file; a folder such as "Europe"
        pass
    shown = timezone if len(timezone) <= 80 else timezone[:80] + "..."
    msg = f"time zone {shown!r} is unknown; use an IANA name such as 'Europe/Berlin' or 'UTC'"
    raise InvalidSchedule(msg)


def zone_or_utc(timezone: str) -> ZoneInfo:
    """Return the zone of a name that a row has, or UTC where there is none of that name."""
    try:
        return zone_of(timezone)
    except InvalidSchedule:
        return zone_of("UTC")


def offset_at(zone: ZoneInfo, instant: datetime) -> timedelta:
    """Return how far the zone's clock is ahead of UTC at an aware `instant`."""
    return instant.astimezone(zone).utcoffset() or timedelta()


def first_change(zone: ZoneInfo, start: datetime, end: datetime) -> datetime | None:
    """Return the first instant in (start, end] from which on the offset is another than at `start`.

    Looks once a day: two changes within a day that cancel each other are not seen, and no zone has them.
    """
    offset = offset_at(zone, start)
    low = start
    while low < end:
        high = min(low + _DAY, end)
        if offset_at(zone, high) != offset:
            return _boundary(zone, low, high)
        low = high
    return None


def last_change(zone: ZoneInfo, start: datetime, end: datetime) -> datetime | None:
    """Return the last instant in (start, end] from which on the offset is that at `end`, None if it always is."""
    offset = offset_at(zone, end)
    high = end
    while high > start:
        low = max(high - _DAY, start)
        if offset_at(zone, low) != offset:
            return _boundary(zone, low, high)
        high = low
    return None


def first_showing(zone: ZoneInfo, wall: datetime) -> datetime:
    """Return the instant at which the zone's clock first shows `wall`; if it skips `wall`, the end of the gap."""
    instant = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if instant.astimezone(zone).replace(tzinfo=None) == wall:
        return instant
    # in a gap, fold 0 counts with the offset before it and so lands behind it, fold 1 the other way round (PEP 495)
    return _boundary(zone, wall.replace(tzinfo=zone, fold=1).astimezone(UTC), instant)


def transition_note(timezone: str, instant: datetime) -> str | None:
    """Return what the zone's clock does on the local day of `instant`, to mark a firing in a listing.

    Returns:
        "DST starts" (the clock goes forward), "DST ends" (it goes back), "UTC offset changes" (the zone takes
        another standard time), or None on an ordinary day.

    Raises:
        InvalidSchedule: the zone is unknown.
    """
    zone = zone_of(timezone)
    day = instant.astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    next_day = day + _DAY  # wall-clock arithmetic: the next local midnight, however long the day
    before, after = day.utcoffset() or timedelta(), next_day.utcoffset() or timedelta()
    if before == after:
        return None
    if not day.dst() and not next_day.dst():
        return "UTC offset changes"
    return "DST starts" if after > before else "DST ends"


def _boundary(zone: ZoneInfo, low: datetime, high: datetime) -> datetime:
    """Return the one instant in (low, high], a whole second, at which the offset changes."""
    low, high = low.replace(microsecond=0), high.replace(microsecond=0)
    offset = offset_at(zone, low)
    seconds = range((high - low) // _SECOND + 1)
    return low + _SECOND * bisect_left(seconds, True, key=lambda s: offset_at(zone, low + _SECOND * s) != offset)

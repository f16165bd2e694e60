"""Numbers, times and errors in sentences."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from jobrunner.model.run import HELD_UNTIL
from jobrunner.policy.zones import zone_or_utc

if TYPE_CHECKING:
    from collections.abc import Sequence

_FAR_DAYS = 180  # from here on a date is said with its year
_LONGEST_ERROR = 200
HELD = "when its flow lets it"
"""In place of the time at which a step that waits for others is due: it has none."""
_UNITS = ((2 * 86400, 86400, "d"), (2 * 3600, 3600, "h"), (120, 60, "min"), (1, 1, "s"))
"""From how many seconds on a time is told in a unit, and how many it has: `90 min ago` says more than `1 h ago`."""


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return `1 run`, `2 runs`; `many` where an s is not enough."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def some_of(names: Sequence[str], most: int = 5) -> str:
    """Return the names in a list, the first `most` of them: `a, b, c and 7 others`."""
    if len(names) <= most + 1:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} others"


def show_time(moment: datetime, timezone: str = "UTC", *, today: datetime | None = None) -> str:
    """Return `2026-03-02 12:01:00 UTC`: a time to the second, always with its zone.

    Of another `timezone` its own time is added, `2026-03-02 12:01:00 UTC (13:01:00 CET)`, with its date where that is
    another. The date is left out if it is that of `today`.
    """
    if moment == HELD_UNTIL:
        return HELD
    moment = moment.astimezone(UTC)
    is_today = today is not None and moment.date() == today.astimezone(UTC).date()
    shown = f"{moment:%H:%M:%S} UTC" if is_today else f"{moment:%Y-%m-%d %H:%M:%S} UTC"
    local = _local(moment, timezone)
    if local is None:
        return shown
    day = "" if local.date() == moment.date() else f"{local:%Y-%m-%d} "
    return f"{shown} ({day}{local:%H:%M:%S %Z})"


def _local(moment: datetime, timezone: str) -> datetime | None:
    """Return the time that the clocks of a zone show; None where that is UTC."""
    if timezone == "UTC":
        return None
    with suppress(OverflowError):  # the last hours of the year 9999 have no other zone
        local = moment.astimezone(zone_or_utc(timezone))
        return None if local.tzname() == "UTC" else local
    return None


def show_moment(moment: datetime, timezone: str = "UTC") -> str:
    """Return a time as `show_time` does; one of a zone of its own as the clocks there show it, with the zone."""
    is_elsewhere = isinstance(moment.tzinfo, ZoneInfo) and moment != HELD_UNTIL
    return f"{moment:%Y-%m-%d %H:%M:%S %Z}" if is_elsewhere else show_time(moment, timezone)


def short_time(moment: datetime, now: datetime, timezone: str = "UTC") -> str:
    """Return a time that takes little room: `15:04:05` if it is today, else `11-26 15:04`, or `2025-11-26 15:04`.

    It is UTC and does not say so; only a time of a zone of its own says which: `16:04:05 CET`. Of another `timezone`
    its own time is added: `15:04:05 (16:04:05 CET)`.
    """
    if moment == HELD_UNTIL:
        return HELD
    local = _local(moment, timezone)
    if local is not None:
        return f"{short_time(moment, now)} ({short_time(local, now)})"
    is_local = isinstance(moment.tzinfo, ZoneInfo)
    there = moment if is_local else moment.astimezone(UTC)
    days = (there.date() - now.astimezone(there.tzinfo).date()).days
    shown = f"{there:%H:%M:%S}" if days == 0 else f"{there:%m-%d %H:%M}"
    if abs(days) >= _FAR_DAYS:
        shown = f"{there:%Y-%m-%d %H:%M}"
    return f"{shown} {there:%Z}" if is_local else shown


def show_age(moment: datetime, now: datetime) -> str:
    """Return how far a time lies from `now`, in its largest unit: `in 4 min`, `2 h ago`, `now`.

    The number is rounded down, so that what is said to be due in 4 min is not due earlier.
    """
    if moment == HELD_UNTIL:
        return "held"
    seconds = (moment - now).total_seconds()
    size, unit = next(((size, unit) for least, size, unit in _UNITS if abs(seconds) >= least), (0, ""))
    if not unit:
        return "now"
    said = f"{int(abs(seconds) // size)} {unit}"
    return f"in {said}" if seconds > 0 else f"{said} ago"


def first_line(text: str) -> str:
    """Return the first line of what an error says, cut where it is too long for a sentence."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= _LONGEST_ERROR else f"{line[: _LONGEST_ERROR - 3]}..."

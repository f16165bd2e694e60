"""Numbers, times and errors in sentences."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

from jobrunner.policy.zones import zone_or_utc

_LONGEST_ERROR = 200


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return `1 run`, `2 runs`; `many` where an s is not enough."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def show_time(moment: datetime, timezone: str = "UTC", *, today: datetime | None = None) -> str:
    """Return `2026-03-02 12:01:00 UTC`: a time to the second, always with its zone.

    Of another `timezone` its own time is added, `2026-03-02 12:01:00 UTC (13:01:00 CET)`, with its date where that is
    another. The date is left out if it is that of `today`.
    """
    moment = moment.astimezone(UTC)
    is_today = today is not None and moment.date() == today.astimezone(UTC).date()
    shown = f"{moment:%H:%M:%S} UTC" if is_today else f"{moment:%Y-%m-%d %H:%M:%S} UTC"
    if timezone == "UTC":
        return shown
    with suppress(OverflowError):  # the last hours of the year 9999 have no other zone
        local = moment.astimezone(zone_or_utc(timezone))
        if local.tzname() != "UTC":
            day = "" if local.date() == moment.date() else f"{local:%Y-%m-%d} "
            shown += f" ({day}{local:%H:%M:%S %Z})"
    return shown


def first_line(text: str) -> str:
    """Return the first line of what an error says, cut where it is too long for a sentence."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= _LONGEST_ERROR else f"{line[: _LONGEST_ERROR - 3]}..."

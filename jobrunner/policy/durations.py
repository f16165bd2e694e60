"""Reading the durations and times that people type: `90`, `15m`, `1h30m`, `2026-03-01T12:00Z`. Pure."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta

from jobrunner.errors import InvalidSetting, seconds_of
from jobrunner.model.limits import LONGEST_SECONDS

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([smhdw])", re.ASCII)
_WHOLE = re.compile(rf"(?:{_PART.pattern}\s*)+", re.ASCII)
_PLAIN = re.compile(r"\d+(?:\.\d+)?|\.\d+", re.ASCII)
_CLOCK = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)(?::([0-5]\d))?", re.ASCII)
_HINT = "give seconds, or a number with s, m, h, d or w, such as 90s, 15m or 1h30m"
_TIME_HINT = "give a time such as 2026-03-01T12:00:00Z (without a zone it is UTC)"


def parse_duration(text: str) -> float:
    """Return the seconds that `text` names: `90`, `90s`, `15m`, `2h`, `1h30m`, `1.5h`, `7d`.

    Raises:
        InvalidSetting: it is no duration, negative, or longer than 100 years.
    """
    given = text.strip().lower()
    if _PLAIN.fullmatch(given):
        seconds = float(given)
    elif _WHOLE.fullmatch(given):
        parts = _PART.findall(given)
        units = [unit for _, unit in parts]
        if len(set(units)) != len(units):
            raise InvalidSetting(f"{text!r} names a unit twice; {_HINT}")
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    else:
        raise InvalidSetting(f"{text!r} is no duration; {_HINT}")
    if not math.isfinite(seconds) or seconds > LONGEST_SECONDS:
        raise InvalidSetting(f"{text!r} is longer than 100 years; {_HINT}")
    return seconds


def read_seconds(value: object) -> float:
    """Return a length of time that is given as a number of seconds, a `timedelta`, or text as `parse_duration` reads.

    Raises:
        InvalidSetting: it is none of these.
    """
    if isinstance(value, str):
        return parse_duration(value)
    try:
        return seconds_of(value)
    except (TypeError, ValueError):
        raise InvalidSetting(f"{value!r} is no length of time; {_HINT}, or give a timedelta") from None


def show_seconds(seconds: float) -> str:
    """Return a length of time to a sentence's precision: `90 s`, `5 min`, `2.5 h`, `3 d`."""
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.95 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def parse_time(text: str) -> datetime:
    """Return the instant, in UTC, that an ISO 8601 time names; one without a zone is UTC.

    Raises:
        InvalidSetting: it is no such time.
    """
    try:
        moment = datetime.fromisoformat(text.strip())
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidSetting(f"{text!r} is no time; {_TIME_HINT}") from None


def is_clock_time(text: str) -> bool:
    """Say whether `text` is a time of day, such as `03:00`."""
    return _CLOCK.fullmatch(text.strip()) is not None


def last_clock_time(text: str, local: datetime) -> datetime | None:
    """Return when a clock last showed `text`, such as `03:00`; None where that is no time of day.

    `local` is what that clock shows now, and so is what is returned: no zone in either.
    """
    found = _CLOCK.fullmatch(text.strip())
    if found is None:
        return None
    hour, minute, second = (int(part or 0) for part in found.groups())
    today = local.replace(hour=hour, minute=minute, second=second, microsecond=0)
    return today if today <= local else today - timedelta(days=1)


def parse_moment(text: str, now: datetime, *, is_past: bool) -> datetime:
    """Return the instant that a time names, or a duration counted from `now`: back with `is_past`, else ahead.

    Raises:
        InvalidSetting: it is neither, or leaves the calendar.
    """
    try:
        seconds = parse_duration(text)
    except InvalidSetting:
        try:
            return parse_time(text)
        except InvalidSetting:
            message = f"{text!r} is neither a time nor a duration; give 2026-03-01T12:00:00Z, or 90s, 15m, 1h30m"
            raise InvalidSetting(message) from None
    try:
        return now + timedelta(seconds=-seconds if is_past else seconds)
    except OverflowError:
        raise InvalidSetting(f"{text!r} leaves the calendar; give less") from None

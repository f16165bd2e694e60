"""Lengths of time, since when and until when: as people type them, and as programs give them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from jobrunner.errors import InvalidSetting
from jobrunner.model.limits import LONGEST_SECONDS
from jobrunner.policy.durations import last_clock_time, parse_moment, read_seconds
from jobrunner.policy.words import show_time


def read_length(argument: str, value: object) -> float:
    """Return a length of time in seconds, given as `read_seconds` takes it.

    Raises:
        InvalidSetting: it is none, negative, or longer than 100 years.
    """
    try:
        seconds = read_seconds(value)
    except InvalidSetting as error:
        raise InvalidSetting(f"{argument}: {error}") from None
    if not 0 <= seconds <= LONGEST_SECONDS:
        raise InvalidSetting(f"{argument}: {seconds:g} s is not between 0 seconds and 100 years")
    return seconds


def read_aware(argument: str, value: object) -> datetime:
    """Return a time of a program's, in UTC.

    Raises:
        InvalidSetting: it is no time, has no zone, or lies outside the calendar.
    """
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise InvalidSetting(f"{argument} must be an aware time, not {value!r}; add a time zone")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise InvalidSetting(f"{argument} leaves the calendar: {value}") from None


def read_past(argument: str, value: object, now: datetime) -> datetime | None:
    """Return the time that is named; or the one so long ago, or when this machine's clock last showed it. None: none.

    A time is an aware `datetime`, or ISO 8601 (UTC without a zone); so long ago is a `timedelta`, or text such as `2h`;
    what a clock shows is text such as `03:00`.

    Raises:
        InvalidSetting: it is none of these.
    """
    if value is None:
        return None
    if isinstance(value, str):
        shown = last_clock_time(value, now.astimezone().replace(tzinfo=None))
        if shown is not None:
            return shown.astimezone(UTC)  # what has no zone is read as this machine's
        try:
            return parse_moment(value, now, is_past=True)
        except InvalidSetting as error:
            raise InvalidSetting(f"{argument}: {error}") from None
    if isinstance(value, timedelta):
        try:
            return now - value
        except OverflowError:
            raise InvalidSetting(f"{argument} leaves the calendar; give less than {value}") from None
    if not isinstance(value, datetime):
        raise InvalidSetting(f"{argument} must be an aware time, a timedelta or text such as '2h', not {value!r}")
    return read_aware(argument, value)


def read_span(
    since: object, until: object, now: datetime, arguments: tuple[str, str] = ("since", "until")
) -> tuple[datetime | None, datetime | None]:
    """Return both times as `read_past` does. Raises `InvalidSetting`, too, where nothing can lie between them."""
    first, last = read_past(arguments[0], since, now), read_past(arguments[1], until, now)
    if first is not None and last is not None and first > last:
        raise InvalidSetting(f"{arguments[0]} is later than {arguments[1]}: {show_time(first)}, {show_time(last)}")
    return first, last

"""The instants at which a five-field cron expression fires in a time zone.

Terms. A *wall time* is what the zone's clock shows: a datetime without zone. An *instant* is an aware datetime in
UTC. cronsim says which wall times an expression names; which instants those are is decided here:

- A *fixed-time* entry (neither its minute nor its hour field starts with `*`) fires once for each wall time: when
  the clock first shows it, or, where the clock skips it, at the end of the gap.
- A *wildcard* entry follows the wall clock: it fires whenever the clock shows one of its wall times.

The rule is that of Debian's cron, and cronsim's. cronsim is nevertheless given wall times only: given a zone it loses
times around a half-hour change, and backwards it does not visit the same times as forwards (shown in
tests/unit/test_cron.py). On wall times, where all minutes are equal, both directions agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING

from cronsim import CronSim

from jobrunner.errors import InvalidSchedule
from jobrunner.policy.cron_syntax import named, never_fires, read_expression
from jobrunner.policy.zones import first_change, first_showing, last_change, offset_at, transition_note, zone_of

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

__all__ = ["check_expression", "check_timezone", "next_after", "previous_at_or_before", "transition_note"]

_MICROSECOND = timedelta(microseconds=1)
_HORIZON = timedelta(days=50 * 366)  # the rarest date, a fifth Monday in February, comes back within 40 years
_REFERENCE = datetime(2026, 1, 1, tzinfo=UTC)  # whether it ever fires is asked from here on


@dataclass(frozen=True, slots=True)
class _Entry:
    """An expression that was checked, in its zone."""

    expression: str
    zone: ZoneInfo
    is_fixed: bool


def check_expression(expression: str, timezone: str) -> None:
    """Refuse what `next_after` could not work with.

    Raises:
        InvalidSchedule: it is no five-field expression, never fires, or the zone is unknown; one line each.
    """
    _entry(expression, timezone)


def check_timezone(timezone: str) -> None:
    """Refuse a name that is no time zone of this machine's.

    Raises:
        InvalidSchedule: the zone is unknown; one line.
    """
    zone_of(timezone)


def next_after(expression: str, timezone: str, instant: datetime) -> datetime:
    """Return the first firing strictly after `instant`; both are aware, the answer is in UTC.

    Raises:
        InvalidSchedule: as `check_expression`; also if nothing fires within 50 years, or until the year 10000.
    """
    found = _next(_entry(expression, timezone), instant.astimezone(UTC))
    if found is None:
        msg = f"{named(expression)} in {timezone} does not fire in the 50 years from {instant:%Y-%m-%d}; change it"
        raise InvalidSchedule(msg)
    return found


def previous_at_or_before(expression: str, timezone: str, instant: datetime) -> datetime | None:
    """Return the last firing not after `instant`; both are aware, the answer is in UTC.

    It is one of the instants that `next_after` visits; None if there is none in the 50 years before.

    Raises:
        InvalidSchedule: as `check_expression`.
    """
    entry = _entry(expression, timezone)
    previous = _previous_fixed if entry.is_fixed else _previous_wildcard
    try:
        return previous(entry, instant.astimezone(UTC))
    except OverflowError:  # the search came to the year 1
        return None


@lru_cache(maxsize=1024)
def _entry(expression: str, timezone: str) -> _Entry:
    zone = zone_of(timezone)
    fields = read_expression(expression)
    entry = _Entry(" ".join(fields), zone, is_fixed=not fields[0].startswith("*") and not fields[1].startswith("*"))
    if _next(entry, _REFERENCE) is None:
        raise InvalidSchedule(never_fires(expression))
    return entry


def _next(entry: _Entry, instant: datetime) -> datetime | None:
    try:
        return _next_fixed(entry, instant) if entry.is_fixed else _next_wildcard(entry, instant)
    except OverflowError:  # the search came to the year 10000
        return None


def _next_fixed(entry: _Entry, instant: datetime) -> datetime | None:
    """Go through the wall times from that of `instant` on; those of a repeated hour may lie before it."""
    wall = (instant + offset_at(entry.zone, instant)).replace(tzinfo=None)
    firings = (first_showing(entry.zone, named_time) for named_time in CronSim(entry.expression, wall))
    return next((firing for firing in firings if firing > instant), None)


def _previous_fixed(entry: _Entry, instant: datetime) -> datetime | None:
    """Go back through the wall times, in a repeated hour from its end: the clock showed all of it already."""
    first_time = instant.astimezone(entry.zone).replace(fold=0)
    wall = (instant + (first_time.utcoffset() or timedelta())).replace(tzinfo=None)
    firings = (first_showing(entry.zone, named_time) for named_time in _backwards(entry.expression, wall))
    return next((firing for firing in firings if firing <= instant), None)


def _next_wildcard(entry: _Entry, instant: datetime) -> datetime | None:
    """Look in one stretch of constant offset after the other, the first from just after `instant`."""
    start = instant + _MICROSECOND
    while start - instant < _HORIZON:
        offset = offset_at(entry.zone, start)
        wall = (start + offset - _MICROSECOND).replace(tzinfo=None)
        named_time = next(CronSim(entry.expression, wall), None)
        if named_time is None:
            return None
        firing = named_time.replace(tzinfo=UTC) - offset
        change = first_change(entry.zone, start, firing)
        if change is None:
            return firing
        start = change
    return None


def _previous_wildcard(entry: _Entry, instant: datetime) -> datetime | None:
    """Look in one stretch of constant offset after the other, backwards, the first up to `instant`."""
    end = instant
    while instant - end < _HORIZON:
        offset = offset_at(entry.zone, end)
        named_time = next(_backwards(entry.expression, (end + offset).replace(tzinfo=None)), None)
        if named_time is None:
            return None
        firing = named_time.replace(tzinfo=UTC) - offset
        change = last_change(entry.zone, firing, end)
        if change is None:
            return firing
        end = change - _MICROSECOND
    return None


def _backwards(expression: str, wall: datetime) -> CronSim:
    """Iterate the named wall times not after `wall`, the latest first."""
    # cronsim starts strictly before a whole second, but at the second itself when it is given a fraction of one
    return CronSim(expression, wall.replace(microsecond=1), reverse=True)

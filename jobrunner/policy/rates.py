"""Rates: so many starts in so much time, at most. Pure.

A rate of N in W seconds says that in no window of that length more than N attempts start. So the next may start when
the N-th newest start is W seconds old. `smooth` spaces the starts evenly: it is the rate of one in W / N.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from jobrunner.errors import InvalidSetting
from jobrunner.model.facts import Window
from jobrunner.policy.durations import parse_duration

if TYPE_CHECKING:
    from datetime import datetime

    from jobrunner.model.worker import WorkerConfig

MOST_STARTS = 1_000_000
LONGEST_WINDOW_SECONDS = 7 * 86400.0
"""History must be kept for as long."""
_RATE = re.compile(r"\s*(\d{1,9})\s*/\s*(\S.*?)\s*", re.ASCII)
_UNIT = re.compile(r"[smhd]")


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `count` starts in any window of `seconds`."""

    count: int
    seconds: float

    @property
    def window(self) -> timedelta:
        """The window's length."""
        return timedelta(seconds=self.seconds)


def parse_rate(text: object) -> Rate:
    """Read a rate such as `100/1m`, `5/s` or `1000/1h30m`.

    Raises:
        InvalidSetting: it is none, of no start, of more than a million, or of a window of more than 7 days.
    """
    hint = "a rate is a number of starts and a length of time, such as 100/1m"
    found = _RATE.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise InvalidSetting(f"{text!r} is no rate; {hint}")
    count, length = int(found[1]), found[2]
    try:
        seconds = parse_duration(f"1{length}" if _UNIT.fullmatch(length) else length)
    except InvalidSetting:
        raise InvalidSetting(f"{text!r} is no rate: {length!r} is no length of time; {hint}") from None
    if not 1 <= count <= MOST_STARTS:
        raise InvalidSetting(f"{text!r}: a rate is of 1 to {MOST_STARTS:,} starts")
    if not 0.001 <= seconds <= LONGEST_WINDOW_SECONDS:
        raise InvalidSetting(f"{text!r}: a rate's time is a millisecond to 7 days")
    return Rate(count, seconds)


def rate_of(text: str | None, *, smooth: bool = False) -> Rate | None:
    """Return the rate that a definition's text says; None where it says none, or what is no rate (a bare SQL shell).

    Of a smooth one, what it comes to: one start in each N-th part of the time.
    """
    if text is None:
        return None
    try:
        rate = parse_rate(text)
    except InvalidSetting:
        return None
    return Rate(1, rate.seconds / rate.count) if smooth else rate


def unreadable_rate(config: WorkerConfig) -> str | None:
    """Say which of a worker's rates cannot be read, as none that was registered is; None if there is none."""
    for field in ("rate", "rate_per_key"):
        text = getattr(config, field)
        if text is not None and rate_of(text) is None:
            return f"its {field} {text!r} is no rate such as 100/1m"
    return None


def rates_of(config: WorkerConfig) -> tuple[Rate | None, Rate | None]:
    """Return a worker's rate, and its rate per key."""
    return rate_of(config.rate, smooth=config.smooth), rate_of(config.rate_per_key, smooth=config.smooth)


def window_of(rate: Rate, count: int, oldest: datetime | None) -> Window:
    """Return what a window holds: `count` starts in it, of which `oldest` is the last that the rate counts."""
    if count < rate.count or oldest is None:
        return Window(count)
    return Window(rate.count, oldest + rate.window)

"""How long a failed attempt waits before the next one, and when that is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_CENTURY_SECONDS = 3.2e9
_END_OF_TIME = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


def later(moment: datetime, seconds: float) -> datetime:
    """Add `seconds` to an aware time: none if negative, a century at most, never beyond the year 9999."""
    try:
        return moment + timedelta(seconds=min(max(seconds, 0.0), _CENTURY_SECONDS))
    except OverflowError:
        return _END_OF_TIME


def retry_delay(attempt: int, delay_seconds: float, backoff: float, max_delay_seconds: float, jitter: float) -> float:
    """Return the wait after a failed attempt: `delay * backoff ** (attempt - 1)`, at most the maximum, with jitter.

    The jitter comes after the cap, so that runs which all wait the longest do not come back together.

    Args:
        attempt: number of the attempt that failed, from 1; less counts as 1.
        delay_seconds: wait after the first attempt, in seconds, 0 or more.
        backoff: factor from one wait to the next, 0 or more.
        max_delay_seconds: longest wait before jitter, in seconds.
        jitter: fraction to add, chosen at random by the caller from -0.1 to 0.1.

    Returns:
        Seconds, never negative. No attempt number is too large.
    """
    capped = min(_uncapped(attempt, delay_seconds, backoff), max_delay_seconds)
    return max(0.0, capped * (1.0 + jitter))


def _uncapped(attempt: int, delay_seconds: float, backoff: float) -> float:
    """Return the growing delay in seconds, infinity where a float cannot hold it."""
    if delay_seconds <= 0:
        return 0.0  # 0 times a factor too large for a float is still 0
    try:
        return delay_seconds * float(backoff) ** (max(attempt, 1) - 1)
    except OverflowError:
        return float("inf")

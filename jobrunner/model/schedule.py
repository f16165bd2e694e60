"""When a scheduled worker is due, and what came of the times that were.

All datetimes are aware and in UTC; all durations are in seconds and may be fractions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class IntervalSchedule:
    """Every `seconds`, on a grid that starts at the first run; elapsed time, so DST never shifts it.

    `offset_seconds` delays the first run only: the grid, being anchored on it, then carries the offset by itself.
    """

    seconds: float
    offset_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class CronSchedule:
    """The times of a five-field cron expression in an IANA `timezone`, each `offset_seconds` later."""

    expression: str
    timezone: str = "UTC"
    offset_seconds: float = 0.0


Schedule = IntervalSchedule | CronSchedule


@dataclass(frozen=True, slots=True)
class Missed:
    """Times of a schedule that were passed over: one `missed` history row.

    `first` and `last` are both missed times, and the same one when `occurrences` is 1. `occurrences` is counted
    up to 1,000: a greater number is kept as 1,000.
    """

    first: datetime
    last: datetime
    occurrences: int
    reason: str


@dataclass(frozen=True, slots=True)
class Firing:
    """What a due schedule does now.

    `scheduled_for` is the time to run for (None: run nothing), `next_run_at` the next time the schedule is due
    (for `run_all` it may be past already), `missed` what is passed over.
    """

    scheduled_for: datetime | None
    next_run_at: datetime | None
    missed: Missed | None

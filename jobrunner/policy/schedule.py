"""When a scheduled worker is due next, and which of the times that are due is run.

Terms. The *grid* is the set of times of a schedule. For an interval it has no beginning of its own: any time that was
due once lies on it, and the others are whole periods away. A cron schedule's grid is what the expression names, each
time later by the worker's offset.

All datetimes are aware and in UTC. Periods and offsets are rounded to whole microseconds once, before any arithmetic:
so n single steps and one step of n periods meet in the same instant, and nothing drifts.
"""

from __future__ import annotations

import hashlib
import math
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice, pairwise, takewhile
from typing import TYPE_CHECKING, assert_never

from jobrunner.errors import InvalidSchedule
from jobrunner.model.limits import LONGEST_SECONDS
from jobrunner.model.schedule import CronSchedule, Firing, IntervalSchedule, Missed, Schedule
from jobrunner.model.worker import Misfire, WorkerConfig, WorkerExecutionMode
from jobrunner.policy import cron

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_INTERVAL_SECONDS = 300.0
SKIP_GRACE = timedelta(seconds=60)
"""How late a time may be and still be run by `skip`."""
CLOCK_TOLERANCE = timedelta(seconds=10)
"""How far the clocks of two nodes may differ before a time that one has set looks wrong to the other."""
COUNTED_AT_MOST = 1000

_MICROSECOND = timedelta(microseconds=1)
_SAMPLED_FROM = datetime(2026, 1, 1, tzinfo=UTC)
_HASH_BITS = 48


def schedule_of(config: WorkerConfig) -> Schedule | None:
    """Return the schedule of a scheduled worker (every 300 s unless it says otherwise), None for other modes.

    `jitter_seconds` becomes an offset in [0, jitter_seconds) that is the same for a name everywhere and always.

    Raises:
        InvalidSchedule: the interval or the jitter is no usable number of seconds, or the cron expression or the
            zone cannot be used.
    """
    if config.execution_mode is not WorkerExecutionMode.SCHEDULED:
        return None
    offset = _stable_offset(config.name, config.jitter_seconds)
    if config.cron is not None:
        cron.check_expression(config.cron, config.timezone)
        return CronSchedule(config.cron, config.timezone, offset)
    seconds = DEFAULT_INTERVAL_SECONDS if config.interval_seconds is None else config.interval_seconds
    if not _MICROSECOND.total_seconds() <= seconds <= LONGEST_SECONDS:
        msg = f"interval_seconds {seconds!r} cannot be used; give seconds above 0 and below 100 years"
        raise InvalidSchedule(msg)
    return IntervalSchedule(seconds, offset)


def usable_schedule(config: WorkerConfig) -> Schedule | None:
    """Return the schedule, or None where there is none or what a row says of it cannot be used: it has no times then.

    Registering refuses such a schedule; but anybody may write one into the table, and it must hurt that worker only.
    """
    try:
        return schedule_of(config)
    except InvalidSchedule:
        return None


def schedule_problem(config: WorkerConfig) -> str | None:
    """Say why a worker's schedule cannot be used; None if it can be, or there is none."""
    try:
        schedule_of(config)
    except InvalidSchedule as error:
        return f"its schedule cannot be used: {error}"
    return None


def first_due(schedule: Schedule, now: datetime) -> datetime:
    """Return the first time of a schedule that never ran: an interval's is `now` plus its offset.

    A cron schedule's is the next time after `now`.
    """
    match schedule:
        case IntervalSchedule():
            return now + _offset(schedule)
        case CronSchedule():
            return step_after(schedule, now)
        case _:
            assert_never(schedule)


def step_after(schedule: Schedule, due: datetime) -> datetime:
    """Return the time on the grid that follows `due`, itself on the grid.

    For a cron schedule `due` may be any instant.
    """
    match schedule:
        case IntervalSchedule():
            return due + _period(schedule)
        case CronSchedule():
            offset = _offset(schedule)
            return cron.next_after(schedule.expression, schedule.timezone, due - offset) + offset
        case _:
            assert_never(schedule)


def decide_firing(schedule: Schedule, misfire: Misfire, oldest: datetime, now: datetime) -> Firing:
    """Decide what a schedule does that can start at `now`.

    Of the times due, from `oldest` to `now`, `run_once` takes the latest, `run_all` the oldest and moves one step,
    `skip` the latest if it is no more than 60 s late, else none. Costs the same for an interval however long it was
    not served, and for a cron schedule at most 1,000 steps.

    Args:
        schedule: the worker's schedule.
        misfire: what to do with the times passed over.
        oldest: the stored `next_run_at`: the oldest time not yet served, not after `now`.
        now: the current time.

    Returns:
        The firing. Where `oldest` is after `now` nothing is due: it runs nothing and keeps `oldest` as the next time.
    """
    if oldest > now:
        return Firing(None, oldest, None)
    if misfire is Misfire.RUN_ALL:
        return Firing(oldest, step_after(schedule, oldest), None)
    latest = _latest_due(schedule, oldest, now)
    following = step_after(schedule, latest)
    if misfire is Misfire.SKIP and now - latest > SKIP_GRACE:
        return Firing(None, following, _missed(schedule, oldest, latest, "more than 60 s late (misfire skip)"))
    if latest == oldest:
        return Firing(latest, following, None)
    last = _latest_due(schedule, oldest, latest - _MICROSECOND)
    missed = _missed(schedule, oldest, last, f"passed over for a later time (misfire {misfire.value})")
    return Firing(latest, following, missed)


def next_after_now(schedule: Schedule, last_due: datetime | None, now: datetime) -> datetime:
    """Return the first time on the grid strictly after `now`: on enabling, and as `now` the end of a pause.

    Args:
        schedule: the worker's schedule.
        last_due: the time that was due last, which fixes an interval's grid; without it this is `first_due`.
        now: the current time; it may be before `last_due`, when the clock went back.
    """
    if last_due is None or isinstance(schedule, CronSchedule):
        return first_due(schedule, now)
    period = _period(schedule)
    return last_due + ((now - last_due) // period + 1) * period


def rescheduled(schedule: Schedule, last_due: datetime | None, now: datetime) -> datetime:
    """Return the next time after a definition's schedule has become `schedule`; nothing counts as missed.

    It is the last due time plus the new interval, but not before `now` (nor, when the clock went back, more than an
    interval after it), or the next cron time. `last_due` None means it never was due: then this is `first_due`.
    """
    if last_due is None or isinstance(schedule, CronSchedule):
        return first_due(schedule, now)
    period = _period(schedule)
    return now + min(max(last_due - now + period, timedelta(0)), period)


def is_too_far_ahead(schedule: Schedule, next_run_at: datetime, now: datetime) -> bool:
    """Return whether `next_run_at` is more than one period ahead of `now`, which shows that the clock went back.

    Clocks that differ by no more than `CLOCK_TOLERANCE` (10 s) do not show as that: else the node whose clock is
    behind would compute again, and so fire twice, what another has fired just now.

    For a paused worker pass the end of the pause as `now`: its next time rightly lies after that.
    """
    latest_now = now + CLOCK_TOLERANCE
    match schedule:
        case IntervalSchedule():  # the very first time is an offset away, which may be more than a period
            return next_run_at > latest_now + max(_period(schedule), _offset(schedule))
        case CronSchedule():
            return next_run_at > step_after(schedule, latest_now)
        case _:
            assert_never(schedule)


def reach(schedule: Schedule) -> timedelta:
    """Return how far ahead a next time may lie: a period; of a cron schedule, what its next few times show."""
    match schedule:
        case IntervalSchedule():  # the very first time is an offset away, which may be more than a period
            return max(_period(schedule), _offset(schedule))
        case CronSchedule():
            return _shown_reach(schedule.expression, schedule.timezone)
        case _:
            assert_never(schedule)


@lru_cache(maxsize=1024)
def _shown_reach(expression: str, timezone: str) -> timedelta:
    times = [_SAMPLED_FROM]
    for _ in range(4):
        times.append(cron.next_after(expression, timezone, times[-1]))
    return max(later - earlier for earlier, later in pairwise(times[1:]))


def gap_before(schedule: Schedule, due: datetime) -> timedelta:
    """Return how long before `due` the schedule's time before it lies; its `reach` if there is none."""
    match schedule:
        case IntervalSchedule():
            return reach(schedule)
        case CronSchedule():
            named = due - _offset(schedule)
            before = cron.previous_at_or_before(schedule.expression, schedule.timezone, named - _MICROSECOND)
            return reach(schedule) if before is None else named - before
        case _:
            assert_never(schedule)


def count_due(schedule: Schedule, oldest: datetime, now: datetime, reason: str) -> Missed | None:
    """Return the times from `oldest`, a time on the grid, to `now` as missed; None if there are none.

    Used when a worker is disabled; `reason` says by what.
    """
    if oldest > now:
        return None
    return _missed(schedule, oldest, _latest_due(schedule, oldest, now), reason)


def occurrences(schedule: Schedule, after: datetime, until: datetime) -> Iterator[datetime]:
    """Yield the times on the grid after `after`, up to and including `until`, lazily.

    `after` must lie on an interval's grid (it fixes it): yield `next_run_at` yourself, then pass it here.
    """
    return takewhile(lambda due: due <= until, _steps(schedule, after))


def _steps(schedule: Schedule, due: datetime) -> Iterator[datetime]:
    while True:
        due = step_after(schedule, due)
        yield due


def _latest_due(schedule: Schedule, oldest: datetime, now: datetime) -> datetime:
    """Return the last time on the grid in [oldest, now]; `oldest` counts even where it is not on the grid."""
    match schedule:
        case IntervalSchedule():
            period = _period(schedule)
            return oldest + (now - oldest) // period * period
        case CronSchedule():
            offset = _offset(schedule)
            named = cron.previous_at_or_before(schedule.expression, schedule.timezone, now - offset)
            return oldest if named is None else max(oldest, named + offset)
        case _:
            assert_never(schedule)


def _missed(schedule: Schedule, first: datetime, last: datetime, reason: str) -> Missed:
    """Return the times from `first` to `last`, both missed; counted up to 1,000."""
    match schedule:
        case IntervalSchedule():
            steps = (last - first) // _period(schedule)
        case CronSchedule():
            steps = sum(1 for _ in islice(occurrences(schedule, first, last), COUNTED_AT_MOST - 1))
        case _:
            assert_never(schedule)
    return Missed(first, last, min(steps + 1, COUNTED_AT_MOST), reason)


def _period(schedule: IntervalSchedule) -> timedelta:
    return max(_exact(schedule.seconds), _MICROSECOND)


def _offset(schedule: Schedule) -> timedelta:
    return _exact(schedule.offset_seconds)


def _exact(seconds: float) -> timedelta:
    """Return the seconds, rounded to whole microseconds."""
    return timedelta(microseconds=round(seconds * 1_000_000))


def _stable_offset(name: str, jitter_seconds: float) -> float:
    """Return seconds in [0, jitter_seconds), whole microseconds, from a hash of the name."""
    if not (math.isfinite(jitter_seconds) and 0 <= jitter_seconds <= LONGEST_SECONDS):
        msg = f"jitter_seconds {jitter_seconds!r} cannot be used; give 0 or more seconds, below 100 years"
        raise InvalidSchedule(msg)
    digest = hashlib.sha256(name.encode()).digest()
    fraction = int.from_bytes(digest[: _HASH_BITS // 8])
    return (fraction * round(jitter_seconds * 1_000_000) >> _HASH_BITS) / 1_000_000

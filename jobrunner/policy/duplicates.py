"""What a trigger does with the waiting run that has its key: keep it, replace its payload, or postpone it. Pure.

Only a run that has never started is changed. A postponed run moves to the time that the trigger asks for, but no later
than `at_most` after it was first asked for; it never comes earlier than it was, and never into the past: a run that is
due and may wait no longer stays where it is in the queue. A step of a flow that waits for others stays held.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from jobrunner.errors import InvalidSetting
from jobrunner.model.run import HELD_UNTIL
from jobrunner.policy.durations import read_seconds

if TYPE_CHECKING:
    from datetime import datetime

KEEP, REPLACE, POSTPONE = "keep", "replace", "postpone"
CHOICES = (KEEP, REPLACE, POSTPONE)


def check_duplicate(on_duplicate: object, at_most: Any = None, *, has_key: bool, has_delay: bool) -> timedelta | None:
    """Check what a trigger says of duplicates; return `at_most` as a length of time, None where there is no bound.

    Raises:
        InvalidSetting: a value cannot be used, or does not go with the rest of the trigger.
    """
    if on_duplicate not in CHOICES:
        raise InvalidSetting(f"on_duplicate {on_duplicate!r} is none of {', '.join(CHOICES)}")
    if on_duplicate != KEEP and not has_key:
        raise InvalidSetting(f"on_duplicate {on_duplicate!r} needs a key: duplicates are runs with the same key")
    if on_duplicate == POSTPONE and not has_delay:
        raise InvalidSetting("on_duplicate 'postpone' needs a delay: by so much the run is put off")
    if at_most is None:
        return None
    if on_duplicate != POSTPONE:
        raise InvalidSetting("at_most goes with on_duplicate 'postpone': no later than so long after the first trigger")
    try:
        seconds = read_seconds(at_most)
    except InvalidSetting:
        raise InvalidSetting(
            f"at_most must be a number of seconds, a timedelta or text such as '5m', not {at_most!r}"
        ) from None
    if seconds < 0:
        raise InvalidSetting(f"at_most must not be negative: {at_most!r}")
    try:
        return timedelta(seconds=seconds)
    except OverflowError:
        return None  # longer than all time there is


def postponed(
    due_at: datetime, asked: datetime, began: datetime, at_most: timedelta | None, now: datetime
) -> datetime | None:
    """Return when a waiting run is due once it was postponed; None: it stays as it is.

    Args:
        due_at: when it is due.
        asked: when the new trigger wants it.
        began: when the first trigger asked for it.
        at_most: so long after that it starts at the latest; None: there is no bound.
        now: the time.
    """
    if due_at >= HELD_UNTIL:
        return None
    wanted = asked
    if at_most is not None and asked - began > at_most:
        wanted = began + at_most
    return wanted if wanted > due_at and wanted > now else None

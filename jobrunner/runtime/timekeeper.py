"""The timekeeper: notices that clocks were wrong, and has what they left behind set right (`storage.workers.repairs`).

This machine's wall clock is compared with its monotonic one: where it fell behind by more than clocks may differ, it
went back, and everything is gone through before the next claim. What other machines, or hands, have written is looked
for once a tick interval; an idle tick asks along with what it asks anyway. Either is one line in the log.

Each time that the wall clock was set, forward or back, is noted in the audit log: what history says of that time is
wrong, and whoever reads it can know.
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import TYPE_CHECKING

from jobrunner.errors import DatabaseError
from jobrunner.policy import clocks
from jobrunner.policy.durations import show_seconds
from jobrunner.policy.schedule import CLOCK_TOLERANCE
from jobrunner.policy.words import counted
from jobrunner.storage.workers import repairs
from jobrunner.storage.workers.clock_steps import ClockStep, note_steps
from jobrunner.telemetry import events as e

if TYPE_CHECKING:
    from jobrunner.runtime.clock import Clock
    from jobrunner.storage.database.database import Database
    from jobrunner.storage.workers.repairs import Repaired

_NAMED = 3
AGREE_AGAIN_SECONDS = 30.0
"""So long other nodes are given to beat by a clock that was set for all of them before it is told that they differ."""
_ASK_AGAIN_SECONDS = 1.0
_STEP_SECONDS = 0.5  # what changes less between two looks is how clocks drift and are slewed
_READ_SECONDS = 0.05  # two clocks that are read further apart tell nothing: the process stood still between them


class Timekeeper:
    """See the module. `interval`: seconds between two looks."""

    def __init__(self, db: Database, clock: Clock, events: e.Events, interval: float) -> None:
        self._db = db
        self._clock = clock
        self._events = events
        self._interval = interval
        self._offset = -math.inf  # of the wall clock from the monotonic one, at its latest
        self._last_offset: float | None = None
        self._steps: list[ClockStep] = []  # not in the audit log yet
        self._gone_back = 0.0  # seconds; what has to be told once the sweep is done
        self._must_sweep = True  # at the start, too
        self._next_look_at = -math.inf
        self._disagreeing_since: float | None = None
        self._told_of: str | None = None

    @property
    def is_look_due(self) -> bool:
        """Say whether it is time to look, or the wall clock was seen to go back."""
        self._compare()
        return self._clock.monotonic() >= self._next_look_at

    @property
    def seconds_left(self) -> float:
        """Return how long it is until the next look."""
        return max(0.0, self._next_look_at - self._clock.monotonic())

    async def before_claims(self, node_id: str) -> None:
        """Do what has to be done before anything is claimed, if this machine's clock was set; else nothing.

        Raises:
            DatabaseError: the database cannot be used; it is to be done still.
        """
        self._compare()
        if self._steps:
            await note_steps(self._db, node_id, self._steps)
            self._steps.clear()
        if self._must_sweep and self.is_look_due:
            await self.look(node_id)

    def _compare(self) -> None:
        read_at, now = self._clock.monotonic(), self._clock.now()
        if self._clock.monotonic() - read_at > _READ_SECONDS:
            return
        offset = now.timestamp() - read_at
        if self._last_offset is not None and abs(offset - self._last_offset) > _STEP_SECONDS:
            self._steps.append(ClockStep(clocks.shifted(now, timedelta(seconds=self._last_offset - offset)), now))
        self._last_offset = offset
        if offset > self._offset:
            self._offset = offset
        elif self._offset - offset > CLOCK_TOLERANCE.total_seconds():
            self._gone_back += self._offset - offset
            self._offset = offset
            self._must_sweep = True
            self._next_look_at = -math.inf

    async def look(self, node_id: str) -> bool:
        """Set right what is wrong; say whether anything was.

        Raises:
            DatabaseError: the database cannot be used; the look is due still.
        """
        is_wrong = self._must_sweep or await repairs.find_ahead(self._db, self._clock.now())
        was_set_right = False
        try:
            was_set_right = is_wrong and await self._set_right(node_id)
        except DatabaseError:
            raise
        except (ArithmeticError, ValueError) as error:  # some row's values: they hold up nothing else
            self._must_sweep = False
            self._warn(f"what lies too far ahead could not be set right: {type(error).__name__}: {error}")
        self.looked()
        if self._disagreeing_since is not None and self._told_of is None:
            self._next_look_at = self._clock.monotonic() + min(self._interval, _ASK_AGAIN_SECONDS)
        return was_set_right

    def looked(self) -> None:
        """Note that a look has found nothing wrong, or set it right."""
        self._next_look_at = self._clock.monotonic() + self._interval

    async def _set_right(self, node_id: str) -> bool:
        """Set right what is wrong, unless a node that lives by a later clock would undo it."""
        now = self._clock.now()
        later = await repairs.later_node(self._db, now, node_id)
        if later is not None:
            self._tell_of(*later)
            return False
        self._disagreeing_since = self._told_of = None
        repaired = await (repairs.sweep if self._must_sweep else repairs.repair)(self._db, now)
        gone_back, self._gone_back, self._must_sweep = self._gone_back, 0.0, False
        if gone_back:
            what = _said(repaired) or "no schedule and no wait"
            self._warn(f"the clock went back by {show_seconds(gone_back)}; computed again: {what}")
        elif not repaired.is_nothing:
            self._warn(f"further ahead than can be, by another clock or by hand; computed again: {_said(repaired)}")
        return not repaired.is_nothing

    def _tell_of(self, host: str, seconds: float) -> None:
        now = self._clock.monotonic()
        if self._disagreeing_since is None:
            self._disagreeing_since = now
        if self._told_of != host and now - self._disagreeing_since >= AGREE_AGAIN_SECONDS:
            self._told_of = host
            how = f"the clock of a node on {host} is {show_seconds(seconds)} ahead of this one's"
            self._warn(f"{how}; set the clocks right: until then what lies too far ahead is left as it is")

    def _warn(self, message: str) -> None:
        self._events.emit(e.Warned(message))


def _said(repaired: Repaired) -> str:
    parts = [
        _named(repaired.schedules, "next time"),
        _named(repaired.pauses, "pause"),
        _named(repaired.cooldowns, "cooldown"),
        counted(repaired.runs, "waiting run") if repaired.runs else "",
    ]
    return ", ".join(part for part in parts if part)


def _named(names: list[str], what: str) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
    return f"{counted(len(names), what)} ({shown})"

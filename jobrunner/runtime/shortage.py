"""A node that has nothing to start code with: no thread, no process, no descriptor to spare.

It is trouble of the node's machine and none of the run's, which is given back and keeps its try. So that it is not
claimed again at once, it is due a moment later: 1 s at first, twice as long each time that trouble lasts, at most 30 s.
Others, which need nothing that is short, start meanwhile; another node may take the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobrunner.telemetry import events as e

if TYPE_CHECKING:
    from jobrunner.runtime.clock import Clock

FIRST_SECONDS = 1.0
LONGEST_SECONDS = 30.0
QUIET_SECONDS = 60.0  # at most so often is it told of


class Shortage:
    """Says when to try again what could not be started."""

    def __init__(self, clock: Clock, events: e.Events) -> None:
        self._clock = clock
        self._events = events
        self._delay = 0.0
        self._until: float | None = None
        self._told_at: float | None = None

    @property
    def is_waiting(self) -> bool:
        """Say whether runs given back for it may not be due yet: the node is not idle."""
        return self._until is not None and self._clock.monotonic() < self._until + FIRST_SECONDS

    def failed(self, reason: str) -> float:
        """Note that code could not be started; return after how many seconds its run may be claimed again.

        What fails together waits together: the next failure after that is the trouble's next time.
        """
        now = self._clock.monotonic()
        if self._until is None or now >= self._until:
            self._delay = min(self._delay * 2 or FIRST_SECONDS, LONGEST_SECONDS)
            self._until = now + self._delay
        if self._told_at is None or now - self._told_at >= QUIET_SECONDS:
            self._told_at = now
            self._events.emit(e.Warned(f"{reason}; such runs are given back and tried again, no attempt is used up"))
        return self._until - now

    def worked(self) -> None:
        """Note that code could be started."""
        self._delay = 0.0

"""Workers set aside: their rows make a pass of the tick fail, in a way that nobody has thought of.

What can be foreseen is refused by the database, or read as what it is. This is for the rest: a worker that makes the
pass fail is left out of it, told once, and tried again after a while, since somebody may have mended its rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobrunner.storage.database.dialect import first_line
from jobrunner.telemetry import events as e

if TYPE_CHECKING:
    from jobrunner.runtime.clock import Clock

TRY_AGAIN_SECONDS = 30.0


class SetAside:
    """Who is set aside now."""

    def __init__(self, clock: Clock, events: e.Events) -> None:
        self._clock = clock
        self._events = events
        self._until: dict[str, float] = {}
        self._told: dict[str, str] = {}

    @property
    def names(self) -> frozenset[str]:
        """The workers that a pass must leave out."""
        if not self._until:
            return frozenset()
        now = self._clock.monotonic()
        self._until = {name: until for name, until in self._until.items() if until > now}
        return frozenset(self._until)

    def add(self, name: str, error: Exception) -> None:
        """Set a worker aside for the error that its rows have caused."""
        self._until[name] = self._clock.monotonic() + TRY_AGAIN_SECONDS
        problem = f"{type(error).__name__}: {first_line(error)}"
        if self._told.get(name) != problem:
            self._told[name] = problem
            self._events.emit(e.Warned(f"{name} is set aside, its rows cannot be used: {problem}"))

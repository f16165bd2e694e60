"""A clock that stands still until it is told to move."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from typing import Any


class ManualClock:
    """Implements `jobrunner.runtime.clock.Clock`; safe to use from any thread.

    Time passes in `advance` only; `step` sets the wall clock.
    """

    def __init__(self, start: datetime = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)) -> None:
        if start.tzinfo is None:
            raise ValueError("start must be an aware time; add a time zone")
        self._start = start.astimezone(UTC)
        self._passed = timedelta()
        self._sleepers: dict[asyncio.Future[None], timedelta] = {}  # each with the time at which it wakes
        self._lock = threading.Lock()

    def now(self) -> datetime:
        """Return the clock's time, UTC."""
        return self._start + self._passed

    def monotonic(self) -> float:
        """Return how many seconds have passed."""
        return self._passed.total_seconds()

    @property
    def sleepers(self) -> int:
        """How many wait for time to pass."""
        return len(self._sleepers)

    async def sleep(self, seconds: float) -> None:
        """Wait until `seconds` have passed."""
        sleeping = self._sleeper(seconds)
        try:
            await sleeping
        finally:
            self._sleepers.pop(sleeping, None)

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        """Wait for `event`, until `seconds` have passed at the latest."""
        waiting = asyncio.ensure_future(event.wait())
        sleeping = self._sleeper(seconds)
        both: set[asyncio.Future[Any]] = {waiting, sleeping}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            self._sleepers.pop(sleeping, None)

    def advance(self, seconds: float) -> datetime:
        """Let `seconds` pass, wake everyone whose time has come, and return the time it is then."""
        if seconds < 0:
            raise ValueError(f"time goes forward only, not by {seconds!r} seconds")
        with self._lock:
            self._passed += timedelta(seconds=seconds)
            due = [sleeper for sleeper, at in self._sleepers.items() if at <= self._passed]
            due.sort(key=self._sleepers.__getitem__)
            for sleeper in due:
                del self._sleepers[sleeper]
        for sleeper in due:
            loop = sleeper.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(_wake, sleeper)
        return self.now()

    def step(self, seconds: float) -> datetime:
        """Set the wall clock ahead, or with less than 0 back: no time passes, nobody wakes. Return what it shows."""
        with self._lock:
            self._start += timedelta(seconds=seconds)
        return self.now()

    def _sleeper(self, seconds: float) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        sleeper: asyncio.Future[None] = loop.create_future()
        if seconds <= 0:
            loop.call_soon(_wake, sleeper)
            return sleeper
        with self._lock:
            self._sleepers[sleeper] = self._passed + timedelta(seconds=seconds)
        return sleeper


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)

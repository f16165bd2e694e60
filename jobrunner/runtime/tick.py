"""The tick loop: claim what is due, start it, sleep until there is something to do.

The loop sleeps until the next due time, a wake-up or `tick_interval`, whichever is first. A wake-up is a free slot, a
trigger of this process, or word from the database that someone else changed something. Such word may come a moment
before the change it tells of can be seen by us, or be throttled by the database; so the loop looks once more shortly
after each.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from jobrunner.errors import DatabaseError
from jobrunner.storage.claims import Claim, Claimer, claim_due

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from jobrunner.runtime.clock import Clock
    from jobrunner.runtime.outage import Outage
    from jobrunner.storage.database import Database

SECOND_LOOK_SECONDS = 0.012
LOCKED_PAUSE_SECONDS = 0.01


class Ticker:
    """Claims and starts; `start` is called with each claim, `free_slots` says how many the node can take."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        outage: Outage,
        claimer: Claimer,
        tick_interval: float,
        free_slots: Callable[[], int],
        start: Callable[[Claim], None],
    ) -> None:
        self._db = db
        self._clock = clock
        self._outage = outage
        self._claimer = claimer
        self._tick_interval = tick_interval
        self._free_slots = free_slots
        self._start = start
        self._woken = asyncio.Event()
        self._second_look: asyncio.TimerHandle | None = None
        self.last_tick_at: datetime | None = None
        self.ticks = 0
        self.found_nothing = asyncio.Event()
        self._at_rest = asyncio.Event()
        self._at_rest.set()

    @property
    def is_ticking(self) -> bool:
        """Say whether a pass is under way, and with it perhaps a claim that nobody knows of yet."""
        return not self._at_rest.is_set()

    async def at_rest(self) -> None:
        """Wait for the end of the pass that is under way, if there is one."""
        await self._at_rest.wait()

    def claim_as(self, claimer: Claimer) -> None:
        """Claim in another name from now on."""
        self._claimer = claimer

    def wake(self) -> None:
        """Tick as soon as possible."""
        self._woken.set()

    def wake_from_outside(self) -> None:
        """Tick now, and once more a moment later; see the module."""
        self._woken.set()
        if self._second_look is None:
            self._second_look = asyncio.get_running_loop().call_later(SECOND_LOOK_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self._second_look = None
        self._woken.set()

    async def run(self) -> None:
        """Tick until cancelled."""
        failures = 0
        while True:
            self._woken.clear()
            try:
                pause = await self.tick()
            except DatabaseError as error:
                failures += 1
                self._outage.failed(error)
                await self._outage.pause(failures)
                continue
            failures = 0
            if pause > 0:
                await self._clock.wait(self._woken, pause)

    async def tick(self) -> float:
        """Do one pass; return for how many seconds there is nothing to do."""
        self._at_rest.clear()
        try:
            return await self._pass()
        finally:
            self._at_rest.set()

    async def _pass(self) -> float:
        free = self._free_slots()
        self.ticks += 1
        if free <= 0:
            self.last_tick_at = self._clock.now()
            return self._tick_interval
        claimed = await claim_due(self._db, self._claimer, free, self._clock.now)
        self._outage.worked()
        self.last_tick_at = self._clock.now()
        for claim in claimed.claims:
            self._start(claim)
        if claimed.claims:
            return 0.0
        if claimed.has_more:
            return LOCKED_PAUSE_SECONDS
        self.found_nothing.set()
        if claimed.next_due_at is None:
            return self._tick_interval
        until = (claimed.next_due_at - self._clock.now()).total_seconds()
        return min(until, self._tick_interval)

    def close(self) -> None:
        """Forget a planned second look."""
        if self._second_look is not None:
            self._second_look.cancel()

"""Which code blocks a node's loop, seen from another thread: what runs in a loop that is blocked cannot tell.

While handlers' code runs in the loop, this watch asks it for a sign, five times a second. A loop that has not given one
for a second is blocked, and that is said: with the worker whose code the loop's thread is in, after 1 s, 2 s, 4 s …

Code that keeps the interpreter to itself (a regular expression, say) holds up this thread, too, which finds out when it
goes on: the process has computed meanwhile. A process that has not was stopped as a whole, and nobody is to blame.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from jobrunner.model.worker import Isolation
from jobrunner.runtime.executors.inline import worker_in
from jobrunner.telemetry import events as e

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping

    from jobrunner.model.run import ClaimKey
    from jobrunner.runtime.attempt import Attempt

ANSWER_SECONDS = 0.5
BLOCKED_SECONDS = 1.0
_LOOK_SECONDS = 0.2
_HELD_UP_SECONDS = 0.5
"""A look that comes so late tells that this thread was held up itself."""


class LoopWatch:
    """See the module. Made in the loop's own thread; `held` are the node's attempts."""

    def __init__(self, loop: asyncio.AbstractEventLoop, held: Mapping[ClaimKey, Attempt], events: e.Events) -> None:
        self._loop = loop
        self._loops_thread = threading.get_ident()
        self._held = held
        self._events = events
        self._stopped = threading.Event()
        self._answered: threading.Event | None = None  # by which the loop gives its sign; None: it was not asked
        self._asked_at = time.monotonic()
        self._suspects: list[str] = []
        self._say_after = BLOCKED_SECONDS
        self._said_at = -BLOCKED_SECONDS
        self._looked_at, self._computed = time.monotonic(), time.process_time()

    def start(self) -> None:
        """Watch from a thread of its own, until `stop`."""
        threading.Thread(target=self._body, name="jobrunner:loop-watch", daemon=True).start()

    def stop(self) -> None:
        """Stop watching, soon."""
        self._stopped.set()

    def blockers(self) -> list[str]:
        """Name the workers whose code runs in the loop, if that does not answer within half a second.

        It is the one that the loop's thread is in, or all, where that cannot be seen.
        """
        if self._ask().wait(ANSWER_SECONDS):
            return []
        return self._culprits(self._inline())

    def _body(self) -> None:
        while not self._stopped.wait(_LOOK_SECONDS):
            self._look(time.monotonic(), time.process_time())

    def _look(self, now: float, computed: float) -> None:
        late, worked = now - self._looked_at, computed - self._computed
        self._looked_at, self._computed = now, computed
        is_held_up = late > _HELD_UP_SECONDS
        if is_held_up and worked < late / 5:  # the whole process stood still, or got little of a busy machine
            self._asked_at = now
        silence = now - self._asked_at
        has_answered = self._answered is None or self._answered.is_set()
        if silence >= self._say_after and (not has_answered or is_held_up):
            self._say(now, silence)
        if has_answered:
            self._suspects = self._inline()
            self._asked_at, self._say_after = now, BLOCKED_SECONDS
            self._answered = self._ask() if self._suspects else None

    def _say(self, now: float, silence: float) -> None:
        self._say_after = 2 * silence
        culprits = self._culprits(self._suspects or self._inline(now - BLOCKED_SECONDS))
        if culprits and now - self._said_at >= BLOCKED_SECONDS:
            self._said_at = now
            self._events.emit(e.LoopBlocked(silence, tuple(culprits)))

    def _ask(self) -> threading.Event:
        answered = threading.Event()
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(answered.set)
        return answered

    def _inline(self, begun_by: float = math.inf) -> list[str]:
        """Name the workers of which code runs in the loop, begun at that time (monotonic seconds) at the latest."""
        claims = [attempt.claim for attempt in dict(self._held).values() if attempt.began <= begun_by]
        return sorted({claim.run.worker for claim in claims if claim.config.isolation is Isolation.INLINE})

    def _culprits(self, suspects: list[str]) -> list[str]:
        worker = worker_in(sys._current_frames().get(self._loops_thread)) if suspects else None
        return suspects if worker is None else [worker]

"""Pages that were made a moment ago, for whoever asks for the same: many open tabs cost the database what one does.

A page is kept while nothing has changed (`Stream.generation`), for a minute at most; while nobody listens, so that
nobody looks whether anything has changed, for one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from jobrunner.runtime.clock import Clock

LONGEST_SECONDS = 60.0
UNWATCHED_SECONDS = 1.0
_MOST_BYTES = 32 * 1024 * 1024

Make = Callable[[], Awaitable[bytes]]


class KeptPages:
    """What was made, for each event loop that asks."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = WeakKeyDictionary()

    async def get(self, key: Hashable, generation: int | None, make: Make) -> bytes:
        """Return the page of a key, made by `make` if there is none of that generation; None: nobody watches.

        Whoever asks while it is being made waits for that one.
        """
        here = self._loops.setdefault(asyncio.get_running_loop(), _Loop())
        turn = here.turns.setdefault(key, asyncio.Lock())
        try:
            async with turn:
                now = self._clock.monotonic()
                found = here.pages.get(key)
                longest = UNWATCHED_SECONDS if generation is None else LONGEST_SECONDS
                if found is not None and found[0] == generation and now - found[1] < longest:
                    return found[2]
                made = await make()
                here.keep(key, (generation, now, made))
                return made
        finally:
            if not turn.locked():
                here.turns.pop(key, None)


class _Loop:
    def __init__(self) -> None:
        self.turns: dict[Hashable, asyncio.Lock] = {}
        self.pages: dict[Hashable, tuple[int | None, float, bytes]] = {}
        self._size = 0

    def keep(self, key: Hashable, page: tuple[int | None, float, bytes]) -> None:
        self._size += len(page[2]) - len(self.pages.pop(key, (None, 0.0, b""))[2])
        self.pages[key] = page
        while self._size > _MOST_BYTES and len(self.pages) > 1:
            oldest = next(iter(self.pages))
            self._size -= len(self.pages.pop(oldest)[2])

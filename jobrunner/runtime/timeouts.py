"""Timeouts of many attempts with one timer for each length: most end long before, and a timer each would cost more.

Attempts of one length time out in the order in which they began; so only the first of each length needs a timer.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Timeouts:
    """Calls back what has not been taken off in time."""

    def __init__(self) -> None:
        self._waiting: dict[float, dict[Callable[[], None], float]] = {}

    def add(self, seconds: float, call: Callable[[], None]) -> None:
        """Call `call` after so many seconds, on the running loop."""
        loop = asyncio.get_running_loop()
        waiting = self._waiting.get(seconds)
        if waiting is None:
            waiting = self._waiting[seconds] = {}
            loop.call_later(seconds, self._look, seconds)
        waiting[call] = loop.time() + seconds

    def remove(self, seconds: float, call: Callable[[], None]) -> None:
        """Take it off, if it is still there."""
        waiting = self._waiting.get(seconds)
        if waiting is not None:
            waiting.pop(call, None)

    def _look(self, seconds: float) -> None:
        """Call what is due; look again when the next one is, or not at all once none waits."""
        loop = asyncio.get_running_loop()
        waiting = self._waiting[seconds]
        now = loop.time()
        for call in [call for call, at in waiting.items() if at <= now]:
            if waiting.pop(call, None) is not None:  # not taken off by one of those before it
                _call(loop, call)
        if waiting:
            loop.call_at(next(iter(waiting.values())), self._look, seconds)
        else:
            del self._waiting[seconds]


def _call(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    """Call one back; that it fails is told, and keeps no other waiting."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - whatever it is, the others of this length time out, too
        loop.call_exception_handler({"message": "a timeout could not be told", "exception": error})

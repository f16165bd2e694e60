"""A form that is sent twice is done once: whoever clicks twice at a slow moment gets one run, and one answer twice.

Each form has a token of its own. What was done with it is kept for a while, in this process.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

FIELD = "once"
_MOST_KEPT = 2000


def new_token() -> str:
    """Return a token for a form."""
    return secrets.token_urlsafe(12)


class Turn:
    """One sending of a form: `said` is what was done before with its token; set it when it is done."""

    def __init__(self, said: Mapping[str, str] | None) -> None:
        self.said = said


class Once:
    """What was done with which token."""

    def __init__(self) -> None:
        self._done: dict[str, Mapping[str, str]] = {}
        self._turns: dict[str, asyncio.Lock] = {}

    @asynccontextmanager
    async def turn(self, key: str | None) -> AsyncIterator[Turn]:
        """Let one sending of a key at a time inside the block; None: of a form without a token, each is done."""
        if key is None:
            yield Turn(None)
            return
        lock = self._turns.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                made = Turn(self._done.get(key))
                yield made
                if made.said is not None:
                    self._done[key] = made.said
                    while len(self._done) > _MOST_KEPT:
                        del self._done[next(iter(self._done))]
        finally:
            if not lock.locked():
                self._turns.pop(key, None)

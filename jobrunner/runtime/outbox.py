"""The outbox: how attempts ended, each kept until its write is acknowledged.

Simple ends (`policy.fast_path`) wait for the ticker's next turn, where there is a fast path; all others wait for the
recorder. What a turn did not write goes to the recorder, too.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from jobrunner.storage.turns.turn import is_simple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from jobrunner.storage.runs.finishes import Ended


class Outbox:
    """Ends that wait to be written."""

    def __init__(self) -> None:
        self._on_simple: Callable[[], None] | None = None
        self._simple: list[Ended] = []
        self._others: list[Ended] = []
        self._open = 0
        self._has_others = asyncio.Event()
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    def keep_simple(self, on_simple: Callable[[], None]) -> None:
        """Keep simple ends for `take_simple` from now on; `on_simple` is called for each."""
        self._on_simple = on_simple

    def keep_none(self) -> None:
        """Leave all ends to the recorder from now on: there is no fast path."""
        self._on_simple = None
        self._leave_to_recorder(self._simple)
        self._simple = []

    def put(self, ended: Ended) -> None:
        """Hand over how an attempt ended."""
        self._open += 1
        self._is_empty.clear()
        if self._on_simple is not None and is_simple(ended):
            self._simple.append(ended)
            self._on_simple()
        else:
            self._leave_to_recorder([ended])

    def take_simple(self) -> list[Ended]:
        """Hand out the simple ends that wait; whoever takes them settles them."""
        ended, self._simple = self._simple, []
        return ended

    def settle(self, taken: list[Ended], written: Collection[int]) -> list[Ended]:
        """Acknowledge, of simple ends taken, those whose runs' ids are `written`, and return them."""
        done = [item for item in taken if item.run.id in written]
        if len(done) < len(taken):
            self._leave_to_recorder([item for item in taken if item.run.id not in written])
        return done

    async def take_others(self, most: int) -> list[Ended]:
        """Wait for ends that the recorder is to write; hand out at most `most`."""
        await self._has_others.wait()
        batch, self._others = self._others[:most], self._others[most:]
        if not self._others:
            self._has_others.clear()
        return batch

    def put_back(self, item: Ended) -> None:
        """Take back an end that the recorder could not write."""
        self._leave_to_recorder([item])

    def acknowledge(self, number: int) -> None:
        """So many ends are written, or need not be any more."""
        self._open -= number
        if not self._open:
            self._is_empty.set()

    async def empty(self) -> None:
        """Wait until every end handed over so far is acknowledged."""
        await self._is_empty.wait()

    def _leave_to_recorder(self, ended: list[Ended]) -> None:
        self._others += ended
        if ended:
            self._has_others.set()
